"""Rules of DeepLiftShap for each kind of layer, and the references that contributions are measured from."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from l2g_ray.errors import UserError
from l2g_ray.models import l2g, layers
from l2g_ray.sequence import N_CODE

# Modules that are linear in evaluation mode: their gradient is their multiplier.
_LINEAR = (
    nn.Linear,
    nn.Conv1d,
    nn.modules.batchnorm._BatchNorm,
    nn.modules.dropout._DropoutNd,
    nn.Identity,
    nn.Upsample,
    nn.Embedding,
)
# Of transformers, by name, so that nothing of it is imported for a model without a language model.
_FAMILIES = {"bert": "Bert", "roberta": "Roberta", "mpnet": "MPNet"}
_FAMILY_CONTAINERS = ("Model", "Embeddings", "Encoder", "Layer", "Attention", "SelfOutput", "Intermediate", "Output")
_ACTIVATIONS = {
    "GELUActivation",
    "GELUTanh",
    "NewGELUActivation",
    "SiLUActivation",
    "FastGELUActivation",
    "QuickGELUActivation",
    "AccurateGELUActivation",
    "MishActivation",
}


class RuledAttention(nn.Module):
    """Self-attention of BERT, RoBERTa or MPNet whose softmax and products are modules, and so can carry rules.

    Takes the projections of the module that it replaces; same inputs, same outputs.
    """

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        from tangermeme.deep_lift_shap import BilinearOp

        self.n_heads = int(attention.num_attention_heads)
        mpnet = isinstance(getattr(attention, "q", None), nn.Linear)
        names = ("q", "k", "v") if mpnet else ("query", "key", "value")
        self.query, self.key, self.value = (getattr(attention, name) for name in names)
        self.output = attention.o if mpnet else None
        self.score, self.softmax, self.mix = BilinearOp(), nn.Softmax(-1), BilinearOp()

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_bias: torch.Tensor | None = None,
        **ignored: Any,
    ) -> tuple[torch.Tensor, ...]:
        """Hidden states (batch, N, D) and an additive mask (batch, 1, N, N) to those after attention."""
        query, key, value = (
            projection(hidden_states).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )
        scores = self.score(query / math.sqrt(query.shape[-1]), key.transpose(2, 3))
        if position_bias is not None:
            scores = scores + position_bias
        if attention_mask is not None:
            scores = scores + attention_mask
        mixed = self.mix(self.softmax(scores), value).transpose(1, 2).flatten(2)
        return (mixed, None) if self.output is None else (self.output(mixed),)  # type: ignore[return-value]


def apply_rules(model: nn.Module) -> nn.Module:
    """Return a copy of a model that `ExplainedOutput` takes, in evaluation mode, on which every rule finds its place.

    Same outputs as the model's. Raises UserError for a module that has no rule, by its name.
    """
    ruled = copy.deepcopy(model).eval()
    for module in list(ruled.modules()):
        for name, child in list(module.named_children()):
            if _family_part(child) == "SelfAttention":
                setattr(module, name, RuledAttention(child))
    for module in ruled.modules():
        if isinstance(module, l2g.L2GModel):
            # The form whose mask is a number to add.
            module.language_model.transformer.config._attn_implementation = "eager"
    for name, module in ruled.named_modules():
        _refuse_unruled(name, module)
    return ruled.requires_grad_(False)


def extra_rules(model: nn.Module) -> dict[type[nn.Module], Any]:
    """Rules for modules that `tangermeme` does not know: activations of `transformers` and ours, which work element by element
    (the rescale rule), and the max over positions."""
    from tangermeme.deep_lift_shap import _nonlinear

    rules: dict[type[nn.Module], Any] = {type(m): _nonlinear for m in model.modules() if _is_elementwise(m)}
    return rules | {layers.Highest: _route_highest}


def _route_highest(
    module: nn.Module, grad_input: tuple[torch.Tensor, ...], grad_output: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor]:
    """Return the rescale rule for a max over positions, as `tangermeme` has it for max pooling.

    Sequence or reference, whichever has the larger max: the change of the max goes to the position where it has it, and is
    divided by the change of the input there.
    """
    (x, r), (high, low) = module.input.chunk(2), module.output.chunk(2)  # type: ignore[operator]
    of_x, of_r = grad_output[0].chunk(2)
    place = torch.where(high >= low, x.argmax(-1), r.argmax(-1))[..., None]
    change_out = torch.where(high >= low, of_x, of_r) * (high - low)
    routed = torch.zeros_like(x).scatter_(-1, place, change_out[..., None])
    change = x - r
    half = torch.where(change == 0, grad_input[0].chunk(2)[0], routed / change.masked_fill(change == 0, 1))
    return (torch.cat([half, half]),)


def _refuse_unruled(name: str, module: nn.Module) -> None:
    from tangermeme._deep_lift_utils import _build_nonlinear_ops

    # By exact type: a subclass may compute something else. Our own convolutions and norms do not.
    if type(module) in (*_build_nonlinear_ops(), nn.ModuleList, nn.Sequential, layers.Highest, RuledAttention):
        return
    if layers.Composed in type(module).__bases__:
        return
    if isinstance(module, _LINEAR) or _is_elementwise(module):
        return
    if type(module).__name__ == "BilinearOp" or _family_part(module) in _FAMILY_CONTAINERS:
        return
    raise UserError(
        f"module '{name}' ({type(module).__name__}) has no DeepLIFT rule, so contributions would not add up; "
        "use the method integrated-gradients"
    )


def _is_elementwise(module: nn.Module) -> bool:
    kind = type(module)
    return layers.Elementwise in kind.__bases__ or (
        kind.__module__ == "transformers.activations" and kind.__name__ in _ACTIVATIONS
    )


def _family_part(module: nn.Module) -> str:
    """'Layer' for a BertLayer, RobertaLayer or MPNetLayer of transformers, and so on; '' for anything else."""
    kind = type(module)
    for package, prefix in _FAMILIES.items():
        if kind.__module__.startswith(f"transformers.models.{package}.") and kind.__name__.startswith(prefix):
            return kind.__name__.removeprefix(prefix)
    return ""


def shuffle_dinucleotides(
    codes: np.ndarray, lengths_bp: np.ndarray, n: int = 20, seed: int = 0, rows: Sequence[int] | None = None
) -> np.ndarray:
    """Shuffles of right-padded codes (batch, length) uint8 that keep all dinucleotide counts and both end bases.

    Returns (batch, n, length) uint8. N and padding stay in place: each stretch between them is shuffled separately. A row's
    shuffles depend on `seed` and its number in `rows` (its place by default), not on the rows beside it. A stretch that has no
    other order (a run of one base) comes back as it is.
    """
    shuffled = np.repeat(codes[:, None], n, axis=1)
    for row, length_bp in enumerate(lengths_bp):
        row_seed = np.random.SeedSequence((seed, row if rows is None else int(rows[row]))).generate_state(1)[0]
        for start, end in _find_stretches(codes[row, :length_bp]):
            shuffled[row, :, start:end] = _shuffle(codes[row, start:end], n, int(row_seed) + start)
    return shuffled


def _find_stretches(codes: np.ndarray) -> list[tuple[int, int]]:
    real = np.concatenate([[False], codes != N_CODE, [False]])
    edges = np.flatnonzero(real[1:] != real[:-1])
    # Of three bases both ends stay, so nothing can move.
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a > 3]


def _shuffle(codes: np.ndarray, n: int, seed: int) -> np.ndarray:
    from tangermeme.ersatz import dinucleotide_shuffle

    one_hot = torch.eye(4)[torch.from_numpy(codes.astype(np.int64))].T.repeat(n, 1, 1)
    # One shuffle a copy: of several shuffles of one sequence it refuses those that all come out alike.
    seeds = [(seed + i) % 2**31 for i in range(n)]
    return dinucleotide_shuffle(one_hot, n=1, random_state=seeds)[:, 0].argmax(1).numpy().astype(np.uint8)
