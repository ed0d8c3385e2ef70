"""What a suite is asked for: its tasks, their settings and rows, and whether it has been done already."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from l2g_ray.config import Settings, resolve
from l2g_ray.data.dataset import PreparedTask
from l2g_ray.data.raw import RawTask
from l2g_ray.errors import UserError
from l2g_ray.orchestrate.environment import hash_content
from l2g_ray.orchestrate.fingerprint import fingerprint_language_model
from l2g_ray.orchestrate.prepared import prepare_for_runs
from l2g_ray.orchestrate.progress import ReadingProgress
from l2g_ray.orchestrate.status import SUITE_FILE
from l2g_ray.places import STORE_FILE
from l2g_ray.stages.registry import list_versions
from l2g_ray.storage import Location
from l2g_ray.tasks.schema import NAME_PATTERN, Task
from l2g_ray.tracking_store import is_own_store

EXPERIMENT = "l2g_ray"


@dataclass(frozen=True)
class SuiteRequest:
    """What a person asked for. `sources` maps a task's name to where its rows come from, prepared already or not.

    `remote` is an --out in an object store; `out` is then this machine's working folder for it.
    """

    name: str
    bench: str
    tasks: list[Task]
    sources: Mapping[str, RawTask | PreparedTask]
    preset: str
    assignments: dict[str, Any]
    out: Path
    data_dir: Path | None = None
    command: str = ""
    experiment: str = EXPERIMENT
    register: bool = False
    verbose: bool = False
    cpus: int | None = None
    gpus_per_trial: float | None = None
    workers_per_trial: int = 1
    slots: int | None = None
    # Settings of single tasks, above `assignments`: the arms of an ablation.
    task_assignments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    remote: Location | None = None
    # Finished results of another suite of this name may go.
    replace: bool = False


@dataclass
class SuiteResult:
    """Where everything is. `failures` maps a task's name to why it has no row; `stored` is in an object store.

    `fresh` is False where all results were there, `relogged` where these were logged anew in MLflow.
    """

    board: dict[str, Any]
    folder: Path
    tracking_uri: str
    fresh: bool
    wall_s: float
    failures: dict[str, str] = field(default_factory=dict)
    stored: Location | None = None
    relogged: bool = False


def check_name(name: str) -> None:
    """Refuse a run's name that is no plain name of a folder, so that no run leaves its --out. Raises UserError."""
    if not NAME_PATTERN.fullmatch(name):
        raise UserError(f"--name {name}: only letters, digits, '.', '_' and '-', beginning with a letter or digit")


def resolve_task(request: SuiteRequest, task: Task) -> Settings:
    """The settings of one task of the suite. Raises UserError as `resolve`."""
    own = request.task_assignments.get(task.name, {})
    return resolve(request.preset, task.overrides, {**request.assignments, **own}).for_task(task.strand_specific)


def prepare_task(request: SuiteRequest, task: Task, settings: Settings, console: Console) -> PreparedTask:
    """The rows of one task, prepared now unless they were before. Raises UserError for rows that cannot be used."""
    source = request.sources[task.name]
    if isinstance(source, PreparedTask):
        return source
    with ReadingProgress(console, task.name) as progress:
        return prepare_for_runs(request.out, task, source, settings.data, progress.advance, request.remote)


def identify_suite(
    request: SuiteRequest, settings: dict[str, Settings], prepared: dict[str, PreparedTask]
) -> dict[str, Any]:
    """Return what a suite's leaderboard depends on; its hash is the suite's key."""
    return {
        "bench": request.bench,
        "tasks": {task.name: task.model_dump(mode="json", exclude={"overrides"}) for task in request.tasks},
        "settings": {name: s.model_dump(mode="json", exclude={"cluster", "caution"}) for name, s in settings.items()},
        "language_models": sorted({fingerprint_language_model(s.model.language_model) for s in settings.values()}),
        "data": {name: [p.fingerprint(s) for s in ("train", "valid", "test")] for name, p in prepared.items()},
        "versions": list_versions(),
    }


def make_suite_key(identity: dict[str, Any]) -> str:
    """Return the content key of a suite from `identify_suite`."""
    return hash_content(identity)


def name_store(request: SuiteRequest, uri: str) -> dict[str, Any]:
    """Return how `suite.json` names the MLflow store: a store in the folder of all runs also from there, as it moves."""
    store = os.path.join(os.pardir, STORE_FILE) if is_own_store(uri, request.out) else None
    return {"tracking_uri": uri, "store": store, "experiment": request.experiment}


def read_finished_board(folder: Path, key: str) -> dict[str, Any] | None:
    """The leaderboard in `folder` if a suite of this key was finished there."""
    try:
        meta = json.loads((folder / SUITE_FILE).read_text())
        if meta["key"] != key or meta["state"] != "finished":
            return None
        return json.loads((folder / "leaderboard.json").read_text())
    except (OSError, ValueError, KeyError):
        return None


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be made or written to, and make nothing: the input is not checked yet."""
    try:
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); choose another folder with --out") from None
