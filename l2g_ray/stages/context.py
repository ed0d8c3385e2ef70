"""What a job hands to a stage's function, and what all share: data, networks, batches, losses, predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from l2g_ray.config import OneCycleSettings, Settings
from l2g_ray.counts import count_batches, find_channels, use_rc
from l2g_ray.data.batches import Batch, Source, fill_steps, iter_batches, iter_evaluation_batches
from l2g_ray.data.dataset import PreparedTask
from l2g_ray.models.embedder import EmbedderConfig, EmbedderNet
from l2g_ray.models.ensemble import predict_each
from l2g_ray.models.l2g import load_model, save_model
from l2g_ray.models.team import ALONE, Team
from l2g_ray.sequence import send
from l2g_ray.stages.loop import LoopSettings, Losses, Runtime, TrainResult, train
from l2g_ray.stages.optim import compute_task_loss, make_optimizer, make_schedule
from l2g_ray.stages.parts import RowsAtOnce
from l2g_ray.tasks.metrics import signed_score
from l2g_ray.tasks.schema import Task


@dataclass(frozen=True)
class TaskData:
    """Training and validation rows of one task. The test split is not here: only `evaluate` opens it.

    `length_bp` is the longest sequence of train and valid; `label_offset` and `label_scale` (n_outputs,) are the training
    labels' mean and standard deviation for regression, 0 and 1 otherwise. `held_out`: the validation rows are a fold whose
    scores are reported, so no stage may choose by them.
    """

    task: Task
    train: Source
    valid: Source
    length_bp: int
    fixed_length: bool
    label_offset: torch.Tensor
    label_scale: torch.Tensor
    held_out: bool = False


def make_label_scale(
    task: Task, means: Sequence[float | None], sds: Sequence[float | None]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Offset and scale (n_outputs,) of the predictor from the training labels' means and standard deviations.

    0 and 1 unless the task is a regression; an output without labels (None) or without spread has offset 0 or scale 1.
    """
    if task.kind != "regression":
        return torch.zeros(task.n_outputs), torch.ones(task.n_outputs)
    return torch.tensor([mean or 0.0 for mean in means]), torch.tensor([sd or 1.0 for sd in sds])


@dataclass(frozen=True)
class Reference:
    """What the CNN stages need of the language model, so that they never load it: width D, token limit, its embedding
    LayerNorm, and the text features (n, D) that MMD aligns to.

    `classes` (n,) int64 are the features' tags, None where the text has none.
    """

    width: int
    max_tokens: int
    norm_eps: float
    norm_weight: torch.Tensor
    norm_bias: torch.Tensor
    features: torch.Tensor
    classes: torch.Tensor | None = None


def read_reference(folder: Path, facts: dict[str, Any]) -> Reference:
    """Return the reference that `stages.reference.write_reference` wrote."""
    tensors = load_file(str(folder / "reference.safetensors"))
    # The features stand class by class.
    counts = torch.tensor(list(facts.get("classes", {}).values()), dtype=torch.int64)
    return Reference(
        width=int(facts["width"]),
        max_tokens=int(facts["max_tokens"]),
        norm_eps=float(facts["norm_eps"]),
        norm_weight=tensors["norm_weight"],
        norm_bias=tensors["norm_bias"],
        features=tensors["features"],
        classes=torch.arange(len(counts)).repeat_interleave(counts) if len(counts) > 1 else None,
    )


def make_embedder_config(
    settings: Settings,
    data: TaskData,
    reference: Reference,
    backbone: str,
    architecture: Iterable[tuple[int, int]] = (),
    dropout: float = 0.0,
) -> EmbedderConfig:
    """Return the config of an embedder for this task and language model."""
    model = settings.model
    return EmbedderConfig(
        backbone=backbone,
        channels=find_channels(model, backbone, reference.width),
        length_bp=data.length_bp,
        width=reference.width,
        max_tokens=reference.max_tokens,
        n_outputs=data.task.n_outputs,
        in_channels=settings.data.channels,
        target_tokens=model.target_tokens,
        full_tokens=backbone == "resnet" and model.resnet_tokens == "full",
        pool=model.resnet_pool,
        causal=model.causal,
        dropout=dropout,
        predictor_reads=model.predictor_reads,
        pooling=model.find_pooling(data.task.strand_specific),
        norm_eps=reference.norm_eps,
        architecture=tuple(architecture),
    )


def build_net(config: EmbedderConfig, data: TaskData, reference: Reference, seed: int) -> EmbedderNet:
    """Return a fresh embedder with Predictor 1, its LayerNorm a copy of the language model's (docs/method.md,
    "Network").
    """
    torch.manual_seed(seed)
    net = EmbedderNet(config)
    with torch.no_grad():
        net.embedder.norm.weight.copy_(reference.norm_weight)
        net.embedder.norm.bias.copy_(reference.norm_bias)
    net.predictor.set_label_scale(data.label_offset, data.label_scale)
    return net


def make_batches(
    settings: Settings,
    data: TaskData,
    batch_size: int,
    seed: int,
    *,
    augment: bool = True,
    max_batches: int | None = None,
    team: Team = ALONE,
) -> Callable[[int], Iterator[Batch]]:
    """Epoch to shuffled, augmented training batches; of a worker's own rows, as many batches as the whole has."""
    n_batches = count_steps(data, batch_size, max_batches=max_batches)

    def batches(epoch: int) -> Iterator[Batch]:
        found = iter_batches(
            data.train.tables(),
            kind=data.task.kind,
            batch_size=batch_size,
            length_bp=data.length_bp if data.fixed_length else None,
            seed=seed,
            epoch=epoch,
            shuffle_window_rows=settings.data.shuffle_window_rows,
            rc_augment=augment and use_rc(settings, data.task),
            shift_bp=settings.data.find_shift_bp(data.task.strand_specific) if augment else 0,
            bucket_batches=settings.data.bucket_batches,
            drop_last=True,
            max_batches=n_batches,
            worker=(team.rank, team.size),
        )
        return found if team.size == 1 else fill_steps(found, n_batches)

    return batches


def count_steps(data: TaskData, batch_size: int, group: int = 1, max_batches: int | None = None) -> int:
    """Optimiser steps an epoch."""
    n = count_batches(data.train.n_rows, batch_size, drop_last=True)
    return -(-min(n, max_batches or n) // group)


def make_losses(task: Task, scale: torch.Tensor) -> Losses:
    """Return the plain task loss of a group, a batch (or a part of one) at a time, weighted by its rows (acceptance
    D5).

    `scale` (n_outputs,) is on the device where the model trains.
    """

    def losses(model: nn.Module, group: list[Batch], epoch: int) -> list[Callable[[], torch.Tensor]]:
        n_rows = count_rows(group)
        return [partial(loss, model, batch, batch.n_whole / n_rows) for batch in group]

    def loss(model: nn.Module, batch: Batch, weight: float) -> torch.Tensor:
        reads_text = getattr(model, "reads_text", False)
        outputs = model(batch.letters if reads_text else batch.codes, batch.lengths_bp)
        return weight * part_loss(task, outputs, batch, scale)

    return losses


def part_loss(task: Task, outputs: torch.Tensor, batch: Batch, scale: torch.Tensor) -> torch.Tensor:
    """Return the task loss of a batch; of a part of one such that the mean over workers of the sum over their
    micro-batches is the whole's.
    """
    own = slice(batch.n_own)
    if batch.part is None:
        return compute_task_loss(task.kind, outputs, batch.labels, scale)
    share = compute_task_loss(task.kind, outputs[own], batch.labels[own], scale, batch.part.n_labels)
    return len(batch.part.by_worker) * share


def count_rows(group: list[Batch]) -> int:
    """Return rows of the whole batches that a group is made of, each counted once."""
    return sum(batch.n_whole for batch in group if batch.part is None or batch.part.micro == 0)


def predict_source(
    model: nn.Module, source: Source, task: Task, runtime: Runtime, batch_size: int = 256, rc_average: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return predictions (n, n_outputs) and labels of all rows in order, in evaluation mode; of a team, of all
    workers' rows.

    `rc_average` means over both strands: probabilities for classification, values for regression (docs/method.md,
    "evaluate"). Batches that do not fit into memory go through in parts.
    """
    predictions, labels = predict_each_source(model, source, task, runtime, batch_size, rc_average)
    return predictions[-1], labels


def predict_each_source(
    model: nn.Module, source: Source, task: Task, runtime: Runtime, batch_size: int = 256, both_strands: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """As `predict_source`, but predictions (1 or 2, n, n_outputs): of the given strand and, of both, their mean."""
    model.eval()
    team, at_once = runtime.team, RowsAtOnce(batch_size)
    found: list[tuple[np.ndarray, ...]] = []

    def predict(codes: torch.Tensor, lengths_bp: torch.Tensor) -> torch.Tensor:
        with runtime.autocast():
            return predict_each(model, task.kind, codes, lengths_bp, both_strands)

    with torch.no_grad():
        for batch in iter_evaluation_batches(source.tables(), kind=task.kind, batch_size=batch_size):
            outputs = at_once.map(predict, send(batch.codes, runtime.device), batch.lengths_bp)
            found.append((outputs.cpu().numpy(), batch.labels.numpy(), batch.row_index.numpy()))
    found = [one for own in team.gather(found) for one in own]
    predictions, labels, rows = (np.concatenate(columns) for columns in zip(*found, strict=True))
    order = slice(None) if team.size == 1 else rows.argsort()
    return predictions[order].swapaxes(0, 1), labels[order]


def make_validate(model: nn.Module, data: TaskData, runtime: Runtime) -> Callable[[], dict[str, float]]:
    """Return the task's metric on validation as 'score', negated where lower is better, so that it is always
    maximised.
    """
    task = data.task

    def validate() -> dict[str, float]:
        predictions, labels = predict_source(model, data.valid, task, runtime)
        return {"score": signed_score(task.kind, task.metric, labels, predictions)}

    return validate


def with_dropout(config: EmbedderConfig, dropout: float) -> EmbedderConfig:
    """Return the same embedder with another dropout probability."""
    return replace(config, dropout=dropout)


# What a job of an arm leaves beside its model: predictions for held-out rows, of the given strand and of both.
HELD_OUT = "held_out.npy"


@dataclass(frozen=True)
class Context:
    """What a stage's function gets, beside its arguments.

    Parameters
    ----------
    language_model : what the text reference says of it; see `reference`.
    work : the folder for the stage's files.
    inputs : folders of earlier results by name.
    pretrained : folder of the language model after continued pre-training, where there was any.
    data_dir : where a text corpus may be.
    """

    prepared: PreparedTask
    data: TaskData
    settings: Settings
    language_model: Reference | None
    runtime: Runtime
    work: Path
    inputs: dict[str, Path]
    pretrained: Path | None = None
    data_dir: Path | None = None

    @property
    def reference(self) -> Reference:
        """What the stage needs of the language model; stages with an embedder have one."""
        assert self.language_model is not None
        return self.language_model


def summarise(training: TrainResult, inherited_epochs: int = 0) -> dict[str, Any]:
    """Return what a stage's result says of a training, without the cost of epochs that it took over."""
    own = training.history[inherited_epochs:]
    return {
        "score": training.best_score,
        "best_epoch": training.best_epoch,
        "history": training.history,
        "epochs": len(own),
        "cpu_s": sum(row["cpu_s"] for row in own),
        "wall_s": sum(row["wall_s"] for row in own),
    }


def read_architecture(args: dict[str, Any]) -> list[tuple[int, int]]:
    """Return the kernel size and dilation of each layer."""
    return [(int(kernel_size), int(dilation)) for kernel_size, dilation in args["architecture"]]


def make_config(context: Context, args: dict[str, Any]) -> EmbedderConfig:
    """Return the embedder's config of `args['backbone']` and `args['architecture']`."""
    architecture = read_architecture(args)
    return make_embedder_config(context.settings, context.data, context.reference, args["backbone"], architecture)


def save_embedder(context: Context, config: EmbedderConfig, training: TrainResult) -> None:
    """Write the best embedder of a training; of a team, the first worker does."""
    if context.runtime.team.is_first:
        net = EmbedderNet(config)
        net.load_state_dict(training.best_state)
        save_model(net, context.work)


def predict_held_out(context: Context) -> None:
    """Write the predictions (2, n, n_outputs) of the stored model for the held-out rows: of the given strand, and of both."""
    runtime, task, valid = context.runtime.for_predicting(), context.prepared.task, context.data.valid
    model = load_model(context.work).to(runtime.device)
    size = context.settings.evaluate.batch_size
    strands, _ = predict_each_source(model, valid, task, runtime, size)
    np.save(context.work / HELD_OUT, strands.astype(np.float32, order="C"))


def train_one_cycle(
    net: nn.Module, data: TaskData, settings: Settings, runtime: Runtime, stage: OneCycleSettings, seed: int
) -> TrainResult:
    """Train `net`, which is on the runtime's device, on batches that are augmented as `settings.data` says.

    The result is the exponential moving average of the weights over about the last epoch; where the loss ceases to be finite,
    that of the epoch before.
    """
    epochs, steps = stage.count_epochs(data.train.n_rows), count_steps(data, stage.batch_size)
    return train(
        net,
        make_optimizer(stage.optim, [(net.parameters(), stage.optim.lr)]),
        make_schedule(stage.optim, epochs, steps),
        LoopSettings(epochs, steps, seed, clip_norm=stage.optim.clip_norm, keep_last=True, average_weights=True),
        runtime,
        batches=make_batches(settings, data, stage.batch_size, seed, team=runtime.team),
        losses=make_losses(data.task, data.label_scale.to(runtime.device)),
        validate=make_validate(net, data, runtime),
    )
