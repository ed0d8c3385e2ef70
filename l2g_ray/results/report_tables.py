"""The table behind each figure of a report: what a screen reader reads, and what a person copies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from l2g_ray.results import rows as ensemble
from l2g_ray.results.figures import MAX_PANELS, Epoch, summarise_trials
from l2g_ray.results.intervals import correlate
from l2g_ray.results.rows import (
    best_published,
    format_interval,
    format_number,
    name_arm,
    name_task,
    subtract_arms,
    used_arm,
)
from l2g_ray.results.suite_figures import Standing, mean_by_type, measure_profile

MAX_LINES = 200


@dataclass(frozen=True)
class Table:
    """`lines` of text, as wide as `headings`; `cut` lines are left out."""

    headings: list[str]
    lines: list[list[str]]
    cut: int = 0


def make_table(headings: Sequence[str], lines: Sequence[Sequence[Any]]) -> Table:
    """Return cells as text, undefined ones as a dash; at most `MAX_LINES` lines."""
    shown = [[_to_text(cell) for cell in line] for line in lines[:MAX_LINES]]
    return Table(list(headings), shown, max(0, len(lines) - MAX_LINES))


def _to_text(cell: Any) -> str:
    if cell is None or (isinstance(cell, float) and not np.isfinite(cell)):
        return "–"
    return f"{cell:.4g}" if isinstance(cell, float | np.floating) else str(cell)


def tabulate_scores(board: Mapping[str, Any]) -> Table:
    """Behind `plot_scores`."""
    lines = []
    for row in board["tasks"]:
        published, used = best_published(row), used_arm(row)
        cells = [name_task(row), row["metric"]]
        for score in (used.test if used else None, row["test"], row["embedder_only"]):
            cells += [format_number(score["mean"] if score else None), format_interval(score)]
        cells.append(str(subtract_arms(row)))
        lines.append([*cells, f"{published['value']:.3f} {published['model']}" if published else None])
    scores = [part for name in ("Used", "L2G", "Embedder only") for part in (name, "Interval")]
    return make_table(["Task", "Metric", *scores, "Difference", "Best comparable"], lines)


def tabulate_arms(row: Mapping[str, Any]) -> Table | None:
    """Return what is used and all arms of a row; None where it has none."""
    lines = ensemble.tabulate_arms(row)
    if not lines:
        return None
    less = ["", *(str(arm.less) for arm in ensemble.list_arms(row))]
    headings = [*ensemble.head_arms(row), "Used minus it"]
    return make_table(headings, [[*line, cell] for line, cell in zip(lines, less, strict=True)])


def tabulate_adds(row: Mapping[str, Any]) -> Table:
    """Behind `plot_arms`."""
    lines = [[name_arm(arm.name), f"{arm.share:.0%}", *arm.adds.parts] for arm in ensemble.list_arms(row)]
    return make_table(["Arm", "Weight", "Adds", "Interval", "Verdict"], lines)


def tabulate_means(standings: Sequence[Standing], tasks: Sequence[str]) -> Table:
    """Behind `plot_mean_scores`, best first."""
    lines = [
        [
            s.model,
            s.mean(tasks),
            None if s.parameters is None else f"{s.parameters:.3g}",
            "yes" if s.comparable else "no",
        ]
        for s in sorted(standings, key=lambda s: -s.mean(tasks))
    ]
    return make_table(["Model", "Mean score", "Parameters", "Comparable"], lines)


def tabulate_types(standings: Sequence[Standing], types: Mapping[str, str]) -> Table:
    """Behind `plot_task_types`."""
    counts = pd.Series(list(types.values())).value_counts()
    lines = [
        [name, int(counts[name]), model, mean, "yes" if comparable else "no"]
        for name, entries in mean_by_type(standings, types).items()
        for model, mean, comparable in sorted(entries, key=lambda e: -e[1])
    ]
    return make_table(["Type", "Tasks", "Model", "Mean score", "Comparable"], lines)


def tabulate_profile(standings: Sequence[Standing], tasks: Sequence[str]) -> Table:
    """Behind `plot_profile`: shares of tasks at some distances, and how often a model is the best."""
    steps = (0.0, 0.01, 0.02, 0.05, 0.1)
    lines = [
        [model, *(f"{np.mean(np.array(distances) <= tau + 1e-12):.0%}" for tau in steps)]
        for model, distances in measure_profile(standings, tasks).items()
    ]
    return make_table(["Model", "Best", *(f"Within {tau:g}" for tau in steps[1:])], lines)


def tabulate_confusion(labels: Iterable[str], predictions: Iterable[str], classes: Sequence[str]) -> Table:
    """Behind `plot_confusion`: counts, a line a true class."""
    counts = pd.crosstab(pd.Series(list(labels)), pd.Series(list(predictions)))
    counts = counts.reindex(index=list(classes), columns=list(classes), fill_value=0)
    return make_table(
        ["True class", *classes], [[name, *row] for name, row in zip(classes, counts.to_numpy(), strict=True)]
    )


def tabulate_measured(measured: pd.DataFrame, predicted: pd.DataFrame, names: Sequence[str]) -> Table:
    """Behind `plot_measured`: an output a line, with quantiles, since the rows would be too many."""
    lines = []
    for i, name in enumerate(names):
        x, y = measured.iloc[:, i], predicted.iloc[:, i]
        known = x.notna()
        quantiles = [float(v.quantile(q)) for v in (x, y) for q in (0.05, 0.5, 0.95)]
        # A bootstrap of each of hundreds of outputs would take minutes: as many as are drawn have an interval.
        if i < MAX_PANELS and known.sum() > 1:
            r, low, high = correlate(x[known].to_numpy(), y[known].to_numpy())
            interval = format_interval({"ci95": [low, high]})
        else:
            r, interval = float(x.corr(y)), ""
        lines.append([name, int(known.sum()), r, interval, *quantiles])
    parts = [f"{kind} {q}" for kind in ("Measured", "Predicted") for q in ("5 %", "median", "95 %")]
    return make_table(["Output", "Rows", "Pearson", "Interval", *parts], lines)


def tabulate_learning(history: Sequence[Epoch]) -> Table:
    """Behind `plot_learning_curves`."""
    lines = [[r["stage"], r["trial"], r["epoch"], r.get("loss"), r.get("value")] for r in history]
    return make_table(["Stage", "Trial", "Epoch", "Training loss", "Validation score"], lines)


def tabulate_trials(trials: Sequence[Mapping[str, Any]], rungs: Sequence[int], history: Sequence[Epoch]) -> Table:
    """Behind `plot_trials`: settings, epochs, how it ended; where the settings are not known, from the history alone."""
    most = max((int(t["epochs"]) for t in trials), default=0)
    names = list(dict.fromkeys(key for t in trials for key in t["trial"] or {}))
    lines = []
    for i, trial in enumerate(trials):
        values = (trial["trial"] or {}) | {}
        epochs = int(trial["epochs"])
        ending = "failed" if trial.get("error") else "to the end" if epochs == most else "stopped"
        if ending == "stopped" and epochs in rungs:
            ending = f"stopped at the rung of epoch {epochs}"
        lines.append([f"{i:02d}", epochs, trial.get("best_score"), ending, *(values.get(name) for name in names)])
    if not trials:
        lines = [[*one, ""] for one in summarise_trials(history, "finetune").itertuples(name=None)]
    return make_table(["Trial", "Epochs", "Best validation score", "Ended", *names], lines)


def tabulate_architecture(architecture: Sequence[Mapping[str, int]]) -> Table:
    """Behind `plot_architecture`."""
    lines = [[i + 1, layer["kernel_size"], layer["dilation"]] for i, layer in enumerate(architecture)]
    return make_table(["Layer", "Kernel size", "Dilation"], lines)
