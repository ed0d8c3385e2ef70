"""Stage 2: embedder pre-training, L = alpha_e MMD(text, DNA) + beta task, task loss first (spec 5)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from l2g_ray.config import AlignSettings, Settings
from l2g_ray.data.batches import Batch
from l2g_ray.models.embedder import EmbedderConfig, EmbedderNet
from l2g_ray.stages.common import (
    Reference,
    TaskData,
    build_net,
    count_steps,
    make_batches,
    make_validate,
    with_dropout,
)
from l2g_ray.stages.coral import coral
from l2g_ray.stages.loop import LoopSettings, Runtime, TrainResult, train
from l2g_ray.stages.losses import compute_task_loss
from l2g_ray.stages.mmd import mmd, sample_rows
from l2g_ray.stages.optim import make_optimizer, make_schedule

DISTANCES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {"mmd": mmd, "coral": coral}


def alpha_at(epoch: int, alpha: float, task_only_epochs: int) -> float:
    """Weight of MMD in an epoch: 0 while the task comes first, then alpha (a step, not a ramp)."""
    return 0.0 if epoch < task_only_epochs else alpha


def group_size(settings: AlignSettings) -> int:
    """Batches a step: rows are gathered until their count exceeds `max_samples` (5 x 64 for 256; spec 5.3)."""
    return settings.max_samples // settings.batch_size + 1


def train_aligned(
    data: TaskData,
    settings: Settings,
    reference: Reference,
    runtime: Runtime,
    *,
    config: EmbedderConfig,
    alpha: float,
    seed: int,
    last_epoch: int | None = None,
) -> TrainResult:
    """Train an embedder from scratch with its searched architecture; returns the best epoch of the joint phase.

    The language model takes no part beyond `reference.features`, so it cannot change here. With alpha 0 the same
    epochs run on the task alone: the control. The task-only phase does not depend on alpha: `last_epoch` ends a run
    there, and the state that it leaves is where the run of every alpha may go on.
    """
    stage = settings.align
    group = group_size(stage)
    first_joint = stage.task_only_epochs if stage.task_only_epochs < stage.epochs else 0
    if stage.beta == 0:  # Predictor 1 does not learn, and validation would choose by chance
        first_joint = stage.epochs - 1
    net = build_net(with_dropout(config, stage.dropout), data, reference, seed).to(runtime.device)
    steps = count_steps(data, stage.batch_size, group)
    return train(
        net,
        make_optimizer(stage.optim, [(net.parameters(), stage.optim.lr)]),
        make_schedule(stage.optim, stage.epochs, steps),
        LoopSettings(
            stage.epochs if last_epoch is None else last_epoch,
            steps,
            seed,
            group=group,
            clip_norm=stage.optim.clip_norm,
            select_from_epoch=first_joint,
        ),
        runtime,
        batches=make_batches(settings, data, stage.batch_size, seed),
        losses=make_joint_losses(net, data, reference.features.to(runtime.device), stage, alpha),
        validate=make_validate(net, data, runtime),
    )


def make_joint_losses(
    net: EmbedderNet, data: TaskData, features: torch.Tensor, stage: AlignSettings, alpha: float
) -> Callable[[list[Batch], int], Iterator[torch.Tensor]]:
    """One loss a group: batch norm sees each batch by itself, MMD sees all rows of the group together (spec 5.3).

    Source rows are drawn anew each step, as many as target rows, with replacement; targets are masked means over
    tokens after LayerNorm (spec 5.2).
    """

    def losses(group: list[Batch], epoch: int) -> Iterator[torch.Tensor]:
        alpha_e = alpha_at(epoch, alpha, stage.task_only_epochs)
        n_rows = sum(len(batch.codes) for batch in group)
        task_loss = torch.zeros((), device=features.device)
        pooled = []
        for batch in group:
            embedding = net.embedder(*net.encode(batch.codes, batch.lengths_bp))
            outputs = net.predict(embedding)
            weight = len(batch.codes) / n_rows
            task_loss = task_loss + weight * compute_task_loss(
                data.task.kind, outputs, batch.labels, data.label_scale.to(outputs.device)
            )
            pooled.append(embedding.pooled_tokens())
        loss = stage.beta * task_loss
        if alpha_e > 0:
            generator = torch.Generator().manual_seed(int(torch.randint(2**31, ()).item()))
            distance = DISTANCES[stage.distance]
            loss = loss + alpha_e * distance(sample_rows(features, n_rows, generator), torch.cat(pooled))
        yield loss

    return losses
