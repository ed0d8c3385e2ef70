"""Stage 3: fine-tune embedder, language model and predictor on the task (paper, "Fine-tuning")."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from l2g_ray.config import Settings
from l2g_ray.models.embedder import EmbedderConfig, EmbedderNet
from l2g_ray.models.l2g import L2GConfig, L2GModel, load_model, save_model
from l2g_ray.models.language_model import LanguageModel, load_transformer
from l2g_ray.stages.context import (
    Context,
    Reference,
    TaskData,
    build_net,
    count_steps,
    make_batches,
    make_losses,
    make_validate,
    summarise,
    with_dropout,
)
from l2g_ray.stages.loop import LoopSettings, Runtime, TrainResult, train
from l2g_ray.stages.optim import make_optimizer, make_schedule


@dataclass(frozen=True)
class FinetuneTrial:
    """The hyper-parameters of one trial, as ASHA draws them."""

    lr_embedder: float
    lr_language_model: float
    weight_decay: float
    dropout: float
    batch_size: int
    train_layers: str
    alpha: float

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return asdict(self)


def build_model(
    data: TaskData,
    settings: Settings,
    reference: Reference,
    *,
    config: EmbedderConfig,
    embedder_state: dict[str, torch.Tensor],
    seed: int,
    pretrained: Path | None = None,
) -> L2GModel | EmbedderNet:
    """Return the whole model: a trained embedder joined to the language model, with a fresh head.

    `pretrained` is the folder of a language model that replaces the one in the settings (`stages.pretrain`).
    With `model.combine` 'embedder' it is the embedder with its own predictor: the same search without the language model.
    """
    net = build_net(config, data, reference, seed)
    net.load_state_dict(embedder_state)
    if settings.model.combine == "embedder":
        return net
    if pretrained is not None:
        transformer = load_transformer(str(pretrained))
    else:
        transformer = load_transformer(settings.model.language_model, settings.model.language_model_init, seed)
    language_model = LanguageModel(transformer, settings.model.positions, settings.model.language_model_layers)
    return L2GModel(
        L2GConfig(
            config,
            settings.model.combine,
            settings.model.positions,
            settings.model.language_model,
            settings.model.language_model_layers,
        ),
        net,
        language_model,
    )


def finetune(
    data: TaskData,
    settings: Settings,
    reference: Reference,
    runtime: Runtime,
    *,
    config: EmbedderConfig,
    embedder_state: dict[str, torch.Tensor],
    trial: FinetuneTrial,
    seed: int,
    pretrained: Path | None = None,
) -> TrainResult:
    """Fine-tune with one set of hyper-parameters; returns the best epoch on validation, or the last where that is
    held out. `pretrained`: see `build_model`.

    Embedder, language model and head have separate learning rates: one rate for all either leaves the head at chance or
    destroys the language model.

    With `train_layers` 'lora' the low-rank additions are merged at the end, so that the best state is always that of a model
    that `build_model` makes.
    """
    stage = settings.finetune
    if settings.model.combine == "embedder":
        config = with_dropout(config, trial.dropout)
    model = build_model(
        data, settings, reference, config=config, embedder_state=embedder_state, seed=seed, pretrained=pretrained
    )
    if isinstance(model, L2GModel):
        model.language_model.set_dropout(trial.dropout)
        if trial.train_layers == "lora":
            model.language_model.add_lora(stage.lora_rank, stage.lora_alpha, seed)
        else:
            model.language_model.set_trainable(trial.train_layers)
    model.to(runtime.device)
    optim = stage.optim.model_copy(update={"weight_decay": trial.weight_decay})
    steps = count_steps(data, trial.batch_size)
    if isinstance(model, L2GModel):
        groups = [
            (model.net.parameters(), trial.lr_embedder),
            (model.language_model.parameters(), trial.lr_language_model),
            (model.head.parameters(), stage.lr_predictor),
        ]
    else:
        groups = [
            (model.embedder.parameters(), trial.lr_embedder),
            (model.predictor.parameters(), stage.lr_predictor),
        ]
    optimizer = make_optimizer(optim, groups)
    result = train(
        model,
        optimizer,
        make_schedule(optim, stage.epochs, steps),
        LoopSettings(stage.epochs, steps, seed, clip_norm=optim.clip_norm, keep_last=data.held_out),
        runtime,
        batches=make_batches(settings, data, trial.batch_size, seed, team=runtime.team),
        losses=make_losses(data.task, data.label_scale.to(runtime.device)),
        validate=make_validate(model, data, runtime),
    )
    if isinstance(model, L2GModel) and trial.train_layers == "lora" and result.best_state:
        model.load_state_dict(result.best_state)
        model.to("cpu").language_model.merge_lora()
        result.best_state = {k: v.detach().clone() for k, v in model.state_dict().items()}
    return result


def run_trial(context: Context, args: dict[str, Any]) -> dict[str, Any]:
    """Score one set of hyper-parameters; the weights are not kept."""
    return summarise(_finetune_aligned(context, args)[0])


def run_refit(context: Context, args: dict[str, Any]) -> dict[str, Any]:
    """Train a member of the arm L2G with the winner's hyper-parameters."""
    training, config, state = _finetune_aligned(context, args)
    if context.runtime.team.is_first:
        model = build_model(
            context.data,
            context.settings,
            context.reference,
            config=config,
            embedder_state=state,
            seed=args["seed"],
            pretrained=context.pretrained,
        )
        model.load_state_dict(training.best_state)
        save_model(model, context.work)
    return summarise(training)


def _finetune_aligned(
    context: Context, args: dict[str, Any]
) -> tuple[TrainResult, EmbedderConfig, dict[str, torch.Tensor]]:
    trial = FinetuneTrial(**args["trial"])
    net = load_model(context.inputs[f"align:{trial.alpha}"])
    assert isinstance(net, EmbedderNet)
    training = finetune(
        context.data,
        context.settings,
        context.reference,
        context.runtime,
        config=net.config,
        embedder_state=net.state_dict(),
        trial=trial,
        seed=args["seed"],
        pretrained=context.pretrained,
    )
    return training, net.config, net.state_dict()
