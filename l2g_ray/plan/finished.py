"""A finished run beside its plan, and the tables of `l2g-ray plan`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from l2g_ray.config import Settings, known_keys, resolve_precision
from l2g_ray.errors import UserError
from l2g_ray.plan.amounts import Found, TaskPlan
from l2g_ray.plan.encoder import LanguageModelShape, read_shape, shape_from_config
from l2g_ray.plan.plan import plan_task
from l2g_ray.plan.rows import rows_of_manifest
from l2g_ray.plan.spent import SUITE_FILE, Spent, read_json, read_spent, sum_stages
from l2g_ray.presets import validate
from l2g_ray.results.terminal import Column, Listing
from l2g_ray.tasks.schema import Task


def show_count(value: float) -> str:
    """1,234 below a million, then 1.2 M, G, T, P, E."""
    if value < 1e6:
        return f"{value:,.0f}"
    for factor, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    raise AssertionError


def show_bytes(value: float) -> str:
    """In decimal units, as vendors give them."""
    for factor, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.0f} B"


def show_hours(hours: float) -> str:
    """Hours in the unit that fits: s, min, h or d."""
    if hours >= 48:
        return f"{hours / 24:,.1f} d"
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{hours * 60:.1f} min" if hours * 60 >= 1 else f"{hours * 3600:.1f} s"


def show_seconds(value: float | None) -> str:
    """Seconds as `show_hours`; a dash for what was not written down."""
    return "–" if value is None else show_hours(value / 3600)


def render_plan(title: str, stages: Mapping[str, Mapping[str, Any]], total: Mapping[str, Any]) -> Listing:
    """Stage to {'expected', 'most': amounts, 'hours': (expected, most), 'fits': str}; `total` likewise, without 'fits'."""
    numbers = ("Trials", "Epochs", "Steps", "LM tokens", "FLOP", "Time", "at most", "Memory", "Disk", "Fits")
    listing = Listing([Column("Stage", words=True), *map(Column, numbers)], title=title, sections=[len(stages)])
    for name, stage in {**stages, "total": total}.items():
        expected, most = stage["expected"], stage["most"]
        listing.add(
            name,
            show_count(most["trials"]),
            _both(expected["epochs"], most["epochs"]),
            _both(expected["steps"], most["steps"]),
            show_count(expected["tokens"]),
            show_count(expected["flops"]),
            *(show_hours(hours) for hours in stage["hours"]),
            show_bytes(most["memory_bytes"]),
            show_bytes(most["disk_bytes"]),
            stage.get("fits", ""),
        )
    return listing


def render_spent(title: str, rows: Mapping[str, Mapping[str, Any]]) -> Listing:
    """Stage to 'spent' (trials, epochs, wall_s, cpu_s, gpu_s) and 'planned' (epochs, hours) or None."""
    numbers = ("Trials", "Epochs", "planned", "Wall", "CPU", "GPU", "planned", "took / planned")
    listing = Listing([Column("Stage", words=True), *map(Column, numbers)], title=title)
    for name, row in rows.items():
        spent, planned = row["spent"], row.get("planned")
        hours = None if planned is None else planned["hours"]
        device_s = spent["gpu_s"] or spent["cpu_s"]
        ratio = "" if not hours or device_s is None else f"{device_s / 3600 / hours:.2f}"
        listing.add(
            name,
            show_count(spent["trials"]),
            show_count(spent["epochs"]),
            "" if planned is None else show_count(planned["epochs"]),
            *(show_seconds(spent[column]) for column in ("wall_s", "cpu_s", "gpu_s")),
            "" if hours is None else show_hours(hours),
            ratio,
        )
    return listing


def _both(expected: float, most: float) -> str:
    return show_count(most) if round(expected) >= round(most) else f"{show_count(expected)} ≤ {show_count(most)}"


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


def _read_task(folder: Path, raw_settings: dict[str, JsonValue]) -> FinishedTask:
    trials = read_spent(folder)
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


def read_settings(raw: dict[str, JsonValue]) -> Settings:
    """Those of an earlier version too: what this one does not know is left out, what it has more takes its default."""
    return validate(_keep_known(raw, set(known_keys()), ""))


def _keep_known(raw: dict[str, JsonValue], known: set[str], prefix: str) -> dict[str, JsonValue]:
    kept: dict[str, JsonValue] = {}
    for key, value in raw.items():
        if f"{prefix}{key}" in known:
            kept[key] = value
        elif isinstance(value, dict):
            kept[key] = _keep_known(value, known, f"{prefix}{key}.")
    return {key: value for key, value in kept.items() if value != {}}
