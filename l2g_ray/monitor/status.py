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
from pathlib import Path
from typing import Any

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


class StatusWriter:
    """Keeps `status.json` of a suite: after every change, at most once a second, and every few seconds as a beat."""

    def __init__(self, folder: Path, tasks: list[str], links: Mapping[str, str]) -> None:
        """Begin to write into `folder`. `links` are addresses that a person may open, by name."""
        self.path = folder / STATUS_FILE
        self._facts: dict[str, Any] = {
            "schema": 1,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "process_started": _process_started(os.getpid()),
            "links": dict(links),
            "started": time.time(),
            "doing": "starts",
            "tasks": {name: {"state": "waiting"} for name in tasks},
            "last_event": None,
        }
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._changed, self._ended = threading.Event(), threading.Event()
        self._write()
        self._thread = threading.Thread(target=self._beat, name="status-writer", daemon=True)
        self._thread.start()

    def say(self, doing: str) -> None:
        """What the driver does now, as one word or two."""
        with self._lock:
            self._facts["doing"] = doing
        self._changed.set()

    def show(self, tasks: Mapping[str, dict[str, Any]]) -> None:
        """How the tasks stand (`Progress.snapshot`)."""
        with self._lock:
            if tasks == self._facts["tasks"]:
                return
            self._facts["tasks"] = tasks
        self._changed.set()

    def tell(self, event: str) -> None:
        """What happened last."""
        with self._lock:
            self._facts["last_event"] = {"at": time.time(), "text": event}
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
            with self._lock:
                text = json.dumps(self._facts | {"at": time.time()}, indent=1)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, text)


def read_status(run: Path) -> dict[str, Any]:
    """How the suite in folder `run` stands.

    Returns a mapping, ready for JSON: 'run', 'name', 'state' (running, finished, failed, stopped, unsent, killed),
    'doing', 'driver' ('alive': True, False; 'host', 'pid', 'silent_s'), 'elapsed_s', 'tasks' (a list), 'last_event'
    ('text', 'ago_s'), 'links', 'command' and 'next', one sentence on what to do.

    Raises
    ------
    UserError : `run` is not the folder of a suite.
    """
    suite, live = _read(run / SUITE_FILE), _read(run / STATUS_FILE)
    if suite is None and live is None:
        raise UserError(
            f"{run}: no suite has started here ({SUITE_FILE} is missing); name a run's folder, or the --out folder "
            "above it. A suite that prepares its data has no folder yet"
        )
    suite, live = suite or {}, live or {}
    now = time.time()
    ended = suite.get("state") if suite.get("state") in ENDED else None
    alive = bool(live) and _is_alive(live, now)
    # A second run of the same command says "running" only once it is connected; until then the old end stands.
    state = ended if ended and not alive else RUNNING if alive else KILLED
    begun = live.get("started")
    until = now if state == RUNNING else live.get("at")
    elapsed = until - begun if begun and until else suite.get("wall_s")
    event = live.get("last_event")
    found = {
        "run": str(run),
        "name": suite.get("name", run.name),
        "state": state,
        "doing": live.get("doing", "") if alive else "",
        "driver": {
            "alive": alive,
            "host": live.get("host"),
            "pid": live.get("pid"),
            "silent_s": round(now - live["at"], 1) if live else None,
        },
        "elapsed_s": round(elapsed, 1) if elapsed is not None else None,
        "tasks": [_describe_task(name, task, state, until or now) for name, task in live.get("tasks", {}).items()],
        "last_event": {"text": event["text"], "ago_s": round(now - event["at"], 1)} if event else None,
        # A command that an earlier version wrote may name a place from which the folder was moved.
        "links": {"mlflow": show_command("ui", run)}
        | {name: link for name, link in live.get("links", {}).items() if not link.startswith("l2g-ray ")},
        "command": _find_command(suite, run),
    }
    return found | {"next": _advise(found, run)}


def _find_command(suite: dict[str, Any], run: Path) -> str:
    """The command of a suite; where its folder was moved, with an `--out` that finds it again."""
    command, began_in = str(suite.get("command", "")), suite.get("folder")
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


def _describe_task(name: str, task: dict[str, Any], state: str, until: float) -> dict[str, Any]:
    found = {"task": name} | {key: value for key, value in task.items() if key not in ("begun", "ended")}
    if task.get("begun"):
        found["elapsed_s"] = round((task.get("ended") or until) - task["begun"], 1)
    if state in (KILLED, "stopped") and task["state"] == "running":
        found["state"] = "interrupted"
    return found


def _advise(found: dict[str, Any], run: Path) -> str:
    again = f"`{found['command']}`" if found["command"] else "the same command"
    failed = [task["task"] for task in found["tasks"] if task["state"] == "failed"]
    match found["state"]:
        case "running":
            return "nothing to do; `ray job stop`, Ctrl-C or SIGTERM ends it in good order, and it can go on later"
        case "finished":
            return f"read {run / 'report.html'}"
        case "failed":
            return f"mend what failed ({', '.join(failed) or 'see leaderboard.json'}), then run {again}: it repeats only that"
        case "unsent":
            return f"MLflow did not get everything; when it answers, run {again}: it sends the rest and trains nothing"
    return f"run {again}: finished stages are kept, and it goes on from there"


def _is_alive(live: dict[str, Any], now: float) -> bool:
    if live.get("doing") in ENDED:
        return False
    if live["host"] == socket.gethostname():
        started = _process_started(live["pid"])
        return started is not None and started == live["process_started"]
    return now - float(live["at"]) < SILENT_S


def _process_started(pid: int) -> str | None:
    """When a process of this machine began, in ticks since its boot; None where it is gone. Linux only."""
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
