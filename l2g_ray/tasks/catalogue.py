"""The benches: their tasks, and the scores that others published for them, from YAML files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from l2g_ray.errors import UserError, nearest
from l2g_ray.tasks.schema import Task


class Bench(BaseModel):
    """A named set of tasks, in the order of its YAML. `defaults` are already merged into each task's `overrides`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    title: str
    description: str = ""
    tasks: dict[str, Task] = Field(min_length=1)
    defaults: dict[str, dict[str, Any]] = Field(default_factory=dict)


def list_benches() -> list[str]:
    """Return names of the benches that ship with the package."""
    return sorted(f.name.removesuffix(".yaml") for f in _bench_folder().iterdir() if f.name.endswith(".yaml"))


def load_bench(name: str) -> Bench:
    """Return one bench. Raises UserError for an unknown name."""
    known = list_benches()
    if name not in known:
        raise UserError(f"unknown bench '{name}': {nearest(name, known)}")
    bench = parse_bench(yaml.safe_load((_bench_folder() / f"{name}.yaml").read_text()), f"{name}.yaml")
    if bench.name != name:
        raise UserError(f"{name}.yaml: key 'name' is '{bench.name}'; write {name}, the name of the file")
    return bench


def parse_bench(raw: Mapping[str, Any], where: str) -> Bench:
    """Return a bench from the mapping that its YAML holds. Raises UserError naming `where`, the key and what is
    wrong.
    """
    name = str(raw.get("name", ""))
    defaults = raw.get("defaults") or {}
    tasks = {
        task_name: parse_task(
            {"bench": name, "name": task_name, **_merge_defaults(fields, defaults)}, f"{where}, task '{task_name}'"
        )
        for task_name, fields in (raw.get("tasks") or {}).items()
    }
    try:
        return Bench.model_validate({**raw, "tasks": tasks})
    except ValidationError as error:
        raise UserError(f"{where}: {describe_invalid(error, Bench)}") from None


def parse_task(raw: Mapping[str, Any], where: str) -> Task:
    """Return a task from a mapping of its fields. Raises UserError naming `where`, the key and what is wrong."""
    try:
        return Task.model_validate(dict(raw))
    except ValidationError as error:
        raise UserError(f"{where}: {describe_invalid(error, Task)}") from None


def describe_invalid(error: ValidationError, model: type[BaseModel]) -> str:
    """Return the first fault of a pydantic error in one sentence, with the nearest key for an unknown one."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown key '{key}': {nearest(key, model.model_fields)}"
    if first["type"] == "string_type":  # YAML reads a bare yes, no or 1 as something else
        return f"key '{key}': must be text, not {first['input']!r}; put it in quotes"
    message = first["msg"].removeprefix("Value error, ")
    return f"key '{key}': {message}" if key else message


def find_tasks(bench: str, names: Iterable[str] | None = None) -> list[Task]:
    """Return the named tasks of a bench, all of them when `names` is None, in the bench's order and each once.

    Raises
    ------
    UserError : an unknown bench or task; the nearest name is given.
    """
    tasks = load_bench(bench).tasks
    if names is None:
        return list(tasks.values())
    wanted = list(names)
    for name in wanted:
        if name not in tasks:
            raise UserError(f"unknown task '{name}' in bench '{bench}': {nearest(name, tasks)}")
    return [task for name, task in tasks.items() if name in wanted]


def _merge_defaults(fields: Mapping[str, Any], defaults: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    own = fields.get("overrides") or {}
    presets = [*defaults, *(preset for preset in own if preset not in defaults)]
    merged = {preset: {**defaults.get(preset, {}), **own.get(preset, {})} for preset in presets}
    return {**fields, "overrides": merged}


def _bench_folder() -> Any:
    return resources.files("l2g_ray") / "tasks" / "benches"


# Short column names of a section to the task's own output names.
_OUTPUTS = {"dev": "developmental", "hk": "housekeeping"}


@dataclass(frozen=True)
class PublishedScore:
    """One published test score.

    `metric` names what was published: never show it in a row of another metric. A plain `f1` means that the source
    does not say which average. `comparable`: same data, same split, so that it may be compared with our test score of
    that metric; where false it is context only.
    """

    model: str
    value: float
    metric: str
    comparable: bool
    source: str


def published_scores(bench: str, task: str) -> list[PublishedScore]:
    """Return all published scores of a task, comparable ones first; none for a bench that nobody has published.

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
