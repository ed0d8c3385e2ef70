"""The DeepSTARR network trained as the embedder alone is: same rows, augmentation, epochs and optimiser."""

from __future__ import annotations

from typing import Any

import torch

from l2g_ray.config import Settings
from l2g_ray.models.baselines import DeepSTARR, DeepSTARRConfig
from l2g_ray.stages.baseline import keep_best
from l2g_ray.stages.context import Context, TaskData, train_one_cycle
from l2g_ray.stages.loop import Runtime, TrainResult


def build_deepstarr(data: TaskData, seed: int) -> DeepSTARR:
    """Return a new network for the task's length and labels."""
    torch.manual_seed(seed)
    net = DeepSTARR(DeepSTARRConfig(data.length_bp, data.task.n_outputs))
    net.predictor.set_label_scale(data.label_offset, data.label_scale)
    return net


def train_deepstarr(data: TaskData, settings: Settings, runtime: Runtime, seed: int) -> TrainResult:
    """Train as `embedder_only` does, by its settings."""
    net = build_deepstarr(data, seed).to(runtime.device)
    return train_one_cycle(net, data, settings, runtime, settings.embedder_only, seed)


def fit(context: Context, args: dict[str, Any]) -> tuple[DeepSTARR, dict[str, Any]]:
    """Train it, and return the model and the values of its result."""
    training = train_deepstarr(context.data, context.settings, context.runtime, args["seed"])
    net = build_deepstarr(context.data, args["seed"])
    return net, keep_best(net, training)
