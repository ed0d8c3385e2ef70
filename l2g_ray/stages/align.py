"""Stage 2: embedder pre-training, L = alpha_e MMD(text, DNA) + beta task, task loss first (paper, "Embedder Pre-training").

What is said of MMD holds for the other distances of `stages.distances` as well.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import torch

from l2g_ray.atomic import replacing
from l2g_ray.config import AlignSettings, Settings
from l2g_ray.counts import group_size
from l2g_ray.data.batches import Batch
from l2g_ray.models.embedder import EmbedderConfig, EmbedderNet, Embedding
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
from l2g_ray.stages.loop import LoopSettings, Runtime, TrainResult, train
from l2g_ray.stages.optim import make_optimizer, make_schedule
from l2g_ray.stages.parts import Draws, kept_buffers


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
    there, and the state that it leaves is where the run of every alpha may go on.
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
        losses=make_joint_losses(net, data, distance, stage, alpha, runtime.team),
        validate=make_validate(net, data, runtime),
    )


# Of a warm-up, where its alignments go on.
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
    net: EmbedderNet,
    data: TaskData,
    distance: Distance,
    stage: AlignSettings,
    alpha: float,
    team: Team = ALONE,
) -> Callable[[list[Batch], int], Iterator[torch.Tensor]]:
    """One loss a group: batch norm sees each batch by itself, MMD sees all rows of the group together.

    Source rows are drawn anew each step, as many as target rows, with replacement; targets are masked means over
    tokens after LayerNorm. Workers of a team compare the same source rows with the pooled tokens of all of
    them, each counting its share of the result.

    Micro-batches, which are there because memory did not suffice for a group, are back-propagated one at a time. MMD
    needs all rows at once, so they are pooled without a graph first, and MMD's gradient is handed to each in its turn.

    `net` is on the device where it trains.
    """
    scale = data.label_scale.to(next(net.parameters()).device)

    def align(pooled: list[torch.Tensor], classes: list[torch.Tensor | None], group: list[Batch]) -> torch.Tensor:
        """This worker's share of MMD, from its own rows of each whole batch and their classes."""
        whole = [
            team.gather_rows(_widen(rows), batch.part.start, batch.part.n_rows) if batch.part else rows
            for rows, batch in zip(pooled, group, strict=True)
        ]
        known = [
            team.gather_rows(own, batch.part.start, batch.part.n_rows) if batch.part else own
            for own, batch in zip(classes, group, strict=True)
            if own is not None
        ]
        generator = torch.Generator().manual_seed(int(torch.randint(2**31, ()).item()))
        return distance(torch.cat(whole), torch.cat(known) if known else None, generator) / team.size

    def classify(batch: Batch) -> torch.Tensor | None:
        return distance.classify(batch.labels[: batch.n_own])

    def embed(batch: Batch, draws: Draws) -> tuple[Embedding, torch.Tensor]:
        """The embedding, and the predictor's outputs, whose dropout is drawn with the embedder's."""
        with draws.of(batch):
            embedding = net.embedder(*net.encode(batch.codes, batch.lengths_bp))
            return embedding, net.predict(embedding)

    def task_loss(outputs: torch.Tensor, batch: Batch, n_rows: int) -> torch.Tensor:
        return (batch.n_whole / n_rows) * part_loss(data.task, outputs, batch, scale)

    def losses(group: list[Batch], epoch: int) -> Iterator[torch.Tensor]:
        alpha_e = alpha_at(epoch, alpha, stage.task_only_epochs)
        n_rows, draws = count_rows(group), Draws()
        if any(batch.part and batch.part.micro for batch in group):
            yield from in_turn(group, alpha_e, n_rows)
            return
        total = torch.zeros((), device=group[0].codes.device)
        pooled = []
        for batch in group:
            embedding, outputs = embed(batch, draws)
            total = total + task_loss(outputs, batch, n_rows)
            pooled.append(embedding.pooled_tokens()[: batch.n_own])
        loss = stage.beta * total
        if alpha_e > 0:
            loss = loss + alpha_e * align(pooled, [classify(batch) for batch in group], group)
        yield loss

    def in_turn(group: list[Batch], alpha_e: float, n_rows: int) -> Iterator[torch.Tensor]:
        """The same, one micro-batch's graph at a time."""
        gradients: list[torch.Tensor | None] = [None] * len(group)
        value: torch.Tensor | float = 0.0
        before, after = torch.get_rng_state(), None
        if alpha_e > 0:
            pooled, value = pool_first(group, alpha_e)
            gradients = [rows.grad for rows in pooled]
            after = torch.get_rng_state()
            torch.set_rng_state(before)
        draws = Draws()
        for batch, gradient in zip(group, gradients, strict=True):
            embedding, outputs = embed(batch, draws)
            loss = stage.beta * task_loss(outputs, batch, n_rows)
            if gradient is not None:
                towards = (embedding.pooled_tokens()[: batch.n_own] * gradient).sum()
                # Its gradient is MMD's, its value is not: the value is told once.
                loss = loss + towards - towards.detach() + value
                value = 0.0
            yield loss
        if after is not None:
            torch.set_rng_state(after)

    def pool_first(group: list[Batch], alpha_e: float) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Pooled tokens of each micro-batch with MMD's gradient, and this worker's share of MMD. Leaves the running
        statistics of batch norms as they were."""
        draws, pooled = Draws(), []
        with torch.no_grad(), kept_buffers(net):
            for batch in group:
                embedding, _ = embed(batch, draws)
                pooled.append(_widen(embedding.pooled_tokens()[: batch.n_own]).requires_grad_())
        firsts = [i for i, batch in enumerate(group) if batch.part is None or batch.part.micro == 0]
        spans = list(zip(firsts, [*firsts[1:], len(group)], strict=True))
        joined = [torch.cat(pooled[a:b]) for a, b in spans]
        classes = [_join([classify(batch) for batch in group[a:b]]) for a, b in spans]
        share = alpha_e * align(joined, classes, [group[i] for i in firsts])
        share.backward()  # type: ignore[no-untyped-call]
        return pooled, share.detach()

    return losses


def _join(classes: list[torch.Tensor | None]) -> torch.Tensor | None:
    known = [own for own in classes if own is not None]
    return torch.cat(known) if known else None


def _widen(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
