"""Shares of A, C, G and T as a figure by class and position, and as a table by split and class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from l2g_ray.results.figures import BLUE, MAX_PANELS, ORANGE, VERMILION, _new_figure, _styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LETTERS = {"A": "#009E73", "C": BLUE, "G": ORANGE, "T": VERMILION}


@_styled
def plot_composition(check: Mapping[str, Any]) -> Figure:
    """Shares of the letters along the sequence, a panel a class (or the quarters of a regression's first output), in train."""
    found = check["composition"]
    groups = dict(list(found["positions"].items())[1:][:MAX_PANELS])
    columns = min(max(len(groups), 1), 3)
    lines = max(1, -(-len(groups) // columns))
    figure, panels = _new_figure(3.45 * columns, 0.3 + 2.2 * lines, rows=lines, columns=columns)
    places = (np.arange(found["bins"]) + 0.5) / found["bins"] * (100 if found["relative"] else found["length_bp"])
    for axes, (name, bins) in zip(panels, groups.items(), strict=False):
        table = np.array([[np.nan] * 4 if shares is None else shares for shares in bins], dtype=float)
        for letter, colour, shares in zip(LETTERS, LETTERS.values(), table.T, strict=True):
            axes.plot(places, shares, color=colour, label=letter)
        axes.set_title(name if len(name) <= 34 else f"{name[:33]}…")
        axes.set_xlabel("position (% of the length)" if found["relative"] else "position (bp)")
        axes.set_ylim(bottom=0)
    for axes in panels[len(groups) :]:
        axes.set_visible(False)
    panels[0].set_ylabel("share of letters")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=4, handlelength=1.2, columnspacing=1)
    return figure


def explain_composition(check: Mapping[str, Any]) -> str:
    """Return the caption of `plot_composition`."""
    found = check["composition"]
    what = "rows with the lowest and the highest values" if check["kind"] == "regression" else "class"
    what = "positives of each label" if check["kind"] == "multilabel" else what
    cut = f" The first {MAX_PANELS} are shown." if len(found["positions"]) - 1 > MAX_PANELS else ""
    sample = " Of a sample of rows." if found["sampled"] else ""
    return f"Composition by position and {what}, in train.{cut}{sample}"


def tabulate_composition(check: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return headings, and one line a split and class: the shares of the letters."""
    lines = [
        [f"{split}, {group}", *(["–"] * 4 if shares is None else [f"{share:.1%}" for share in shares])]
        for split, groups in check["composition"]["splits"].items()
        for group, shares in groups.items()
    ]
    return ["Rows", *LETTERS], lines
