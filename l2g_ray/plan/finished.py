"""What a finished run took, by stage and trial, beside its plan: read from the run's files, and shown as tables.

Results from the store keep the cost of when they were made, so that the sums say what a result cost and not what this
call had to do for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from l2g_ray.config import Settings, known_keys, resolve_precision
from l2g_ray.errors import UserError
from l2g_ray.plan.costs import Found, TaskPlan
from l2g_ray.plan.encoder import LanguageModelShape, read_shape, shape_from_config
from l2g_ray.plan.plan import plan_task
from l2g_ray.plan.rows import rows_of_manifest
from l2g_ray.presets import validate
from l2g_ray.results.terminal import Column, Listing
from l2g_ray.stages.registry import show_stage
from l2g_ray.store.results import StageResult
from l2g_ray.tasks.schema import Task

SUITE_FILE = "suite.json"
COST_KEYS = ("wall_s", "cpu_s", "gpu_s")


@dataclass(frozen=True)
class Spent:
    """One trial, or a stage's sum. `epochs` are its own, without those that it took over from a warm-up.

    `wall_s` and `cpu_s` are of training and validation, or of the whole stage where nothing is trained; `gpu_s` is
    `wall_s` x the trial's share of a GPU, 0 on a CPU. None: an earlier version did not write it down.
    """

    stage: str
    key: str
    trials: int
    epochs: int
    wall_s: float | None
    cpu_s: float | None
    gpu_s: float | None


def list_spent(results: Iterable[StageResult]) -> list[Spent]:
    """Return one entry a trial, from the results of all stages; the hyper-parameter search has one for each of its trials."""
    found: list[Spent] = []
    for result in results:
        if "trials" in result.values:
            found += [_of_values("trials", t.get("key", ""), t) for t in result.values["trials"]]
        else:
            # A simple model goes by its own name.
            name = result.values.get("name", result.stage) if result.stage == "baseline" else result.stage
            found.append(_of_values(show_stage(name), result.key, result.values))
    return found


def _of_values(stage: str, key: str, values: dict[str, Any]) -> Spent:
    history = values.get("history") or []
    seconds = {name: values.get(name) for name in COST_KEYS}
    if seconds["wall_s"] is None and history:
        seconds["wall_s"] = sum(float(row["wall_s"]) for row in history)
    return Spent(stage, key, 1, int(values.get("epochs", len(history))), **seconds)


def sum_stages(spent: Iterable[Spent]) -> dict[str, Spent]:
    """Stage to its sum, in the order of the stages; a sum of nothing known is None."""
    sums: dict[str, Spent] = {}
    for one in spent:
        before = sums.get(one.stage)
        sums[one.stage] = replace(one, key="") if before is None else _add(before, one)
    return sums


def _add(a: Spent, b: Spent) -> Spent:
    def plus(x: float | None, y: float | None) -> float | None:
        return y if x is None else x if y is None else x + y

    return Spent(
        a.stage,
        "",
        a.trials + b.trials,
        a.epochs + b.epochs,
        plus(a.wall_s, b.wall_s),
        plus(a.cpu_s, b.cpu_s),
        plus(a.gpu_s, b.gpu_s),
    )


def read_spent(task_folder: Path) -> list[Spent]:
    """Return what a finished task took, from its `stages.json`.

    A run of an earlier version has no `spent`: it is put together from the histories, where a stage that trains
    nothing has left no time. Raises UserError for a folder without a readable `stages.json`.
    """
    stages = read_json(task_folder / "stages.json")
    if "spent" in stages:
        return [Spent(**one) for one in stages["spent"]]
    histories: dict[str, list[dict[str, float]]] = stages.get("histories", {})
    inherited = 0
    if any(name.startswith("warmup/") for name in histories):
        settings = read_json(task_folder.parent / SUITE_FILE)["settings"][task_folder.name]
        inherited = int(settings.get("align", {}).get("task_only_epochs", 0))
    found = []
    for name, rows in histories.items():
        stage, _, key = name.partition("/")
        own = rows[inherited:] if stage == "align" else rows
        wall_s, cpu_s = (sum(float(row[column]) for row in own) for column in ("wall_s", "cpu_s"))
        found.append(Spent(show_stage(stage), key, 1, len(own), wall_s, cpu_s, None))
    return [*found, Spent("evaluate", "", 1, 0, None, None, None)]


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON file of a run. Raises UserError where it cannot be read."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); give the folder of a finished suite") from None


def show_count(value: float) -> str:
    """1,234 below a million, then 1.2 M, G, T, P, E."""
    if value < 1e6:
        return f"{value:,.0f}"
    for factor, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    raise AssertionError


def show_bytes(value: float) -> str:
    """Format bytes in decimal units, as vendors give them."""
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
    """Return seconds as `show_hours`; a dash for what was not written down."""
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
    """Return whether a folder is a suite's."""
    return (folder / SUITE_FILE).is_file()


def read_run(folder: Path) -> list[FinishedTask]:
    """Return the finished tasks of a suite's folder, also of an unfinished suite.

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
        precision=stages.get("precision") or resolve_precision(settings.precision, "cuda" if on_gpu else "cpu"),
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
    """Read those of an earlier version too: what this one does not know is left out, what it has more takes its
    default.
    """
    return validate(_keep_known(raw, set(known_keys()), ""))


def _keep_known(raw: dict[str, JsonValue], known: set[str], prefix: str) -> dict[str, JsonValue]:
    kept: dict[str, JsonValue] = {}
    for key, value in raw.items():
        if f"{prefix}{key}" in known:
            kept[key] = value
        elif isinstance(value, dict):
            kept[key] = _keep_known(value, known, f"{prefix}{key}.")
    return {key: value for key, value in kept.items() if value != {}}
