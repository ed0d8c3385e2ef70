"""ROC, precision-recall and calibration curves of test predictions, with intervals from a bootstrap over rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from l2g_ray.results.figures import BLUE, GREY, ORANGE, SMALL, VERMILION, _new_figure, _styled
from l2g_ray.tasks.metrics import auprc, auroc

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[np.float64]
RESAMPLES = 500
# More classes or outputs are no longer told apart, and more distinct scores no longer seen.
MAX_CURVES, MAX_CELLS = 6, 1000
GRID = np.linspace(0, 1, 101)
CALIBRATION_BINS = 10
# Bands of more curves would hide each other.
_MAX_BANDS = 3
_COLOURS = (BLUE, ORANGE, VERMILION, "#009E73", "#CC79A7", "#56B4E9")


@dataclass(frozen=True)
class Area:
    """A number of all rows, with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Curves:
    """The curves of one class against the rest, or of one label, over n rows.

    `roc`: the true-positive rate, and `precision`: the precision, at the false-positive rates and recalls of `GRID`; each
    (3, 101): of all rows, and the lower and upper end of the interval. `calibration` (5, B) holds for each bin of
    predictions their mean, the share of positives, its lower and upper end, and the number of rows. `positives` is the
    share of positive rows.
    """

    name: str
    roc: Array
    precision: Array
    calibration: Array
    auroc: Area
    auprc: Area
    brier: Area
    positives: float
    rows: int


def measure_curves(
    name: str, truth: NDArray[np.bool_], scores: Array, resamples: int = RESAMPLES, seed: int = 0
) -> Curves | None:
    """Measure the curves of labels (n,) and predicted probabilities (n,); None unless both labels occur.

    Rows are counted by predicted probability once (in 1,000 quantiles, where there are more of them), and a resample is a
    multinomial draw of these counts: the time does not depend on n.
    """
    known = np.isfinite(scores)
    truth, scores = truth[known].astype(bool), scores[known].astype(float)
    if truth.all() or not truth.any():
        return None
    positive, negative, mean = _count_cells(truth, scores)
    n, cells = len(scores), np.concatenate([positive, negative])
    draws = np.random.default_rng(seed).multinomial(n, cells / n, size=resamples)
    pos = np.vstack([positive, draws[:, : len(mean)]]).astype(float)
    neg = np.vstack([negative, draws[:, len(mean) :]]).astype(float)
    both = (pos.sum(1) > 0) & (neg.sum(1) > 0)
    pos, neg = pos[both], neg[both]
    tpr, fpr = (np.cumsum(v, 1) / v.sum(1, keepdims=True) for v in (pos, neg))
    precision = np.cumsum(pos, 1) / np.maximum(np.cumsum(pos + neg, 1), 1)
    begin = np.zeros((len(tpr), 1))
    x, y = np.hstack([begin, fpr]), np.hstack([begin, tpr])
    areas = ((x[:, 1:] - x[:, :-1]) * (y[:, 1:] + y[:, :-1]) / 2).sum(1)
    averages = (pos / pos.sum(1, keepdims=True) * precision).sum(1)
    squares = (pos * (mean - 1) ** 2 + neg * mean**2).sum(1) / n
    roc = np.stack([np.interp(GRID, *pair) for pair in zip(x, y, strict=True)])
    last = len(mean) - 1
    # Nothing is recalled at 0, where precision is not defined: it begins as at the next point.
    recalls = np.maximum(GRID, GRID[1])
    pr = np.stack([p[np.minimum(np.searchsorted(r, recalls), last)] for r, p in zip(tpr, precision, strict=True)])
    return Curves(
        name,
        _band(roc),
        _band(pr),
        _calibrate(pos, neg, mean),
        Area(auroc(truth, scores), *_interval(areas[1:])),
        Area(auprc(truth, scores), *_interval(averages[1:])),
        Area(float(np.mean((scores - truth) ** 2)), *_interval(squares[1:])),
        float(truth.mean()),
        n,
    )


def _count_cells(truth: NDArray[np.bool_], scores: Array) -> tuple[Array, Array, Array]:
    """Positives, negatives and the mean score (K,) of each cell, the highest score first."""
    values, cell = np.unique(scores, return_inverse=True)
    if len(values) > MAX_CELLS:
        edges = np.quantile(scores, np.linspace(0, 1, MAX_CELLS + 1)[1:-1])
        _, cell = np.unique(np.searchsorted(edges, scores, side="right"), return_inverse=True)
    number = cell.max() + 1
    rows = np.bincount(cell, minlength=number).astype(float)
    positive: Array = np.bincount(cell, weights=truth.astype(float), minlength=number).astype(float)
    mean = np.bincount(cell, weights=scores, minlength=number) / rows
    return positive[::-1], (rows - positive)[::-1], mean[::-1]


def _interval(values: Array) -> tuple[float, float]:
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def _band(values: Array) -> Array:
    """Return the first row, and the interval of the others: (3, G)."""
    drawn = values[1:] if len(values) > 1 else values
    return np.vstack([values[:1], np.quantile(drawn, [0.025, 0.975], axis=0)])


def _calibrate(pos: Array, neg: Array, mean: Array) -> Array:
    """Bins of about equal numbers of rows, the lowest predictions first: (5, B)."""
    pos, neg, mean = pos[:, ::-1], neg[:, ::-1], mean[::-1]
    rows = pos[0] + neg[0]
    middle = (np.cumsum(rows) - rows / 2) / rows.sum()
    number = np.minimum((middle * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    starts = np.flatnonzero(np.diff(number, prepend=-1))
    hits, misses = (np.add.reduceat(v, starts, axis=1) for v in (pos, neg))
    counts = hits + misses
    shares = np.where(counts > 0, hits / np.maximum(counts, 1), np.nan)
    with np.errstate(invalid="ignore"):
        low, high = np.nanquantile(shares, [0.025, 0.975], axis=0)
    means = np.add.reduceat(mean * rows, starts) / counts[0]
    return np.stack([means, shares[0], low, high, counts[0]])


def list_curves(kind: str, frame: pd.DataFrame, labels: Sequence[str]) -> list[Curves]:
    """Measure the curves of the rows of `predictions.parquet` of one model.

    Of a binary task for the second class; else for each of the first classes against the rest, or of the first labels.
    Empty for a regression, or where the file has no probabilities.
    """
    if kind == "regression" or any(f"probability_{name}" not in frame for name in labels):
        return []
    names = list(labels)[1:2] if kind == "binary" else list(labels)[:MAX_CURVES]
    found = []
    for name in names:
        scores = frame[f"probability_{name}"].to_numpy(dtype=float)
        if kind == "multilabel":
            truth = frame[f"label_{name}"].to_numpy(dtype=float)
            known = np.isfinite(truth)
            curves = measure_curves(name, truth[known] > 0.5, scores[known])
        else:
            curves = measure_curves(name, (frame["label"].astype(str) == name).to_numpy(), scores)
        found += [curves] if curves else []
    return found


@_styled
def plot_roc(curves: Sequence[Curves]) -> Figure:
    """ROC curves with pointwise 95 % bands; dashed: chance."""
    figure, (axes,) = _new_figure(SMALL, SMALL)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
    for colour, one in zip(_COLOURS, curves, strict=False):
        _draw_band(axes, one.roc, colour, len(curves))
        # From the origin: the grid begins where the curve has already risen.
        axes.plot([0, *GRID], [0, *one.roc[0]], color=colour, label=_label(one, one.auroc, len(curves)))
    _finish(axes, "false-positive rate", "true-positive rate", "lower right")
    return figure


@_styled
def plot_precision(curves: Sequence[Curves]) -> Figure:
    """Precision-recall curves with pointwise 95 % bands; dashed: the share of positives, which is chance."""
    figure, (axes,) = _new_figure(SMALL, SMALL)
    for colour, one in zip(_COLOURS, curves, strict=False):
        axes.axhline(one.positives, color=GREY if len(curves) == 1 else colour, linewidth=1, linestyle="--")
        _draw_band(axes, one.precision, colour, len(curves))
        axes.plot(GRID, one.precision[0], color=colour, label=_label(one, one.auprc, len(curves)))
    _finish(axes, "recall", "precision", "lower left")
    return figure


@_styled
def plot_calibration(curves: Sequence[Curves]) -> Figure:
    """Share of positives against the predicted probability, in ten bins of equal numbers of rows; dashed: equality."""
    figure, (axes,) = _new_figure(SMALL, SMALL)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--")
    for colour, one in zip(_COLOURS, curves, strict=False):
        mean, share, low, high, _ = one.calibration
        spans = np.abs(np.stack([low, high]) - share) if len(curves) <= _MAX_BANDS else None
        axes.errorbar(
            mean, share, yerr=spans, fmt="o-", color=colour, markersize=4, linewidth=1, capsize=2, elinewidth=0.8,
            label=_label(one, one.brier, len(curves)),
        )  # fmt: skip
    _finish(axes, "predicted probability", "share of positives", "upper left")
    return figure


def _label(one: Curves, area: Area, number: int) -> str:
    if number == 1:
        return str(area)
    return f"{one.name} {area}" if number <= _MAX_BANDS and len(one.name) < 12 else f"{one.name} {area.value:.3f}"


def _draw_band(axes: Axes, band: Array, colour: str, number: int) -> None:
    if number <= _MAX_BANDS:
        axes.fill_between(GRID, band[1], band[2], color=colour, alpha=0.18, linewidth=0)


def _finish(axes: Axes, across: str, up: str, place: Literal["lower right", "lower left", "upper left"]) -> None:
    axes.set(xlabel=across, ylabel=up, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.legend(loc=place, handlelength=1.2, borderaxespad=0.3)


def tabulate_areas(curves: Sequence[Curves]) -> tuple[list[str], list[list[str]]]:
    """Return headings and a line a class: the areas and the Brier score with their intervals."""
    headings = ["Class or output", "Rows", "Positives", "AUROC", "Average precision", "Brier score"]
    return headings, [
        [one.name, f"{one.rows:,}", f"{one.positives:.1%}", str(one.auroc), str(one.auprc), str(one.brier)]
        for one in curves
    ]


def tabulate_curve(curves: Sequence[Curves], part: str) -> tuple[list[str], list[list[str]]]:
    """Return headings and lines behind `plot_roc` ('roc') or `plot_precision` ('precision'), at every tenth point of
    the grid.
    """
    names: Mapping[str, tuple[str, str]] = {
        "roc": ("False-positive rate", "True-positive rate"),
        "precision": ("Recall", "Precision"),
    }
    lines = [
        [one.name, f"{GRID[i]:.1f}", f"{found[0]:.3f}", f"[{found[1]:.3f}, {found[2]:.3f}]"]
        for one in curves
        for i, found in enumerate(getattr(one, part).T)
        if i % 10 == 0
    ]
    return ["Class or output", *names[part], "Interval"], lines


def tabulate_calibration(curves: Sequence[Curves]) -> tuple[list[str], list[list[str]]]:
    """Return headings and lines behind `plot_calibration`."""
    lines = [
        [one.name, f"{mean:.3f}", f"{share:.3f}", f"[{low:.3f}, {high:.3f}]", f"{rows:,.0f}"]
        for one in curves
        for mean, share, low, high, rows in one.calibration.T
    ]
    return ["Class or output", "Mean prediction", "Share of positives", "Interval", "Rows"], lines
