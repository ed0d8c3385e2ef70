"""A finished suite logged anew in MLflow from its folder: its runs were deleted, or another store is named now."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from l2g_ray.atomic import replacing, write_json
from l2g_ray.config import Settings
from l2g_ray.data.dataset import PreparedTask
from l2g_ray.errors import UserError
from l2g_ray.monitor.events import Recorded, event_from_json, event_to_json
from l2g_ray.monitor.status import SUITE_FILE
from l2g_ray.orchestrate.identity import SuiteMeta, name_store
from l2g_ray.places import find_run_store, sqlite_file
from l2g_ray.redaction import HIDDEN, clean, redact
from l2g_ray.request import SuiteRequest
from l2g_ray.results.leaderboard import write_leaderboard
from l2g_ray.results.schema import Board
from l2g_ray.tracking.record import Recorder
from l2g_ray.tracking.runs import Tracker

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
    """Log a finished suite anew where its MLflow store does not have its runs.

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
    """The events of a suite; none where an earlier version wrote none."""
    path = folder / EVENTS_FILE
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [event_from_json(json.loads(line)) for line in lines]
