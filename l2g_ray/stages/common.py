"""What the stages share: the data they see, building an embedder, evaluating on validation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from l2g_ray.config import Settings
from l2g_ray.counts import count_batches, find_channels, use_rc
from l2g_ray.data.batches import Batch, Source, iter_batches, iter_evaluation_batches
from l2g_ray.models.embedder import EmbedderConfig, EmbedderNet
from l2g_ray.models.ensemble import predict_strands
from l2g_ray.models.team import ALONE, Team
from l2g_ray.stages.loop import Runtime
from l2g_ray.stages.optim import compute_task_loss
from l2g_ray.stages.parts import Draws, RowsAtOnce
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
    """The reference that `models.reference.write_reference` wrote."""
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
    """The config of an embedder for this task and language model."""
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
    """A fresh embedder with Predictor 1, its LayerNorm a copy of the language model's (docs/method.md, "Network")."""
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
    """Epoch to shuffled, augmented training batches, or to this worker's rows of each."""

    def batches(epoch: int) -> Iterator[Batch]:
        return iter_batches(
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
            max_batches=max_batches,
            worker=team.worker,
        )

    return batches


def count_steps(data: TaskData, batch_size: int, group: int = 1, max_batches: int | None = None) -> int:
    """Optimiser steps an epoch."""
    n = count_batches(data.train.n_rows, batch_size, drop_last=True)
    return -(-min(n, max_batches or n) // group)


def make_losses(
    model: nn.Module, task: Task, scale: torch.Tensor
) -> Callable[[list[Batch], int], Iterator[torch.Tensor]]:
    """The plain task loss of a group, a batch (or a part of one) at a time, weighted by its rows (acceptance D5).

    `model` is on the device where it trains; `scale` is moved there once.
    """
    scale = scale.to(next(model.parameters()).device)
    reads_text = getattr(model, "reads_text", False)

    def losses(group: list[Batch], epoch: int) -> Iterator[torch.Tensor]:
        n_rows, draws = count_rows(group), Draws()
        for batch in group:
            with draws.of(batch):
                outputs = model(batch.letters if reads_text else batch.codes, batch.lengths_bp)
            yield (batch.n_whole / n_rows) * part_loss(task, outputs, batch, scale)

    return losses


def part_loss(task: Task, outputs: torch.Tensor, batch: Batch, scale: torch.Tensor) -> torch.Tensor:
    """The task loss of a batch; of a part of one, its share, so that the shares of all parts add up to the whole's. `scale`
    (n_outputs,) is on the outputs' device."""
    n_labels = batch.part.n_labels if batch.part else None
    own = slice(batch.n_own)
    return compute_task_loss(task.kind, outputs[own], batch.labels[own], scale, n_labels)


def count_rows(group: list[Batch]) -> int:
    """Rows of the whole batches that a group is made of, each counted once."""
    return sum(batch.n_whole for batch in group if batch.part is None or batch.part.micro == 0)


def predict_source(
    model: nn.Module, source: Source, task: Task, runtime: Runtime, batch_size: int = 256, rc_average: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Predictions (n, n_outputs) and labels of all rows in order, in evaluation mode.

    `rc_average` means over both strands: probabilities for classification, values for regression (docs/method.md,
    "evaluate"). Batches that do not fit into memory go through in parts.
    """
    model.eval()
    predictions, labels, team, at_once = [], [], runtime.team, RowsAtOnce(batch_size)

    def predict(codes: torch.Tensor, lengths_bp: torch.Tensor) -> torch.Tensor:
        with runtime.autocast():
            return predict_strands(model, task.kind, codes, lengths_bp, rc_average)

    with torch.no_grad():
        for batch in iter_evaluation_batches(
            source.tables(), kind=task.kind, batch_size=batch_size, worker=team.worker
        ):
            batch = batch.to(runtime.device)
            outputs, known = at_once.map(predict, batch.codes, batch.lengths_bp), batch.labels
            if batch.part:
                own, place = slice(batch.n_own), (batch.part.start, batch.part.n_rows)
                outputs, known = (team.gather_rows(x[own], *place) for x in (outputs, known))
            predictions.append(outputs.cpu().numpy())
            labels.append(known.cpu().numpy())
    return np.concatenate(predictions), np.concatenate(labels)


def make_validate(model: nn.Module, data: TaskData, runtime: Runtime) -> Callable[[], dict[str, float]]:
    """The task's metric on validation as 'score', negated where lower is better, so that it is always maximised."""
    task = data.task

    def validate() -> dict[str, float]:
        predictions, labels = predict_source(model, data.valid, task, runtime)
        return {"score": signed_score(task.kind, task.metric, labels, predictions)}

    return validate


def with_dropout(config: EmbedderConfig, dropout: float) -> EmbedderConfig:
    """The same embedder with another dropout probability."""
    return replace(config, dropout=dropout)
