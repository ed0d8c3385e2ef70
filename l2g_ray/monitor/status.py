"""Where a suite stands: the driver writes it down as it goes, `l2g-ray status` reads it from any other shell.

`status.json` lies in the suite's folder. Nothing depends on it: a suite whose folder cannot be written for a while
runs on, and the file is written again when it can be.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

from l2g_ray.atomic import write_text
from l2g_ray.errors import UserError
from l2g_ray.places import show_command

STATUS_FILE = "status.json"
SUITE_FILE = "suite.json"
BEAT_S = 5.0
# A driver on another machine is known by its last beat alone; network file systems show writes seconds late.
SILENT_S = 60.0
ENDED = ("finished", "failed", "stopped", "unsent")
# Said by the driver in suite.json; a driver that is gone without an end was killed.
RUNNING, KILLED = "running", "killed"


@dataclass(frozen=True)
class TaskStatus:
    """How a task stands: `state`, and what is known in it; the rest is None.

    A task that has begun has a stage, the number of its failures and `begun`; one that runs, how many trials its stage
    has and has begun, the epochs of the longest and the best score so far; one that ended, a result and `ended`. Times
    are in seconds since 1970.
    """

    state: str = "waiting"
    stage: str | None = None
    begun: float | None = None
    failures: int | None = None
    result: str | None = None
    ended: float | None = None
    trials: int | None = None
    trials_begun: int | None = None
    epoch: int | None = None
    best: float | None = None

    def to_json(self) -> dict[str, str | float | None]:
        """Return what is known; `best` of a task that runs is null until there is a score."""
        running = self.trials is not None
        return {key: value for key, value in asdict(self).items() if value is not None or (key == "best" and running)}


@dataclass(frozen=True)
class _LastEvent:
    at: float
    text: str


@dataclass(frozen=True, kw_only=True)
class _Live:
    """The content of `status.json`; times in seconds since 1970."""

    host: str
    pid: int
    process_started: str | None = None
    links: dict[str, str] = field(default_factory=dict)
    started: float
    doing: str = ""
    tasks: Mapping[str, TaskStatus] = field(default_factory=dict)
    last_event: _LastEvent | None = None
    at: float

    def to_json(self) -> str:
        """Return the text of the file."""
        tasks = {name: task.to_json() for name, task in self.tasks.items()}
        return json.dumps({"schema": 1} | asdict(self) | {"tasks": tasks}, indent=1)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Self:
        """Read the file's content, also what another version wrote."""
        known = {one.name: found[one.name] for one in fields(cls) if one.name in found}
        names = {one.name for one in fields(TaskStatus)}
        tasks = {n: TaskStatus(**{k: v for k, v in t.items() if k in names}) for n, t in found.get("tasks", {}).items()}
        event = found.get("last_event")
        return cls(**known | {"tasks": tasks, "last_event": _LastEvent(**event) if event else None})


class StatusWriter:
    """Keeps `status.json` of a suite: after every change, at most once a second, and every few seconds as a beat.

    One thread calls its methods.
    """

    def __init__(self, folder: Path, tasks: list[str], links: Mapping[str, str]) -> None:
        """Begin to write into `folder`. `links` are addresses that a person may open, by name."""
        self.path = folder / STATUS_FILE
        now = time.time()
        self._live = _Live(
            host=socket.gethostname(),
            pid=os.getpid(),
            process_started=_process_started(os.getpid()),
            links=dict(links),
            started=now,
            doing="starts",
            tasks=dict.fromkeys(tasks, TaskStatus()),
            last_event=None,
            at=now,
        )
        self._writing = threading.Lock()
        self._changed, self._ended = threading.Event(), threading.Event()
        self._write()
        self._thread = threading.Thread(target=self._beat, name="status-writer", daemon=True)
        self._thread.start()

    def say(self, doing: str) -> None:
        """Record what the driver does now, as one word or two."""
        self._live = replace(self._live, doing=doing)
        self._changed.set()

    def show(self, tasks: Mapping[str, TaskStatus]) -> None:
        """Record the state of the tasks (`Progress.snapshot`)."""
        if tasks != self._live.tasks:
            self._live = replace(self._live, tasks=tasks)
            self._changed.set()

    def tell(self, event: str) -> None:
        """Record what happened last."""
        self._live = replace(self._live, last_event=_LastEvent(time.time(), event))
        self._changed.set()

    def close(self, doing: str) -> None:
        """Write a last time and end. A second call does nothing."""
        if self._ended.is_set():
            return
        self.say(doing)
        self._ended.set()
        self._thread.join(timeout=BEAT_S)
        self._write()

    def _beat(self) -> None:
        while not self._ended.is_set():
            self._changed.wait(BEAT_S)
            self._changed.clear()
            self._write()
            self._ended.wait(1.0)

    def _write(self) -> None:
        # A disk that is full or away for a while must not end the suite: the next beat tries again.
        with self._writing, contextlib.suppress(OSError):  # the beat and `close` have one temporary file
            text = replace(self._live, at=time.time()).to_json()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, text)


@dataclass(frozen=True)
class Driver:
    """The process that runs a suite; where it is and when it was last seen are None where the suite has no status file."""

    alive: bool
    host: str | None
    pid: int | None
    silent_s: float | None


@dataclass(frozen=True)
class ShownTask:
    """A task as people see it: how it stands, and how long it has run."""

    name: str
    status: TaskStatus
    elapsed_s: float | None

    def to_json(self) -> dict[str, str | float | None]:
        """Return a mapping with the fields of the status, but `begun` and `ended`."""
        found = {"task": self.name} | {k: v for k, v in self.status.to_json().items() if k not in ("begun", "ended")}
        return found | ({} if self.elapsed_s is None else {"elapsed_s": self.elapsed_s})


@dataclass(frozen=True)
class ShownEvent:
    """What happened last, and how long ago."""

    text: str
    ago_s: float


@dataclass(frozen=True)
class SuiteStatus:
    """How a suite stands.

    `state` is running, finished, failed, stopped, unsent or killed; `doing` what its driver does now; `next` one
    sentence on what to do.
    """

    run: str
    name: str
    state: str
    doing: str
    driver: Driver
    elapsed_s: float | None
    tasks: list[ShownTask]
    last_event: ShownEvent | None
    links: dict[str, str]
    command: str
    next: str

    def to_json(self) -> dict[str, Any]:
        """Return what `l2g-ray status --json` prints."""
        return asdict(self) | {"tasks": [task.to_json() for task in self.tasks]}


def read_status(run: Path) -> SuiteStatus:
    """Return how the suite in folder `run` stands.

    Raises
    ------
    UserError : `run` is not the folder of a suite.
    """
    suite, facts = _read(run / SUITE_FILE), _read(run / STATUS_FILE)
    if suite is None and facts is None:
        raise UserError(
            f"{run}: no suite has started here ({SUITE_FILE} is missing); name a run's folder, or the --out folder "
            "above it. A suite that prepares its data has no folder yet"
        )
    suite = suite or {}
    live = _Live.from_json(facts) if facts else None
    now = time.time()
    ended = suite.get("state") if suite.get("state") in ENDED else None
    alive = live is not None and _is_alive(live, now)
    # A second run of the same command says "running" only once it is connected; until then the old end stands.
    state = ended if ended and not alive else RUNNING if alive else KILLED
    until = live.at if live and state != RUNNING else now
    elapsed = until - live.started if live else suite.get("wall_s")
    tasks = [_show_task(name, task, state, until) for name, task in live.tasks.items()] if live else []
    event = live.last_event if live else None
    # A command that an earlier version wrote may name a place from which the folder was moved.
    kept = {name: link for name, link in live.links.items() if not link.startswith("l2g-ray ")} if live else {}
    command = _find_command(str(suite.get("command", "")), suite.get("folder"), run)
    return SuiteStatus(
        run=str(run),
        name=suite.get("name", run.name),
        state=state,
        doing=live.doing if live and alive else "",
        driver=Driver(alive, live.host, live.pid, round(now - live.at, 1)) if live else Driver(False, None, None, None),
        elapsed_s=round(elapsed, 1) if elapsed is not None else None,
        tasks=tasks,
        last_event=ShownEvent(event.text, round(now - event.at, 1)) if event else None,
        links={"mlflow": show_command("ui", run)} | kept,
        command=command,
        next=_advise(state, command, [task.name for task in tasks if task.status.state == "failed"], run),
    )


def _find_command(command: str, began_in: str | None, run: Path) -> str:
    """Return the command of a suite; where its folder was moved, with an `--out` that finds it again."""
    if not command or not began_in or run.absolute() == Path(began_in):
        return command
    return f"{command} {shlex.join(['--out', str(run.absolute().parent)])}"


def find_runs(folder: Path) -> list[Path]:
    """`folder` itself if a suite is in it, else the suites right below it, the latest last.

    Raises UserError when there is none.
    """
    if (folder / SUITE_FILE).exists() or (folder / STATUS_FILE).exists():
        return [folder]
    below = [path.parent for path in sorted(folder.glob(f"*/{SUITE_FILE}"), key=lambda path: path.stat().st_mtime)]
    if not below:
        read_status(folder)  # says what is wrong
    return below


def _show_task(name: str, task: TaskStatus, state: str, until: float) -> ShownTask:
    elapsed_s = round((task.ended or until) - task.begun, 1) if task.begun else None
    if state in (KILLED, "stopped") and task.state == "running":
        task = replace(task, state="interrupted")
    return ShownTask(name, task, elapsed_s)


def _advise(state: str, command: str, failed: list[str], run: Path) -> str:
    again = f"`{command}`" if command else "the same command"
    match state:
        case "running":
            return "nothing to do; `ray job stop`, Ctrl-C or SIGTERM ends it in good order, and the same command resumes it"
        case "finished":
            return f"read {run / 'report.html'}"
        case "failed":
            return f"mend what failed ({', '.join(failed) or 'see leaderboard.json'}), then run {again}: it repeats only that"
        case "unsent":
            return f"MLflow did not get everything; when it answers, run {again}: it sends the rest and trains nothing"
    return f"run {again}: finished stages are kept, and the run resumes from there"


def _is_alive(live: _Live, now: float) -> bool:
    if live.doing in ENDED:
        return False
    if live.host == socket.gethostname():
        started = _process_started(live.pid)
        return started is not None and started == live.process_started
    return now - live.at < SILENT_S


def _process_started(pid: int) -> str | None:
    """Return when a process of this machine began, in ticks since its boot; None where it is gone. Linux only."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return fields[19] if fields[0] != "Z" else None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
