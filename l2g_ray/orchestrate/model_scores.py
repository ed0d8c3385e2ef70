"""The scores of the one model that a task's run stores, told apart from those of its arms."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from l2g_ray.arms import ENSEMBLE
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

    The stored model is the ensemble of one seed. In MLflow `valid_*` are scores on held-out rows (`oof` in the leaderboard),
    of a baseline those on validation.
    """
    metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
    arms: Metrics = {}
    for name in dict.fromkeys(entry["arm"] for entry in metrics if entry["arm"] != ENSEMBLE):
        seeds = [_numbers(entry["test"]) for entry in metrics if entry["arm"] == name]
        arms |= {f"test_{name}_{metric}": float(np.mean([one[metric] for one in seeds])) for metric in seeds[0]}
    known = {name: (one["oof"] or {}).get("mean") for name, one in row["arms"].items()}
    known |= {name: one.get("validation") for name, one in row["baselines"].items() if isinstance(one, Mapping)}
    arms |= {f"valid_{name}_{task.metric}": value for name, value in known.items() if value is not None}
    seed = json.loads((folder / "stages.json").read_text())["deployed"]["seed"]
    own = _numbers(next(e["test"] for e in metrics if (e["arm"], e["seed"]) == (ENSEMBLE, seed)))
    scores = {f"test_{metric}": value for metric, value in own.items()}
    seeds_used = sorted({entry["seed"] for entry in metrics if entry["arm"] == ENSEMBLE})
    scores[f"valid_{task.metric}"] = row["used"]["oof"]["per_seed"][seeds_used.index(seed)]
    return ModelScores(ENSEMBLE, scores, arms)


def _numbers(metrics: Mapping[str, Any]) -> Metrics:
    # JSON has null for what is not defined; lists are one number a class.
    return {
        name: float("nan") if value is None else float(value)
        for name, value in metrics.items()
        if value is None or (isinstance(value, Real) and not isinstance(value, bool))
    }
