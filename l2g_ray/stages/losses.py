"""Task losses, by task kind."""

from __future__ import annotations

import torch
from torch.nn import functional


def compute_task_loss(
    kind: str,
    outputs: torch.Tensor,
    labels: torch.Tensor,
    scale: torch.Tensor | None = None,
    n_labels: int | None = None,
) -> torch.Tensor:
    """Mean task loss of a batch.

    Parameters
    ----------
    outputs : (batch, n_outputs) logits, or values in the labels' units for regression.
    labels : (batch,) int64 class codes, or (batch, n_outputs) float32 with NaN where a label is missing.
    scale : (n_outputs,) standard deviation of the labels; residuals are divided by it, so that outputs of an assay
        weigh the same whatever their units.
    n_labels : what the sum over labels is divided by: the labels of the whole batch, where these are a part of its
        rows, so that the parts' losses add up to that of the whole; None for the labels given.

    Cross-entropy, BCE with logits, or MSE; missing labels are left out. An all-missing batch gives 0.
    """
    if kind in ("binary", "multiclass"):
        if n_labels is not None:
            return functional.cross_entropy(outputs, labels, reduction="sum") / max(1, n_labels)
        return functional.cross_entropy(outputs, labels)
    known = torch.isfinite(labels)
    target = torch.where(known, labels, torch.zeros_like(labels))
    if kind == "multilabel":
        each = functional.binary_cross_entropy_with_logits(outputs, target, reduction="none")
    else:
        each = ((outputs - target) / (1.0 if scale is None else scale)).square()
    count = known.sum().clamp(min=1) if n_labels is None else max(1, n_labels)
    return (each * known).sum() / count
