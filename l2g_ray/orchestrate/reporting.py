"""The report of a run, made from its folder at any time, and the run's events, kept to log it in MLflow again."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from l2g_ray.arms import ENSEMBLE
from l2g_ray.atomic import replacing, write_json
from l2g_ray.config import Settings
from l2g_ray.counts import rung_epochs
from l2g_ray.data.dataset import PreparedTask
from l2g_ray.errors import UserError
from l2g_ray.monitor.events import Recorded, event_from_json, event_to_json
from l2g_ray.monitor.status import SUITE_FILE
from l2g_ray.orchestrate.identity import SuiteMeta, name_store
from l2g_ray.places import find_run_store, sqlite_file
from l2g_ray.presets import find_base, flatten
from l2g_ray.redaction import HIDDEN, clean, redact
from l2g_ray.request import EXPERIMENT, SuiteRequest
from l2g_ray.results.explained import read_explained, read_study
from l2g_ray.results.figures import Epoch
from l2g_ray.results.leaderboard import write_leaderboard
from l2g_ray.results.report import TaskDetails, write_report
from l2g_ray.results.rows import list_weights, name_arm
from l2g_ray.results.schema import Board, validate_leaderboard
from l2g_ray.results.suite_figures import ALONE, L2G, USED
from l2g_ray.run_folder import BEST, list_arms
from l2g_ray.tasks.metrics import find_metric, name_stage_metric
from l2g_ray.tracking.record import Recorder
from l2g_ray.tracking.runs import Tracker


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
    sentences = [task.get("description", ""), *task.get("notes", ())]
    if row.get("aligned_to"):
        sentences.append(f"Aligned to {row['aligned_to']}.")
    if row.get("precision"):
        sentences.append(f"Trained in {row['precision']}.")
    return TaskDetails(
        task=row["task"],
        kind=row["kind"],
        labels=labels,
        title=task.get("title", ""),
        description=" ".join(sentences).strip(),
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
        check=manifest.get("check", {}),
        settings=flatten(clean(settings)),
        preset=find_base(settings, task.get("strand_specific", False)) if settings else {},
        explained=read_explained(folder),
        manifest={name: manifest[name] for name in ("splits", "valid", "leakage")} | {"cpu_s": stages["cpu_s"]},
    )


def _average_metrics(
    metrics: Sequence[Mapping[str, Any]], row: Mapping[str, Any]
) -> dict[str, dict[str, float | None]]:
    """Means over seeds of what is used, the arms that have a weight, and those that the leaderboard shows."""
    shown = [ENSEMBLE, *(arm for arm, _ in list_weights(row)), *row["metrics"]]
    found: dict[str, dict[str, float | None]] = {}
    for arm in dict.fromkeys(shown):
        seeds = [entry["test"] for entry in metrics if entry["arm"] == arm]
        if seeds:
            found[arm] = {name: _average([one[name] for one in seeds]) for name in seeds[0]}
    return found


def _average(values: Sequence[Any]) -> float | None:
    # metrics.json has null where a metric is undefined.
    return None if None in values else float(np.mean(values))


def _read_history(stages: Mapping[str, Any], task_metric: str) -> list[Epoch]:
    records: list[Epoch] = []
    for name, epochs in stages["histories"].items():
        stage, trial = name.split("/")
        metric = name_stage_metric(stage, task_metric)
        for epoch in epochs:
            # stages.json has null where a score was not finite.
            value = None if epoch["score"] is None else find_metric(metric).sign * epoch["score"]
            loss, number = epoch["train_loss"], epoch["epoch"] + 1
            records.append(Epoch(stage=stage, trial=trial, epoch=number, metric=metric, value=value, loss=loss))
    return records


REPORT, FIGURES = "report.html", "figures"


def remake_report(run: Path, studies: list[Path]) -> Path:
    """Write `report.html` and `figures/` of a suite's folder, with the ablations of `studies` and its own.

    Raises UserError for a folder that no suite has finished, or that holds no study, naming what is missing.
    """
    board, meta = read_run(run)
    details = [
        read_details(run / row["task"], row, meta.get("settings", {}).get(row["task"], {}))
        for row in board["tasks"]
        if (run / row["task"]).is_dir()
    ]
    own = [run] if (run / "study.json").exists() else []
    parts = [read_study(folder) for folder in [*own, *studies]]
    return write_report(run, board, details, parameters=count_parameters(run, board), studies=parts)


def read_run(run: Path) -> tuple[Board, SuiteMeta]:
    """Return the leaderboard and `suite.json` of a suite's folder. Raises UserError where they are not there or not
    readable.
    """
    if (run.parent / "suite.json").exists() and not (run / "suite.json").exists():
        raise UserError(f"{run}: is the folder of one task; give the suite's folder {run.parent}")
    try:
        board = json.loads((run / "leaderboard.json").read_text())
        meta = json.loads((run / "suite.json").read_text())
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: no such file; give the folder of a finished suite or run") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{run}: cannot be read ({error}); run the suite's command again") from None
    return validate_leaderboard(board), meta


def count_parameters(run: Path, board: Mapping[str, Any]) -> dict[str, float]:
    """Parameters of what a run uses, of L2G and of the control, the largest of its tasks, from the headers of their files."""
    sizes: dict[str, float] = {}
    for row in board["tasks"]:
        arms = list_arms(run / row["task"])
        for name, arm in ((USED, BEST), (L2G, "l2g"), (ALONE, "embedder_only")):
            if arm in arms:
                files = arms[arm].folder.glob("**/model.safetensors")
                sizes[name] = max(sizes.get(name, 0.0), float(sum(map(_count_numbers, files))))
    return sizes


def _count_numbers(path: Path) -> int:
    from safetensors import safe_open

    with safe_open(str(path), framework="numpy") as file:
        return sum(math.prod(file.get_slice(tensor).get_shape()) for tensor in file.keys())  # noqa: SIM118


def log_report(run: Path) -> str:
    """Put report and figures into the MLflow run of the suite; returns a sentence on what was done.

    A store that does not answer is no failure: the files are written.
    """
    _, meta = read_run(run)
    key, uri = meta.get("key"), meta.get("tracking_uri")
    if not key or not uri:
        return "not put into MLflow: suite.json names no store"
    uri = find_run_store(run, meta)
    file = sqlite_file(uri)
    if file is not None and not file.exists():
        return f"not put into MLflow: {uri} is not there any more"
    try:
        tracker = Tracker(uri, meta.get("experiment", EXPERIMENT), run.resolve().parent)
        done = tracker.replace_artifacts(f"suite-{key}", {run / REPORT: None, run / FIGURES: FIGURES})
    except UserError as error:
        return f"not put into MLflow: {error}"
    again = "run the suite's command again to log it again"
    return f"and in MLflow ({uri})" if done else f"not put into MLflow: {uri} does not know this suite; {again}"


EVENTS_FILE = "events.jsonl"


def write_events(folder: Path, events: Iterable[Recorded]) -> None:
    """Keep a suite's events in its folder, one a line, without secrets."""
    with replacing(folder / EVENTS_FILE) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(clean(event_to_json(event))) + "\n" for event in events)


def log_if_gone(
    request: SuiteRequest,
    settings: dict[str, Settings],
    prepared: dict[str, PreparedTask],
    folder: Path,
    meta: SuiteMeta,
    board: Board,
    say: Callable[[str], None],
) -> tuple[str, bool]:
    """Log a finished suite again where its MLflow store does not have its runs.

    The store is that of MLFLOW_TRACKING_URI, else the one to which the suite was logged. A store that does not answer
    and an experiment that was deleted are no failure: `say` reports them.

    Returns the store's URI, and whether the suite was logged.
    """
    named = os.environ.get("MLFLOW_TRACKING_URI")
    uri = named or find_run_store(folder, meta)
    # A login is not kept; and the default store of a run in an object store is another one on each machine.
    if not named and (HIDDEN in uri or request.remote is not None):
        return uri, False
    try:
        if _has_runs(uri, request, meta["key"]):
            return uri, False
        say(f"{request.name}: not in the MLflow store {redact(uri)}; it is logged there from {folder}")
        return _log(request, settings, prepared, folder, meta, board, say, uri), True
    except UserError as error:
        say(f"{request.name}: finished, but not logged in MLflow: {error}")
        return uri, False


def _has_runs(uri: str, request: SuiteRequest, key: str) -> bool:
    file = sqlite_file(uri)
    if file is not None and not file.exists():
        return False
    tracker = Tracker(uri, request.experiment, request.out)
    root = f"suite-{key}"
    return all(tracker.is_finished(run) for run in (root, *(f"{root}/{task.name}" for task in request.tasks)))


def _log(
    request: SuiteRequest,
    settings: dict[str, Settings],
    prepared: dict[str, PreparedTask],
    folder: Path,
    meta: SuiteMeta,
    board: Board,
    say: Callable[[str], None],
    uri: str,
) -> str:
    recorder = Recorder(request, meta["key"], settings, meta, folder, say, uri)
    for event in _read_events(folder):
        recorder.record(event)
    for row in board["tasks"]:
        recorder.log_task(row["task"], folder / row["task"], row, prepared[row["task"]], request.register)
    if use := board.get("slots"):
        recorder.log_slots(use)
    recorder.wait()
    for row in board["tasks"]:
        row["model_uri"] = recorder.model_uri(row["task"]) or row["model_uri"]
    write_leaderboard(board, folder)
    write_json(folder / SUITE_FILE, clean(meta | name_store(request, recorder.uri)))
    recorder.log_suite(folder)
    recorder.close("FINISHED")
    return recorder.uri


def _read_events(folder: Path) -> list[Recorded]:
    """Return the events of a suite; none where an earlier version wrote none."""
    path = folder / EVENTS_FILE
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [event_from_json(json.loads(line)) for line in lines]
