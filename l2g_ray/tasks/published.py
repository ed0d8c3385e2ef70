"""Published scores, read from `published.yaml`, with what each may be compared with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml

from l2g_ray.tasks.catalogue import find_tasks

# Short column names of a section to the task's own output names.
_OUTPUTS = {"dev": "developmental", "hk": "housekeeping"}


@dataclass(frozen=True)
class PublishedScore:
    """One published test score.

    `metric` names what was published: never show it in a row of another metric. A plain `f1` means that the source
    does not say which average. `comparable`: same data, same split, so that it may stand beside our own test score of
    that metric; where false it is context only.
    """

    model: str
    value: float
    metric: str
    comparable: bool
    source: str


def published_scores(bench: str, task: str) -> list[PublishedScore]:
    """All published scores of a task, comparable ones first; none for a bench that nobody has published.

    Raises
    ------
    UserError : a task that a published bench does not have.
    """
    table = _read_table()
    if bench not in table["benches"]:
        return []
    (described,) = find_tasks(bench, [task])
    own = list(_read_section(table, bench, task, described.comparable))
    twin = table["same_split"].get(f"{bench}/{task}")
    if twin is not None:
        twin_bench, twin_task = twin.split("/")
        own += _read_section(table, twin_bench, twin_task, described.comparable)
    return sorted(own, key=lambda score: not score.comparable)


def _read_section(table: dict[str, Any], bench: str, name: str, comparable: bool) -> Iterator[PublishedScore]:
    entry = table["benches"][bench]
    section = table[entry["section"]]
    sources = {**table["sources"], **section.get("sources", {})}
    facts = section.get("tasks", {}).get(name) or {}
    metric = facts.get("metric", section.get("metric"))
    for row in section["results"]:
        source = sources.get(row.get("source"), {}).get("what", "")
        for metric_name, value in _read_values(row, name, metric):
            yield PublishedScore(row["model"], value, metric_name, comparable and entry["comparable"], source)


def _read_values(row: dict[str, Any], name: str, metric: str) -> Iterator[tuple[str, float]]:
    if "tasks" in row:
        cell = row["tasks"].get(name)
        value = cell["value"] if isinstance(cell, dict) else cell
        if value is not None:
            yield metric, float(value)
        return
    # A section of one regression: one value an output, and their mean where all are known.
    values = {output: row.get(short) for short, output in _OUTPUTS.items()}
    for output, value in values.items():
        if value is not None:
            yield f"{metric}_{output}", float(value)
    known = [float(value) for value in values.values() if value is not None]
    if known and len(known) == len(values):
        yield f"{metric}_mean", sum(known) / len(known)


@cache
def _read_table() -> dict[str, Any]:
    return yaml.safe_load((resources.files("l2g_ray") / "tasks" / "published.yaml").read_text())
