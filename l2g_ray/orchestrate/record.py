"""From events to MLflow: suite, task, and one run a trial, written by the driver alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from l2g_ray.config import Settings
from l2g_ray.tracking import Tracker

if TYPE_CHECKING:
    from l2g_ray.orchestrate.suite import SuiteRequest


class Recorder:
    """Turns a suite's events into a tree of MLflow runs that can be written twice without harm."""

    def __init__(
        self, request: SuiteRequest, key: str, settings: dict[str, Settings], environment: dict[str, Any]
    ) -> None:
        self.tracker = Tracker(None, request.experiment, request.out)
        self.uri = self.tracker.uri
        self.root = f"suite-{key}"
        self.bench = request.bench
        self.trials: dict[str, set[str]] = {task.name: set() for task in request.tasks}
        self.tracker.start(
            self.root,
            request.name,
            tags={"l2g_ray.bench": request.bench, "l2g_ray.preset": request.preset, **_tags(environment)},
            params={"bench": request.bench, "preset": request.preset, "command": request.command},
        )
        for task in request.tasks:
            dumped = settings[task.name].model_dump(mode="json")
            self.tracker.start(
                self._task(task.name),
                task.name,
                self.root,
                tags={"l2g_ray.level": "task", "l2g_ray.synthetic": str(task.synthetic).lower()},
                params={"kind": task.kind, "metric": task.metric, **dumped},
            )
            self.tracker.log_dict(self._task(task.name), dumped, "config.yaml")

    def _task(self, name: str) -> str:
        return f"{self.root}/{name}"

    def record(self, event: dict[str, Any]) -> None:
        """Take one event of the board: an epoch of a trial is a row of metrics in the trial's own run."""
        if event["type"] != "trial":
            return
        key = f"{self._task(event['task'])}/{event['stage']}/{event['key']}"
        if key not in self.trials[event["task"]]:
            self.trials[event["task"]].add(key)
            self.tracker.start(
                key,
                f"{event['stage']}/{event['trial']}",
                self._task(event["task"]),
                tags={"l2g_ray.level": "trial", "l2g_ray.stage": event["stage"]},
                params=event.get("params") or {},
            )
        row = {name: value for name, value in event["row"].items() if name != "epoch"}
        self.tracker.log_metrics(key, row, step=int(event["row"]["epoch"]))

    def log_task(self, name: str, folder: Path, row: dict[str, Any], register: bool) -> str:
        """Scores, files and the model of a finished task; returns the model's URI."""
        key = self._task(name)
        scores = {f"test_{metric}": value for metric, value in row["metrics"]["l2g"].items()}
        scores |= {f"embedder_only_test_{metric}": value for metric, value in row["metrics"]["embedder_only"].items()}
        scores |= {"wall_s": row["wall_s"], "cpu_s": row["cpu_s"]}
        self.tracker.log_metrics(key, scores)
        for file in ("metrics.json", "predictions.parquet", "stages.json"):
            self.tracker.log_artifacts(key, folder / file)
        uri = self.tracker.log_model(key, folder / "model", f"{self.bench}-{name}" if register else None)
        self.end_task(name, "FINISHED")
        return uri

    def log_failure(self, name: str, text: str) -> None:
        """The whole error of a task that failed, as a file of its run."""
        self.tracker.log_text(self._task(name), text, "error.txt")

    def end_task(self, name: str, status: str) -> None:
        """Close a task's run and those of its trials."""
        for key in [*self.trials[name], self._task(name)]:
            self.tracker.end(key, status)

    def log_suite(self, folder: Path) -> None:
        """Leaderboard, report and figures of the suite."""
        for name in ("leaderboard.json", "leaderboard.csv", "leaderboard.md", "report.html", "suite.json"):
            self.tracker.log_artifacts(self.root, folder / name)
        if (folder / "figures").is_dir():
            self.tracker.log_artifacts(self.root, folder / "figures", "figures")

    def close(self, status: str) -> None:
        """End the suite's run, and with it all that is still open."""
        self.tracker.close_open_runs(status)


def _tags(environment: dict[str, Any]) -> dict[str, str]:
    shown = {"git_revision": environment["git_revision"], "processor": environment["machine"]["processor"]}
    shown |= {f"version.{name}": version for name, version in environment["versions"].items()}
    return {f"l2g_ray.{name}": str(value) for name, value in shown.items() if value}
