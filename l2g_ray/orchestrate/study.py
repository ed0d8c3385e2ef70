"""A study from tasks to a table: its arms as one suite, then comparisons in pairs, in files and in MLflow."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from l2g_ray.data.dataset import PreparedTask
from l2g_ray.data.raw import RawTask
from l2g_ray.errors import UserError
from l2g_ray.orchestrate.arms import Compared, Study, compare_arms, correct, make_variant
from l2g_ray.orchestrate.mirror import push
from l2g_ray.orchestrate.request import SuiteRequest, SuiteResult, prepare_task, resolve_task
from l2g_ray.orchestrate.suite import run_suite
from l2g_ray.results.arms_table import write_study
from l2g_ray.tasks.schema import Task

STUDY_SCHEMA = 1
# What a study compares is L2G under other settings; the embedder alone stands beside it.
ARMS_OF_STUDIES = ("embedder_only", "l2g")


@dataclass(frozen=True)
class StudyResult:
    """The suite that ran the arms, and what their comparison says."""

    suite: SuiteResult
    study: Study
    compared: list[Compared]

    def to_dict(self, request: SuiteRequest) -> dict[str, Any]:
        """What `study.json` holds."""
        content = {
            "schema": STUDY_SCHEMA,
            "study": self.study.name,
            "about": self.study.about,
            "arms": {arm: dict(values) for arm, values in self.study.arms.items()},
            "preset": request.preset,
            "command": request.command,
            "compared": [one.to_dict() for one in self.compared],
        }
        plain: dict[str, Any] = json.loads(json.dumps(content, default=str))
        return plain


def run_study(
    request: SuiteRequest, study: Study, sources: Mapping[str, RawTask | PreparedTask], console: Console
) -> StudyResult:
    """Run every arm on every task of `request`, and compare them.

    `request.tasks` are the tasks themselves and `sources` their rows; the suite that runs has a task an arm. Each task
    is prepared once. A second call with the same arguments trains nothing.

    Raises UserError as `run_suite`, and where two arms resolve to the same settings, which compares nothing.
    """
    request = replace(request, assignments={"arms": ARMS_OF_STUDIES} | request.assignments)
    tasks: list[Task] = []
    rows: dict[str, PreparedTask] = {}
    own: dict[str, Mapping[str, Any]] = {}
    for task in request.tasks:
        prepared: dict[str, PreparedTask] = {}
        seen: dict[str, str] = {}
        for arm, assignments in study.arms.items():
            variant = make_variant(task, arm)
            own[variant.name] = assignments
            resolved = resolve_task(replace(request, task_assignments=own), variant)
            same = seen.setdefault(resolved.model_dump_json(), arm)
            if same != arm:
                raise UserError(
                    f"study {study.name}, {task.name}: the arms '{same}' and '{arm}' are the same settings here; "
                    "choose another preset, or leave one out with --arms"
                )
            data = resolved.data.model_dump_json()
            if data not in prepared:
                prepared[data] = prepare_task(replace(request, sources=sources), task, resolved, console)
            rows[variant.name] = replace(prepared[data], task=variant)
            tasks.append(variant)
    suite = run_suite(replace(request, tasks=tasks, sources=rows, task_assignments=own), console)
    result = StudyResult(suite, study, _compare(request, study, suite))
    write_study(suite.folder, result.to_dict(request))
    if request.remote is not None:
        wait_s = resolve_task(request, request.tasks[0]).cluster.storage_wait_s
        push(suite.folder, request.remote / request.name, wait_s)
    return result


def _compare(request: SuiteRequest, study: Study, suite: SuiteResult) -> list[Compared]:
    by_name = {row["task"]: row for row in suite.board["tasks"]}
    compared: list[Compared] = []
    for task in request.tasks:
        names = {arm: make_variant(task, arm).name for arm in study.arms}
        folders: dict[str, Path] = {arm: suite.folder / name for arm, name in names.items()}
        found = {arm: by_name[name] for arm, name in names.items() if name in by_name}
        compared += compare_arms(task, folders, found, resolve_task(request, task))
    return correct(compared)
