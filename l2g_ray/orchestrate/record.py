"""From events to MLflow: suite, task, and one run a trial, written by the driver alone."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from l2g_ray.config import Settings
from l2g_ray.errors import UserError
from l2g_ray.orchestrate.request import SuiteRequest
from l2g_ray.tracking import Tracker
from l2g_ray.tracking_store import is_file_store, redact
from l2g_ray.tracking_writer import JOURNAL, TrackingWriter

# How long a suite that is through waits for a server that does not answer; an interrupted one has a person waiting.
WAIT_VARIABLE = "L2G_RAY_MLFLOW_WAIT_S"
WAIT_S = 600.0
INTERRUPT_WAIT_S = 10.0


class Recorder:
    """Turns a suite's events into a tree of MLflow runs that can be written twice without harm.

    Nothing here waits for MLflow but `wait` and `close`: events go through a `TrackingWriter`, whose journal is in
    the suite's folder.
    """

    def __init__(
        self,
        request: SuiteRequest,
        key: str,
        settings: dict[str, Settings],
        environment: dict[str, Any],
        folder: Path,
        say: Callable[[str], None],
        uri: str | None = None,
    ) -> None:
        """Open the store (of MLFLOW_TRACKING_URI, else the default one, unless `uri` names it), send what an earlier run
        left in `folder`, and start the runs of suite and tasks.

        Raises UserError when the store does not answer at the start, or when L2G_RAY_MLFLOW_WAIT_S is no number.
        """
        self.wait_s = _read_wait()
        self.say = say
        self.unsent: int | None = None  # known when closed
        tracker = Tracker(uri, request.experiment, request.out)
        self.uri, self.link = tracker.uri, tracker.link
        if is_file_store(self.uri):  # it is away when the storage is, for which there is a patience
            self.wait_s = min([self.wait_s, *(one.cluster.storage_wait_s for one in settings.values())])
        self.writer = TrackingWriter(tracker, folder / JOURNAL, say)
        self.root = f"suite-{key}"
        self.bench = request.bench
        self.trials: dict[str, set[str]] = {task.name: set() for task in request.tasks}
        self.writer.put(
            "start",
            self.root,
            name=request.name,
            tags={"l2g_ray.bench": request.bench, "l2g_ray.preset": request.preset, **_tags(environment)},
            params={"bench": request.bench, "preset": request.preset, "command": request.command},
        )
        for task in request.tasks:
            dumped = settings[task.name].model_dump(mode="json")
            self.writer.put(
                "start",
                self._task(task.name),
                name=task.name,
                parent_key=self.root,
                tags={"l2g_ray.level": "task", "l2g_ray.synthetic": str(task.synthetic).lower()},
                params={"kind": task.kind, "metric": task.metric, **dumped},
            )
            self.writer.put("log_dict", self._task(task.name), obj=dumped, artifact_file="config.yaml")

    def _task(self, name: str) -> str:
        return f"{self.root}/{name}"

    def record(self, event: dict[str, Any]) -> None:
        """Take one event of the board: an epoch of a trial is a row of metrics in the trial's own run, a failure its
        artifact `failure.txt`."""
        if event["type"] not in ("trial", "failure"):
            return
        key = f"{self._task(event['task'])}/{event['stage']}/{event['key']}"
        if key not in self.trials[event["task"]]:
            self.trials[event["task"]].add(key)
            self.writer.put(
                "start",
                key,
                name=f"{event['stage']}/{event['trial']}",
                parent_key=self._task(event["task"]),
                tags={"l2g_ray.level": "trial", "l2g_ray.stage": event["stage"]},
                params=event.get("params") or {},
            )
        if event["type"] == "failure":
            self.writer.put("log_text", key, text=redact(event["text"]), artifact_file="failure.txt")
            if not event["again"]:
                self.writer.put("end", key, status="FAILED")
                self.trials[event["task"]].discard(key)  # ended: the end of the task says nothing more of it
            return
        row = {name: value for name, value in event["row"].items() if name != "epoch"}
        self._log_metrics(key, row, step=int(event["row"]["epoch"]))

    def log_task(self, name: str, folder: Path, row: dict[str, Any], register: bool) -> None:
        """Scores, files and the model of a finished task; its files must stay where they are."""
        key = self._task(name)
        scores = {f"test_{metric}": value for metric, value in row["metrics"]["l2g"].items()}
        scores |= {f"embedder_only_test_{metric}": value for metric, value in row["metrics"]["embedder_only"].items()}
        scores |= {"wall_s": row["wall_s"], "cpu_s": row["cpu_s"]}
        self._log_metrics(key, scores)
        for file in ("metrics.json", "predictions.parquet", "stages.json"):
            self._log_file(key, folder / file)
        model = str((folder / "best").absolute())
        self.writer.put(
            "log_model", key, model_folder=model, registered_name=f"{self.bench}-{name}" if register else None
        )
        self.end_task(name, "FINISHED")

    def model_uri(self, name: str) -> str | None:
        """The URI of a task's model in MLflow; None while it has not been sent."""
        return self.writer.model_uri(self._task(name))

    def log_failure(self, name: str, text: str) -> None:
        """The whole error of a task that failed, as a file of its run."""
        self.writer.put("log_text", self._task(name), text=text, artifact_file="error.txt")

    def end_task(self, name: str, status: str) -> None:
        """Close a task's run and those of its trials."""
        for key in [*self.trials[name], self._task(name)]:
            self.writer.put("end", key, status=status)

    def log_slots(self, use: dict[str, float]) -> None:
        """How busy the slots were (see `orchestrate.slot_use`), as metrics of the suite's run."""
        self._log_metrics(self.root, {f"slots_{name}": value for name, value in use.items()})

    def log_suite(self, folder: Path) -> None:
        """Leaderboard, report and figures of the suite."""
        for name in ("leaderboard.json", "leaderboard.csv", "leaderboard.md", "report.html", "suite.json"):
            self._log_file(self.root, folder / name)
        if (folder / "figures").is_dir():
            self._log_file(self.root, folder / "figures", "figures")

    def wait(self) -> int:
        """Wait for what is under way, at most the seconds left of L2G_RAY_MLFLOW_WAIT_S; what still waits."""
        if self.writer.is_away() and self.wait_s > 0:
            self.say(f"waiting up to {self.wait_s:.0f} s for MLflow ({WAIT_VARIABLE}); Ctrl-C keeps the events")
        begun = time.monotonic()
        waiting = self.writer.wait(self.wait_s)
        self.wait_s = max(0.0, self.wait_s - (time.monotonic() - begun))
        return waiting

    def count_waiting(self) -> int:
        """Events that MLflow has not got yet."""
        return self.writer.wait(0.0)

    def close(self, status: str) -> bool:
        """End the suite's run, and with it all that is still open; whether all of it has arrived in MLflow."""
        if self.unsent is not None:  # an interrupt after the end
            return self.unsent == 0
        self.writer.put("close_open_runs", status=status)
        self.writer.put("end", self.root, status=status)  # for a replay, which does not know what was open
        if status == "KILLED":
            self.wait_s = min(self.wait_s, INTERRUPT_WAIT_S)
        self.wait()
        unsent = self.unsent = self.writer.close()
        if unsent:
            self.say(
                f"{unsent} event{'s' if unsent > 1 else ''} for MLflow stayed in {self.writer.journal}; "
                "run the same command again when it answers: they are sent first"
            )
        if refused := self.writer.refused:
            self.say(f"MLflow refused {len(refused)} event{'s' if len(refused) > 1 else ''}, the first: {refused[0]}")
        return unsent == 0

    def _log_metrics(self, key: str, metrics: dict[str, Any], step: int | None = None) -> None:
        self.writer.put("log_metrics", key, metrics=metrics, step=step, at_ms=int(time.time() * 1000))

    def _log_file(self, key: str, path: Path, artifact_path: str | None = None) -> None:
        self.writer.put("log_artifacts", key, path=str(path.absolute()), artifact_path=artifact_path)


def _read_wait() -> float:
    given = os.environ.get(WAIT_VARIABLE, "")
    try:
        seconds = float(given) if given else WAIT_S
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise UserError(f"{WAIT_VARIABLE}={given}: must be a number of seconds, 0 or more; unset it for {WAIT_S:.0f}")
    return seconds


def _tags(environment: dict[str, Any]) -> dict[str, str]:
    shown = {"git_revision": environment["git_revision"], "processor": environment["machine"]["processor"]}
    shown |= {f"version.{name}": version for name, version in environment["versions"].items()}
    return {f"l2g_ray.{name}": str(value) for name, value in shown.items() if value}
