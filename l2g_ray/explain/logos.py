"""Sequence logos: contributions, information content, and letters that follow a position (through logomaker)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from l2g_ray.sequence import ALPHABET

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe-Ito, in the customary order: A green, C blue, G orange, T red.
COLOURS = {"A": "#009E73", "C": "#0072B2", "G": "#E69F00", "T": "#D55E00"}


def draw_logo(values: np.ndarray, axes: Axes, first_position: int = 1, ylabel: str = "") -> None:
    """Draw a logo of `values` (length, 4) on matplotlib axes: letter heights in the order A C G T.

    Negative letters hang below the line. `first_position` is what the x axis calls the first one.
    Needs the extra `explain`.
    """
    import logomaker
    import pandas as pd

    frame = pd.DataFrame(np.nan_to_num(values), columns=list(ALPHABET))
    frame.index = pd.RangeIndex(first_position, first_position + len(frame))
    # flip_below=False: an upside-down A reads as a V.
    logomaker.Logo(frame, ax=axes, color_scheme=COLOURS, flip_below=False, show_spines=False, baseline_width=0.5)
    axes.spines["left"].set_visible(True)
    axes.set_xlim(first_position - 0.5, first_position + len(frame) - 0.5)
    axes.set_ylabel(ylabel)


def plot_logo(values: np.ndarray, ylabel: str = "", first_position: int = 1) -> Figure:
    """Return a figure of its own with the logo of `values` (length, 4)."""
    import matplotlib

    from l2g_ray.results.figures import STYLE, _new_figure

    with matplotlib.rc_context(STYLE):
        figure, (axes,) = _new_figure(min(1.2 + 0.16 * len(values), 14), 1.4)
        draw_logo(values, axes, first_position, ylabel)
    return figure


def to_information(ppm: np.ndarray, background: np.ndarray | None = None) -> np.ndarray:
    """Letter heights (length, 4) in bits of a position probability matrix (length, 4).

    A position's height is its Kullback-Leibler divergence from `background` (4,), uniform by default, so it lies in
    0..2 bits for the latter (Schneider and Stephens 1990, without the small-sample correction).
    """
    background = np.full(4, 0.25) if background is None else background
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(ppm > 0, ppm * np.log2(ppm / background), 0.0)
    return ppm * terms.sum(1, keepdims=True)
