"""What a run really took: seconds of wall clock, CPU and GPU, by stage and trial, as the stages' results tell it.

Results from the store keep the cost of when they were made, so that the sums say what a result cost and not what this
call had to do for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from l2g_ray.errors import UserError
from l2g_ray.stages.registry import show_stage
from l2g_ray.store.results import StageResult

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
    """One entry a trial, from the results of all stages; the search over hyper-parameters is told trial by trial."""
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
    """What a finished task took, from its `stages.json`.

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
    """A JSON file of a run. Raises UserError where it cannot be read."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); give the folder of a finished suite") from None
