"""Scores of arms from their stored predictions: intervals of each, and paired differences over the same test rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from l2g_ray.results.bootstrap import (
    Score,
    confusion_bootstrap,
    confusion_difference,
    paired_difference,
    summarise_seeds,
)
from l2g_ray.tasks.metrics import find_metric, score
from l2g_ray.tasks.schema import Task


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
        """The same arms on the test rows but these (numbers from 0)."""
        kept = np.ones(self.n_rows, bool)
        kept[rows] = False
        frames = [part[kept] for parts in self.parts.values() for part in parts]
        return ArmScores(self.task, pd.concat(frames), self.resamples, self.seed)

    def summarise(self, arm: str) -> dict[str, Any]:
        """Mean over seeds, interval, score of each seed."""
        if self.metric.of_counts:
            metric = {self.task.metric: self.metric.function}
            n_classes = len(self.task.labels)
            return confusion_bootstrap(
                self._labels(arm), self._classes(arm), n_classes, metric, self.resamples, self.seed
            )[self.task.metric]
        return summarise_seeds(self._scores(arm), self.n_rows, self.resamples, self.seed)

    def subtract(self, first: str, second: str) -> dict[str, Any]:
        """Mean of the first arm minus mean of the second, with a paired interval."""
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
    """Labels and outputs (n, n_outputs) of one model's rows of `predictions.parquet`."""
    if task.is_classification:
        return _read_codes(task, part["label"]), part[[f"probability_{name}" for name in task.labels]].to_numpy()
    prefix = "probability" if task.kind == "multilabel" else "prediction"
    labels = part[[f"label_{name}" for name in task.labels]].to_numpy()
    return labels, part[[f"{prefix}_{name}" for name in task.labels]].to_numpy()


def _read_codes(task: Task, names: pd.Series) -> np.ndarray:
    return names.map({name: i for i, name in enumerate(task.labels)}).to_numpy()
