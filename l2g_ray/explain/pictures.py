"""Figures of an explanation: contributions along the sequence, examples, found and known motifs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from l2g_ray.explain.attribution import Attributions
from l2g_ray.explain.known import Comparison
from l2g_ray.explain.logos import draw_logo
from l2g_ray.explain.truth import Site
from l2g_ray.results.figures import BLUE, GREY, ORANGE, _new_figure, _styled
from l2g_ray.sequence import N_CODE

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# A longer logo is not legible.
_MAX_LOGO_BP = 150


def mean_by_position(attributions: Attributions) -> np.ndarray:
    """Mean contribution of each base at each position over all sequences that reach it, (length, 4).

    A base that does not stand there counts as 0, so a column's sum is the position's mean contribution.
    """
    counts = (attributions.codes != N_CODE).sum(0)
    return (attributions.hypothetical * attributions.one_hot).sum(0) / np.maximum(counts, 1)[:, None]


def has_mean_logo(attributions: Attributions) -> bool:
    """Whether a position means the same in all sequences (equal lengths), and a logo of all can be read."""
    return len(set(attributions.lengths_bp.tolist())) == 1 and attributions.codes.shape[1] <= _MAX_LOGO_BP


@_styled
def plot_positions(attributions: Attributions) -> Figure:
    """Position by position: mean |contribution| over the sequences and, where it can be read, the mean as a logo."""
    size = np.abs(attributions.contributions).sum(0) / np.maximum((attributions.codes != N_CODE).sum(0), 1)
    aligned = has_mean_logo(attributions)
    positions = np.arange(1, len(size) + 1)
    figure, panels = _new_figure(min(2 + 0.1 * len(size), 14), 3.4 if aligned else 1.9, rows=2 if aligned else 1)
    panels[0].bar(positions, size, color=BLUE, width=0.9)
    panels[0].set_ylabel("mean |contribution|")
    panels[0].set_xlim(0.5, len(size) + 0.5)
    if aligned:
        draw_logo(mean_by_position(attributions), panels[1], 1, "mean contribution")
    panels[-1].set_xlabel("position (bp)")
    return figure


@_styled
def plot_example(attributions: Attributions, row: int, sites: Sequence[Site] = ()) -> Figure:
    """The contributions of one sequence as a logo, with its planted sites, if known, as bars below (Fig. 4C).

    Of a long sequence, the 150 bp with the largest.
    """
    length = int(attributions.lengths_bp[row])
    values = (attributions.hypothetical[row] * attributions.one_hot[row])[:length]
    first = 0
    if length > _MAX_LOGO_BP:
        sums = np.convolve(np.abs(values).sum(1), np.ones(_MAX_LOGO_BP), "valid")
        first = int(sums.argmax())
        values = values[first : first + _MAX_LOGO_BP]
    figure, (axes,) = _new_figure(min(2 + 0.1 * len(values), 14), 1.7)
    draw_logo(values, axes, first + 1, "contribution")
    low, high = axes.get_ylim()
    step = 0.08 * (high - low)
    own = [s for s in sites if s.row == row and first <= s.start and s.end <= first + len(values)]
    for site in own:
        axes.plot(
            [site.start + 0.6, site.end + 0.4], [low - step] * 2, color=ORANGE, linewidth=4, solid_capstyle="butt"
        )
        axes.text((site.start + site.end + 1) / 2, low - 1.6 * step, site.motif, ha="center", va="top", fontsize=6)
    if own:
        axes.set_ylim(low - 4 * step, high)
    axes.set_xlabel("position (bp)")
    return figure


@_styled
def plot_sets(comparison: Comparison) -> Figure:
    """Two circles: the motifs of the list, the found ones, and both (Fig. 4B)."""
    from matplotlib.patches import Circle

    figure, (axes,) = _new_figure(6.4, 3.2)
    for x, colour in ((-0.75, GREY), (0.75, BLUE)):
        axes.add_patch(Circle((x, 0), 1.45, facecolor=colour, edgecolor=colour, alpha=0.22))
    parts = ((-1.35, comparison.only_known), (0.0, comparison.both), (1.35, comparison.only_found))
    for x, names in parts:
        shown = names if len(names) <= 8 else [*names[:7], f"and {len(names) - 7} more"]
        axes.text(x, 0, "\n".join(shown) or "–", ha="center", va="center", fontsize=8)
    axes.text(-1.1, 1.6, "known", ha="center")
    axes.text(1.1, 1.6, "found", ha="center")
    axes.set_xlim(-2.6, 2.6)
    axes.set_ylim(-1.6, 1.9)
    axes.set_aspect("equal")
    axes.axis("off")
    return figure
