"""How many batches, steps, channels and rungs settings make. Pure numbers: plans ask without torch, stages with it."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any

from l2g_ray.config import (
    BACKBONES,
    AlignSettings,
    ModelSettings,
    OneCycleSettings,
    OptimSettings,
    SearchSettings,
    SelectSettings,
    Settings,
)
from l2g_ray.tasks.schema import Task

# The small CNN that is read out by mean and max (False), or by position (True): (filters, kernel size, pooling after it) of
# each layer, and how it trains.
CNN_LAYERS = {False: ((96, 7, 2), (96, 7, 1), (96, 7, 1)), True: ((96, 11, 2), (96, 5, 2), (64, 5, 1))}
# By position: units of the dense layer, and the most places that it reads.
CNN_DENSE, CNN_MOST_PLACES = 128, 128
_CNN_OPTIM = OptimSettings(lr=4e-3, weight_decay=0.02, betas=(0.9, 0.999), warmup_fraction=0.2)
CNN_SCHEDULES = {
    False: OneCycleSettings(optim=_CNN_OPTIM, batch_size=32, steps=1400, epochs=(8, 12)),
    True: OneCycleSettings(optim=_CNN_OPTIM.model_copy(update={"lr": 2e-3}), batch_size=64, steps=1000, epochs=(8, 16)),
}


def choose_cnn_schedule(settings: Settings, by_position: bool) -> OneCycleSettings:
    """Return the schedule of either small CNN; with `baselines.cnn_steps`, of that length, from one epoch on."""
    stage, steps = CNN_SCHEDULES[by_position], settings.baselines.cnn_steps
    if steps is None or isinstance(stage.epochs, int):
        return stage
    return stage.model_copy(update={"steps": steps, "epochs": (1, stage.epochs[1])})


def default_architecture(backbone: str) -> list[tuple[int, int]]:
    """Return the (kernel size, dilation) of every layer before any search."""
    return [(BACKBONES[backbone].kernel_size, 1)] * BACKBONES[backbone].n_layers


def load_backbone(backbone: str) -> Any:
    """Import and return the class of a backbone's network."""
    return resolve_name(BACKBONES[backbone].net)


@dataclass(frozen=True)
class Candidate:
    """A backbone with one kernel size, dilation 1, in all layers; `architecture` has a pair a layer."""

    name: str
    backbone: str
    architecture: list[tuple[int, int]]


def list_candidates(stage: SelectSettings) -> list[Candidate]:
    """Return what `select` compares: each backbone with each of `kernel_sizes`, or with its own kernels where there
    are none.
    """
    found = []
    for backbone in stage.backbones:
        own = default_architecture(backbone)
        if not (stage.kernel_sizes and own):
            found.append(Candidate(backbone, backbone, own))
            continue
        for k in dict.fromkeys(stage.kernel_sizes):
            found.append(Candidate(f"{backbone} {k}x1", backbone, [(k, 1)] * len(own)))
    return found


def count_batches(n_rows: int, batch_size: int, drop_last: bool = False) -> int:
    """Return the number of batches that `iter_batches` yields for `n_rows` rows."""
    full, rest = divmod(n_rows, batch_size)
    return full + (rest > (1 if drop_last else 0))


def group_size(settings: AlignSettings) -> int:
    """Batches a step: rows are gathered until their count exceeds `max_samples` (5 x 64 for 256)."""
    return settings.max_samples // settings.batch_size + 1


def batches_per_epoch(stage: SearchSettings, n_rows: int) -> int:
    """Batches of an epoch of the search, which sees a share of the training rows."""
    available = count_batches(n_rows, stage.batch_size, drop_last=True)
    return min(available, int(stage.batch_fraction * available) + 1)


def use_rc(settings: Settings, task: Task) -> bool:
    """Return whether reverse complements are the same example: 'auto' is yes unless the task belongs to one strand."""
    choice = settings.data.rc_augment
    return choice == "on" or (choice == "auto" and not task.strand_specific)


def average_strands(settings: Settings, task: Task) -> bool:
    """Return whether the reported predictions are means over both strands: 'auto' follows the augmentation."""
    choice = settings.evaluate.rc_average
    return choice == "on" or (choice == "auto" and use_rc(settings, task))


def find_channels(model: ModelSettings, backbone: str, width: int) -> tuple[int, ...]:
    """Channels of a backbone's blocks, its `<backbone>_channels` in the settings; None there is the language model's width."""
    channels: tuple[int | None, ...] = getattr(model, f"{backbone}_channels") if BACKBONES[backbone].n_layers else ()
    return tuple(width if c is None else c for c in channels)


def rung_epochs(grace: int, epochs: int, reduction_factor: int) -> list[int]:
    """Epochs after which a trial is compared with others: grace, grace * eta, ... below `epochs`."""
    rungs, at = [], grace
    while at < epochs:
        rungs.append(at)
        at *= reduction_factor
    return rungs


def name_trial(number: int) -> str:
    """Return the name of a trial of the search, everywhere: its number in the order of being drawn, from 00."""
    return f"{number:02d}"


def describe_end(epochs_run: int, last_loss: float, epochs: int, rungs: list[int]) -> str:
    """Return why a trial that did not fail ended after `epochs_run` epochs.

    Parameters
    ----------
    last_loss : its last training loss.
    epochs, rungs : the epochs of a whole trial, and those after which some are stopped (`rung_epochs`).
    """
    if not math.isfinite(last_loss):
        return "loss not finite"
    if epochs_run < epochs and epochs_run in rungs:
        return f"ASHA, rung {rungs.index(epochs_run) + 1} (epoch {epochs_run})"
    return "finished"


def survives(score: float, peers: list[float], reduction_factor: int) -> bool:
    """Return whether ASHA continues a trial: its score is in the best 1/eta of peers and itself, or is the best one."""
    if not peers:
        return True
    ranked = sorted([*peers, score], reverse=True)
    kept = max(1, math.ceil(len(ranked) / reduction_factor))
    return score >= ranked[kept - 1]


def expected_epochs(
    trials: int, epochs: int, grace: int, reduction_factor: int, in_flight: int, repeats: int = 200
) -> float:
    """Return mean number of epochs of all trials together, between trials * grace and trials * epochs.

    Trials are drawn with random qualities that rank them alike at every rung, and put through the very rule: trial i is
    compared with trials 0 .. i - `in_flight` (see `asha`). A search that learns, so that later trials are better than
    earlier ones, stops fewer of them.
    """
    rungs, generator, total = rung_epochs(grace, epochs, reduction_factor), random.Random(0), 0
    for _ in range(repeats):
        recorded: list[dict[int, float]] = [{} for _ in rungs]
        for trial in range(trials):
            score, reached = generator.random(), epochs
            for rung, scores in zip(rungs, recorded, strict=True):
                peers = [s for other, s in scores.items() if other <= trial - in_flight]
                scores[trial] = score
                if not survives(score, peers, reduction_factor):
                    reached = rung
                    break
            total += reached
    return total / repeats
