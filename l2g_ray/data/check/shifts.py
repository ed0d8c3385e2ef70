"""Length and GC: how they differ between splits, and how much of the label they give away alone."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np

from l2g_ray.data.check.numbers import compare_values, round_off
from l2g_ray.data.facts import Facts
from l2g_ray.tasks.schema import Task

# A label that length or GC alone tells this well is a finding. 0.7 is 0.4 on the scale of a correlation (2a - 1).
LEAK_AUROC = 0.7
LEAK_SPEARMAN = 0.4
# ... if it is also this many standard errors from chance.
_BEYOND_CHANCE = 4.0
# Rows that the search for leaks looks at, evenly spread: with hundreds of labels, more would take minutes.
_MOST_ROWS = 100_000
_QUANTILES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)
_BINS = 30


def measure_shift(facts: dict[str, Facts]) -> dict[str, Any]:
    """For 'length_bp' and 'gc': quantiles, mean and sd by split, comparisons of each two splits, histogram counts."""
    return {
        "length_bp": _compare_feature({split: f.length_bp.astype(float) for split, f in facts.items()}),
        "gc": _compare_feature({split: f.gc.astype(float) for split, f in facts.items()}),
    }


def _compare_feature(values: dict[str, np.ndarray]) -> dict[str, Any]:
    known = {split: v[~np.isnan(v)] for split, v in values.items()}
    pairs = {f"{a}_{b}": compare_values(known[a], known[b]) for a, b in combinations(known, 2)}
    return {
        "splits": {split: _describe(v) for split, v in known.items()},
        "pairs": pairs,
        "histogram": _count_bins(known),
    }


def _describe(values: np.ndarray) -> dict[str, Any]:
    if not len(values):
        return {"quantiles": None, "mean": None, "sd": None}
    quantiles = {str(q): round_off(v) for q, v in zip(_QUANTILES, np.quantile(values, _QUANTILES), strict=True)}
    return {"quantiles": quantiles, "mean": round_off(values.mean()), "sd": round_off(values.std())}


def _count_bins(values: dict[str, np.ndarray]) -> dict[str, Any]:
    """Counts by split over common bins, between the smallest and the largest value of all splits."""
    everything = np.concatenate(list(values.values()))
    if not len(everything):
        return {"edges": [], "counts": {split: [] for split in values}}
    low, high = float(everything.min()), float(everything.max())
    edges = np.linspace(low, high, _BINS + 1) if high > low else np.array([low - 0.5, low + 0.5])
    counts = {split: np.histogram(v, edges)[0].tolist() for split, v in values.items()}
    return {"edges": [round(float(edge), 5) for edge in edges], "counts": counts}


def measure_leak(task: Task, facts: Facts, labels: np.ndarray) -> dict[str, Any]:
    """How well length and GC alone tell the label, on one split of n rows, of which 100,000 are looked at at most.

    labels : (n,) codes for classification, else (n, C) floats, NaN for a missing value.

    For each feature: measure, value (None where it is undefined), label (the class or output that is told best) and
    leaks. The measure is 'auroc', in the direction that is better (0.5 to 1) of a class against the rest, or of a
    label's 1 against its 0; for regression 'spearman', without its sign (0 to 1).
    """
    limit = {"auroc": LEAK_AUROC, "spearman": LEAK_SPEARMAN}
    if len(facts) > _MOST_ROWS:
        rows = np.linspace(0, len(facts) - 1, _MOST_ROWS).astype(np.int64)
        facts, labels = facts.take(rows), labels[rows]
    return {"limits": limit} | {
        name: _tell(task, values.astype(float), labels)
        for name, values in (("length_bp", facts.length_bp), ("gc", facts.gc))
    }


def _tell(task: Task, feature: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    regression = task.kind == "regression"
    best: dict[str, Any] = {
        "measure": "spearman" if regression else "auroc",
        "value": None,
        "label": None,
        "leaks": False,
    }
    if len(feature) == 0 or np.nanmin(feature, initial=np.inf) >= np.nanmax(feature, initial=-np.inf):
        return best  # one value tells nothing
    for name, target in _targets(task, labels):
        known = ~np.isnan(feature) & ~np.isnan(target)
        value, error = (_spearman if regression else _auroc)(feature[known], target[known])
        if value is None or (best["value"] is not None and value <= best["value"]):
            continue
        limit, chance = (LEAK_SPEARMAN, 0.0) if regression else (LEAK_AUROC, 0.5)
        leaks = value >= limit and value - chance > _BEYOND_CHANCE * error
        best |= {"value": value, "label": name, "leaks": bool(leaks)}
    return best


def _targets(task: Task, labels: np.ndarray) -> list[tuple[str, np.ndarray]]:
    if not task.is_classification:
        return [(name, column.astype(float)) for name, column in zip(task.labels, labels.T, strict=True)]
    # Of two classes, the one tells all about the other.
    codes = [1] if task.kind == "binary" else range(task.n_outputs)
    return [(task.labels[code], (labels == code).astype(float)) for code in codes]


def _auroc(feature: np.ndarray, target: np.ndarray) -> tuple[float | None, float]:
    """The area, turned to be 0.5 or more, and its standard error by chance (Mann-Whitney)."""
    positive = target > 0.5
    n, m = int(positive.sum()), int((~positive).sum())
    if not n or not m:
        return None, 0.0
    from scipy.stats import rankdata  # a second, which data that is checked already need not pay

    area = (rankdata(feature)[positive].sum() - n * (n + 1) / 2) / (n * m)
    return round_off(max(area, 1 - area)), float(np.sqrt((n + m + 1) / (12 * n * m)))


def _spearman(feature: np.ndarray, target: np.ndarray) -> tuple[float | None, float]:
    if len(feature) < 3 or np.ptp(feature) == 0 or np.ptp(target) == 0:
        return None, 0.0
    from scipy.stats import spearmanr

    return round_off(abs(float(spearmanr(feature, target).statistic))), 1 / np.sqrt(len(feature) - 1)
