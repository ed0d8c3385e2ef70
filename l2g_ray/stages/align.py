"""Stage 2: embedder pre-training, L = alpha_e MMD(text, DNA) + beta task, task loss first (paper, "Embedder Pre-training").

What is said of MMD holds for the other distances of `stages.distances` as well.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from l2g_ray.atomic import replacing
from l2g_ray.config import AlignSettings, Settings
from l2g_ray.counts import group_size
from l2g_ray.data.batches import Batch
from l2g_ray.models.embedder import EmbedderConfig
from l2g_ray.models.l2g import save_model
from l2g_ray.models.team import ALONE, Team
from l2g_ray.stages.context import (
    Context,
    Reference,
    TaskData,
    build_net,
    count_rows,
    count_steps,
    make_batches,
    make_config,
    make_validate,
    part_loss,
    save_embedder,
    summarise,
    with_dropout,
)
from l2g_ray.stages.distances import Distance, make_distance
from l2g_ray.stages.loop import LoopSettings, Losses, Runtime, TrainResult, train
from l2g_ray.stages.optim import make_optimizer, make_schedule
from l2g_ray.stages.parts import kept_buffers, same_draws


def alpha_at(epoch: int, alpha: float, task_only_epochs: int) -> float:
    """Weight of MMD in an epoch: 0 while the task comes first, then alpha (a step, not a ramp)."""
    return 0.0 if epoch < task_only_epochs else alpha


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
    there, and the run of every alpha may resume from its state.
    """
    stage = settings.align
    group = group_size(stage)
    first_joint = stage.task_only_epochs if stage.task_only_epochs < stage.epochs else 0
    if stage.beta == 0:  # Predictor 1 does not learn, and validation would choose by chance
        first_joint = stage.epochs - 1
    net = build_net(with_dropout(config, stage.dropout), data, reference, seed).to(runtime.device)
    steps = count_steps(data, stage.batch_size, group)
    distance = make_distance(data, settings, reference, seed, runtime.team, runtime.device)
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
            keep_last=data.held_out,
        ),
        runtime,
        batches=make_batches(settings, data, stage.batch_size, seed, team=runtime.team),
        losses=make_joint_losses(data, distance, stage, data.label_scale.to(runtime.device), alpha, runtime.team),
        validate=make_validate(net, data, runtime),
    )


# State of a warm-up, from which its alignments resume.
WARM = "warm.pt"


def run_warmup(context: Context, args: dict[str, Any]) -> dict[str, Any]:
    """Train the task-only phase, which the runs of all alphas share, and keep the training state."""
    training = train_aligned(
        context.data,
        context.settings,
        context.reference,
        context.runtime,
        config=make_config(context, args),
        alpha=0.0,
        seed=args["seed"],
        last_epoch=context.settings.align.task_only_epochs,
    )
    if context.runtime.team.is_first:
        (context.work / "state.pt").replace(context.work / WARM)
    return summarise(training)


def run(context: Context, args: dict[str, Any]) -> dict[str, Any]:
    """Align with `args['alpha']`, from the state of a warm-up where there is one, and keep the embedder."""
    state, team = context.runtime.state_path, context.runtime.team
    warm = context.inputs.get("warmup")
    if team.is_first and state is not None and warm is not None and not state.exists():
        with replacing(state) as temporary:
            shutil.copyfile(warm / WARM, temporary)
    team.wait()
    config = make_config(context, args)
    if not context.settings.align.enabled:
        save_model(build_net(config, context.data, context.reference, args["seed"]), context.work)
        return {"score": None, "alpha": args["alpha"], "history": []}
    training = train_aligned(
        context.data,
        context.settings,
        context.reference,
        context.runtime,
        config=config,
        alpha=args["alpha"],
        seed=args["seed"],
    )
    save_embedder(context, config, training)
    inherited = context.settings.align.task_only_epochs if warm is not None else 0
    return summarise(training, inherited) | {"alpha": args["alpha"]}


def make_joint_losses(
    data: TaskData, distance: Distance, stage: AlignSettings, scale: torch.Tensor, alpha: float, team: Team = ALONE
) -> Losses:
    """Return one loss a group: batch norm sees each batch alone, MMD sees all rows of the group together.

    Source rows are drawn again each step, as many as target rows, with replacement; targets are masked means over
    tokens after LayerNorm. Workers of a team compare the same source rows with the pooled tokens of all of them.

    Micro-batches, which are there because memory did not suffice for a group, are back-propagated one at a time. MMD
    needs all rows at once, so they are pooled without a graph first, and MMD's gradient is handed to each in its turn.

    `scale` (n_outputs,), that of the labels, is on the device where the model trains.
    """

    def align(pooled: list[torch.Tensor], classes: list[torch.Tensor | None], group: list[Batch]) -> torch.Tensor:
        """MMD, from this worker's own rows of each whole batch and their classes."""
        parts = [batch.part for batch in group]
        whole = [
            team.gather_rows(_widen(x), part.by_worker) if part else x for x, part in zip(pooled, parts, strict=True)
        ]
        known = [
            team.gather_rows(own, part.by_worker) if part else own
            for own, part in zip(classes, parts, strict=True)
            if own is not None
        ]
        seed = torch.randint(2**31, (), generator=team.generator)
        generator = torch.Generator().manual_seed(int(seed))
        return distance(torch.cat(whole), torch.cat(known) if known else None, generator)

    def classify(batch: Batch) -> torch.Tensor | None:
        return distance.classify(batch.labels[: batch.n_own])

    def task_loss(outputs: torch.Tensor, batch: Batch, n_rows: int) -> torch.Tensor:
        return (batch.n_whole / n_rows) * part_loss(data.task, outputs, batch, scale)

    def losses(model: nn.Module, group: list[Batch], epoch: int) -> list[Callable[[], torch.Tensor]]:
        alpha_e = alpha_at(epoch, alpha, stage.task_only_epochs)
        if any(batch.part and batch.part.micro for batch in group):
            return in_turn(model, group, alpha_e)
        return [partial(together, model, group, alpha_e)]

    def together(model: nn.Module, group: list[Batch], alpha_e: float) -> torch.Tensor:
        total, pooled, n_rows = torch.zeros((), device=group[0].codes.device), [], count_rows(group)
        for batch in group:
            if alpha_e > 0:
                outputs, tokens = model(batch.codes, batch.lengths_bp, pool=True)
                pooled.append(tokens[: batch.n_own])
            else:
                outputs = model(batch.codes, batch.lengths_bp)
            total = total + task_loss(outputs, batch, n_rows)
        loss = stage.beta * total
        return loss + alpha_e * align(pooled, [classify(batch) for batch in group], group) if pooled else loss

    def in_turn(model: nn.Module, group: list[Batch], alpha_e: float) -> list[Callable[[], torch.Tensor]]:
        """Return the same, one micro-batch's graph at a time."""
        gradients: list[torch.Tensor | None] = [None] * len(group)
        value: torch.Tensor | float = 0.0
        if alpha_e > 0:
            with same_draws(group[0].codes.device):
                gradients, value = pool_first(model, group, alpha_e)

        def one(batch: Batch, gradient: torch.Tensor | None, value: torch.Tensor | float) -> torch.Tensor:
            if gradient is None:
                return stage.beta * task_loss(model(batch.codes, batch.lengths_bp), batch, n_rows)
            outputs, pooled = model(batch.codes, batch.lengths_bp, pool=True)
            towards = (pooled[: batch.n_own] * gradient).sum()
            # `towards` has MMD's gradient but not its value, which is added once.
            return stage.beta * task_loss(outputs, batch, n_rows) + towards - towards.detach() + value

        n_rows, values = count_rows(group), [value, *[0.0] * (len(group) - 1)]
        return [partial(one, *of_batch) for of_batch in zip(group, gradients, values, strict=True)]

    def pool_first(
        model: nn.Module, group: list[Batch], alpha_e: float
    ) -> tuple[list[torch.Tensor | None], torch.Tensor]:
        """MMD's gradient for the pooled tokens of each micro-batch, and MMD. Leaves the running statistics of batch norms as
        they were."""
        pooled = []
        with torch.no_grad(), kept_buffers(model):
            for batch in group:
                rows = model(batch.codes, batch.lengths_bp, pool=True)[1][: batch.n_own]
                pooled.append(_widen(rows).requires_grad_())
        firsts = [i for i, batch in enumerate(group) if batch.part is None or batch.part.micro == 0]
        spans = list(zip(firsts, [*firsts[1:], len(group)], strict=True))
        joined = [torch.cat(pooled[a:b]) for a, b in spans]
        classes = [_join([classify(batch) for batch in group[a:b]]) for a, b in spans]
        value = alpha_e * align(joined, classes, [group[i] for i in firsts])
        value.backward()  # type: ignore[no-untyped-call]
        return [rows.grad for rows in pooled], value.detach()

    return losses


def _join(classes: list[torch.Tensor | None]) -> torch.Tensor | None:
    known = [own for own in classes if own is not None]
    return torch.cat(known) if known else None


def _widen(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
