"""The fine-tuning search: parallel coordinates of its trials, and how much each hyper-parameter matters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from l2g_ray.results.figures import BLUE, GREY, INK, _new_figure, _styled
from l2g_ray.tasks.metrics import find_metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]
# Fewer trials for each parameter that varies give a forest too little to split by; it is also the number that a factorial
# design would need to see each parameter at a few levels.
TRIALS_A_PARAMETER, MIN_TRIALS = 5, 20
# A forest that explains less of the score's variance on rows it has not seen knows nothing about parameters.
MIN_EXPLAINED = 0.1
TREES = 300


@dataclass(frozen=True)
class Parameter:
    """One hyper-parameter of n trials: places (n,) on its axis from 0 to 1, and its ticks (place, text)."""

    name: str
    places: Array
    ticks: list[tuple[float, str]]


def read_parameters(trials: Sequence[Mapping[str, Any]]) -> tuple[list[Parameter], dict[str, Any]]:
    """Return the hyper-parameters that differ between trials, as axes, and the values of those that do not."""
    settings = [trial.get("trial") or {} for trial in trials]
    names = [name for name in dict.fromkeys(key for one in settings for key in one) if all(name in s for s in settings)]
    varying, same = [], {}
    for name in names:
        values = [one[name] for one in settings]
        if len({repr(value) for value in values}) < 2:
            same[name] = values[0]
        else:
            varying.append(_place(name, values))
    return varying, same


def _place(name: str, values: Sequence[Any]) -> Parameter:
    distinct = list(dict.fromkeys(values))
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if numbers:
        distinct.sort()
    # A choice from a list is evenly spread; a range is logarithmic where it is wide.
    if not numbers or (len(distinct) <= 4 and all(_is_round(value) for value in distinct)):
        place = {value: i / (len(distinct) - 1) for i, value in enumerate(distinct)}
        return Parameter(name, np.array([place[v] for v in values]), [(place[v], show_value(v)) for v in distinct])
    found = np.array(values, dtype=float)
    low, high = found.min(), found.max()
    if low > 0 and high / low > 5:
        found, low, high = np.log(found), np.log(low), np.log(high)
    return Parameter(
        name, (found - low) / (high - low), [(0.0, show_value(min(values))), (1.0, show_value(max(values)))]
    )


def _is_round(value: float) -> bool:
    return float(f"{value:.3g}") == value


def show_value(value: Any) -> str:
    """Return a hyper-parameter's value as text, numbers with three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def find_winner(trials: Sequence[Mapping[str, Any]], metric: str) -> int | None:
    """Return the number of the trial with the best score; None where no trial has one."""
    return find_metric(metric).best(range(len(trials)), lambda i: trials[i].get("best_score"))


@_styled
def plot_parallel(trials: Sequence[Mapping[str, Any]], metric: str) -> Figure:
    """Parallel coordinates: an axis a hyper-parameter that varies and one of the best validation score, a line a trial.

    The winner is drawn strongly, and its values are written at its line.
    """
    known = [trial for trial in trials if trial.get("best_score") is not None]
    varying, _ = read_parameters(known)
    scores = np.array([trial["best_score"] for trial in known], dtype=float)
    low, high = scores.min(), scores.max()
    places = (scores - low) / (high - low) if high > low else np.full(len(scores), 0.5)
    ticks = [(0.0, f"{low:.3f}"), (1.0, f"{high:.3f}")] if high > low else [(0.5, f"{low:.3f}")]
    columns = [*varying, Parameter(f"validation {metric}", places, ticks)]
    figure, (axes,) = _new_figure(1.2 + 1.25 * len(columns), 3.4)
    table = np.stack([column.places for column in columns])
    winner = find_winner(known, metric)
    for i, line in enumerate(table.T):
        if i != winner:
            axes.plot(line, color=GREY, linewidth=1, alpha=0.7, marker="o", markersize=3)
    if winner is not None:
        axes.plot(table[:, winner], color=BLUE, linewidth=2.4, marker="D", markersize=6, zorder=3)
    for x, column in enumerate(columns):
        _draw_axis(axes, x, column)
    axes.set_xlim(-0.5, len(columns) - 0.25)
    axes.set_ylim(-0.4, 1.12)
    axes.set_axis_off()
    return figure


def _draw_axis(axes: Axes, x: int, column: Parameter) -> None:
    axes.plot([x, x], [0, 1], color=INK, linewidth=0.8, zorder=1)
    name = column.name.replace("_", "\n", 1) if len(column.name) > 10 else column.name
    axes.text(x, -0.2, name.replace(" ", "\n", 1), ha="center", va="top", fontweight="bold")
    # Where lines meet an axis at its ends, text next to it would be crossed.
    for place, text in column.ticks:
        end = {0.0: (x, -0.05, "center", "top"), 1.0: (x, 1.05, "center", "bottom")}
        left, height, across, up = end.get(place, (x - 0.07, place, "right", "center"))
        axes.text(left, height, text, ha=across, va=up)


@dataclass(frozen=True)
class Importance:
    """How much each hyper-parameter matters (its name to a number, the largest first), or why that is not known."""

    values: dict[str, float]
    text: str


def measure_importance(trials: Sequence[Mapping[str, Any]], seed: int = 0) -> Importance:
    """Permutation importance of hyper-parameters for the score at the first rung, out of bag.

    Trees are grown on bootstrap samples of the trials; the importance of a parameter is by how much the squared error of
    the trials left out of a tree rises when the parameter's values are permuted among them, as a share of the score's
    variance (Breiman 2001, "Random forests", section 10). The score is the best one up to the number of epochs that every
    trial has, since ASHA stops trials at different epochs.
    """
    usable = [trial for trial in trials if trial.get("history") and not trial.get("error")]
    varying, _ = read_parameters(usable)
    needed = max(MIN_TRIALS, TRIALS_A_PARAMETER * len(varying))
    if not varying or len(usable) < needed:
        told = f"{len(usable)} trial{'s' if len(usable) != 1 else ''}"
        return Importance(
            {}, f"The importance of hyper-parameters is shown from {needed} trials on; this search has {told}."
        )
    epochs = min(len(trial["history"]) for trial in usable)
    table = np.stack([column.places for column in varying], axis=1)
    scores = np.array([max(_read_score(row) for row in trial["history"][:epochs]) for trial in usable])
    known = np.isfinite(scores)
    explained, rises = _grow_forest(table[known], scores[known], seed)
    if explained < MIN_EXPLAINED:
        return Importance(
            {},
            f"The importance of hyper-parameters is not shown: a random forest explains {max(explained, 0):.0%} of the "
            "variance of the scores on trials that it has not seen.",
        )
    order = np.argsort(-rises)
    return Importance(
        {varying[i].name: float(rises[i]) for i in order},
        f"Permutation importance, out of bag, of a random forest over {int(known.sum())} trials, which explains "
        f"{explained:.0%} of the variance of the score after {epochs} epoch{'s' if epochs != 1 else ''}.",
    )


def _read_score(row: Mapping[str, Any]) -> float:
    return -np.inf if row.get("score") is None else float(row["score"])


def _grow_forest(table: Array, scores: Array, seed: int) -> tuple[float, Array]:
    """Return the share of variance (n,) that trees explain out of bag, and the rise of error (P,) by each permuted
    column.
    """
    from sklearn.tree import DecisionTreeRegressor

    generator = np.random.default_rng(seed)
    n, variance = len(scores), scores.var() or 1.0
    sums, votes, rises = np.zeros(n), np.zeros(n), np.zeros(table.shape[1])
    for number in range(TREES):
        drawn = generator.integers(n, size=n)
        out = np.setdiff1d(np.arange(n), drawn)
        tree = DecisionTreeRegressor(max_features=max(1, table.shape[1] // 2), min_samples_leaf=2, random_state=number)
        tree.fit(table[drawn], scores[drawn])
        predicted = tree.predict(table[out])
        sums[out] += predicted
        votes[out] += 1
        error = np.mean((predicted - scores[out]) ** 2)
        for column in range(table.shape[1]):
            mixed = table[out].copy()
            mixed[:, column] = generator.permutation(mixed[:, column])
            rises[column] += np.mean((tree.predict(mixed) - scores[out]) ** 2) - error
    voted = votes > 0
    left = np.mean((sums[voted] / votes[voted] - scores[voted]) ** 2)
    return float(1 - left / variance), rises / TREES / variance


@_styled
def plot_importance(importance: Importance) -> Figure:
    """Return a bar a hyper-parameter, the most important on top."""
    names, values = list(importance.values)[::-1], list(importance.values.values())[::-1]
    figure, (axes,) = _new_figure(5.2, 0.8 + 0.28 * len(names))
    axes.barh(range(len(names)), values, color=BLUE, height=0.66)
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("rise of the squared error, as a share of the score's variance")
    return figure
