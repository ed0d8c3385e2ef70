"""The labels of each split, and how far they lie apart between splits."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np

from l2g_ray.data.check.numbers import LARGE_KS, compare_values, round_off
from l2g_ray.tasks.schema import Task

# A distance is a finding when it is this large and larger than chance makes it.
LARGE_DISTANCE = 0.05
_TIMES_CHANCE = 3.0


def measure_balance(task: Task, labels: dict[str, np.ndarray]) -> dict[str, Any]:
    """Labels by split, and the distance between each two splits ('train_test').

    labels : (n,) codes for classification, else (n, C) floats, NaN for a missing value.

    Splits hold, for classification, a count for each class; else for each output mean, sd, rows and missing rows (the
    mean of a label of 0 and 1 is the share of positives). Distances hold `value`, `where` (the class or output that
    differs most) and `large`: classification, the total-variation distance (half of the summed differences of the
    classes' shares, 0 to 1); multilabel, the largest difference of a share; regression, the largest
    Kolmogorov-Smirnov statistic.
    """
    if task.is_classification:
        counts = {split: np.bincount(codes, minlength=task.n_outputs) for split, codes in labels.items()}
        splits: dict[str, Any] = {s: dict(zip(task.labels, c.tolist(), strict=True)) for s, c in counts.items()}
    else:
        splits = {split: _describe(task, values) for split, values in labels.items()}
    distances = {}
    for a, b in combinations(labels, 2):
        if task.is_classification:
            distances[f"{a}_{b}"] = _compare_classes(task, counts[a], counts[b])
        else:
            distances[f"{a}_{b}"] = _compare_outputs(task, labels[a], labels[b])
    return {"splits": splits, "distances": distances}


def _describe(task: Task, values: np.ndarray) -> dict[str, Any]:
    told = {}
    for name, column in zip(task.labels, values.T, strict=True):
        known = column[~np.isnan(column)].astype(float)
        told[name] = {
            "mean": round_off(known.mean() if len(known) else None),
            "sd": round_off(known.std() if len(known) else None),
            "rows": len(known),
            "missing": len(column) - len(known),
        }
    return told


def _compare_classes(task: Task, one: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    if not one.sum() or not other.sum():
        return {"value": None, "where": None, "large": False}
    difference = np.abs(one / one.sum() - other / other.sum())
    distance = float(difference.sum() / 2)
    pooled = (one + other) / (one + other).sum()
    # The mean of |difference| of two samples of one distribution, were it normal.
    chance = np.sqrt(2 / np.pi * pooled * (1 - pooled) * (1 / one.sum() + 1 / other.sum())).sum() / 2
    large = distance >= LARGE_DISTANCE and distance > _TIMES_CHANCE * chance
    return {"value": round_off(distance), "where": task.labels[int(difference.argmax())], "large": bool(large)}


def _compare_outputs(task: Task, one: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    worst: dict[str, Any] = {"value": None, "where": None, "large": False}
    for name, a, b in zip(task.labels, one.T, other.T, strict=True):
        # Of values 0 and 1, the statistic is the difference of the shares of 1.
        found = compare_values(a, b, LARGE_DISTANCE if task.kind == "multilabel" else LARGE_KS)
        if found["ks"] is not None and (worst["value"] is None or found["ks"] > worst["value"]):
            worst = {"value": found["ks"], "where": name, "large": found["large"]}
    return worst
