"""Figures over the tasks of a suite and the models that others published: means, task types, a performance profile.

A model takes part where a score of the row's metric is known; a mean is over the same tasks for all models in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from l2g_ray.results.figures import BLUE, GREY, INK, ORANGE, VERMILION, _new_figure, _styled
from l2g_ray.results.rows import used_arm
from l2g_ray.tasks.metrics import find_metric

if TYPE_CHECKING:
    from matplotlib.figure import Figure

USED, L2G, ALONE = "used", "L2G", "embedder only"
# Our own are drawn first and strongly.
OWN = {USED: INK, L2G: BLUE, ALONE: ORANGE}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s?([kMB])(?![a-z])")
MAX_LINES = 5
_UNITS = {"k": 1e3, "M": 1e6, "B": 1e9}


@dataclass(frozen=True)
class Standing:
    """A model's scores by task; `comparable`: all of them are of the same data, split and metric as ours."""

    model: str
    scores: dict[str, float]
    comparable: bool
    parameters: float | None

    def mean(self, tasks: Sequence[str]) -> float:
        """Over these tasks, all of which it must have."""
        return float(np.mean([self.scores[task] for task in tasks]))


def gather_standings(board: Mapping[str, Any], parameters: Mapping[str, float] | None = None) -> list[Standing]:
    """Return all models of a board: what is used, L2G, the embedder alone, then the published ones. `parameters` are
    the sizes of our own.

    Rows whose metric is better when lower, or undefined, are left out. A published model's size is read from its name
    ("Enformer (252M)"), where that has one.
    """
    scores: dict[str, dict[str, float]] = {name: {} for name in OWN}
    comparable: dict[str, bool] = {}
    for row in board["tasks"]:
        if not find_metric(row["metric"]).higher_is_better:
            continue
        used = used_arm(row)
        for name, score in ((USED, used.test if used else None), (L2G, row["test"]), (ALONE, row["embedder_only"])):
            if score and score["mean"] is not None:
                scores[name][row["task"]] = score["mean"]
        for entry in row["published"]:
            if entry["value"] is not None and entry["model"] not in OWN:
                scores.setdefault(entry["model"], {})[row["task"]] = entry["value"]
                comparable[entry["model"]] = comparable.get(entry["model"], True) and entry["comparable"]
            elif entry["value"] is not None:
                name = f"{entry['model']} (published)"
                scores.setdefault(name, {})[row["task"]] = entry["value"]
                comparable[name] = comparable.get(name, True) and entry["comparable"]
    return [
        Standing(name, values, comparable.get(name, True), (parameters or {}).get(name) or read_size(name))
        for name, values in scores.items()
        if values
    ]


def read_size(model: str) -> float | None:
    """Read the number of parameters from a model's name: 2.5e9 for "NT-Multispecies (2.5B)"; None where it has none.

    A "1kb" is a context length, no size.
    """
    found = _SIZE.search(model)
    return float(found[1]) * _UNITS[found[2]] if found else None


def common_tasks(standings: Sequence[Standing]) -> tuple[list[str], list[Standing]]:
    """Return the tasks that our own model with the most of them has, and the models that have all of those which at
    least one published model has.

    Where no published model has any, the tasks are all of our own.
    """
    own = max((s for s in standings if s.model in OWN), key=lambda s: len(s.scores), default=None)
    if own is None:
        return [], []
    published = [s for s in standings if s.model not in OWN]
    told = [task for task in own.scores if any(task in s.scores for s in published)]
    tasks = told or list(own.scores)
    return tasks, [s for s in standings if all(task in s.scores for task in tasks)]


@_styled
def plot_mean_scores(standings: Sequence[Standing], tasks: Sequence[str]) -> Figure:
    """Return mean score by model and number of parameters (after the paper's Fig. 1B); right: models of unknown size."""
    figure, (axes,) = _new_figure(7.2, 4.2)
    sized = [s for s in standings if s.parameters]
    rest = [s for s in standings if not s.parameters]
    sizes = [s.parameters for s in sized if s.parameters] or [1e6]
    left, right = min(sizes) / 2, max(sizes) * 12
    for standing in standings:
        x, y = standing.parameters or right * 2, standing.mean(tasks)
        colour = OWN.get(standing.model, VERMILION if standing.comparable else GREY)
        marker = {USED: "D", L2G: "o", ALONE: "s"}.get(standing.model, "^")
        axes.plot(x, y, marker, color=colour, markersize=6, markerfacecolor=colour if standing.comparable else "none")
    axes.set_xscale("log")
    axes.set_xlim(left, right * 60 if rest else right)
    low, high = axes.get_ylim()
    step = (high - low) / 20
    taken: list[tuple[float, float]] = []
    for standing in sorted(standings, key=lambda s: s.mean(tasks)):
        x, y = standing.parameters or right * 2, standing.mean(tasks)
        # A name is as wide as about a fifth of the axis: moved up where another stands.
        while any(abs(np.log10(x / other)) < 1.6 and abs(y - height) < step for other, height in taken):
            y += step / 4
        taken.append((x, y))
        axes.annotate(standing.model, (x, y), (8, 0), textcoords="offset points", va="center")
    axes.set_ylim(low, max(high, *(height + step for _, height in taken)))
    if rest:
        axes.axvline(right, color=GREY, linewidth=0.8, linestyle=":")
        axes.text(right * 1.2, 1.01, "size not known", transform=axes.get_xaxis_transform(), color=GREY)
        # No numbers where the axis has no meaning.
        axes.set_xticks([10.0**k for k in range(20) if left <= 10.0**k < right])
        axes.minorticks_off()
    axes.set_xlabel("parameters")
    axes.set_ylabel(f"mean score over {len(tasks)} task{'s' if len(tasks) != 1 else ''}")
    axes.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.6)
    return figure


@_styled
def plot_task_types(standings: Sequence[Standing], types: Mapping[str, str]) -> Figure:
    """Return mean score by type of task (after the paper's Fig. 3); a model is drawn where it has all tasks of a
    type.
    """
    table = mean_by_type(standings, types)
    names = list(dict.fromkeys(types.values()))
    figure, (axes,) = _new_figure(7.2, 1.2 + 0.24 * sum(len(table[name]) + 1 for name in names))
    y, ticks = 0.0, []
    for name in names:
        entries = sorted(table[name], key=lambda entry: -entry[1])
        axes.text(0, y, name, transform=axes.get_yaxis_transform(), fontweight="bold", va="center")
        y += 1
        for model, mean, comparable in entries:
            colour = OWN.get(model, VERMILION if comparable else GREY)
            axes.plot(mean, y, "o", color=colour, markersize=6, markerfacecolor=colour if comparable else "none")
            ticks.append((y, model))
            y += 1
    axes.set_yticks([t for t, _ in ticks], [m for _, m in ticks])
    axes.set_ylim(y - 0.4, -0.6)
    axes.set_xlabel("mean score over the tasks of a type")
    axes.grid(axis="x", color=GREY, alpha=0.25, linewidth=0.6)
    return figure


def mean_by_type(standings: Sequence[Standing], types: Mapping[str, str]) -> dict[str, list[tuple[str, float, bool]]]:
    """Type to (model, mean, comparable), for models that have all tasks of that type."""
    found: dict[str, list[tuple[str, float, bool]]] = {}
    for name in dict.fromkeys(types.values()):
        tasks = [task for task, kind in types.items() if kind == name]
        found[name] = [(s.model, s.mean(tasks), s.comparable) for s in standings if all(t in s.scores for t in tasks)]
    return found


def measure_profile(standings: Sequence[Standing], tasks: Sequence[str]) -> dict[str, list[float]]:
    """Model to its distances from the best score of each task (sorted); infinite where it has no score."""
    best = {task: max(s.scores[task] for s in standings if task in s.scores) for task in tasks}
    return {s.model: sorted(best[t] - s.scores[t] if t in s.scores else np.inf for t in tasks) for s in standings}


@_styled
def plot_profile(standings: Sequence[Standing], tasks: Sequence[str]) -> Figure:
    """Return performance profile (after the paper's Fig. S1C): the share of tasks on which a model is within tau of
    the best.
    """
    whole = measure_profile(standings, tasks)
    published = sorted((s for s in standings if s.model not in OWN), key=lambda s: -s.mean(tasks))
    # More lines than this are no longer told apart; the distances are from the best of all models.
    shown = [*(s.model for s in standings if s.model in OWN), *(s.model for s in published[:MAX_LINES])]
    profile = {model: whole[model] for model in shown}
    figure, (axes,) = _new_figure(7.2, 3.6)
    finite = [d for distances in profile.values() for d in distances if np.isfinite(d)]
    reach = max(finite, default=0.0) * 1.05 or 0.1
    cycle = ("#009E73", "#CC79A7", "#56B4E9", VERMILION, "#F0E442", GREY)
    for i, (model, distances) in enumerate(profile.items()):
        shares = np.searchsorted(distances, np.array([0.0, *distances, reach]), side="right") / len(tasks)
        xs = np.array([0.0, *distances, reach])
        known = np.isfinite(xs)
        colour = OWN.get(model, cycle[i % len(cycle)])
        order = np.argsort(xs[known], kind="stable")
        axes.step(
            xs[known][order],
            shares[known][order],
            where="post",
            color=colour,
            linewidth=2 if model in OWN else 1.1,
            linestyle="-" if model in OWN or i % 2 else "--",
            label=model,
        )
    axes.set_xlim(0, reach)
    axes.set_ylim(0, 1.03)
    axes.set_xlabel("tau: distance from the best score of the task")
    axes.set_ylabel("share of tasks within tau")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure
