"""What a suite is asked for, and where its results are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l2g_ray.data.dataset import PreparedTask
from l2g_ray.data.raw import RawTask
from l2g_ray.errors import UserError
from l2g_ray.storage import Location
from l2g_ray.tasks.schema import NAME_PATTERN, Task

if TYPE_CHECKING:
    from l2g_ray.results.schema import Board

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

    `fresh` is False where all results were there, `relogged` where these were logged again in MLflow.
    """

    board: Board
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
