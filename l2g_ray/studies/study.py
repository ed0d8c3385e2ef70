"""Ablations and baselines: one task under several settings, run as one suite and compared in pairs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, TypedDict

import pandas as pd
import yaml
from pydantic import JsonValue
from rich.console import Console

from l2g_ray.arms import ENSEMBLE
from l2g_ray.config import Settings
from l2g_ray.data.dataset import PreparedTask
from l2g_ray.data.raw import RawTask
from l2g_ray.errors import UserError, nearest
from l2g_ray.extras import need_for
from l2g_ray.names import safe_names
from l2g_ray.orchestrate.identity import prepare_task, resolve_task
from l2g_ray.orchestrate.suite import run_suite
from l2g_ray.request import SuiteRequest, SuiteResult
from l2g_ray.results.comparison import Compared, StudyFile, write_study
from l2g_ray.results.intervals import ArmScores
from l2g_ray.store.shared import push
from l2g_ray.tasks.schema import Task

# Between a task's name and an arm's.
JOINT = "--"
ARMS = resources.files("l2g_ray.studies") / "arms.yaml"


@dataclass(frozen=True)
class Study:
    """Arms by name, each a mapping of dotted settings; the first is what the others are compared with."""

    name: str
    about: str
    arms: Mapping[str, Mapping[str, Any]]

    @property
    def control(self) -> str:
        """The first arm."""
        return next(iter(self.arms))


def read_studies() -> dict[str, Study]:
    """Return the studies that ship with the package."""
    return {name: Study(name, **raw) for name, raw in yaml.safe_load(ARMS.read_text())["studies"].items()}


class BaselineArm(TypedDict):
    """A baseline that is the method with other settings: `set` are dotted settings."""

    about: str
    set: dict[str, JsonValue]


def read_baseline_arms() -> dict[str, BaselineArm]:
    """Return the baselines of the package that are arms, by name."""
    return yaml.safe_load(ARMS.read_text())["baselines"]


def find_study(name: str) -> Study:
    """Return a shipped study. Raises UserError for an unknown name."""
    studies = read_studies()
    if name not in studies:
        raise UserError(f"unknown study '{name}': {nearest(name, list(studies))}")
    return studies[name]


def vary(key: str, values: Sequence[Any]) -> Study:
    """Return a study of one setting: an arm a value. Raises UserError for fewer than two values, or two that are the
    same.
    """
    if len(values) < 2 or any(value in values[:i] for i, value in enumerate(values)):
        raise UserError(f"--vary {key}: give at least two different values, separated by semicolons")
    names = safe_names([_name_value(value) for value in values], otherwise="empty")
    arms = {name: {key: value} for name, value in zip(names, values, strict=True)}
    return Study(key.split(".")[-1], f"values of {key}", arms)


def _name_value(value: Any) -> str:
    text = "-".join(str(part) for part in value) if isinstance(value, list) else str(value)
    kept = "".join(c if c.isalnum() or c in "._-" else "_" for c in text).strip("._-")
    return kept[-40:].strip("._-") or "empty"


def make_variant(task: Task, arm: str) -> Task:
    """Return the task under the name of an arm."""
    return task.model_copy(update={"name": f"{task.name}{JOINT}{arm}", "title": f"{task.title or task.name}: {arm}"})


def compare_arms(
    task: Task, folders: Mapping[str, Path], rows: Mapping[str, Mapping[str, Any]], settings: Settings
) -> list[Compared]:
    """Return all arms that finished; the first of `folders` is the control.

    `folders` are the arms' task folders, `rows` their leaderboard rows. Where the control is missing, nothing is
    subtracted. L2G is compared, or the ensemble where one of them has no L2G; all else of the control's run is listed too.
    """
    stored = {arm: pd.read_parquet(folder / "predictions.parquet") for arm, folder in folders.items() if arm in rows}
    if not stored:
        return []
    subject = "l2g" if all((frame["arm"] == "l2g").any() for frame in stored.values()) else ENSEMBLE
    frames = [frame[frame["arm"] == subject].assign(arm=arm) for arm, frame in stored.items()]
    control = next(iter(folders))
    if control in stored:
        others = stored[control]
        frames.append(others[(others["arm"] != subject) & ~others["arm"].isin(list(folders))])
    arms = ArmScores(task, pd.concat(frames), settings.evaluate.bootstrap_resamples, settings.seed)
    compared = []
    for arm in arms.parts:
        row: Mapping[str, Any] = rows.get(arm, {})
        compared.append(
            Compared(
                task=task.name,
                arm=arm,
                metric=task.metric,
                test=arms.summarise(arm),
                validation=_find_held_out(row, subject),
                difference=arms.subtract(arm, control) if control in arms.parts and arm != control else None,
                cpu_s=float(row.get("cpu_s", 0.0)),
            )
        )
    return compared


def _find_held_out(row: Mapping[str, Any], subject: str) -> float | None:
    """Return the subject's score on held-out rows, on validation in a row of an earlier version; None for an empty
    row.
    """
    if subject == ENSEMBLE and row.get("used"):
        return row["used"]["oof"]["mean"]  # type: ignore[no-any-return]
    return row["validation"]["mean"] if row else None


def correct(compared: list[Compared]) -> list[Compared]:
    """Return two-sided p of each difference after Holm's correction over all differences of the table (`p_holm`)."""
    tested = [(i, _two_sided(one)) for i, one in enumerate(compared)]
    known = sorted(((p, i) for i, p in tested if p is not None), key=lambda pair: pair[0])
    corrected, highest = list(compared), 0.0
    for rank, (p, i) in enumerate(known):
        highest = max(highest, min(1.0, p * (len(known) - rank)))
        if difference := compared[i]["difference"]:
            corrected[i] = {**compared[i], "difference": {**difference, "p_holm": highest}}
    return corrected


def _two_sided(one: Compared) -> float | None:
    p = one["difference"]["p"] if one["difference"] else None
    return None if p is None else min(1.0, 2 * min(p, 1 - p))


STUDY_SCHEMA = 1
# A study compares L2G under different settings; the embedder alone is the control.
ARMS_OF_STUDIES = ("embedder_only", "l2g")


@dataclass(frozen=True)
class StudyResult:
    """The suite that ran the arms, and what their comparison says."""

    suite: SuiteResult
    study: StudyFile


def describe_study(study: Study, compared: list[Compared], request: SuiteRequest) -> StudyFile:
    """Return what `study.json` holds."""
    content: StudyFile = {
        "schema": STUDY_SCHEMA,
        "study": study.name,
        "about": study.about,
        "arms": {arm: dict(values) for arm, values in study.arms.items()},
        "preset": request.preset,
        "command": request.command,
        "compared": compared,
    }
    return json.loads(json.dumps(content, default=str))


def run_study(
    request: SuiteRequest, study: Study, sources: Mapping[str, RawTask | PreparedTask], console: Console
) -> StudyResult:
    """Run every arm on every task of `request`, and compare them.

    `request.tasks` are the tasks themselves and `sources` their rows; the suite that runs has a task an arm. Each task
    is prepared once. A second call with the same arguments trains nothing.

    Raises UserError as `run_suite`, and where two arms resolve to the same settings, which compares nothing.
    """
    request = replace(request, assignments={"arms": ARMS_OF_STUDIES} | request.assignments)
    variants: list[tuple[Task, Task, Settings]] = []
    own: dict[str, Mapping[str, Any]] = {}
    for task in request.tasks:
        seen: dict[str, str] = {}
        for arm, assignments in study.arms.items():
            variant = make_variant(task, arm)
            own[variant.name] = assignments
            resolved = resolve_task(replace(request, task_assignments=own), variant)
            need_for(resolved)
            same = seen.setdefault(resolved.model_dump_json(), arm)
            if same != arm:
                raise UserError(
                    f"study {study.name}, {task.name}: the arms '{same}' and '{arm}' are the same settings here; "
                    "choose another preset, or leave one out with --arms"
                )
            variants.append((task, variant, resolved))
    prepared: dict[tuple[str, str], PreparedTask] = {}
    rows: dict[str, PreparedTask] = {}
    for task, variant, resolved in variants:
        data = (task.name, resolved.data.model_dump_json())
        if data not in prepared:
            prepared[data] = prepare_task(replace(request, sources=sources), task, resolved, console)
        rows[variant.name] = replace(prepared[data], task=variant)
    tasks = [variant for _, variant, _ in variants]
    suite = run_suite(replace(request, tasks=tasks, sources=rows, task_assignments=own), console)
    described = describe_study(study, _compare(request, study, suite), request)
    write_study(suite.folder, described)
    if request.remote is not None:
        wait_s = resolve_task(request, request.tasks[0]).cluster.storage_wait_s
        push(suite.folder, request.remote / request.name, wait_s)
    return StudyResult(suite, described)


def _compare(request: SuiteRequest, study: Study, suite: SuiteResult) -> list[Compared]:
    by_name = {row["task"]: row for row in suite.board["tasks"]}
    compared: list[Compared] = []
    for task in request.tasks:
        names = {arm: make_variant(task, arm).name for arm in study.arms}
        folders: dict[str, Path] = {arm: suite.folder / name for arm, name in names.items()}
        found = {arm: by_name[name] for arm, name in names.items() if name in by_name}
        compared += compare_arms(task, folders, found, resolve_task(request, task))
    return correct(compared)
