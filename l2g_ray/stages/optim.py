"""Optimisers and learning-rate schedules, from settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from l2g_ray.config import OptimSettings

Schedule = Callable[[int], float]


def make_optimizer(
    settings: OptimSettings, groups: Iterable[tuple[Iterable[nn.Parameter], float]]
) -> torch.optim.Optimizer:
    """An optimiser over (parameters, learning rate) groups; frozen parameters are left out.

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
