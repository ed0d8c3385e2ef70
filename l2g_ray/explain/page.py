"""The page of an explanation: which figures and tables it has. `results.explain_page` writes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from l2g_ray.explain.explanation import Explanation
from l2g_ray.explain.known import Comparison
from l2g_ray.explain.logos import plot_logo, to_information
from l2g_ray.explain.pictures import has_mean_logo, mean_by_position, plot_example, plot_positions, plot_sets
from l2g_ray.results.explain_page import MotifPictures, Picture, Section, Table, write_page
from l2g_ray.run_folder import Arm
from l2g_ray.sequence import ALPHABET, N_CODE
from l2g_ray.tasks.schema import Task

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
