"""From what a pipeline found to what a run leaves behind: the task's folder and its leaderboard row."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from l2g_ray.config import Settings
from l2g_ray.data.dataset import PreparedTask
from l2g_ray.models.stored import load_config
from l2g_ray.orchestrate.compare import ArmScores
from l2g_ray.orchestrate.cuts import warn_of_cuts
from l2g_ray.orchestrate.pipeline import TaskOutcome
from l2g_ray.orchestrate.spent import COST_KEYS, sum_stages
from l2g_ray.places import name_place
from l2g_ray.results.rows import warn_of_baseline, warn_of_findings, warn_of_near_duplicates
from l2g_ray.tasks.metrics import find_metric
from l2g_ray.tasks.published import published_scores
from l2g_ray.tasks.stored import write_task_file

ARMS = ("l2g", "embedder_only")


def write_task_folder(folder: Path, prepared: PreparedTask, outcome: TaskOutcome) -> None:
    """Copy what a person wants to keep out of the store: model, predictions, metrics, where each stage's result is."""
    staging = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    evaluation = outcome.evaluation.values
    number = max(range(len(outcome.refits)), key=lambda i: outcome.refits[i].values["score"])
    refit, align = outcome.refits[number], outcome.aligned[number]
    alone = max(outcome.embedders, key=lambda r: r.values["score"])
    length_bp = load_config(alone.folder)["embedder"]["length_bp"]
    for name, source in (("model", refit), ("embedder_only", alone)):
        (staging / name).mkdir()
        for file in ("model.safetensors", "config.json"):
            shutil.copy(source.folder / file, staging / name / file)
    chosen = {"l2g": ["model"], "embedder_only": ["embedder_only"], "average": ["model", "embedder_only"]}
    write_best(staging / "best", [staging / name for name in chosen[evaluation["choice"]["arm"]]], prepared.task.kind)
    for name in ("model", "embedder_only", "best"):
        write_task_file(staging / name, prepared.task, evaluation["strand_averaged"], length_bp)
    shutil.copy(outcome.evaluation.folder / "predictions.parquet", staging / "predictions.parquet")
    metrics = {key: value for key, value in evaluation.items() if key not in COST_KEYS}
    (staging / "metrics.json").write_text(json.dumps(_finite(metrics), indent=1))
    stages = {
        "backbone": outcome.backbone,
        "select_scores": outcome.select_scores,
        "architecture_from": outcome.architecture_from,
        "architecture": [{"kernel_size": k, "dilation": d} for k, d in outcome.architecture],
        "trials": outcome.trials,
        "best_trial": outcome.best_trial,
        "histories": outcome.histories,
        "cpu_s": outcome.cost,
        "spent": [one.to_dict() for one in outcome.spent],
        "results": {
            f"{r.stage}/{r.key}": name_place(r.folder, folder)
            for r in [*outcome.refits, *outcome.embedders, outcome.evaluation]
        },
        # How the deployed model came to be: for `embed`, which looks at it before and after each stage. Places are
        # relative to this folder, so that they hold after the runs were moved.
        "deployed": {
            "seed": outcome.seeds[number],
            "embedder_seed": outcome.seeds[outcome.embedders.index(alone)],
            "align": name_place(align.folder, folder),
            "refit": name_place(refit.folder, folder),
            "prepared": name_place(prepared.folder.absolute(), folder),
            **({"pretrain": name_place(outcome.pretrained.folder, folder)} if outcome.pretrained else {}),
        },
    }
    (staging / "stages.json").write_text(json.dumps(_finite(stages), indent=1))
    (staging / "task.json").write_text((prepared.folder / "task.json").read_text())
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(staging, folder)


def write_best(folder: Path, members: list[Path], kind: str) -> None:
    """The chosen model as one folder: a copy, or the mean of several members' predictions."""
    if len(members) == 1:
        shutil.copytree(members[0], folder)
        return
    from l2g_ray.models.average import AverageModel  # with torch, which a driver has no other use for
    from l2g_ray.models.l2g import load_model, save_model

    folder.mkdir()
    save_model(AverageModel(kind, [load_model(member) for member in members]), folder)


def assemble_row(prepared: PreparedTask, settings: Settings, outcome: TaskOutcome, folder: Path) -> dict[str, Any]:
    """The leaderboard row of a task (design: `leaderboard.json`), with bootstrap intervals over test rows and seeds."""
    task, evaluation = prepared.task, outcome.evaluation.values
    frame = pd.read_parquet(folder / "predictions.parquet")
    arms = ArmScores(task, frame, settings.evaluate.bootstrap_resamples, settings.seed)
    counts = prepared.manifest["splits"]
    sign = find_metric(task.metric).sign
    validation = [sign * float(r.values["score"]) for r in outcome.refits]
    published = published_scores(task.bench, task.name)
    used = evaluation["choice"]["arm"]
    near = prepared.near_train_rows()
    row = {
        "task": task.name,
        "title": task.title,
        "kind": task.kind,
        "metric": task.metric,
        "synthetic": task.synthetic,
        "group": task.group,
        "test": arms.summarise("l2g"),
        "validation": {"mean": float(np.mean(validation)), "per_seed": validation},
        "embedder_only": arms.summarise("embedder_only"),
        "difference": arms.subtract("l2g", "embedder_only"),
        "average": arms.summarise("average"),
        "chosen": evaluation["choice"] | {"test": arms.summarise(used)},
        "test_without_near_duplicates": None if near is None else score_apart(arms, near, used),
        "check": count_findings(prepared.manifest),
        "baselines": _baselines(arms, outcome, sign),
        "strand_averaged": evaluation["strand_averaged"],
        "metrics": {arm: _mean_metrics(evaluation["metrics"], arm, "test") for arm in ARMS},
        "metrics_plain": {arm: _mean_metrics(evaluation["metrics"], arm, "test_plain") for arm in ARMS},
        "n_train": counts["train"]["rows"],
        "n_valid": counts["valid"]["rows"],
        "n_test": counts["test"]["rows"],
        "published": [
            {"model": p.model, "value": p.value, "metric": p.metric, "comparable": p.comparable, "source": p.source}
            for p in published
            if p.metric == task.metric  # another metric's number must not stand in this row
        ],
        "backbone": outcome.backbone,
        "architecture": [{"kernel_size": k, "dilation": d} for k, d in outcome.architecture],
        "architecture_from": outcome.architecture_from,
        "hyperparameters": outcome.best_trial["trial"],
        "trials": len(outcome.trials),
        "wall_s": round(outcome.wall_s, 1),
        "cpu_s": round(sum(outcome.cost.values()), 1),
        "gpu_s": round(sum(one.gpu_s or 0.0 for one in outcome.spent), 1),
        "costs": {stage: one.to_dict() for stage, one in sum_stages(outcome.spent).items()},
        "aligned_to": outcome.aligned_to,
        "notes": [*task.notes, *(r.values["skipped"] for r in outcome.baselines.values() if "skipped" in r.values)],
        "model_uri": "",
        "warnings": [*prepared.manifest["warnings"], *warn_of_cuts(outcome.histories)],
    }
    row = _finite(row)
    row["warnings"] += [*warn_of_baseline(row), *warn_of_near_duplicates(row), *warn_of_findings(row)]
    if settings.caution:
        row["warnings"].append(settings.caution)
    return row


def score_apart(arms: ArmScores, near: np.ndarray, used: str) -> dict[str, Any] | None:
    """Scores on the test rows that are no near-duplicates of train rows; None where none is, or all are."""
    if not 0 < len(near) < arms.n_rows:
        return None
    rest = arms.without(near)
    scores = {name: rest.summarise(arm) for name, arm in {"used": used, **{arm: arm for arm in ARMS}}.items()}
    return {"dropped": len(near), "n": rest.n_rows, **scores}


def count_findings(manifest: dict[str, Any]) -> dict[str, int | None]:
    """What the data check found: warnings, notes, and test rows that are near-duplicates of train rows."""
    check = manifest.get("check") or {}
    levels = [finding["level"] for finding in check.get("findings", [])]
    near = (check.get("near") or {}).get("train_in_test", {}).get("other_near")
    return {"warnings": levels.count("warning"), "notes": levels.count("note"), "near_duplicates": near}


def _baselines(arms: ArmScores, outcome: TaskOutcome, sign: float) -> dict[str, Any]:
    """Each baseline's test score, its validation score, and L2G minus it over the same rows."""
    return {
        name: {
            **arms.summarise(name),
            "validation": sign * float(result.values["score"]),
            "difference": arms.subtract("l2g", name),
        }
        for name, result in outcome.baselines.items()
        if name in arms.parts
    }


def _mean_metrics(metrics: list[dict[str, Any]], arm: str, which: str) -> dict[str, float]:
    found = [entry[which] for entry in metrics if entry["arm"] == arm]
    return {name: float(np.mean([values[name] for values in found])) for name in found[0]}


def _finite(value: Any) -> Any:
    # JSON has no infinities and no NaN.
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
