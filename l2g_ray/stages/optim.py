"""Task losses, optimisers and learning-rate schedules, from settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from l2g_ray.config import OptimSettings


def compute_task_loss(
    kind: str,
    outputs: torch.Tensor,
    labels: torch.Tensor,
    scale: torch.Tensor | None = None,
    n_labels: int | None = None,
) -> torch.Tensor:
    """Return mean task loss of a batch.

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


Schedule = Callable[[int], float]


def make_optimizer(
    settings: OptimSettings, groups: Iterable[tuple[Iterable[nn.Parameter], float]]
) -> torch.optim.Optimizer:
    """Return an optimiser over (parameters, learning rate) groups; frozen parameters are left out.

    AdamW decays matrices only; Adam's coupled L2 and SGD decay everything, as the official code does. Adam's fused form
    is one pass over the weights, on a CPU too.
    """
    param_groups: list[dict[str, Any]] = []
    for parameters, lr in groups:
        trainable = [p for p in parameters if p.requires_grad]
        matrices = [p for p in trainable if p.ndim > 1 or settings.optimizer != "adamw"]
        vectors = [p for p in trainable if p.ndim <= 1 and settings.optimizer == "adamw"]
        for chosen, weight_decay in ((matrices, settings.weight_decay), (vectors, 0.0)):
            if chosen:
                param_groups.append({"params": chosen, "lr": lr, "initial_lr": lr, "weight_decay": weight_decay})
    if settings.optimizer == "sgd":
        # Not fused: that form fails where a weight has its first gradient later than the others, as in stage 2.
        return torch.optim.SGD(param_groups, lr=settings.lr, momentum=settings.momentum, nesterov=settings.nesterov)
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(param_groups, lr=settings.lr, betas=settings.betas, fused=True)


def make_schedule(settings: OptimSettings, epochs: int, steps_per_epoch: int) -> Schedule:
    """Multiplier of every group's learning rate at step t in 0..T, T = epochs * steps_per_epoch.

    Linear warm-up over `warmup_fraction` of T, then the decay. 'linear' and 'cosine' reach 0 at T and never go below
    (three official configs go negative). 'step' multiplies after each of `step_epochs`, strictly greater.
    """
    total = max(1, epochs * steps_per_epoch)
    warmup = int(settings.warmup_fraction * total)

    def multiplier(t: int) -> float:
        if t < warmup:
            return (t + 1) / (warmup + 1)
        done = min(1.0, (t - warmup) / max(1, total - warmup))
        if settings.decay == "linear":
            return 1.0 - done
        if settings.decay == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * done))
        if settings.decay == "step":
            epoch = t // max(1, steps_per_epoch)
            return settings.step_factor ** sum(epoch > boundary for boundary in settings.step_epochs)
        return 1.0

    return multiplier


def set_learning_rates(optimizer: torch.optim.Optimizer, multiplier: float) -> None:
    """Scale every group's initial learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * multiplier
