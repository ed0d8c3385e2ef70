"""The one training loop that all stages share: resumable, deterministic, keeps the best epoch on validation.

Randomness is drawn anew from (seed, epoch) at the start of every epoch, so a run that stops after an epoch and goes on
is bit-equal to one that never stopped (acceptance D4). History is reported again on resume, so that a scheduler sees
the same trial whether it was interrupted or not.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from l2g_ray.data.batches import Batch
from l2g_ray.stages.optim import Schedule, set_learning_rates

Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Runtime:
    """Where and how a stage computes. `report` gets one dict an epoch; `state_path` makes the run resumable."""

    device: str = "cpu"
    precision: str = "fp32"
    report: Report = lambda metrics: None
    state_path: Path | None = None

    def autocast(self) -> Any:
        """Autocast to bfloat16 where the precision asks for it."""
        if self.precision == "bf16":
            return torch.autocast(self.device, dtype=torch.bfloat16)
        return contextlib.nullcontext()


@dataclass(frozen=True)
class LoopSettings:
    """`group` batches make one optimiser step. `select_from_epoch`: epochs before it cannot become the best."""

    epochs: int
    steps_per_epoch: int
    seed: int
    group: int = 1
    clip_norm: float | None = 1.0
    patience_epochs: int | None = None
    select_from_epoch: int = 0


@dataclass
class TrainResult:
    """The best epoch's weights and score on validation, and one dict an epoch."""

    best_state: dict[str, torch.Tensor]
    best_epoch: int
    best_score: float
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class _State:
    epoch: int = 0
    best_score: float = -math.inf
    best_epoch: int = -1
    best_state: dict[str, torch.Tensor] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    stopped: bool = False


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    settings: LoopSettings,
    runtime: Runtime,
    *,
    batches: Callable[[int], Iterable[Batch]],
    losses: Callable[[list[Batch], int], Iterator[torch.Tensor]],
    validate: Callable[[], dict[str, float]],
    before_step: Callable[[], None] | None = None,
) -> TrainResult:
    """Train `model` and return its best epoch.

    Parameters
    ----------
    batches : epoch to batches, on the model's device or movable to it.
    losses : a group of batches and the epoch, to the partial losses whose sum is the group's loss; each is
        back-propagated on its own, so that accumulation holds one graph at a time.
    validate : the model as it is, in evaluation mode, to metrics; 'score' is maximised.
    before_step : called after the backward passes and before clipping (DASH scales its logits' gradients there).

    A loss that is not finite ends the run with score -inf for that epoch; the best earlier epoch stands.
    """
    state = _load(runtime.state_path, model, optimizer)
    for past in state.history:
        runtime.report(past)
    while state.epoch < settings.epochs and not state.stopped:
        epoch = state.epoch
        wall, cpu = time.perf_counter(), time.process_time()
        torch.manual_seed(settings.seed * 1_000_003 + epoch)
        loss = _train_epoch(model, optimizer, schedule, settings, runtime, batches, losses, before_step, epoch)
        row: dict[str, Any] = {"epoch": epoch, "train_loss": loss, "score": -math.inf}
        if math.isfinite(loss):
            model.eval()
            with torch.no_grad():
                row |= validate()
        row |= {"lr": optimizer.param_groups[0]["lr"], "wall_s": time.perf_counter() - wall}
        row["cpu_s"] = time.process_time() - cpu
        if epoch >= settings.select_from_epoch and (row["score"] > state.best_score or state.best_epoch < 0):
            state.best_score, state.best_epoch = row["score"], epoch
            state.best_state = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}
        row |= {"best_score": state.best_score, "best_epoch": state.best_epoch}
        state.epoch += 1
        state.history.append(row)
        waited = epoch - max(state.best_epoch, settings.select_from_epoch)
        state.stopped = not math.isfinite(loss) or (
            settings.patience_epochs is not None and waited >= settings.patience_epochs
        )
        _save(runtime.state_path, state, model, optimizer)
        runtime.report(row)
    return TrainResult(state.best_state, state.best_epoch, state.best_score, state.history)


def _train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    settings: LoopSettings,
    runtime: Runtime,
    batches: Callable[[int], Iterable[Batch]],
    losses: Callable[[list[Batch], int], Iterator[torch.Tensor]],
    before_step: Callable[[], None] | None,
    epoch: int,
) -> float:
    model.train()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    total, rows, step = 0.0, 0, epoch * settings.steps_per_epoch
    for group in group_batches(batches(epoch), settings.group, runtime.device):
        set_learning_rates(optimizer, schedule(step))
        optimizer.zero_grad(set_to_none=True)
        n_rows = sum(len(batch.codes) for batch in group)
        with runtime.autocast():
            partial_losses = losses(group, epoch)
            value = 0.0
            for partial in partial_losses:
                with torch.autocast(runtime.device, enabled=False):
                    partial.backward()
                value += float(partial.detach())
        if not math.isfinite(value):
            return math.nan
        if before_step is not None:
            before_step()
        if settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
        optimizer.step()
        total, rows, step = total + value * n_rows, rows + n_rows, step + 1
    return total / max(1, rows)


def group_batches(batches: Iterable[Batch], size: int, device: str) -> Iterator[list[Batch]]:
    """Consecutive batches in lists of `size`, moved to the device; the last list may be shorter."""
    group: list[Batch] = []
    for batch in batches:
        group.append(batch.to(device))
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _save(path: Path | None, state: _State, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    if path is None:
        return
    content = {"loop": vars(state), "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    torch.save(content, temporary)
    os.replace(temporary, path)


def _load(path: Path | None, model: nn.Module, optimizer: torch.optim.Optimizer) -> _State:
    if path is None or not path.exists():
        return _State()
    content = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    return _State(**content["loop"])
