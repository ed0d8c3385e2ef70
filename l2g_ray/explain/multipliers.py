"""The methods: each takes pairs of sequences and references to hypothetical contributions (b, length, 4)."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from l2g_ray.errors import UserError, how_to_install
from l2g_ray.explain.mutagenesis import saturation_mutagenesis
from l2g_ray.explain.rules import extra_rules

if TYPE_CHECKING:
    from l2g_ray.explain.attribution import ExplainedOutput, Pairs

Method = Callable[["Pairs"], torch.Tensor]


def make(
    name: str,
    explained: ExplainedOutput,
    apply_rules: Callable[[nn.Module], nn.Module],
    *,
    steps: int,
    seed: int,
) -> Method:
    """The method of a name, ready for an output. Raises UserError where `captum` or a rule is missing."""
    if name == "deeplift-shap":
        return _make_deeplift_shap(explained, apply_rules)
    if name == "mutagenesis":
        return _make_mutagenesis(explained)
    return _make_captum(name, explained, steps, seed)


def project(multipliers: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """Multipliers and references (b, n, 4, length) to hypothetical contributions (b, length, 4)."""
    return (multipliers - (multipliers * references).sum(2, keepdim=True)).mean(1).transpose(1, 2)


def _make_deeplift_shap(explained: ExplainedOutput, apply_rules: Callable[[nn.Module], nn.Module]) -> Method:
    try:
        from tangermeme.deep_lift_shap import deep_lift_shap
    except ImportError:
        raise UserError(f"contributions need tangermeme; run: {how_to_install('explain')}") from None
    ruled = copy.copy(explained)
    ruled._modules = {**explained._modules, "model": apply_rules(explained.model)}
    rules = extra_rules(ruled)

    def compute(pairs: Pairs) -> torch.Tensor:
        with warnings.catch_warnings():
            # Completeness is measured and told by us, for all sequences at once; N is zero in our one-hot.
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
    from l2g_ray.explain.attribution import evaluate

    def compute(pairs: Pairs) -> torch.Tensor:
        device = pairs.x.device

        def score(codes: torch.Tensor, lengths_bp: torch.Tensor) -> np.ndarray:
            return evaluate(explained, codes.numpy(), lengths_bp.numpy(), device, pairs.batch_size)[:, None]

        _, mutants = saturation_mutagenesis(score, pairs.codes.numpy(), pairs.lengths_bp.numpy())
        values = torch.from_numpy(mutants[..., 0]).nan_to_num(0.0).float().to(device)
        # Centred at each position, so that the bases' effects compare.
        return values - values.mean(2, keepdim=True)

    return compute
