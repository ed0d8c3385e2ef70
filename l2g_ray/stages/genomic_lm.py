"""Fine-tuning of a genomic language model by its own tokenizer: the rate is chosen on validation, of three."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from l2g_ray.config import Settings
from l2g_ray.models.language_model import GenomicLM, load_genomic_lm
from l2g_ray.stages.baseline import count_chosen
from l2g_ray.stages.context import Context, TaskData, count_steps, make_batches, make_losses, make_validate, summarise
from l2g_ray.stages.loop import LoopSettings, Runtime, TrainResult, train
from l2g_ray.stages.optim import make_optimizer, make_schedule

# What the models' papers fine-tune with.
LEARNING_RATES = (1e-5, 3e-5, 1e-4)


@dataclass(frozen=True)
class TunedLM:
    """The fine-tuned model, its best run, and that run's rate."""

    model: GenomicLM
    training: TrainResult
    lr: float


def tune_genomic_lm(data: TaskData, settings: Settings, runtime: Runtime, seed: int) -> TunedLM:
    """Fine-tune all weights once a rate, for `finetune.epochs`, and keep the best epoch of the best rate on validation.

    Raises UserError where the model cannot be had.
    """
    assert settings.baselines.genomic_model is not None
    best: TunedLM | None = None
    for lr in LEARNING_RATES:
        torch.manual_seed(seed)
        model = load_genomic_lm(
            settings.baselines.genomic_model, data.task.n_outputs, settings.baselines.genomic_words_bp
        )
        model.predictor.set_label_scale(data.label_offset, data.label_scale)
        model.to(runtime.device)
        stage, batch_size = settings.finetune, min(settings.finetune.batch_size)
        steps = count_steps(data, batch_size)
        groups = [(model.transformer.parameters(), lr), (model.predictor.parameters(), stage.lr_predictor)]
        state = runtime.state_path
        result = train(
            model,
            make_optimizer(stage.optim, groups),
            make_schedule(stage.optim, stage.epochs, steps),
            LoopSettings(stage.epochs, steps, seed, clip_norm=stage.optim.clip_norm),
            replace(runtime, state_path=None if state is None else state.with_name(f"{lr:g}-{state.name}")),
            batches=make_batches(settings, data, batch_size, seed),
            losses=make_losses(data.task, data.label_scale.to(runtime.device)),
            validate=make_validate(model, data, runtime),
        )
        if best is None or result.best_score > best.training.best_score:
            model.load_state_dict(result.best_state)
            best = TunedLM(model, result, lr)
    assert best is not None
    return best


def fit(context: Context, args: dict[str, Any]) -> tuple[GenomicLM, dict[str, Any]]:
    """Tune it, and return the model and the values of its result."""
    tuned = tune_genomic_lm(context.data, context.settings, context.runtime, args["seed"])
    return tuned.model, summarise(tuned.training) | {"chosen": {"lr": tuned.lr, **count_chosen(tuned.training)}}
