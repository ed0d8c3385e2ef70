"""The control beside L2G: the searched embedder with its own predictor, trained without the language model."""

from __future__ import annotations

from typing import Any

from l2g_ray.config import Settings
from l2g_ray.models.embedder import EmbedderConfig
from l2g_ray.stages.context import (
    Context,
    Reference,
    TaskData,
    build_net,
    make_config,
    save_embedder,
    summarise,
    train_one_cycle,
    with_dropout,
)
from l2g_ray.stages.loop import Runtime, TrainResult


def train_embedder_only(
    data: TaskData, settings: Settings, reference: Reference, runtime: Runtime, *, config: EmbedderConfig, seed: int
) -> TrainResult:
    """Train to the end of the schedule, whose length follows the rows."""
    stage = settings.embedder_only
    net = build_net(with_dropout(config, stage.dropout), data, reference, seed).to(runtime.device)
    return train_one_cycle(net, data, settings, runtime, stage, seed)


def run(context: Context, args: dict[str, Any]) -> dict[str, Any]:
    """Train a member of the arm."""
    config = make_config(context, args)
    training = train_embedder_only(
        context.data, context.settings, context.reference, context.runtime, config=config, seed=args["seed"]
    )
    save_embedder(context, config, training)
    return summarise(training)
