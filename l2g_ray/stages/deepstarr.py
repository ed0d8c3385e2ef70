"""The DeepSTARR network trained as the embedder alone is: same rows, augmentation, epochs and optimiser."""

from __future__ import annotations

import torch

from l2g_ray.config import Settings
from l2g_ray.models.deepstarr import DeepSTARR, DeepSTARRConfig
from l2g_ray.stages.common import TaskData, count_steps, make_batches, make_losses, make_validate
from l2g_ray.stages.loop import LoopSettings, Runtime, TrainResult, train
from l2g_ray.stages.optim import make_optimizer, make_schedule


def build_deepstarr(data: TaskData, seed: int) -> DeepSTARR:
    """A new network for the task's length and labels."""
    torch.manual_seed(seed)
    net = DeepSTARR(DeepSTARRConfig(data.length_bp, data.task.n_outputs))
    net.predictor.set_label_scale(data.label_offset, data.label_scale)
    return net


def train_deepstarr(data: TaskData, settings: Settings, runtime: Runtime, seed: int) -> TrainResult:
    """Train to the end; the length of training is chosen on validation (`embedder_only`'s epochs and patience)."""
    stage = settings.embedder_only
    net = build_deepstarr(data, seed).to(runtime.device)
    steps = count_steps(data, stage.batch_size)
    return train(
        net,
        make_optimizer(stage.optim, [(net.parameters(), stage.optim.lr)]),
        make_schedule(stage.optim, stage.epochs, steps),
        LoopSettings(stage.epochs, steps, seed, clip_norm=stage.optim.clip_norm, patience_epochs=stage.patience_epochs),
        runtime,
        batches=make_batches(settings, data, stage.batch_size, seed),
        losses=make_losses(net, data.task, data.label_scale),
        validate=make_validate(net, data, runtime),
    )
