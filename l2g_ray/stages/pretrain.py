"""Continued pre-training: masked modelling of the task's own training sequences, before the method begins.

An open question of the paper (its discussion), and no part of the method. Labels play no part, and only training rows are
read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from l2g_ray.config import Settings
from l2g_ray.data.batches import Batch
from l2g_ray.errors import UserError
from l2g_ray.models.masked_lm import MaskedLM, load_masked_lm
from l2g_ray.stages.common import TaskData, count_rows, count_steps, make_batches
from l2g_ray.stages.context import Context, summarise
from l2g_ray.stages.loop import LoopSettings, Runtime, TrainResult, train
from l2g_ray.stages.optim import make_optimizer, make_schedule

# Training rows that are masked the same way after every epoch, for the score.
SCORED_ROWS = 512


def pretrain(data: TaskData, settings: Settings, runtime: Runtime, seed: int) -> tuple[MaskedLM, TrainResult]:
    """Train the language model on the training sequences, and return it as it is after the last epoch, on the CPU.

    The score of an epoch is minus the loss on some training rows under masks that do not change: it tells how far the
    training is, and chooses nothing. Raises UserError where the model or its tokenizer cannot be had, or where the loss
    ceases to be finite.
    """
    stage, model_settings = settings.pretrain, settings.model
    model = load_masked_lm(
        model_settings.language_model,
        model_settings.language_model_init,
        seed,
        layers=model_settings.language_model_layers,
        word_bp=stage.word_bp,
        window_bp=stage.window_bp,
        mask_fraction=stage.mask_fraction,
    ).to(runtime.device)
    steps = count_steps(data, stage.batch_size)
    result = train(
        model,
        make_optimizer(stage.optim, [(model.parameters(), stage.optim.lr)]),
        make_schedule(stage.optim, stage.epochs, steps),
        LoopSettings(stage.epochs, steps, seed, clip_norm=stage.optim.clip_norm, select_from_epoch=stage.epochs - 1),
        runtime,
        batches=make_batches(settings, data, stage.batch_size, seed),
        losses=make_masked_losses(model),
        validate=_make_score(model, data, settings, runtime, seed),
    )
    if not math.isfinite(result.history[-1]["train_loss"]):
        raise UserError("continued pre-training: the loss is not finite any more; lower pretrain.optim.lr")
    model.load_state_dict(result.best_state)
    return model.to("cpu").eval(), result


def run(context: Context, args: dict[str, Any]) -> dict[str, Any]:
    """Store the model that `pretrain` returns."""
    model, training = pretrain(context.data, context.settings, context.runtime, args["seed"])
    model.save(context.work)
    return summarise(training)


def make_masked_losses(model: MaskedLM) -> Callable[[list[Batch], int], Iterator[torch.Tensor]]:
    """The loss of a group, a batch (or a micro-batch) at a time, weighted by its rows."""

    def losses(group: list[Batch], epoch: int) -> Iterator[torch.Tensor]:
        n_rows = count_rows(group)
        for batch in group:
            yield (batch.n_own / n_rows) * model(batch.letters, batch.lengths_bp)

    return losses


def _make_score(
    model: MaskedLM, data: TaskData, settings: Settings, runtime: Runtime, seed: int
) -> Callable[[], dict[str, float]]:
    size = settings.pretrain.batch_size
    rows = make_batches(settings, data, size, seed, augment=False, max_batches=-(-SCORED_ROWS // size))

    def score() -> dict[str, float]:
        total, n = 0.0, 0
        with torch.random.fork_rng(), runtime.autocast():
            torch.manual_seed(seed)
            for batch in rows(0):
                total += float(model(batch.codes, batch.lengths_bp)) * len(batch.codes)
                n += len(batch.codes)
        return {"score": -total / max(1, n)}

    return score
