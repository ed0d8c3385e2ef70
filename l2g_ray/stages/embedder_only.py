"""The control beside L2G: the searched embedder with its own predictor, trained to the end without the language model."""

from __future__ import annotations

from l2g_ray.config import Settings
from l2g_ray.models.embedder import EmbedderConfig
from l2g_ray.stages.common import (
    Reference,
    TaskData,
    build_net,
    count_steps,
    make_batches,
    make_losses,
    make_validate,
    with_dropout,
)
from l2g_ray.stages.loop import LoopSettings, Runtime, TrainResult, train
from l2g_ray.stages.optim import make_optimizer, make_schedule


def train_embedder_only(
    data: TaskData, settings: Settings, reference: Reference, runtime: Runtime, *, config: EmbedderConfig, seed: int
) -> TrainResult:
    """Train to the end; the length of training is chosen on validation (best epoch, patience)."""
    stage = settings.embedder_only
    net = build_net(with_dropout(config, stage.dropout), data, reference, seed).to(runtime.device)
    steps = count_steps(data, stage.batch_size)
    return train(
        net,
        make_optimizer(stage.optim, [(net.parameters(), stage.optim.lr)]),
        make_schedule(stage.optim, stage.epochs, steps),
        LoopSettings(stage.epochs, steps, seed, clip_norm=stage.optim.clip_norm, patience_epochs=stage.patience_epochs),
        runtime,
        batches=make_batches(settings, data, stage.batch_size, seed, team=runtime.team),
        losses=make_losses(net, data.task, data.label_scale),
        validate=make_validate(net, data, runtime),
    )
