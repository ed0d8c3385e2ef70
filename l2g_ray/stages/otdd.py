"""Optimal transport dataset distance of two labelled samples, an alternative to MMD (Alvarez-Melis and Fusi, 2020).

Rows are compared by where they are and by what their labels mean: d((x, y), (x', y'))^2 = |x - x'|^2 + W2(P_y, P_y')^2,
where P_y is the distribution of the rows labelled y, taken as a Gaussian. The distance is the least mean d^2 of any
coupling. ORCA aligns its embedder with it.

The coupling is POT's exact one, since a step has some hundred rows: no entropic weight to choose, no bias to take off
again, and 0 for equal samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# The network simplex ends within a few thousand steps for the rows of a batch.
MAX_PIVOTS = 1_000_000


@dataclass(frozen=True)
class Gaussian:
    """A normal distribution: mean (D,) and a factor F (r, D) of its covariance F^T F."""

    mean: Tensor
    factor: Tensor


def fit_gaussians(rows: Tensor, classes: Tensor) -> list[Gaussian]:
    """The Gaussian of each class that occurs, in the classes' order; rows (n, D), classes (n,) int64.

    Covariances are those of the rows as they are (over n, not n - 1), so a class of one row is a point. Factors have at
    most D rows. Carries gradients.
    """
    found = []
    for value in torch.unique(classes):
        own = rows[classes == value]
        mean = own.mean(0)
        factor = (own - mean) / len(own) ** 0.5
        if len(own) > rows.shape[1] and not rows.requires_grad:
            factor = torch.linalg.qr(factor, mode="r").R
        found.append(Gaussian(mean, factor))
    return found


def squared_bures_wasserstein(a: Gaussian, b: Gaussian) -> Tensor:
    """W2(a, b)^2, a scalar: |m_a - m_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2).

    The last trace is the sum of the singular values of F_a F_b^T. In this form no root of a matrix is taken, whose gradient
    would not be finite for covariances of few rows, which have no full rank.
    """
    roots = torch.linalg.svdvals(a.factor @ b.factor.T).sum()
    spread = a.factor.square().sum() + b.factor.square().sum() - 2 * roots
    return (a.mean - b.mean).square().sum() + spread.clamp_min(0)


def otdd(
    source: Tensor,
    source_classes: Tensor,
    target: Tensor,
    target_classes: Tensor,
    source_gaussians: list[Gaussian] | None = None,
) -> Tensor:
    """Squared dataset distance of `source` (n, D) and `target` (m, D) with their classes (n,) and (m,), a scalar.

    Classes are int64 codes; those of source and target have nothing to do with each other. `source_gaussians` are those
    of the source's classes 0..C-1, where `source` is but a sample of them; None fits them to `source`. Differentiable in
    `target`, and in `source` where they are not given; the coupling is constant (envelope theorem).

    Computed in float32, or float64 if an input is, also under autocast. Raises ValueError for other shapes.
    """
    if source.ndim != 2 or target.ndim != 2 or source.shape[1] != target.shape[1]:
        raise ValueError(f"expected (n, D) and (m, D), got {tuple(source.shape)} and {tuple(target.shape)}")
    if source_classes.shape != source.shape[:1] or target_classes.shape != target.shape[:1]:
        raise ValueError(
            f"expected a class a row, got {tuple(source_classes.shape)} and {tuple(target_classes.shape)} for "
            f"{len(source)} and {len(target)} rows"
        )
    dtype = torch.promote_types(torch.promote_types(source.dtype, target.dtype), torch.float32)
    with torch.autocast(device_type=target.device.type, enabled=False):
        x, y = source.to(dtype), target.to(dtype)
        own, rows = source_gaussians, source_classes
        if own is None:
            own, rows = fit_gaussians(x, source_classes), torch.unique(source_classes, return_inverse=True)[1]
        others, columns = fit_gaussians(y, target_classes), torch.unique(target_classes, return_inverse=True)[1]
        labels = torch.stack([torch.stack([squared_bures_wasserstein(a, b) for b in others]) for a in own])
        squares = (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T).clamp_min(0)
        cost = squares + labels[rows][:, columns]
        return (_couple(cost.detach()) * cost).sum()


def _couple(cost: Tensor) -> Tensor:
    """The coupling (n, m) of two samples of equal weights with the least cost (n, m)."""
    ot = _import_pot()
    n, m = cost.shape
    # On the CPU in float64: a network simplex gains nothing from a GPU.
    plan = ot.emd(ot.unif(n), ot.unif(m), cost.double().cpu().numpy(), numItermax=MAX_PIVOTS)
    return torch.from_numpy(plan).to(cost)


def _import_pot() -> Any:
    """POT takes more than a second to import, which only this distance needs to wait for."""
    import ot

    return ot
