"""What MLflow's runs say in words and numbers: descriptions, and the scores of the one model that a task's run stores."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from l2g_ray.arms import ENSEMBLE
from l2g_ray.results.rows import (
    EXPLAIN_ADDS,
    describe_ensemble,
    describe_weights,
    format_interval,
    format_number,
    list_arms,
    name_arm,
    name_held_out,
)
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


MAX_CHARS = 4900  # below what a tag may have; see `tracking.runs.MAX_TAG_CHARS`
REST = "\n\nThe whole table is the artifact `leaderboard.md`."


def describe_suite(leaderboard: str, command: str) -> str:
    """The leaderboard (the text of `leaderboard.md`), whole lines of it as far as they fit, and the command."""
    head = f"```sh\n{command}\n```\n\n" if command and len(command) < MAX_CHARS // 2 else ""
    room, kept = MAX_CHARS - len(head) - len(REST), list[str]()
    for line in re.sub("^#+", "####", leaderboard.strip(), flags=re.MULTILINE).splitlines():
        room -= len(line) + 1
        if room < 0:
            return head + "\n".join(kept).rstrip() + REST
        kept.append(line)
    return head + "\n".join(kept)


def describe_task(row: Mapping[str, Any]) -> str:
    """What the stored model is, how it was made, and the scores of all arms and baselines, means over seeds."""
    used, metric = row["used"], row["metric"]
    headings = ("arm", f"{name_held_out(row)} {metric}", f"test {metric}", "95 % interval", "weight", "adds")
    lines = [f"| {' | '.join(headings)} |", "|---|---:|---:|---|---:|---:|"]
    lines.append(_line(f"**{used['arm']}** (used)", used["oof"]["mean"], used["test"]))
    for arm in list_arms(row):
        known = arm.held_out["mean"] if arm.held_out else None
        share = f"{arm.share:.0%}" if arm.share else "–"
        lines.append(_line(name_arm(arm.name), known, arm.test, share, " ".join(arm.adds.parts[:2]).strip()))
    for name, score in row["baselines"].items():
        if isinstance(score, Mapping):
            lines.append(_line(f"{name} (validation)", score.get("validation"), score))
    seeds = len(used["test"]["per_seed"])
    means = f"Means over {seeds} seeds; the model and its `test_*` metrics are of one of them. " if seeds > 1 else ""
    about = f"The model is the ensemble of {describe_weights(row)}. "
    warnings = [f"- {warning}" for warning in row["warnings"]]
    table = "\n".join(lines)
    parts = [f"{about}{means}".strip(), table, EXPLAIN_ADDS, *(["\n".join(warnings)] if warnings else [])]
    return "\n\n".join([*parts, describe_ensemble(row)])[:MAX_CHARS]


def _line(name: str, known: float | None, score: Mapping[str, Any], weight: str = "", adds: str = "") -> str:
    cells = [name, format_number(known), format_number(score["mean"]), format_interval(score), weight, adds]
    return f"| {' | '.join(cells)} |"
