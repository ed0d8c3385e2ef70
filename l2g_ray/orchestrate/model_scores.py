"""The scores of the one model that a task's run stores, told apart from those of its arms."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from l2g_ray.orchestrate.compare import read_outputs
from l2g_ray.stages.metrics import compute_metrics
from l2g_ray.tasks.schema import Task

Metrics = dict[str, float]


@dataclass(frozen=True)
class ModelScores:
    """Scores by their names in MLflow.

    `arm` is the arm of the stored model, `model` its own scores: `test_<metric>` and `valid_<metric>`. `arms` are those of
    every arm and baseline, means over seeds as in the leaderboard: `test_<arm>_<metric>`, `valid_<arm>_<metric>`.
    """

    arm: str
    model: Metrics
    arms: Metrics


def read_scores(folder: Path, task: Task, row: Mapping[str, Any]) -> ModelScores:
    """The scores of a finished task, from its folder and its leaderboard row.

    The stored model is of one seed (an average: of one seed for each member), the one that was best on validation. Its
    own validation score is known only where there is one seed.
    """
    metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
    arm, validation = row["chosen"]["arm"], row["chosen"]["validation"]
    arms: Metrics = {}
    for name in dict.fromkeys(entry["arm"] for entry in metrics):
        seeds = [_numbers(entry["test"]) for entry in metrics if entry["arm"] == name]
        arms |= {f"test_{name}_{metric}": float(np.mean([one[metric] for one in seeds])) for metric in seeds[0]}
    arms |= {f"valid_{name}_{task.metric}": value for name, value in validation.items() if value is not None}
    arms |= {
        f"valid_{name}_{task.metric}": scores["validation"]
        for name, scores in row["baselines"].items()
        if isinstance(scores, Mapping) and scores.get("validation") is not None
    }
    own = {f"test_{metric}": value for metric, value in _read_own(folder, task, arm, metrics).items()}
    if len(row["test"]["per_seed"]) == 1 and validation.get(arm) is not None:
        own[f"valid_{task.metric}"] = validation[arm]
    return ModelScores(arm, own, arms)


def _read_own(folder: Path, task: Task, arm: str, metrics: list[dict[str, Any]]) -> Metrics:
    deployed = json.loads((folder / "stages.json").read_text())["deployed"]
    seeds = {"l2g": deployed["seed"], "embedder_only": deployed["embedder_seed"]}
    members = [arm] if arm in seeds else list(seeds)
    if len({seeds[member] for member in members}) == 1:
        seed = seeds[members[0]]
        return _numbers(next(e["test"] for e in metrics if (e["arm"], e["seed"]) == (arm, seed)))
    frame = pd.read_parquet(folder / "predictions.parquet")
    parts = [frame[(frame["arm"] == member) & (frame["seed"] == seeds[member])] for member in members]
    read = [read_outputs(task, part) for part in parts]
    outputs = np.mean([outputs for _, outputs in read], axis=0)
    return _numbers(compute_metrics(task.kind, read[0][0], outputs, list(task.labels)))


def _numbers(metrics: Mapping[str, Any]) -> Metrics:
    # JSON has null for what is not defined; lists are one number a class.
    return {
        name: float("nan") if value is None else float(value)
        for name, value in metrics.items()
        if value is None or (isinstance(value, Real) and not isinstance(value, bool))
    }
