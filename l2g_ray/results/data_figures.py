"""Figures of a data check (`check_splits`), in the style of `figures`: one colour a split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from l2g_ray.results.figures import BLUE, GREY, ORANGE, VERMILION, _new_figure, _put_legend_above, _styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"train": BLUE, "valid": ORANGE, "test": VERMILION}
# More classes or outputs than this are no longer told apart.
MAX_LABELS = 16


@_styled
def plot_features(check: Mapping[str, Any]) -> Figure:
    """Length and GC share: of each split the share of rows by bin."""
    figure, panels = _new_figure(7.4, 2.7, columns=2)
    _draw_steps(panels[0], check["shift"]["length_bp"]["histogram"], "length (bp)")
    _draw_steps(panels[1], check["shift"]["gc"]["histogram"], "share of G and C")
    panels[0].set_ylabel("share of rows")
    _put_legend_above(panels[0])
    return figure


def _draw_steps(axes: Axes, histogram: Mapping[str, Any], label: str) -> None:
    axes.set_xlabel(label)
    edges = np.array(histogram["edges"], dtype=float)
    if len(edges) == 2:
        axes.set_xlim(edges[0] - 5, edges[1] + 5)
        axes.set_xticks([edges.mean()])
    for split, counts in histogram["counts"].items():
        shares = np.array(counts) / max(sum(counts), 1)
        if len(shares):
            # Drawn in another width each, so that equal curves are still seen.
            width = {"train": 3.2, "valid": 2.0}.get(split, 1.1)
            axes.stairs(shares, edges, color=COLOURS.get(split, GREY), linewidth=width, label=split)
    axes.set_ylim(bottom=0)


@_styled
def plot_balance(check: Mapping[str, Any]) -> Figure:
    """Labels by split: shares of the classes, shares of positives, or means and sds of the outputs in train's sd."""
    splits, kind = check["balance"]["splits"], check["kind"]
    names = list(check["labels"])[:MAX_LABELS]
    figure, (axes,) = _new_figure(6.4, 1.0 + (0.18 * len(splits) + 0.16) * len(names))
    height = 0.8 / len(splits)
    for i, (split, told) in enumerate(splits.items()):
        places = np.arange(len(names)) + (i - (len(splits) - 1) / 2) * height
        colour = COLOURS.get(split, GREY)
        if kind == "regression":
            means, sds = (np.array([_in_train_sd(splits, split, name)[j] for name in names]) for j in (0, 1))
            axes.errorbar(means, places, xerr=sds, fmt="o", color=colour, capsize=3, markersize=4, label=split)
            continue
        if kind == "multilabel":
            shares = [told[name]["mean"] or 0.0 for name in names]
        else:
            shares = [told[name] / max(sum(told.values()), 1) for name in names]
        axes.barh(places, shares, height=height * 0.9, color=colour, label=split)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    labels = {
        "regression": "mean (point) and sd (bar), from train's mean, in train's sd",
        "multilabel": "share of positives among the known values",
    }
    axes.set_xlabel(labels.get(kind, "share of rows"))
    axes.grid(axis="x", color=GREY, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    _put_legend_above(axes)
    return figure


def _in_train_sd(splits: Mapping[str, Any], split: str, name: str) -> tuple[float, float]:
    """Mean and sd of an output; NaN where a split has no values."""
    train, told = splits["train"][name], splits[split][name]
    if told["mean"] is None or train["mean"] is None:
        return np.nan, np.nan
    unit = train["sd"] or 1.0
    return (told["mean"] - train["mean"]) / unit, told["sd"] / unit


@_styled
def plot_near(check: Mapping[str, Any]) -> Figure:
    """Rows of test and valid by the similarity to their best partner in train; dashed: the threshold."""
    pairs = [name for name in ("train_in_test", "train_in_valid") if name in check["near"]]
    figure, panels = _new_figure(3.7 * len(pairs), 2.7, columns=len(pairs))
    for axes, name in zip(panels, pairs, strict=True):
        one, other = name.split("_in_")
        found = check["near"][name]
        edges, counts = found["histogram"]["edges"], np.array(found["histogram"]["other_counts"])
        axes.stairs(counts, edges, fill=True, color=COLOURS.get(other, GREY))
        axes.axvline(found["threshold"], color=GREY, linestyle="--", linewidth=1)
        axes.set_xlabel(f"similarity to the nearest {one} row")
        axes.set_ylabel(f"{other} rows")
        axes.set_ylim(0, max(1, counts.max() * 1.05))
    return figure
