"""Learning curves: a panel a stage and quantity, in the order in which stages run; a stage of one epoch is a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from l2g_ray.results.figures import (
    BLUE,
    GREY,
    Epoch,
    _find_best_trial,
    _new_figure,
    _styled,
    _to_frame,
    _use_whole_numbers,
)
from l2g_ray.results.rows import format_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# As a run of one task trains them: what is chosen, then what is used. Stages that are not listed come last.
STAGE_ORDER = (
    "pretrain", "reference", "select", "search", "warmup", "align", "finetune", "baseline", "embedder_only", "refit",
)  # fmt: skip
COLUMNS = 3
_QUANTITIES = (("loss", "training loss"), ("value", "validation {}"))


def list_stages(history: Sequence[Epoch]) -> dict[str, pd.DataFrame]:
    """Return the epochs of each stage, in the order of `STAGE_ORDER`."""
    frame = _to_frame(history)
    names = sorted(
        dict.fromkeys(frame["stage"]),
        key=lambda name: STAGE_ORDER.index(name) if name in STAGE_ORDER else len(STAGE_ORDER),
    )
    return {name: frame[frame["stage"] == name] for name in names}


def describe_short_stages(history: Sequence[Epoch]) -> list[str]:
    """Return a sentence for each stage whose trials have one epoch: it has no curve."""
    sentences = []
    for name, frame in list_stages(history).items():
        if _list_panels(frame):
            continue
        trials = frame["trial"].nunique()
        best = _find_best_trial(frame)
        value = frame.loc[frame["trial"] == best, "value"].iloc[0] if best is not None else None
        score = f", best validation {frame['metric'].iloc[0]} {format_number(value)}" if value is not None else ""
        sentences.append(f"Stage {name}: {trials} trial{'s' if trials != 1 else ''} of one epoch{score}.")
    return sentences


def _list_panels(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """Quantities of a stage that some trial has at two epochs or more, with their names."""
    found = []
    for quantity, name in _QUANTITIES:
        known = frame.dropna(subset=[quantity])
        if len(known) and known.groupby("trial").size().max() > 1:
            found.append((quantity, name.format(frame["metric"].iloc[0])))
    return found


def _drop_single_scores(frame: pd.DataFrame) -> pd.DataFrame:
    """Without the scores of trials that have a single one, such as models of a fold: these do not compete."""
    known = frame.groupby("trial")["value"].transform("count")
    return frame.assign(value=frame["value"].where(known > 1))


def has_curves(history: Sequence[Epoch]) -> bool:
    """Return whether any stage has a curve to draw."""
    return any(_list_panels(frame) for frame in list_stages(history).values())


@_styled
def plot_learning_curves(history: Sequence[Epoch]) -> Figure:
    """Training loss and validation score by epoch, at most three panels a line; the best trial is drawn strongly.

    Stages whose trials have one epoch are left out (`describe_short_stages`).
    """
    stages = list_stages(history)
    panels = [(name, *panel) for name, frame in stages.items() for panel in _list_panels(frame)]
    columns = min(max(len(panels), 1), COLUMNS)
    lines = max(1, -(-len(panels) // columns))
    figure, axes_of = _new_figure(3.45 * columns, 0.2 + 2.2 * lines, rows=lines, columns=columns)
    for axes, (name, quantity, label) in zip(axes_of, panels, strict=False):
        frame = stages[name]
        best = _find_best_trial(_drop_single_scores(frame))
        for trial, curve in frame.groupby("trial", sort=False):
            known = curve.dropna(subset=[quantity]).sort_values("epoch")
            colour, width, opacity = (BLUE, 1.8, 1.0) if trial == best else (GREY, 0.9, 0.6)
            axes.plot(
                known["epoch"],
                known[quantity],
                "o-",
                markersize=2.5,
                color=colour,
                linewidth=width,
                alpha=opacity,
                zorder=3 if trial == best else 2,
            )
        axes.set_title(f"{name}: {label}")
        axes.set_xlabel("epoch")
        axes.set_xlim(frame["epoch"].min() - 0.4, frame["epoch"].max() + 0.4)
        axes.locator_params(axis="y", nbins=5)
        _use_whole_numbers(axes)
    for axes in axes_of[len(panels) :]:
        axes.set_visible(False)
    return figure
