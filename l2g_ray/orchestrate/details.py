"""What a report tells of a finished task, read from the task's folder, when a suite ends or long after."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from l2g_ray.arms import ENSEMBLE
from l2g_ray.errors import UserError
from l2g_ray.orchestrate.halving import rung_epochs
from l2g_ray.results.explained import read_explained
from l2g_ray.results.report import TaskDetails
from l2g_ray.results.rows import list_weights, name_arm
from l2g_ray.tasks.metrics import find_metric, name_stage_metric


def read_details(folder: Path, row: Mapping[str, Any], settings: Mapping[str, Any]) -> TaskDetails:
    """From stages.json, task.json, metrics.json and predictions.parquet; `row` is the task's of the leaderboard, `settings` its own.

    Raises UserError for a folder in which one of them is missing or not readable.
    """
    try:
        stages = json.loads((folder / "stages.json").read_text())
        manifest = json.loads((folder / "task.json").read_text())
        metrics = json.loads((folder / "metrics.json").read_text())["metrics"] if row.get("used") else []
        frame = pd.read_parquet(folder / "predictions.parquet")
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: cannot be read ({error}); give the folder of a finished run") from None
    task = manifest["task"]
    sign = find_metric(row["metric"]).sign
    seed = stages.get("deployed", {}).get("seed", frame["seed"].min())
    shown = ENSEMBLE if row.get("used") else "l2g"
    finetune = settings.get("finetune", {})
    # A label of many outputs is one column a name there.
    labels = tuple(task["labels"])
    told = [task.get("description", ""), *task.get("notes", ())]
    if row.get("aligned_to"):
        told.append(f"Aligned to {row['aligned_to']}.")
    return TaskDetails(
        task=row["task"],
        kind=row["kind"],
        labels=labels,
        title=task.get("title", ""),
        description=" ".join(told).strip(),
        source=task.get("source", ""),
        licence=task.get("licence", ""),
        group=task.get("group", ""),
        metrics={name_arm(arm): values for arm, values in (_average_metrics(metrics, row) or row["metrics"]).items()},
        history=_read_history(stages, row["metric"]),
        predictions=frame[(frame["arm"] == shown) & (frame["seed"] == seed)],
        trials=[
            {**trial, "best_score": None if trial.get("best_score") is None else sign * trial["best_score"]}
            for trial in stages["trials"]
        ],
        rungs=rung_epochs(finetune["grace_epochs"], finetune["epochs"], finetune["reduction_factor"])
        if {"grace_epochs", "epochs", "reduction_factor"} <= set(finetune)
        else (),
        findings=list(manifest.get("check", {}).get("findings", [])),
        explained=read_explained(folder),
        manifest={name: manifest[name] for name in ("splits", "valid", "leakage")} | {"cpu_s": stages["cpu_s"]},
    )


def _average_metrics(metrics: Sequence[Mapping[str, Any]], row: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Means over seeds of what is used, the arms that have a weight, and those that the leaderboard shows."""
    shown = [ENSEMBLE, *(arm for arm, _ in list_weights(row)), *row["metrics"]]
    found: dict[str, dict[str, Any]] = {}
    for arm in dict.fromkeys(shown):
        seeds = [entry["test"] for entry in metrics if entry["arm"] == arm]
        if seeds:
            found[arm] = {name: _average([one[name] for one in seeds]) for name in seeds[0]}
    return found


def _average(values: Sequence[Any]) -> float | None:
    # metrics.json has null where a metric is undefined.
    return None if None in values else float(np.mean(values))


def _read_history(stages: Mapping[str, Any], task_metric: str) -> list[dict[str, Any]]:
    records = []
    for name, epochs in stages["histories"].items():
        stage, trial = name.split("/")
        metric = name_stage_metric(stage, task_metric)
        for epoch in epochs:
            # stages.json has null where a score was not finite.
            value = None if epoch["score"] is None else find_metric(metric).sign * epoch["score"]
            record = {"stage": stage, "trial": trial, "epoch": epoch["epoch"] + 1, "metric": metric, "value": value}
            records.append(record | {"loss": epoch["train_loss"]})
    return records
