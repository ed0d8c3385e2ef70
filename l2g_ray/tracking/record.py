"""From events and finished tasks to MLflow: runs, scores, data sets, descriptions; written by the driver alone."""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from l2g_ray.arms import ENSEMBLE
from l2g_ray.config import Settings
from l2g_ray.data.dataset import PreparedTask, read_shard
from l2g_ray.errors import UserError
from l2g_ray.monitor.events import End, Epoch, Failure, News, Recorded, TrialName, Winner
from l2g_ray.request import SuiteRequest
from l2g_ray.results.rows import (
    EXPLAIN_ADDS,
    describe_ensemble,
    describe_weights,
    format_interval,
    format_number,
    list_arms,
    name_arm,
    name_held_out,
)
from l2g_ray.tasks.metrics import find_metric, name_stage_metric
from l2g_ray.tasks.schema import Task, prediction_columns
from l2g_ray.tracking.runs import NOTE_TAG, Tracker
from l2g_ray.tracking.store import is_file_store, redact
from l2g_ray.tracking.writer import JOURNAL, TrackingWriter

if TYPE_CHECKING:
    from l2g_ray.monitor.environment import Environment

# How long a suite that is through waits for a server that does not answer; an interrupted one has a person waiting.
WAIT_VARIABLE = "L2G_RAY_MLFLOW_WAIT_S"
WAIT_S = 600.0
INTERRUPT_WAIT_S = 10.0
ARM_TAG, STOPPED_TAG, WINNER_TAG = "l2g_ray.chosen_arm", "l2g_ray.stopped", "l2g_ray.winner"
# Fields of an epoch's row that are its step, have another name here, or are logged once, at the end.
NOT_CURVES = ("epoch", "score", "best_score", "best_epoch")
SHOWN_TAGS = ("l2g_ray.stage", ARM_TAG, STOPPED_TAG)
SPLITS = {"train": "training", "valid": "validation", "test": "test"}
EXAMPLES = 3


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
        environment: Environment,
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
        metrics = dict.fromkeys(task.metric for task in request.tasks)
        tracker.prepare_view([f"{part}_{metric}" for metric in metrics for part in ("test", "best_valid")], SHOWN_TAGS)
        self.uri, self.link = tracker.uri, tracker.link
        if is_file_store(self.uri):  # it fails with the storage, whose outages have their own limit
            self.wait_s = min([self.wait_s, *(one.cluster.storage_wait_s for one in settings.values())])
        self.writer = TrackingWriter(tracker, folder / JOURNAL, say)
        self.root = f"suite-{key}"
        self.bench, self.command = request.bench, request.command
        self.tasks = {task.name: task for task in request.tasks}
        self.settings = {name: one.model_dump(mode="json") for name, one in settings.items()}
        # By task: its trials that have not ended, each with its last epoch. A task that has not begun is not in here.
        self.trials: dict[str, dict[str, dict[str, float]]] = {}
        self.scores: dict[str, ModelScores] = {}
        self.writer.put(
            "start",
            self.root,
            name=request.name,
            tags={"l2g_ray.bench": request.bench, "l2g_ray.preset": request.preset, **_tags(environment)},
            params={"bench": request.bench, "preset": request.preset, "command": request.command},
        )

    def _task(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _begin(self, name: str) -> None:
        """Start the run of a task, once: at its first event, so that its time is not that of a queue."""
        if name in self.trials:
            return
        self.trials[name] = {}
        task, dumped = self.tasks[name], self.settings[name]
        self.writer.put(
            "start",
            self._task(name),
            name=name,
            parent_key=self.root,
            tags={"l2g_ray.level": "task", "l2g_ray.task": name, "l2g_ray.synthetic": str(task.synthetic).lower()},
            params={"kind": task.kind, "metric": task.metric, **dumped},
        )
        self.writer.put("log_dict", self._task(name), obj=dumped, artifact_file="config.yaml")

    def record(self, event: News) -> None:
        """Take one event of the board: an epoch of a trial is a row of metrics in the trial's own run, a failure its
        artifact `failure.txt`; an end closes it, at the time at which the trial ended."""
        self._begin(event.task)
        if not isinstance(event, Recorded):
            return
        key = f"{self._task(event.task)}/{event.name.stage}/{event.name.key}"
        match event:
            case Epoch():
                self._log_epoch(key, event)
            case Failure():
                self._fail_trial(key, event)
            case End():
                self._end_trial(key, event)
            case Winner():
                name = f"{_name_run(event.name)} ★"  # short: the column of names is narrow
                self.writer.put("mark", key, tags={WINNER_TAG: "true"}, name=name)

    def _start_trial(self, key: str, name: TrialName, began_at: float) -> None:
        if key in self.trials[name.task]:
            return
        self.trials[name.task][key] = {}
        self.writer.put(
            "start",
            key,
            name=_name_run(name),
            parent_key=self._task(name.task),
            tags={"l2g_ray.level": "trial", "l2g_ray.task": name.task, "l2g_ray.stage": name.stage},
            params={"trial": name.trial} | name.params,
            at_ms=_to_ms(began_at),
        )

    def _fail_trial(self, key: str, event: Failure) -> None:
        self._start_trial(key, event.name, time.time())
        self.writer.put("log_text", key, text=redact(event.text), artifact_file="failure.txt")
        if not event.again:
            self.writer.put("mark", key, tags={STOPPED_TAG: event.stopped, NOTE_TAG: event.reason})
            self.writer.put("end", key, status="FAILED")
            self.trials[event.task].pop(key)  # ended: the end of the task says nothing more of it

    def _log_epoch(self, key: str, event: Epoch) -> None:
        row, at = event.row, event.at or time.time()
        self._start_trial(key, event.name, event.began_at or at - row.get("wall_s", 0.0))
        self.trials[event.task][key] = row
        score, sign = self._name_score(event.name)
        # The score first: MLflow compares runs by the metric that was logged first.
        metrics = {score: sign * row.get("score", math.nan)}
        metrics |= {name: value for name, value in row.items() if name not in NOT_CURVES}
        self._log_metrics(key, metrics, step=int(row["epoch"]) + 1, at=at)

    def _end_trial(self, key: str, event: End) -> None:
        name = event.name
        row = self.trials[name.task].pop(key, None)
        if not row:  # ended already
            return
        (score, sign), epochs = self._name_score(name), int(row["epoch"]) + 1
        best, best_epoch = sign * row.get("best_score", math.nan), int(row.get("best_epoch", -1)) + 1
        summary: dict[str, float] = {"epochs": epochs}
        note = f"{name.stage} {name.trial} of {name.task}: {event.stopped}; {epochs} epoch{'s' if epochs > 1 else ''}"
        if best_epoch > 0 and math.isfinite(best):
            summary |= {f"best_{score}": best, "best_epoch": best_epoch}
            note += f"; best {score} {best:.4f} in epoch {best_epoch}"
        self._log_metrics(key, summary, at=event.ended_at)
        self.writer.put("mark", key, tags={STOPPED_TAG: event.stopped, NOTE_TAG: f"{note}."})
        self.writer.put("end", key, status="FINISHED", at_ms=_to_ms(event.ended_at))

    def _name_score(self, name: TrialName) -> tuple[str, float]:
        """Return what a stage's `score` is called, and the sign that undoes its being maximised."""
        metric = name_stage_metric(name.stage, self.tasks[name.task].metric)
        return f"valid_{metric}", find_metric(metric).sign

    def log_task(self, name: str, folder: Path, row: dict[str, Any], prepared: PreparedTask, register: bool) -> None:
        """Log scores, data, files and the model of a finished task; its files must stay where they are."""
        self._begin(name)
        key, task = self._task(name), prepared.task
        scores = self.scores[name] = read_scores(folder, task, row)
        for file in ("metrics.json", "predictions.parquet", "oof.parquet", "stages.json"):
            self._log_file(key, folder / file)
        data = {split: _describe_data(prepared, split) for split in SPLITS}
        self.writer.put("log_data", key, data=list(data.values()))
        self.writer.put(
            "log_model",
            key,
            model_folder=str((folder / "best").absolute()),
            registered_name=f"{self.bench}-{name}" if register else None,
            metrics=scores.model,
            about={
                "name": name,
                "tags": {ARM_TAG: scores.arm, "l2g_ray.task": name},
                "example": _read_example(prepared),
                "outputs": _name_outputs(task),
                "data": {split: [one["name"], one["digest"]] for split, one in data.items()},
            },
        )
        # After the model, so that a run shows its own scores first.
        self._log_metrics(key, scores.arms | {"wall_s": row["wall_s"], "cpu_s": row["cpu_s"]})
        self.writer.put("mark", key, tags={NOTE_TAG: describe_task(row)})
        self.end_task(name, "FINISHED")

    def model_uri(self, name: str) -> str | None:
        """Return the URI of a task's model in MLflow; None while it has not been sent."""
        return self.writer.model_uri(self._task(name))

    def log_failure(self, name: str, text: str) -> None:
        """Log the whole error of a task that failed, as a file of its run."""
        self._begin(name)
        self.writer.put("log_text", self._task(name), text=text, artifact_file="error.txt")

    def end_task(self, name: str, status: str) -> None:
        """Close a task's run and those of its trials."""
        self._begin(name)
        for key in [*self.trials[name], self._task(name)]:
            self.writer.put("end", key, status=status)
        self.trials[name] = {}

    def log_slots(self, use: dict[str, float]) -> None:
        """Log how busy the slots were (see `monitor.events`), as metrics of the suite's run."""
        self._log_metrics(self.root, {f"slots_{name}": value for name, value in use.items()})

    def log_suite(self, folder: Path) -> None:
        """Leaderboard, report and figures of the suite; the leaderboard also as metrics and as the run's description."""
        metrics: dict[str, float] = {}
        for task, scores in self.scores.items():
            ending = f"_{self.tasks[task].metric}"
            found = {**scores.model, **scores.arms}
            metrics |= {f"{task}/{n}": v for n, v in found.items() if n.startswith("test_") and n.endswith(ending)}
        self._log_metrics(self.root, metrics)
        note = describe_suite((folder / "leaderboard.md").read_text(), redact(self.command))
        self.writer.put("mark", self.root, tags={NOTE_TAG: note})
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

    def _log_metrics(
        self, key: str, metrics: dict[str, float], step: int | None = None, at: float | None = None
    ) -> None:
        self.writer.put("log_metrics", key, metrics=metrics, step=step, at_ms=_to_ms(at or time.time()))

    def _log_file(self, key: str, path: Path, artifact_path: str | None = None) -> None:
        self.writer.put("log_artifacts", key, path=str(path.absolute()), artifact_path=artifact_path)


def _to_ms(seconds: float) -> int:
    return int(seconds * 1000)


def _name_run(name: TrialName) -> str:
    return f"{name.stage}/{name.trial}"


class _Data(TypedDict):
    """A data set, as `Tracker.log_data` takes it and the journal keeps it."""

    name: str
    digest: str
    context: str
    source: str
    rows: int
    columns: list[str]


def _describe_data(prepared: PreparedTask, split: str) -> _Data:
    # Where the rows came from: the split's own files, or those that it was cut from. Names are numbered: train0, test0.
    files = [(name.rstrip("0123456789"), one["file"]) for name, one in prepared.manifest["source"].items()]
    own = [file for name, file in files if name == split] or [file for name, file in files if name not in SPLITS]
    own = own or [file for name, file in files if name == "train"]
    return {
        "name": f"{prepared.task.name} {split}",
        "digest": prepared.fingerprint(split),
        "context": SPLITS[split],
        "source": ", ".join(own) or str(prepared.folder),
        "rows": prepared.n_rows(split),
        "columns": ["sequence", "label"],
    }


def _read_example(prepared: PreparedTask) -> list[str]:
    """Return a few training sequences. The test split is not looked at, and of the shards no more than the first is
    read.
    """
    first = read_shard(prepared.shard_paths("train")[0], ["sequence"])
    return first["sequence"].slice(0, EXAMPLES).to_pylist()


def _name_outputs(task: Task) -> list[list[str]]:
    """Return columns of a prediction, and their types in MLflow."""
    columns = prediction_columns(task, np.zeros((1, task.n_outputs)))
    return [[name, "double" if isinstance(values, np.ndarray) else "string"] for name, values in columns.items()]


def _read_wait() -> float:
    given = os.environ.get(WAIT_VARIABLE, "")
    try:
        seconds = float(given) if given else WAIT_S
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise UserError(f"{WAIT_VARIABLE}={given}: must be a number of seconds, 0 or more; unset it for {WAIT_S:.0f}")
    return seconds


def _tags(environment: Environment) -> dict[str, str]:
    shown = {"git_revision": environment["git_revision"], "processor": environment["machine"]["processor"]}
    shown |= {f"version.{name}": version for name, version in environment["versions"].items()}
    return {f"l2g_ray.{name}": str(value) for name, value in shown.items() if value}


Metrics = dict[str, float]


@dataclass(frozen=True)
class ModelScores:
    """Scores by their names in MLflow.

    `arm` is the arm of the stored model, `model` its own scores: `test_<metric>` and `valid_<metric>`. `arms` are those of
    every arm and baseline, means over seeds as in the leaderboard: `test_<arm>_<metric>`, `valid_<arm>_<metric>`.
    """

    arm: str
    model: Metrics
    arms: Metrics


def read_scores(folder: Path, task: Task, row: Mapping[str, Any]) -> ModelScores:
    """Return the scores of a finished task, from its folder and its leaderboard row.

    The stored model is the ensemble of one seed. In MLflow `valid_*` are scores on held-out rows (`oof` in the leaderboard),
    of a baseline those on validation.
    """
    metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
    arms: Metrics = {}
    for name in dict.fromkeys(entry["arm"] for entry in metrics if entry["arm"] != ENSEMBLE):
        seeds = [_numbers(entry["test"]) for entry in metrics if entry["arm"] == name]
        arms |= {f"test_{name}_{metric}": float(np.mean([one[metric] for one in seeds])) for metric in seeds[0]}
    known = {name: (one["oof"] or {}).get("mean") for name, one in row["arms"].items()}
    known |= {name: one.get("validation") for name, one in row["baselines"].items() if isinstance(one, Mapping)}
    arms |= {f"valid_{name}_{task.metric}": value for name, value in known.items() if value is not None}
    seed = json.loads((folder / "stages.json").read_text())["deployed"]["seed"]
    own = _numbers(next(e["test"] for e in metrics if (e["arm"], e["seed"]) == (ENSEMBLE, seed)))
    scores = {f"test_{metric}": value for metric, value in own.items()}
    seeds_used = sorted({entry["seed"] for entry in metrics if entry["arm"] == ENSEMBLE})
    scores[f"valid_{task.metric}"] = row["used"]["oof"]["per_seed"][seeds_used.index(seed)]
    return ModelScores(ENSEMBLE, scores, arms)


def _numbers(metrics: Mapping[str, Any]) -> Metrics:
    # JSON has null for what is not defined; lists are one number a class.
    return {
        name: float("nan") if value is None else float(value)
        for name, value in metrics.items()
        if value is None or (isinstance(value, Real) and not isinstance(value, bool))
    }


MAX_CHARS = 4900  # below what a tag may have; see `tracking.runs.MAX_TAG_CHARS`
REST = "\n\nThe whole table is the artifact `leaderboard.md`."


def describe_suite(leaderboard: str, command: str) -> str:
    """Return the leaderboard (the text of `leaderboard.md`), whole lines of it as far as they fit, and the command."""
    head = f"```sh\n{command}\n```\n\n" if command and len(command) < MAX_CHARS // 2 else ""
    room, kept = MAX_CHARS - len(head) - len(REST), list[str]()
    for line in re.sub("^#+", "####", leaderboard.strip(), flags=re.MULTILINE).splitlines():
        room -= len(line) + 1
        if room < 0:
            return head + "\n".join(kept).rstrip() + REST
        kept.append(line)
    return head + "\n".join(kept)


def describe_task(row: Mapping[str, Any]) -> str:
    """Return what the stored model is, how it was made, and the scores of all arms and baselines, means over seeds."""
    used, metric = row["used"], row["metric"]
    headings = ("arm", f"{name_held_out(row)} {metric}", f"test {metric}", "95 % interval", "weight", "adds")
    lines = [f"| {' | '.join(headings)} |", "|---|---:|---:|---|---:|---:|"]
    lines.append(_line(f"**{used['arm']}** (used)", used["oof"]["mean"], used["test"]))
    for arm in list_arms(row):
        known = arm.held_out["mean"] if arm.held_out else None
        share = f"{arm.share:.0%}" if arm.share else "–"
        lines.append(_line(name_arm(arm.name), known, arm.test, share, " ".join(arm.adds.parts[:2]).strip()))
    for name, score in row["baselines"].items():
        if isinstance(score, Mapping):
            lines.append(_line(f"{name} (validation)", score.get("validation"), score))
    seeds = len(used["test"]["per_seed"])
    means = f"Means over {seeds} seeds; the model and its `test_*` metrics are of one of them. " if seeds > 1 else ""
    about = f"The model is the ensemble of {describe_weights(row)}. "
    warnings = [f"- {warning}" for warning in row["warnings"]]
    table = "\n".join(lines)
    parts = [f"{about}{means}".strip(), table, EXPLAIN_ADDS, *(["\n".join(warnings)] if warnings else [])]
    return "\n\n".join([*parts, describe_ensemble(row)])[:MAX_CHARS]


def _line(name: str, known: float | None, score: Mapping[str, Any], weight: str = "", adds: str = "") -> str:
    cells = [name, format_number(known), format_number(score["mean"]), format_interval(score), weight, adds]
    return f"| {' | '.join(cells)} |"
