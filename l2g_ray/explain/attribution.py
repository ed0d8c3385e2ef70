"""Contributions of every base to one output of a trained model, and how well they add up."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from l2g_ray.errors import UserError, nearest
from l2g_ray.explain.mutagenesis import saturation_mutagenesis
from l2g_ray.explain.rules import apply_rules, extra_rules, shuffle_dinucleotides
from l2g_ray.extras import need
from l2g_ray.models.baselines import SmallCNN
from l2g_ray.models.embedder import EmbedderNet
from l2g_ray.models.ensemble import AverageModel, MeanOutputs
from l2g_ray.models.l2g import L2GModel
from l2g_ray.predict import naming_memory
from l2g_ray.sequence import N_CODE, make_mask, one_hot, reverse_complement
from l2g_ray.stages.parts import RowsAtOnce
from l2g_ray.tasks.schema import Task

Method = Callable[["Pairs"], torch.Tensor]


def make_multipliers(
    name: str,
    explained: ExplainedOutput,
    apply_rules: Callable[[nn.Module], nn.Module],
    *,
    steps: int,
    seed: int,
) -> Method:
    """Return the method of a name, ready for an output. Raises UserError where `captum` or a rule is missing."""
    if name == "deeplift-shap":
        return _make_deeplift_shap(explained, apply_rules)
    if name == "mutagenesis":
        return _make_mutagenesis(explained)
    return _make_captum(name, explained, steps, seed)


def project(multipliers: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """Multipliers and references (b, n, 4, length) to hypothetical contributions (b, length, 4)."""
    return (multipliers - (multipliers * references).sum(2, keepdim=True)).mean(1).transpose(1, 2)


def _make_deeplift_shap(explained: ExplainedOutput, apply_rules: Callable[[nn.Module], nn.Module]) -> Method:
    need("explain", "deeplift-shap", "tangermeme")
    from tangermeme.deep_lift_shap import deep_lift_shap

    ruled = copy.copy(explained)
    ruled._modules = {**explained._modules, "model": apply_rules(explained.model)}
    rules = extra_rules(ruled)

    def compute(pairs: Pairs) -> torch.Tensor:
        with warnings.catch_warnings():
            # Completeness is measured and reported by us, for all sequences at once; N is zero in our one-hot.
            warnings.simplefilter("ignore")
            found = deep_lift_shap(
                ruled,
                pairs.x,
                args=None if pairs.mask is None else (pairs.mask,),
                references=pairs.r,
                batch_size=pairs.batch_size,
                additional_nonlinear_ops=rules,
                raw_outputs=True,
                only_warn=True,
                device=pairs.x.device,
            )
        return project(found.to(pairs.r.device), pairs.r)

    return compute


def _make_captum(name: str, explained: ExplainedOutput, steps: int, seed: int) -> Method:
    need("explain", name, "captum")
    from captum.attr import DeepLift, GradientShap, IntegratedGradients

    def integrate(x: torch.Tensor, r: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        return IntegratedGradients(explained, multiply_by_inputs=False).attribute(
            x, r, n_steps=steps, internal_batch_size=len(x), additional_forward_args=mask
        )

    def lift(x: torch.Tensor, r: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        # As most people run it: no rules but captum's own.
        return DeepLift(explained, multiply_by_inputs=False).attribute(x, r, additional_forward_args=mask)

    def sample(x: torch.Tensor, r: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        # One pair at a time: captum draws each sequence's baselines from all that it is given.
        method = GradientShap(explained, multiply_by_inputs=False)
        own = range(len(x))
        masks = [None if mask is None else mask[i : i + 1] for i in own]
        return torch.cat(
            [
                method.attribute(
                    x[i : i + 1], r[i : i + 1], n_samples=steps, stdevs=0.0, additional_forward_args=masks[i]
                )
                for i in own
            ]
        )

    methods = {"integrated-gradients": integrate, "deeplift": lift, "gradient-shap": sample}
    if name not in methods:
        raise ValueError(f"no method '{name}'")
    explained.requires_grad_(False)

    def compute(pairs: Pairs) -> torch.Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # captum's, about the hooks that it sets
            with _seeded(seed):
                found = [methods[name](x.requires_grad_(), r, mask) for x, r, mask in pairs.flatten()]
        return project(torch.cat(found).detach().view_as(pairs.r), pairs.r)

    return compute


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """GradientShap draws from the global generators of torch and numpy."""
    state = np.random.get_state()
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            np.random.seed(seed)
            yield
    finally:
        np.random.set_state(state)


def _make_mutagenesis(explained: ExplainedOutput) -> Method:

    def compute(pairs: Pairs) -> torch.Tensor:
        device = pairs.x.device

        def score(codes: torch.Tensor, lengths_bp: torch.Tensor) -> np.ndarray:
            return evaluate(explained, codes.numpy(), lengths_bp.numpy(), device, pairs.batch_size)[:, None]

        _, mutants = saturation_mutagenesis(score, pairs.codes.numpy(), pairs.lengths_bp.numpy())
        values = torch.from_numpy(mutants[..., 0]).nan_to_num(0.0).float().to(device)
        # Centred at each position, so that the bases' effects compare.
        return values - values.mean(2, keepdim=True)

    return compute


METHODS = ("deeplift-shap", "integrated-gradients", "gradient-shap", "deeplift", "mutagenesis")
BY_CAPTUM = METHODS[1:4]
WARN_ABOVE = 1e-2
# Bases of sequences and references that go through the model at once: about 1 GB for the widest backbones.
_BATCH_BP = 16_384
_SEQUENCES_AT_ONCE = 32


class ExplainedOutput(nn.Module):
    """A model reduced to the one number that is explained: a weighted sum of its outputs (n_outputs,)."""

    weights: torch.Tensor

    def __init__(self, model: nn.Module, weights: torch.Tensor) -> None:
        super().__init__()
        if not reads_one_hot(model):
            raise UserError(
                f"a model of the form {type(model).__name__} has no contributions of bases; explain an arm that reads one-hot "
                "(l2g, embedder_only, cnn) or is linear in k-mers (gapped_kmer, positional_kmer)"
            )
        self.model = model
        self.in_channels = int(model.in_channels)  # type: ignore[arg-type]
        self.register_buffer("weights", weights.float())

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Map one-hot (batch, 4, length), N and padding all zero, and mask (batch, 1, length) or None, to (batch,
        1).
        """
        if self.in_channels > 4:
            # The channel of N, as a linear function of the others.
            x = torch.cat([x, (1.0 if mask is None else mask) - x.sum(1, keepdim=True)], 1)
        outputs: torch.Tensor = self.model.forward_one_hot(x, mask)
        return outputs @ self.weights[:, None]


def reads_one_hot(model: nn.Module) -> bool:
    """Return whether a model can be reduced to an `ExplainedOutput`."""
    if isinstance(model, AverageModel | MeanOutputs):
        return all(reads_one_hot(member) for member in model.members)
    return isinstance(model, L2GModel | EmbedderNet | SmallCNN)


@dataclass(frozen=True)
class Attributions:
    """Of n sequences, in their order: `codes` (n, length) right-padded, `lengths_bp` (n,), `hypothetical`
    (n, length, 4), `values` f(x) (n,) and `reference_values` mean f(r) (n,); `method` and `output` by name.

    `observed_only`: `hypothetical` is 0 for bases other than the observed one, whose contributions are undefined, and the
    reference value is the model's bias.
    """

    codes: np.ndarray
    lengths_bp: np.ndarray
    hypothetical: np.ndarray
    values: np.ndarray
    reference_values: np.ndarray
    method: str
    output: str
    observed_only: bool = False

    @property
    def one_hot(self) -> np.ndarray:
        """(n, length, 4) float32; N and padding are zero."""
        return np.eye(5, 4, dtype=np.float32)[self.codes]

    @property
    def contributions(self) -> np.ndarray:
        """Contribution of the observed base, (n, length); 0 for N and padding."""
        return (self.hypothetical * self.one_hot).sum(2)

    @property
    def completeness_errors(self) -> np.ndarray:
        """|sum of contributions - (f(x) - mean f(r))| / |f(x) - mean f(r)|, (n,)."""
        difference = self.values - self.reference_values
        error = np.abs(self.contributions.sum(1, dtype=np.float64) - difference)
        return error / np.maximum(np.abs(difference), np.finfo(np.float32).tiny)


def choose_output(task: Task, name: str | None) -> list[int]:
    """Return the outputs that a name, or the unique beginning of one, means; all of them for None, the second of a
    binary task.

    Raises UserError for a name that no output, or more than one, begins with, and for None with more than four outputs.
    """
    labels = list(task.labels)
    if name is None:
        if task.kind == "binary":
            return [1]
        if len(labels) > 4:
            raise UserError(
                f"task '{task.name}' has {len(labels)} outputs; choose one of: {', '.join(labels[:8])}, ..."
            )
        return list(range(len(labels)))
    matches = [i for i, label in enumerate(labels) if label == name] or [
        i for i, label in enumerate(labels) if label.lower().startswith(name.lower())
    ]
    if len(matches) == 1:
        return matches
    found = (
        f"means {', '.join(labels[i] for i in matches[:5])}" if matches else f"is no output ({nearest(name, labels)})"
    )
    raise UserError(f"target '{name}' {found}; choose one of task '{task.name}'")


def make_weights(task: Task, output: int) -> torch.Tensor:
    """Return weights (n_outputs,) of what is explained: the value or logit itself; for exclusive classes its logit
    minus the mean of the others', since only differences of logits move a softmax (binary: the log-odds).
    """
    weights = torch.zeros(task.n_outputs)
    if task.is_classification:
        weights -= 1 / (task.n_outputs - 1)
    weights[output] = 1.0
    return weights


def describe_output(task: Task, output: int) -> str:
    """Return what the explained number is, in words."""
    if task.kind == "binary":
        return "log-odds"
    return {"multiclass": "logit minus mean logit of the other classes", "multilabel": "logit"}.get(task.kind, "value")


def attribute(
    model: nn.Module,
    codes: np.ndarray,
    lengths_bp: np.ndarray,
    weights: torch.Tensor,
    *,
    method: str = "deeplift-shap",
    n_references: int = 20,
    seed: int = 0,
    rc_average: bool = False,
    output: str = "",
    device: str | torch.device = "cpu",
    batch_size: int | None = None,
    steps: int = 20,
    progress: Callable[[int], None] = lambda done: None,
) -> Attributions:
    """Contributions to `weights` (n_outputs,) times the outputs of a stored model.

    Parameters
    ----------
    codes, lengths_bp : right-padded sequences (n, length) and their lengths (n,), as `sequence.encode` gives them.
    n_references : dinucleotide shuffles of each sequence, drawn from `seed`.
    rc_average : explain the mean over both strands.
    batch_size : pairs of a sequence and a reference to compute at once; by default as many as take about 1 GB. Halved
        where they do not fit into memory.
    steps : points of the path of integrated gradients; draws a reference of gradient SHAP.
    progress : called with the number of sequences done.

    Raises UserError for a module without a rule (`deeplift-shap`). Memory does not grow with n but for the result.
    """
    plain = ExplainedOutput(model, weights).to(device).eval()
    at_once = RowsAtOnce(batch_size or _BATCH_BP)
    compute = make_multipliers(method, plain, apply_rules, steps=steps, seed=seed)
    n, width = codes.shape
    hypothetical = np.zeros((n, width, 4), np.float32)
    values, reference_values = np.zeros(n), np.zeros(n)
    order = np.argsort(lengths_bp, kind="stable")
    strands = (False, True) if rc_average else (False,)
    for start in range(0, n, _SEQUENCES_AT_ONCE):
        rows = order[start : start + _SEQUENCES_AT_ONCE]
        longest = int(lengths_bp[rows].max())
        own = torch.from_numpy(codes[rows, :longest])
        lengths = torch.from_numpy(np.asarray(lengths_bp)[rows])
        shuffled = torch.from_numpy(
            shuffle_dinucleotides(own.numpy(), lengths.numpy(), n_references, seed, rows.tolist())
        )
        for flipped in strands:
            x, r = own, shuffled
            if flipped:
                x = reverse_complement(x, lengths)
                r = reverse_complement(r.flatten(0, 1), lengths.repeat_interleave(n_references)).view_as(shuffled)
            pairs = Pairs.encode(x, r, lengths, device)

            def explain(size: int, pairs: Pairs = pairs) -> tuple[torch.Tensor, tuple[np.ndarray, np.ndarray]]:
                some = replace(pairs, batch_size=size)
                return compute(some), some.evaluate(plain)

            with naming_memory(torch.device(device), longest):
                found, (ours, theirs) = at_once.attempt(explain, pairs.batch_size)
            if flipped:
                found = _flip(found, lengths)
            hypothetical[rows, :longest] += found.cpu().numpy() / len(strands)
            values[rows] += ours / len(strands)
            reference_values[rows] += theirs / len(strands)
        progress(min(start + _SEQUENCES_AT_ONCE, n))
    # What would stand at N or beyond the end is not asked.
    hypothetical[codes == N_CODE] = 0
    return Attributions(codes, np.asarray(lengths_bp), hypothetical, values, reference_values, method, output)


@torch.no_grad()
def evaluate(
    explained: nn.Module,
    codes: np.ndarray,
    lengths_bp: np.ndarray,
    device: str | torch.device = "cpu",
    batch_size: int | None = None,
) -> np.ndarray:
    """Return the explained value f(x) (n,), in float64, of right-padded codes (n, length); `batch_size` as in
    `attribute`.
    """

    def compute(some: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        own = some.to(device)
        mask = make_mask(lengths.to(device), own.shape[1])
        wide = None if bool(mask.all()) else mask[:, None].float()
        return explained(one_hot(own, mask), wide)[:, 0].double().cpu()

    at_once = RowsAtOnce(min(batch_size or _BATCH_BP, _fitting(codes.shape[1])))
    with naming_memory(torch.device(device), codes.shape[1]):
        return at_once.map(compute, torch.from_numpy(codes), torch.from_numpy(np.asarray(lengths_bp))).numpy()


def _fitting(width: int) -> int:
    return max(1, _BATCH_BP // max(1, width))


@dataclass(frozen=True)
class Pairs:
    """Sequences x (b, 4, length) with references r (b, n, 4, length) and a mask (b, 1, length), None without padding;
    `codes` (b, length) and `lengths_bp` (b,) are those of x. `batch_size` pairs are to be computed at once."""

    codes: torch.Tensor
    lengths_bp: torch.Tensor
    x: torch.Tensor
    r: torch.Tensor
    mask: torch.Tensor | None
    batch_size: int

    @classmethod
    def encode(
        cls, codes: torch.Tensor, references: torch.Tensor, lengths_bp: torch.Tensor, device: str | torch.device
    ) -> Pairs:
        """From codes (b, length) and (b, n, length)."""
        mask = make_mask(lengths_bp, codes.shape[1])
        n = references.shape[1]
        r = one_hot(references.flatten(0, 1), mask.repeat_interleave(n, 0)).unflatten(0, (-1, n))
        wide = None if bool(mask.all()) else mask[:, None].float().to(device)
        x = one_hot(codes, mask).to(device)
        return cls(codes, lengths_bp, x, r.to(device), wide, _fitting(codes.shape[1]))

    def flatten(self) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]:
        """Batches of pairs: x, r (pairs, 4, length) and their mask, sequence by sequence."""
        n = self.r.shape[1]
        owner = torch.arange(len(self.x), device=self.x.device).repeat_interleave(n)
        references = self.r.flatten(0, 1)
        for start in range(0, len(owner), self.batch_size):
            part = owner[start : start + self.batch_size]
            mask = None if self.mask is None else self.mask[part]
            yield self.x[part], references[start : start + self.batch_size], mask

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> tuple[np.ndarray, np.ndarray]:
        """f(x) (b,) and the mean of f over the references (b,), in float64."""
        ours = [model(self.x[i : i + self.batch_size], self._mask(i)) for i in range(0, len(self.x), self.batch_size)]
        theirs = torch.cat([model(r, mask) for _, r, mask in self.flatten()]).double()
        return torch.cat(ours)[:, 0].double().cpu().numpy(), theirs.view(len(self.x), -1).mean(1).cpu().numpy()

    def _mask(self, start: int) -> torch.Tensor | None:
        return None if self.mask is None else self.mask[start : start + self.batch_size]


def _flip(values: torch.Tensor, lengths_bp: torch.Tensor) -> torch.Tensor:
    """Hypothetical contributions (b, length, 4) of reverse complements, turned to the given strand."""
    lengths_bp = lengths_bp.to(values.device)
    source = (lengths_bp[:, None] - 1 - torch.arange(values.shape[1], device=values.device)).clamp(min=0)
    return torch.gather(values, 1, source[..., None].expand_as(values)).flip(2)
