"""ASHA's stopping rule by itself, without Ray: what `asha` runs, and what a plan expects of it."""

from __future__ import annotations

import math
import random


def rung_epochs(grace: int, epochs: int, reduction_factor: int) -> list[int]:
    """Epochs after which a trial is compared with others: grace, grace * eta, ... below `epochs`."""
    rungs, at = [], grace
    while at < epochs:
        rungs.append(at)
        at *= reduction_factor
    return rungs


def name_trial(number: int) -> str:
    """The name of a trial of the search, everywhere: its number in the order of being drawn, from 00."""
    return f"{number:02d}"


def describe_end(epochs_run: int, last_loss: float, epochs: int, rungs: list[int]) -> str:
    """Why a trial that did not fail ended after `epochs_run` epochs.

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
    """ASHA's rule: go on when the score is within the best 1/eta of peers and itself, at least the best one."""
    if not peers:
        return True
    ranked = sorted([*peers, score], reverse=True)
    kept = max(1, math.ceil(len(ranked) / reduction_factor))
    return score >= ranked[kept - 1]


def expected_epochs(
    trials: int, epochs: int, grace: int, reduction_factor: int, in_flight: int, repeats: int = 200
) -> float:
    """Mean number of epochs of all trials together, between trials * grace and trials * epochs.

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
