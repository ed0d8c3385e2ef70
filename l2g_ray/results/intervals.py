"""Scores of arms from their stored predictions: bootstrap intervals of each, and paired differences over the same test rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NotRequired, TypedDict

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from l2g_ray.tasks.metrics import find_metric, pearson, score
from l2g_ray.tasks.schema import Task

Array = NDArray[Any]
# Row indices (n,) to a score; NaN where the score is undefined on those rows.
Score = Callable[[Array], float]
# Counts (..., C, C), true class by row, to scores (...): `tasks.metrics.mcc` is one.
ConfusionMetric = Callable[[Array], Array]

MIN_SEEDS_TO_RESAMPLE = 3
# Resamples whose joint counts are held at once.
CHUNK = 64


class Summary(TypedDict):
    """A mean over seeds of training with its interval [lo, hi]; `per_seed` are the scores of all rows.

    `dropped_resamples` counts those on which the score is NaN, which are left out of the interval.
    """

    mean: float
    ci95: list[float]
    per_seed: list[float]
    dropped_resamples: int


class PairedDifference(TypedDict):
    """One arm's mean minus another's over the same rows, with its interval [lo, hi].

    `p`: the share of resamples in which the first is not better (one-sided, a tie counts against the first); None without
    a resample. `p_holm`: two-sided, after the correction over all differences of a study.
    """

    mean: float
    ci95: list[float]
    p: float | None
    dropped_resamples: int
    p_holm: NotRequired[float]


def bootstrap_interval(
    score: Score, n_rows: int, resamples: int = 1000, seed: int = 0, confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile interval (lo, hi) of a score over rows drawn with replacement.

    Resamples on which the score is NaN are left out; (NaN, NaN) when none remains. Raises ValueError for fewer
    than one row or resample, or a confidence outside 0..1.
    """
    return _interval(_draw_scores([score], n_rows, resamples, seed)[:, 0], confidence)


def summarise_seeds(
    scores: Sequence[Score], n_rows: int, resamples: int = 1000, seed: int = 0, confidence: float = 0.95
) -> Summary:
    """Return the mean over seeds of training, with its interval. `scores` holds one function a seed.

    Raises as `bootstrap_interval`.
    """
    points = _score_all_rows(scores, n_rows)
    return _summarise(points, _draw_scores(scores, n_rows, resamples, seed), seed, confidence)


def paired_difference(
    first: Sequence[Score],
    second: Sequence[Score],
    n_rows: int,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    higher_is_better: bool = True,
) -> PairedDifference:
    """Return mean of `first` minus mean of `second`, over the same rows.

    Each arm is one function a seed, in the same order; the arms may have different numbers of seeds, which are then drawn
    apart. Raises as `bootstrap_interval`.
    """
    points = _score_all_rows([*first, *second], n_rows)
    draws = _draw_scores([*first, *second], n_rows, resamples, seed)
    return _compare(points, draws, len(first), seed, confidence, higher_is_better)


def confusion_bootstrap(
    labels: ArrayLike,
    predictions: ArrayLike,
    n_classes: int,
    metrics: Mapping[str, ConfusionMetric],
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, Summary]:
    """`summarise_seeds` of metrics that are functions of the confusion matrix, at the cost of counting rows once.

    Drawing rows with replacement and counting is a multinomial draw of the joint counts of (label, prediction of
    every seed), so this is the same bootstrap, not an approximation. `labels` (n,) and `predictions` (n,) or
    (seeds, n) are class numbers below `n_classes`. Returns a summary a metric. Raises ValueError for other shapes
    or classes, and as `bootstrap_interval`.
    """
    confusion, draws = _draw_confusions(labels, predictions, n_classes, resamples, seed)
    return {
        name: _summarise(np.asarray(metric(confusion)), np.asarray(metric(draws)), seed, confidence)
        for name, metric in metrics.items()
    }


def confusion_difference(
    labels: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    n_classes: int,
    metric: ConfusionMetric,
    resamples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    higher_is_better: bool = True,
) -> PairedDifference:
    """`paired_difference` of a metric that is a function of the confusion matrix.

    `first` and `second` are class numbers (n,) or (seeds, n). Raises as `confusion_bootstrap`.
    """
    arms = [np.atleast_2d(np.asarray(arm)) for arm in (first, second)]
    confusion, draws = _draw_confusions(labels, np.concatenate(arms), n_classes, resamples, seed)
    points, scores = np.asarray(metric(confusion)), np.asarray(metric(draws))
    return _compare(points, scores, len(arms[0]), seed, confidence, higher_is_better)


def _score_all_rows(scores: Sequence[Score], n_rows: int) -> Array:
    rows = np.arange(n_rows)
    return np.array([score(rows) for score in scores], dtype=np.float64)


def _draw_scores(scores: Sequence[Score], n_rows: int, resamples: int, seed: int) -> Array:
    """Return scores (resamples, len(scores)); every row of it is one drawing of the data's rows."""
    if n_rows < 1 or resamples < 1 or not scores:
        raise ValueError(f"need rows, resamples and scores; got {n_rows}, {resamples} and {len(scores)}")
    generator = np.random.default_rng(seed)
    draws = np.empty((resamples, len(scores)))
    for draw in draws:
        rows = generator.integers(n_rows, size=n_rows)
        draw[:] = [score(rows) for score in scores]
    return draws


def _draw_confusions(
    labels: ArrayLike, predictions: ArrayLike, n_classes: int, resamples: int, seed: int
) -> tuple[Array, Array]:
    """Return counts (seeds, C, C) of all rows, and (resamples, seeds, C, C) of drawn ones."""
    true, predicted = np.asarray(labels), np.atleast_2d(np.asarray(predictions))
    if true.ndim != 1 or not len(true) or predicted.ndim != 2 or predicted.shape[1] != len(true):
        raise ValueError(f"labels must be (n,), predictions (seeds, n); got {true.shape}, {predicted.shape}")
    joint = np.vstack([true, predicted]).astype(np.int64)
    if joint.min() < 0 or joint.max() >= n_classes:
        raise ValueError(f"classes must be in 0..{n_classes - 1}, got {joint.min()}..{joint.max()}")
    if resamples < 1:
        raise ValueError(f"need at least one resample, got {resamples}")
    cells, counts = np.unique(joint, axis=1, return_counts=True)
    flat = cells[0] * n_classes + cells[1:]

    def count(weights: Array) -> Array:
        confusions = np.zeros((len(weights), len(flat), n_classes**2), dtype=np.int64)
        for of_seed, indices in zip(confusions.swapaxes(0, 1), flat, strict=True):
            np.add.at(of_seed.T, indices, weights.T)
        return confusions.reshape(len(weights), len(flat), n_classes, n_classes)

    generator = np.random.default_rng(seed)
    sizes = [min(CHUNK, resamples - start) for start in range(0, resamples, CHUNK)]
    n_rows, shares = counts.sum(), counts / counts.sum()
    draws = np.concatenate([count(generator.multinomial(n_rows, shares, size=size)) for size in sizes])
    return count(counts[None])[0], draws


def _summarise(points: Array, draws: Array, seed: int, confidence: float) -> Summary:
    means = _mean_over_seeds(draws, seed)
    return {
        "mean": float(points.mean()),
        "ci95": list(_interval(means, confidence)),
        "per_seed": [float(point) for point in points],
        "dropped_resamples": int(np.isnan(means).sum()),
    }


def _compare(
    points: Array, draws: Array, n_first: int, seed: int, confidence: float, higher_is_better: bool
) -> PairedDifference:
    if not 0 < n_first < len(points):
        raise ValueError("both arms need at least one seed")
    # Equal numbers of seeds are drawn by the same numbers, so that pairs stay pairs.
    stream = seed if 2 * n_first == len(points) else seed + 1
    difference = _mean_over_seeds(draws[:, :n_first], seed) - _mean_over_seeds(draws[:, n_first:], stream)
    defined = difference[~np.isnan(difference)]
    not_better = defined <= 0 if higher_is_better else defined >= 0
    return {
        "mean": float(points[:n_first].mean() - points[n_first:].mean()),
        "ci95": list(_interval(difference, confidence)),
        "p": float(not_better.mean()) if len(defined) else None,
        "dropped_resamples": int(np.isnan(difference).sum()),
    }


def _mean_over_seeds(draws: Array, seed: int) -> Array:
    n_seeds = draws.shape[1]
    if n_seeds >= MIN_SEEDS_TO_RESAMPLE:
        # A separate stream, so that the rows drawn do not depend on the number of seeds.
        generator = np.random.default_rng([seed, n_seeds])
        draws = np.take_along_axis(draws, generator.integers(n_seeds, size=draws.shape), axis=1)
    return draws.mean(1)


def _interval(draws: Array, confidence: float) -> tuple[float, float]:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    defined = draws[~np.isnan(draws)]
    if not len(defined):
        return float("nan"), float("nan")
    lo, hi = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(lo), float(hi)


def correlate(measured: Array, predicted: Array, resamples: int = 500, seed: int = 0) -> tuple[float, float, float]:
    """Pearson r of two vectors (n,), with its 95 % bootstrap interval over rows: (r, lo, hi), NaN for fewer than two rows."""
    if len(measured) < 2:
        return float("nan"), float("nan"), float("nan")
    r = pearson(measured, predicted)
    # Rows beyond these make the interval no wider than a line is drawn.
    few = resamples if len(measured) <= 50_000 else 100
    low, high = bootstrap_interval(lambda rows: pearson(measured[rows], predicted[rows]), len(measured), few, seed)
    return r, low, high


class ArmScores:
    """All arms of one task: rows of `predictions.parquet` (`stages.evaluate`), the same test rows for each arm and seed."""

    def __init__(self, task: Task, frame: pd.DataFrame, resamples: int, seed: int) -> None:
        self.task, self.resamples, self.seed = task, resamples, seed
        self.metric = find_metric(task.metric)
        self.parts = {
            str(arm): [part for _, part in rows.groupby("seed")] for arm, rows in frame.groupby("arm", sort=False)
        }
        self.n_rows = len(next(iter(self.parts.values()))[0])

    def without(self, rows: np.ndarray) -> ArmScores:
        """Return the same arms on the test rows but these (numbers from 0)."""
        kept = np.ones(self.n_rows, bool)
        kept[rows] = False
        frames = [part[kept] for parts in self.parts.values() for part in parts]
        return ArmScores(self.task, pd.concat(frames), self.resamples, self.seed)

    def summarise(self, arm: str) -> Summary:
        """Return mean over seeds, interval, score of each seed."""
        if self.metric.of_counts:
            metric = {self.task.metric: self.metric.function}
            n_classes = len(self.task.labels)
            return confusion_bootstrap(
                self._labels(arm), self._classes(arm), n_classes, metric, self.resamples, self.seed
            )[self.task.metric]
        return summarise_seeds(self._scores(arm), self.n_rows, self.resamples, self.seed)

    def subtract(self, first: str, second: str) -> PairedDifference:
        """Return mean of the first arm minus mean of the second, with a paired interval."""
        if self.metric.of_counts:
            return confusion_difference(
                self._labels(first),
                self._classes(first),
                self._classes(second),
                len(self.task.labels),
                self.metric.function,
                self.resamples,
                self.seed,
                higher_is_better=self.metric.higher_is_better,
            )
        return paired_difference(
            self._scores(first),
            self._scores(second),
            self.n_rows,
            self.resamples,
            self.seed,
            higher_is_better=self.metric.higher_is_better,
        )

    def _codes(self, names: pd.Series) -> np.ndarray:
        return _read_codes(self.task, names)

    def _labels(self, arm: str) -> np.ndarray:
        return self._codes(self.parts[arm][0]["label"])

    def _classes(self, arm: str) -> np.ndarray:
        return np.stack([self._codes(part["prediction"]) for part in self.parts[arm]])

    def _scores(self, arm: str) -> list[Score]:
        return [self._score_rows(part) for part in self.parts[arm]]

    def _score_rows(self, part: pd.DataFrame) -> Score:
        task = self.task
        labels, outputs = read_outputs(task, part)

        def score_rows(rows: np.ndarray) -> float:
            value = score(task.kind, task.metric, labels[rows], outputs[rows])
            return value if np.isfinite(value) else float("nan")  # undefined: the bootstrap drops it

        return score_rows


def read_outputs(task: Task, part: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and outputs (n, n_outputs) of one model's rows of `predictions.parquet`."""
    if task.is_classification:
        return _read_codes(task, part["label"]), part[[f"probability_{name}" for name in task.labels]].to_numpy()
    prefix = "probability" if task.kind == "multilabel" else "prediction"
    labels = part[[f"label_{name}" for name in task.labels]].to_numpy()
    return labels, part[[f"{prefix}_{name}" for name in task.labels]].to_numpy()


def _read_codes(task: Task, names: pd.Series) -> np.ndarray:
    return names.map({name: i for i, name in enumerate(task.labels)}).to_numpy()
