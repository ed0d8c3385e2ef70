"""Stage 1a: train each candidate, a backbone with one kernel size, shortly; the best validation score wins.

See docs/method.md, "select".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from l2g_ray.config import Settings
from l2g_ray.stages.context import (
    Context,
    Reference,
    TaskData,
    build_net,
    count_steps,
    make_batches,
    make_embedder_config,
    make_losses,
    make_validate,
    read_architecture,
    summarise,
)
from l2g_ray.stages.loop import LoopSettings, Runtime, TrainResult, train
from l2g_ray.stages.optim import make_optimizer, make_schedule


def train_backbone(
    data: TaskData,
    settings: Settings,
    reference: Reference,
    runtime: Runtime,
    *,
    backbone: str,
    seed: int,
    architecture: Sequence[tuple[int, int]] = (),
) -> TrainResult:
    """Train one backbone shortly, with its default kernels or a given architecture; all candidates get the same seed.

    A diverged candidate scores -inf, so it can never win.
    """
    stage = settings.select
    config = make_embedder_config(settings, data, reference, backbone, architecture, stage.dropout)
    net = build_net(config, data, reference, seed).to(runtime.device)
    steps = count_steps(data, stage.batch_size)
    return train(
        net,
        make_optimizer(stage.optim, [(net.parameters(), stage.optim.lr)]),
        make_schedule(stage.optim, stage.epochs, steps),
        LoopSettings(stage.epochs, steps, seed, clip_norm=stage.optim.clip_norm),
        runtime,
        batches=make_batches(settings, data, stage.batch_size, seed, team=runtime.team),
        losses=make_losses(data.task, data.label_scale.to(runtime.device)),
        validate=make_validate(net, data, runtime),
    )


def run(context: Context, args: dict[str, Any]) -> dict[str, Any]:
    """Score one candidate; its weights are not kept."""
    training = train_backbone(
        context.data,
        context.settings,
        context.reference,
        context.runtime,
        backbone=args["backbone"],
        architecture=read_architecture(args),
        seed=args["seed"],
    )
    return summarise(training) | {"backbone": args["backbone"]}
