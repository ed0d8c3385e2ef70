"""From what a pipeline found to what a run leaves behind: the task's folder and its leaderboard row."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from l2g_ray.arms import ENSEMBLE, WITHOUT
from l2g_ray.config import Settings
from l2g_ray.data.dataset import PreparedTask
from l2g_ray.monitor.events import warn_of_cuts
from l2g_ray.orchestrate.pipeline import TaskOutcome
from l2g_ray.places import name_place
from l2g_ray.plan.finished import COST_KEYS, sum_stages
from l2g_ray.results.intervals import ArmScores, Summary, read_outputs
from l2g_ray.results.rows import warn_of_baseline, warn_of_findings, warn_of_near_duplicates
from l2g_ray.tasks.catalogue import published_scores
from l2g_ray.tasks.metrics import find_metric, signed_score
from l2g_ray.tasks.schema import Task, write_task_file

# Arms of which a row has all metrics, and scores on rows without near-duplicates.
SHOWN = (ENSEMBLE, "l2g", "embedder_only")


def write_task_folder(folder: Path, prepared: PreparedTask, outcome: TaskOutcome) -> None:
    """Copy what a person wants to keep out of the store: models, predictions, metrics, where each stage's result is.

    `best/` is the ensemble of one seed, the one with the best score on held-out rows, with a folder for each of its arms; the
    arms that it has no use for are in `arms/`.
    """
    staging = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    evaluation, task = outcome.evaluation.values, prepared.task
    for name in ("predictions.parquet", "oof.parquet"):
        shutil.copy(outcome.evaluation.folder / name, staging / name)
    seed = choose_seed(task, pd.read_parquet(staging / "oof.parquet"))
    write_models(staging, outcome, seed)
    for config in staging.glob("**/config.json"):
        write_task_file(config.parent, task, evaluation["strand_averaged"], prepared.length_range()[1])
    metrics = {key: value for key, value in evaluation.items() if key not in COST_KEYS}
    (staging / "metrics.json").write_text(json.dumps(_finite(metrics), indent=1))
    first = {m.arm: m.result for m in outcome.members if (m.seed, m.fold) == (seed, 0)}
    stages = {
        "backbone": outcome.backbone,
        "select_scores": outcome.select_scores,
        "architecture_from": outcome.architecture_from,
        "precision": outcome.precision,
        "architecture": [{"kernel_size": k, "dilation": d} for k, d in outcome.architecture],
        "trials": [trial.to_json() for trial in outcome.trials],
        "best_trial": outcome.best_trial.to_json() if outcome.best_trial else None,
        "histories": outcome.histories,
        "cpu_s": outcome.cost,
        "spent": [asdict(one) for one in outcome.spent],
        "results": {
            f"{r.stage}/{r.key}": name_place(r.folder, folder)
            for r in [*(member.result for member in outcome.members), outcome.evaluation]
        },
        # How the deployed model came to be: for `embed`, which looks at the first fold's before and after each stage.
        # Places are relative to this folder, so that they hold after the runs were moved.
        "deployed": {
            "seed": seed,
            **({"align": name_place(outcome.aligned[seed, 0].folder, folder)} if outcome.aligned else {}),
            **({"refit": name_place(first["l2g"].folder, folder)} if "l2g" in first else {}),
            "prepared": name_place(prepared.folder.absolute(), folder),
            **({"pretrain": name_place(outcome.pretrained.folder, folder)} if outcome.pretrained else {}),
        },
    }
    (staging / "stages.json").write_text(json.dumps(_finite(stages), indent=1))
    (staging / "task.json").write_text((prepared.folder / "task.json").read_text())
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(staging, folder)


def choose_seed(task: Task, oof: pd.DataFrame) -> int:
    """Return the seed whose ensemble scores best on held-out rows, the first of equals."""
    used = oof[oof["arm"] == ENSEMBLE]
    parts = {int(seed): used[used["seed"] == seed] for seed in used["seed"].unique()}
    scores = {seed: signed_score(task.kind, task.metric, *read_outputs(task, part)) for seed, part in parts.items()}
    known = {seed: value for seed, value in scores.items() if np.isfinite(value)}
    return max(known or scores, key=lambda seed: known.get(seed, 0.0))


def write_models(folder: Path, outcome: TaskOutcome, seed: int) -> None:
    """Write `best/`, the ensemble of one seed, and `arms/` with the arms of it that have no weight."""
    from l2g_ray.models.ensemble import (
        AverageModel,  # with torch, which a driver has no other use for
        Combination,
        Ensemble,
    )
    from l2g_ray.models.l2g import load_model, save_model

    evaluation, members = outcome.evaluation.values, outcome.members
    combination = Combination(**evaluation["combinations"][str(seed)])

    def join(arm: str) -> Any:
        models = [load_model(m.result.folder) for m in members if (m.arm, m.seed) == (arm, seed)]
        return models[0] if len(models) == 1 else AverageModel(combination.kind, models)

    (folder / "best").mkdir()
    ensemble = Ensemble(combination, {arm: join(arm) for arm in combination.arms}, evaluation["strand_averaged"])
    save_model(ensemble, folder / "best", ENSEMBLE)
    for arm in dict.fromkeys(member.arm for member in members):
        if arm not in combination.arms:
            target = folder / "arms" / arm
            target.mkdir(parents=True)
            save_model(join(arm), target, arm)


def assemble_row(prepared: PreparedTask, settings: Settings, outcome: TaskOutcome, folder: Path) -> dict[str, Any]:
    """Return the leaderboard row of a task (design: `leaderboard.json`), with bootstrap intervals over test rows and
    seeds.
    """
    task, evaluation = prepared.task, outcome.evaluation.values
    frames = {name: pd.read_parquet(folder / f"{name}.parquet") for name in ("predictions", "oof")}
    resamples = settings.evaluate.bootstrap_resamples
    arms, held_out = (ArmScores(task, frame, resamples, settings.seed) for frame in frames.values())
    counts = prepared.manifest["splits"]
    published = published_scores(task.bench, task.name)
    near = prepared.near_train_rows()
    every = summarise_arms(arms, held_out, outcome)
    shown = {arm: [one for one in evaluation["metrics"] if one["arm"] == arm] for arm in SHOWN if arm in arms.parts}
    both = {"l2g", "embedder_only"} <= every.keys()
    row = {
        "task": task.name,
        "title": task.title,
        "kind": task.kind,
        "metric": task.metric,
        "synthetic": task.synthetic,
        "group": task.group,
        "test": every["l2g"]["test"] if "l2g" in every else None,
        "validation": held_out.summarise("l2g" if "l2g" in every else ENSEMBLE),
        "embedder_only": every["embedder_only"]["test"] if "embedder_only" in every else None,
        "difference": arms.subtract("l2g", "embedder_only") if both else None,
        "used": summarise_used(arms, held_out, outcome, settings, folder),
        "arms": every,
        "test_without_near_duplicates": None if near is None else score_apart(arms, near),
        "check": count_findings(prepared),
        "baselines": _baselines(arms, outcome, find_metric(task.metric).sign),
        "strand_averaged": evaluation["strand_averaged"],
        "metrics": {arm: _average([one["test"] for one in models]) for arm, models in shown.items()},
        "metrics_plain": {arm: _average([one["test_plain"] for one in models]) for arm, models in shown.items()},
        "n_train": counts["train"]["rows"],
        "n_valid": counts["valid"]["rows"],
        "n_test": counts["test"]["rows"],
        "published": [
            {"model": p.model, "value": p.value, "metric": p.metric, "comparable": p.comparable, "source": p.source}
            for p in published
            if p.metric == task.metric  # a score of another metric must not be in this row
        ],
        "backbone": outcome.backbone,
        "architecture": [{"kernel_size": k, "dilation": d} for k, d in outcome.architecture],
        "architecture_from": outcome.architecture_from,
        "precision": outcome.precision,
        "hyperparameters": (outcome.best_trial.trial or {}) if outcome.best_trial else {},
        "trials": len(outcome.trials),
        "wall_s": round(outcome.wall_s, 1),
        "cpu_s": round(sum(outcome.cost.values()), 1),
        "gpu_s": round(sum(one.gpu_s or 0.0 for one in outcome.spent), 1),
        "costs": {stage: asdict(one) for stage, one in sum_stages(outcome.spent).items()},
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


def summarise_used(
    arms: ArmScores, held_out: ArmScores, outcome: TaskOutcome, settings: Settings, folder: Path
) -> dict[str, Any]:
    """Return what the run predicts with: its scores, how many models of how many bytes, and rows per second on this
    machine.
    """
    combined = list(outcome.evaluation.values["combinations"].values())
    taken = set().union(*(one["arms"] for one in combined))
    took_s = sum(outcome.evaluation.values["predict_s"][arm] for arm in taken)
    return {
        "arm": ENSEMBLE,
        "ensemble": settings.ensemble,
        "folds": settings.folds,
        "test": arms.summarise(ENSEMBLE),
        "oof": held_out.summarise(ENSEMBLE),
        "models": sum(m.arm in taken and m.seed == outcome.seeds[0] for m in outcome.members),
        "bytes": sum(path.stat().st_size for path in (folder / "best").glob("**/*.safetensors")),
        "rows_per_s": round(outcome.evaluation.values["n_test"] / took_s, 1) if took_s else None,
    }


def summarise_arms(arms: ArmScores, held_out: ArmScores, outcome: TaskOutcome) -> dict[str, Any]:
    """Return, for every arm, its scores on test and on held-out rows, its weight (mean over seeds), what the ensemble
    gains by it on held-out rows, and the ensemble minus the arm on test.
    """
    combined = list(outcome.evaluation.values["combinations"].values())
    found = {}
    for arm in dict.fromkeys(member.arm for member in outcome.members):
        weights = [dict(zip(one["arms"], one["weights"], strict=True)).get(arm, 0.0) for one in combined]
        without = f"{WITHOUT}{arm}"
        found[arm] = {
            "test": arms.summarise(arm),
            "oof": held_out.summarise(arm) if arm in held_out.parts else None,
            "weight": float(np.mean(weights)),
            "adds": held_out.subtract(ENSEMBLE, without) if without in held_out.parts else None,
            "difference": arms.subtract(ENSEMBLE, arm),
        }
    return found


def score_apart(arms: ArmScores, near: np.ndarray) -> dict[str, int | Summary] | None:
    """Return scores on the test rows that are no near-duplicates of train rows; None where none is, or all are."""
    if not 0 < len(near) < arms.n_rows:
        return None
    rest = arms.without(near)
    scores = {("used" if arm == ENSEMBLE else arm): rest.summarise(arm) for arm in SHOWN if arm in rest.parts}
    return {"dropped": len(near), "n": rest.n_rows, **scores}


def count_findings(prepared: PreparedTask) -> dict[str, int | None]:
    """Return what the data check found: warnings, notes, and test rows that are near-duplicates of train rows."""
    check = prepared.manifest.get("check") or {}
    levels = [finding["level"] for finding in check.get("findings", [])]
    near = (check.get("near") or {}).get("train_in_test", {}).get("other_near")
    return {"warnings": levels.count("warning"), "notes": levels.count("note"), "near_duplicates": near}


def _baselines(arms: ArmScores, outcome: TaskOutcome, sign: float) -> dict[str, Any]:
    """Return each baseline's test score, its validation score, and the ensemble minus it over the same rows."""
    return {
        name: {
            **arms.summarise(name),
            "validation": sign * float(result.values["score"]),
            "difference": arms.subtract(ENSEMBLE, name),
        }
        for name, result in outcome.baselines.items()
        if name in arms.parts
    }


def _average(metrics: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([one[name] for one in metrics])) for name in metrics[0]}


def _finite(value: Any) -> Any:
    # JSON has no infinities and no NaN.
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
