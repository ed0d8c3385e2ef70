"""A finished run beside its plan: what `l2g-ray plan RUN` shows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l2g_ray.config import Settings, known_keys, resolve_precision, validate
from l2g_ray.errors import UserError
from l2g_ray.orchestrate.plan import Found, TaskPlan, plan_task
from l2g_ray.orchestrate.plan_encoder import LanguageModelShape, read_shape, shape_from_config
from l2g_ray.orchestrate.plan_rows import rows_of_manifest
from l2g_ray.orchestrate.spent import Spent, read_json, read_spent, sum_stages
from l2g_ray.tasks.schema import Task

SUITE_FILE = "suite.json"


@dataclass(frozen=True)
class FinishedTask:
    """What a task took, by stage, and its plan; None, and why not, where it cannot be computed."""

    name: str
    spent: dict[str, Spent]
    trials: list[Spent]
    plan: TaskPlan | None
    why_no_plan: str


def is_run(folder: Path) -> bool:
    """Whether a folder is a suite's."""
    return (folder / SUITE_FILE).is_file()


def read_run(folder: Path) -> list[FinishedTask]:
    """The finished tasks of a suite's folder, also of an unfinished suite.

    The plan is made with the backbone and architecture that the run found, for the kind of device it ran on. Raises
    UserError for a folder without finished tasks, or with files that cannot be read.
    """
    suite = read_json(folder / SUITE_FILE)
    names = [name for name in suite.get("settings", {}) if (folder / name / "stages.json").is_file()]
    if not names:
        raise UserError(f"{folder}: no task of this suite is finished yet; run its command again, then ask here")
    return [_read_task(folder / name, suite["settings"][name]) for name in names]


def _read_task(folder: Path, raw_settings: dict[str, Any]) -> FinishedTask:
    trials = read_spent(folder, raw_settings)
    plan, why = None, ""
    try:
        plan = _plan(folder, read_settings(raw_settings), any(one.gpu_s for one in trials))
    except UserError as error:
        why = str(error)
    return FinishedTask(folder.name, sum_stages(trials), trials, plan, why)


def _plan(folder: Path, settings: Settings, on_gpu: bool) -> TaskPlan:
    manifest, stages = read_json(folder / "task.json"), read_json(folder / "stages.json")
    fields = {name: value for name, value in manifest["task"].items() if name in Task.model_fields}
    found = Found(stages["backbone"], tuple((a["kernel_size"], a["dilation"]) for a in stages["architecture"]))
    return plan_task(
        Task.model_validate(fields),
        settings,
        rows_of_manifest(manifest["splits"], "prepared data"),
        _shape(folder, settings),
        precision=resolve_precision(settings.precision, "cuda" if on_gpu else "cpu"),
        on_gpu=on_gpu,
        found=found,
    )


def _shape(folder: Path, settings: Settings) -> LanguageModelShape:
    """From the model that the run stored, so that the original is not needed."""
    name = settings.model.language_model
    try:
        return shape_from_config(name, json.loads((folder / "model" / "config.json").read_text())["transformer"])
    except (OSError, ValueError, KeyError):
        return read_shape(name)


def read_settings(raw: dict[str, Any]) -> Settings:
    """Those of an earlier version too: what this one does not know is left out, what it has more takes its default."""
    return validate(_keep_known(raw, set(known_keys()), ""))


def _keep_known(raw: Mapping[str, Any], known: set[str], prefix: str) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in raw.items():
        if f"{prefix}{key}" in known:
            kept[key] = value
        elif isinstance(value, Mapping):
            kept[key] = _keep_known(value, known, f"{prefix}{key}.")
    return {key: value for key, value in kept.items() if value != {}}
