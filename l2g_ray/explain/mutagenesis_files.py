"""What saturation mutagenesis leaves: matrix, heat map, logo and a summary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from l2g_ray.errors import UserError
from l2g_ray.explain.logos import plot_logo
from l2g_ray.explain.mutagenesis import Mutagenesis
from l2g_ray.results.figures import GREY, _new_figure, _styled, save
from l2g_ray.sequence import ALPHABET

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEMA = 1
SUMMARY, MATRIX, ARRAYS = "mutagenesis.json", "matrix.tsv", "matrix.npz"
PICTURES = ("heatmap", "logo")
# Above this, letters under the heat map could not be read.
MAX_LETTERS = 120


def write_mutagenesis(found: Mutagenesis, folder: Path, facts: dict[str, Any]) -> list[Path]:
    """Write matrix.tsv, matrix.npz, heatmap and logo (SVG, PNG) and mutagenesis.json; returns the paths.

    matrix.tsv has a row a position, counted from 1: the base there, and the difference for A, C, G and T. matrix.npz
    has `differences`, `scores` (length, 4), `contributions` (length, 4), `sequence` and `first`. `facts` go into the
    summary (task, model, strand, ...). Raises UserError for a folder that cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lines = ["\t".join(["position", "base", *ALPHABET])]
        for i, (base, row) in enumerate(zip(found.sequence, found.differences, strict=True)):
            lines.append("\t".join([str(found.first + i + 1), base, *(f"{value:.6g}" for value in row)]))
        (folder / MATRIX).write_text("\n".join(lines) + "\n")
        np.savez_compressed(
            folder / ARRAYS,
            differences=found.differences,
            scores=found.scores,
            contributions=found.contributions,
            sequence=np.array(found.sequence),
            first=np.array(found.first),
        )
        save(plot_heatmap(found), folder / PICTURES[0])
        save(plot_logo(found.contributions, found.quantity, found.first + 1), folder / PICTURES[1])
        summary = {
            "schema": SCHEMA,
            **facts,
            "output": found.output,
            "quantity": found.quantity,
            "region": [found.first + 1, found.first + len(found.sequence)],
            "reference": found.reference,
            "strongest": found.strongest(),
        }
        (folder / SUMMARY).write_text(json.dumps(summary, indent=1))
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error}); choose another with --out") from None
    return list_files(folder)


def list_files(folder: Path) -> list[Path]:
    """What `write_mutagenesis` writes into a folder."""
    pictures = [f"{name}.{kind}" for name in PICTURES for kind in ("svg", "png")]
    return [folder / name for name in (SUMMARY, MATRIX, ARRAYS, *pictures)]


@_styled
def plot_heatmap(found: Mutagenesis) -> Figure:
    """Differences by position and base; a dot stands where the base is the sequence's own."""
    length = len(found.sequence)
    figure, (axes,) = _new_figure(min(1.8 + 0.16 * length, 16), 2.1)
    reach = float(np.abs(found.differences).max()) or 1.0
    left = found.first + 0.5
    image = axes.imshow(
        found.differences.T,
        cmap="RdBu_r",
        vmin=-reach,
        vmax=reach,
        aspect="auto",
        interpolation="nearest",
        extent=(left, left + length, 3.5, -0.5),
    )
    own = [(found.first + 1 + i, ALPHABET.index(base)) for i, base in enumerate(found.sequence) if base in ALPHABET]
    axes.plot(*zip(*own, strict=True), "o", color=GREY, markersize=2.5) if own else None
    axes.set_yticks(range(4), list(ALPHABET))
    axes.set_xlabel("position")
    axes.set_ylabel("changed to")
    if length <= MAX_LETTERS:
        top = axes.secondary_xaxis("top")
        top.set_xticks(range(found.first + 1, found.first + length + 1), list(found.sequence))
        top.tick_params(length=0, labelsize=7)
    figure.colorbar(image, ax=axes, label=f"change in {found.quantity}", pad=0.01)
    return figure
