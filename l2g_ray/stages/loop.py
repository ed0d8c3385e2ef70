"""The one training loop that all stages share: resumable, deterministic, keeps the best epoch on validation.

Every epoch seeds its random numbers with (seed, epoch), so a run that stops after an epoch and resumes is bit-equal to
one that never stopped. History is reported again on resume, so that a scheduler sees
the same trial whether it was interrupted or not.

Workers of a team each train on their own rows; DistributedDataParallel averages their gradients, and all take the same steps.
A step that runs out of memory is done again with its batches cut into micro-batches, whose gradients accumulate: the same
effective batch, except that batch norm takes the statistics of each micro-batch.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from l2g_ray.atomic import replacing, write_json
from l2g_ray.data.batches import Batch
from l2g_ray.errors import UserError
from l2g_ray.models.team import ALONE, Team
from l2g_ray.stages.optim import Schedule, set_learning_rates
from l2g_ray.stages.parts import copy_buffers, join_counts, release_memory, restore_buffers, seed_epoch

Report = Callable[[dict[str, Any]], None]
# A model, a step's batches and the epoch, to what computes the losses whose sum is the step's. Each is back-propagated before
# the next one is computed, so that memory holds one graph at a time.
Losses = Callable[[nn.Module, list[Batch], int], Sequence[Callable[[], torch.Tensor]]]


@dataclass(frozen=True)
class Runtime:
    """Where and how a stage computes. `report` gets one dict an epoch; `state_path` makes the run resumable. Workers of a
    `team` share the state's folder."""

    device: str = "cpu"
    precision: str = "fp32"
    report: Report = lambda metrics: None
    state_path: Path | None = None
    team: Team = ALONE

    def autocast(self) -> Any:
        """Autocast to bfloat16 where the precision asks for it."""
        if self.precision == "bf16":
            return torch.autocast(self.device, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def for_predicting(self) -> Runtime:
        """Return what predicts as `predict` does, so that reported scores are of the same numbers: in fp32, in one process."""
        return replace(self, precision="fp32", team=ALONE)


@dataclass(frozen=True)
class LoopSettings:
    """`group` batches make one optimiser step. `select_from_epoch`: epochs before it cannot become the best.

    `keep_last`: the last epoch is kept, whatever its score, so that the rows of validation choose nothing. Only that epoch
    is validated; the score of the others is -inf.

    `average_weights`: validated and kept are exponential moving averages of weights and statistics over about one epoch.
    """

    epochs: int
    steps_per_epoch: int
    seed: int
    group: int = 1
    clip_norm: float | None = 1.0
    select_from_epoch: int = 0
    average_weights: bool = False
    keep_last: bool = False


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
    micro_batches: int = 1
    average: dict[str, torch.Tensor] = field(default_factory=dict)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    settings: LoopSettings,
    runtime: Runtime,
    *,
    batches: Callable[[int], Iterable[Batch]],
    losses: Losses,
    validate: Callable[[], dict[str, float]],
    before_step: Callable[[], None] | None = None,
) -> TrainResult:
    """Train `model` and return its best epoch.

    Parameters
    ----------
    batches : epoch to batches, on the host; each step moves its own to the device.
    losses : see `Losses`. It gets `model`, or what wraps it for a team; the mean of the workers' losses is the step's.
    validate : the model as it is, in evaluation mode, to metrics; 'score' is maximised.
    before_step : called after the backward passes and before clipping (DASH scales its logits' gradients there).

    A loss that is not finite ends the run after its epoch, with score -inf; the best earlier epoch stands. A history row has
    'micro_batches' if its batches had to be cut to fit into memory, and what `measure_memory` gives on a GPU.

    Raises
    ------
    UserError : memory does not suffice even for micro-batches of a few rows.
    torch.OutOfMemoryError : on a worker of a team, whose others wait for it; after a restart all of them continue with
        smaller micro-batches.
    """
    team = runtime.team
    if runtime.device == "cuda":  # processes are used again: what an earlier trial took is not this one's
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    state = _load(runtime.state_path, model, optimizer)
    state.average = {name: value.to(runtime.device) for name, value in state.average.items()}
    state.micro_batches = max(state.micro_batches, read_micro_batches(runtime.state_path))
    wrapped = team.wrap(model)
    for past in state.history:
        runtime.report(past)
    while state.epoch < settings.epochs and not state.stopped:
        epoch = state.epoch
        wall, cpu = time.perf_counter(), time.process_time()
        seed_epoch(settings.seed, epoch, team)
        total, rows = _run_steps(
            wrapped, model, optimizer, schedule, settings, runtime, batches, losses, before_step, state
        )
        # Only here the host waits for the device: no step looks at its loss, so one that is not finite ends the epoch late.
        loss = team.sum_number(float(total)) / team.size / max(1, rows)
        loss = loss if math.isfinite(loss) else math.nan
        row: dict[str, Any] = {"epoch": epoch, "train_loss": loss, "score": -math.inf}
        row["train_s"] = time.perf_counter() - wall
        trained = swap_weights(model, state.average)
        is_last = epoch + 1 == settings.epochs
        if math.isfinite(loss) and (is_last or not settings.keep_last):
            model.eval()
            with torch.no_grad():
                row |= {name: _to_plain(value) for name, value in validate().items()}
        row |= {"lr": optimizer.param_groups[0]["lr"], "wall_s": time.perf_counter() - wall}
        row["cpu_s"] = team.sum_number(time.process_time() - cpu)
        if state.micro_batches > 1:
            row["micro_batches"] = state.micro_batches
        if runtime.device == "cuda":
            row |= measure_memory()
        if _is_kept(settings, state, row):
            state.best_score, state.best_epoch = row["score"], epoch
            # After a first epoch that failed they may be no numbers, which no reader of a model expects.
            state.best_state = {k: v.detach().cpu().clone().nan_to_num_() for k, v in model.state_dict().items()}
        swap_weights(model, trained)
        row |= {"best_score": state.best_score, "best_epoch": state.best_epoch}
        state.epoch += 1
        state.history.append(row)
        state.stopped = not math.isfinite(loss)
        if team.is_first:
            _save(runtime.state_path, state, model, optimizer)
        runtime.report(row)
    return TrainResult(state.best_state, state.best_epoch, state.best_score, state.history)


def _to_plain(value: Any) -> Any:
    """Return a numpy number as Python's: a state that holds one cannot be read back with `weights_only`."""
    return value.item() if isinstance(value, np.generic) else value


def _is_kept(settings: LoopSettings, state: _State, row: dict[str, Any]) -> bool:
    """Return whether the weights of this epoch replace those that were kept so far."""
    if settings.keep_last:
        return math.isfinite(row["train_loss"]) or state.best_epoch < 0
    return row["epoch"] >= settings.select_from_epoch and (row["score"] > state.best_score or state.best_epoch < 0)


def update_average(average: dict[str, torch.Tensor], model: nn.Module, share: float) -> None:
    """Move an average of a model's weights and statistics by `share` of the way to what they are; it begins as they are."""
    state = model.state_dict()
    if not average:
        average |= {name: value.clone() for name, value in state.items()}
        return
    moving = [name for name, value in state.items() if value.is_floating_point()]
    torch._foreach_lerp_([average[name] for name in moving], [state[name] for name in moving], share)
    for name in state.keys() - set(moving):
        average[name].copy_(state[name])


def swap_weights(model: nn.Module, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give the model these weights, if any; returns those that it had, or nothing where nothing was given."""
    if not state:
        return {}
    before = {name: value.detach().clone() for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    return before


def measure_memory() -> dict[str, float]:
    """'gpu_bytes' of the current GPU, and 'peak_bytes' of it that this process took: the allocator's largest reserve and
    what lies outside of it (the CUDA context). Only right while no other process uses the GPU."""
    free, total = torch.cuda.mem_get_info()
    outside = max(0, total - free - torch.cuda.memory_reserved())
    return {"peak_bytes": torch.cuda.max_memory_reserved() + outside, "gpu_bytes": total}


def _run_steps(
    wrapped: nn.Module,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    settings: LoopSettings,
    runtime: Runtime,
    batches: Callable[[int], Iterable[Batch]],
    losses: Losses,
    before_step: Callable[[], None] | None,
    state: _State,
) -> tuple[torch.Tensor, int]:
    """Return all steps of an epoch, without waiting for the device: this worker's loss summed over rows (float64, on
    the device), and the rows.
    """
    model.train()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    epoch = state.epoch
    total = torch.zeros((), dtype=torch.float64, device=runtime.device)
    rows, step = 0, epoch * settings.steps_per_epoch
    for group in group_batches(batches(epoch), settings.group):
        set_learning_rates(optimizer, schedule(step))
        group = join_counts(group, runtime.team)
        n_rows = sum(batch.n_whole for batch in group)
        value = _backward(wrapped, optimizer, runtime, lambda pieces: losses(wrapped, pieces, epoch), group, state)
        if before_step is not None:
            before_step()
        if settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
        optimizer.step()
        if settings.average_weights:
            # From the first step on the mean of all so far, later of about an epoch.
            update_average(state.average, model, 1.0 / min(step + 1, max(2, settings.steps_per_epoch)))
        total, rows, step = total + value * n_rows, rows + n_rows, step + 1
    return total, rows


def _backward(
    wrapped: nn.Module,
    optimizer: torch.optim.Optimizer,
    runtime: Runtime,
    losses: Callable[[list[Batch]], Sequence[Callable[[], torch.Tensor]]],
    group: list[Batch],
    state: _State,
) -> torch.Tensor:
    """Gradients of a group of the host's and its loss (float64, on the device), in as many micro-batches as memory wants;
    `state` remembers how many."""
    no_sync = getattr(wrapped, "no_sync", contextlib.nullcontext)
    while True:
        optimizer.zero_grad(set_to_none=True)
        pieces = group
        if state.micro_batches > 1:
            pieces = [piece for batch in group for piece in batch.split(state.micro_batches)]
            if runtime.team.size == 1:  # a team's workers must all take the same steps
                pieces = [piece for piece in pieces if piece.n_own]
        generator, buffers = torch.get_rng_state(), copy_buffers(wrapped)
        try:
            pieces = [piece.to(runtime.device) for piece in pieces]
            with runtime.autocast():
                value = torch.zeros((), dtype=torch.float64, device=runtime.device)
                for i, compute in enumerate(found := losses(pieces)):
                    # Workers average what has accumulated, during the last backward pass.
                    with contextlib.nullcontext() if i + 1 == len(found) else no_sync():
                        loss = compute()
                        with torch.autocast(runtime.device, enabled=False):
                            loss.backward()
                    value = value + loss.detach().double()
            return value
        except torch.OutOfMemoryError:
            smaller = _halve(max(len(batch.codes) for batch in group), state.micro_batches)
            if runtime.team.size > 1:
                _write_micro_batches(runtime.state_path, smaller)
                raise
        # Outside of the handler, which keeps the failed step's tensors alive.
        state.micro_batches = smaller
        torch.set_rng_state(generator)
        restore_buffers(wrapped, buffers)
        release_memory()


def _halve(n_rows: int, micro_batches: int) -> int:
    """Twice as many micro-batches of at least two rows each. Raises UserError where that is not possible."""
    if n_rows < 4 * micro_batches:
        raise UserError(
            f"memory does not suffice even for {-(-n_rows // micro_batches)} rows at once; give trials more of a GPU with "
            "--gpus-per-trial, or lower data.max_length_bp or model.target_tokens"
        )
    return 2 * micro_batches


def _micro_batches_file(state_path: Path) -> Path:
    return state_path.with_name("micro_batches.json")


def read_micro_batches(state_path: Path | None) -> int:
    """Return what a team that ran out of memory has left for its next start; 1 for nothing."""
    if state_path is None or not _micro_batches_file(state_path).exists():
        return 1
    return int(json.loads(_micro_batches_file(state_path).read_text()))


def _write_micro_batches(state_path: Path | None, n: int) -> None:
    if state_path is not None:
        write_json(_micro_batches_file(state_path), n)


def group_batches(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Consecutive batches in lists of `size`; the last list may be shorter."""
    group: list[Batch] = []
    for batch in batches:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _save(path: Path | None, state: _State, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    if path is None:
        return
    content = {"loop": vars(state), "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    with replacing(path) as temporary:
        torch.save(content, temporary)


def _load(path: Path | None, model: nn.Module, optimizer: torch.optim.Optimizer) -> _State:
    if path is None or not path.exists():
        return _State()
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Truncated by a loss of power, or not written by this module; `weights_only` runs no code of it.
        warnings.warn(f"{path}: no readable state ({type(error).__name__}), training restarts", stacklevel=2)
        path.unlink()
        return _State()
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    return _State(**content["loop"])
