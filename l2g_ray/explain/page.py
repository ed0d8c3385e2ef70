"""An explanation as files: arrays, tables, motifs, pictures, and the figures and tables of its page, which `results.explained` writes."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from l2g_ray.errors import UserError
from l2g_ray.explain.attribution import Attributions
from l2g_ray.explain.databases import Comparison, Site
from l2g_ray.explain.explanation import ARRAYS, explain_output, open_request
from l2g_ray.explain.logos import draw_logo, plot_logo, to_information
from l2g_ray.explain.motifs import format_meme, save_hdf5
from l2g_ray.explain.request import ExplainRequest, Explanation
from l2g_ray.results.explain_page import MotifPictures, Picture, Section, Table, write_page
from l2g_ray.results.figures import BLUE, GREY, ORANGE, _new_figure, _styled
from l2g_ray.run_folder import Arm
from l2g_ray.sequence import ALPHABET, N_CODE
from l2g_ray.tasks.schema import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Explained:
    """What one call explained: the arm, an `Explanation` for each output, and the page, where files were written."""

    arm: Arm
    explanations: list[Explanation]
    page: Path | None

    @property
    def motifs(self) -> pd.DataFrame:
        """A row for each motif: `output`, then the columns of `Explanation.motif_table`."""
        return self._join([e.motif_table() for e in self.explanations])

    @property
    def sequences(self) -> pd.DataFrame:
        """A row for each output and sequence: `output`, then the columns of `Explanation.sequence_table`."""
        return self._join([e.sequence_table() for e in self.explanations])

    @property
    def contributions(self) -> dict[str, np.ndarray]:
        """By output the contribution of each base (n, length), in the order of `sequences`; 0 beyond a sequence's end."""
        return {e.output: e.attributions.contributions for e in self.explanations}

    def _join(self, frames: list[pd.DataFrame]) -> pd.DataFrame:
        for frame, explanation in zip(frames, self.explanations, strict=True):
            frame.insert(0, "output", explanation.output)
        filled = [frame for frame in frames if len(frame)] or frames[:1]
        return pd.concat(filled, ignore_index=True)


def explain(
    request: ExplainRequest, progress: Callable[[str, int, int], None] = lambda what, done, total: None
) -> Explained:
    """Explain the outputs that are asked for and, if the request says so, write their files and the page.

    `progress` gets what is computed, how much is done, and of how much. Raises UserError as `open_request`.
    """
    opened = open_request(request)
    task, arm = opened.predictor.task, opened.predictor.arm
    explanations = []
    for output in opened.outputs:
        found = explain_output(request, opened, output, progress=_named(progress, task.labels[output]))
        if opened.out is not None:
            write_files(found, opened.out)
        explanations.append(found)
    page = None if opened.out is None else write_explanations(opened.out, task, arm, explanations)
    return Explained(arm, explanations, page)


def _named(progress: Callable[[str, int, int], None], output: str) -> Callable[[str, int, int], None]:
    return lambda what, done, total: progress(f"{output}: {what}", done, total)


def write_files(explanation: Explanation, out: Path) -> None:
    """Replace an output's folder in `out`, whole or not at all: arrays, tables, motifs and logos.

    `one_hot.npz` and `hypothetical.npz` (n, 4, length) are what `modisco motifs` reads, `motifs.h5` is what it writes. If
    only observed bases have contributions, these are in `contributions.npz` instead.
    """
    from l2g_ray.explain.logos import plot_logo, to_information
    from l2g_ray.results.figures import save

    folder = out / explanation.folder
    scratch = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir(parents=True)
        a = explanation.attributions
        np.savez_compressed(scratch / ARRAYS, a.one_hot.transpose(0, 2, 1).astype(np.int8))
        name = "contributions" if a.observed_only else "hypothetical"
        np.savez_compressed(scratch / f"{name}.npz", a.hypothetical.transpose(0, 2, 1))
        _write_csv(explanation.sequence_table(), scratch / "sequences.csv")
        if explanation.discovery is not None:
            _write_csv(explanation.motif_table(), scratch / "motifs.csv")
            motifs = explanation.discovery.motifs
            save_hdf5(explanation.discovery, scratch / "motifs.h5")
            (scratch / "motifs.meme").write_text(format_meme(motifs, _letter_shares(a.codes)))
            for motif in motifs:
                save(plot_logo(to_information(motif.ppm), "bits"), scratch / "logos" / f"{motif.name}_bits")
                save(plot_logo(motif.cwm, "contribution"), scratch / "logos" / f"{motif.name}_contribution")
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written ({error.strerror or error}); name another output folder (--out)"
        ) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _letter_shares(codes: np.ndarray) -> np.ndarray:
    counts = np.bincount(codes[codes != N_CODE], minlength=4)[:4].astype(float)
    return counts / max(counts.sum(), 1)


def _write_csv(frame: pd.DataFrame, path: Path) -> None:
    text = io.StringIO()
    frame.to_csv(text, index=False, float_format="%.6g")
    path.write_text(text.getvalue())


# A longer logo is not legible.
_MAX_LOGO_BP = 150


def mean_by_position(attributions: Attributions) -> np.ndarray:
    """Return mean contribution of each base at each position over all sequences that reach it, (length, 4).

    A base other than the observed one counts as 0, so a column's sum is the position's mean contribution.
    """
    counts = (attributions.codes != N_CODE).sum(0)
    return (attributions.hypothetical * attributions.one_hot).sum(0) / np.maximum(counts, 1)[:, None]


def has_mean_logo(attributions: Attributions) -> bool:
    """Return whether a position means the same in all sequences (equal lengths), and a logo of all can be read."""
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
    """Return the contributions of one sequence as a logo, with its planted sites, if known, as bars below (Fig. 4C).

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
    """Return two circles: the motifs of the list, the found ones, and both (Fig. 4B)."""
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


_EXAMPLES = 3


def write_explanations(folder: Path, task: Task, arm: Arm, explanations: Sequence[Explanation]) -> Path:
    """Write `explain.html` and `explain.json` of an arm's explained outputs. Returns the page's path."""
    title = task.title or task.name
    marked = title if "synthetic" in title.lower() or not task.synthetic else f"{title} (synthetic)"
    facts = {"Task": marked, "Arm": arm.describe(), "Model": str(arm.folder)}
    facts["Method"] = explanations[0].attributions.method
    sections = [_make_section(e) for e in explanations]
    return write_page(folder, f"What {task.name} has learned", facts, sections, arm.facts())


def _make_section(explanation: Explanation) -> Section:
    a = explanation.attributions
    motifs = [
        MotifPictures(
            motif.name,
            plot_logo(to_information(motif.ppm), "bits"),
            plot_logo(motif.cwm, "contribution"),
        )
        for motif in (explanation.discovery.motifs if explanation.discovery else [])
    ]
    pictures = [
        Picture(
            "positions",
            plot_positions(a),
            f"Where contributions to {explanation.output} stand: the mean over {len(a.codes):,} sequences, by position"
            f"{', and by letter' if has_mean_logo(a) else ', counted from the left end'}.",
            _tabulate_positions(explanation),
        )
    ]
    if explanation.comparison is not None:
        pictures.append(
            Picture(
                "known",
                plot_sets(explanation.comparison),
                f"Known and found motifs. Known: {explanation.comparison.title}"
                f"{f' ({explanation.comparison.source})' if explanation.comparison.source else ''}.",
                _tabulate_sets(explanation.comparison),
            )
        )
    for row in np.argsort(-a.values, kind="stable")[:_EXAMPLES]:
        against = "the bias" if a.observed_only else "its references"
        value = f"{a.values[row]:.3g}, {against} {a.reference_values[row]:.3g}"
        bars = " Bars: planted sites." if any(site.row == row for site in explanation.sites) else ""
        pictures.append(
            Picture(
                f"example_{row}",
                plot_example(a, int(row), explanation.sites),
                f"Contributions in {explanation.ids[row]} (value {value}).{bars}",
                _tabulate_example(explanation, int(row)),
            )
        )
    return Section(explanation.summary(), motifs, pictures)


def _tabulate_positions(explanation: Explanation) -> Table:
    a = explanation.attributions
    reach = (a.codes != N_CODE).sum(0)
    size = np.abs(a.contributions).sum(0) / np.maximum(reach, 1)
    lines = [
        [str(i + 1), f"{reach[i]:,}", f"{size[i]:.3g}", *(f"{value:+.3g}" for value in row)]
        for i, row in enumerate(mean_by_position(a))
    ]
    return Table(["Position", "Sequences", "Mean |contribution|", *(f"Mean of {letter}" for letter in ALPHABET)], lines)


def _tabulate_example(explanation: Explanation, row: int) -> Table:
    a = explanation.attributions
    lines = [
        [str(i + 1), "ACGTN"[a.codes[row, i]], f"{a.contributions[row, i]:+.3g}"] for i in range(a.lengths_bp[row])
    ]
    return Table(["Position", "Base", "Contribution"], lines)


def _tabulate_sets(comparison: Comparison) -> Table:
    groups = (
        ("known and found", comparison.both),
        ("known, not found", comparison.only_known),
        ("found, not in the list", comparison.only_found),
    )
    return Table(["Group", "Motifs"], [[name, ", ".join(motifs) or "–"] for name, motifs in groups])
