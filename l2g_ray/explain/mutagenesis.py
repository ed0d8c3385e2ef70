"""Saturation mutagenesis: every single change of a sequence, scored, as a table and pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from l2g_ray.errors import UserError
from l2g_ray.explain.logos import plot_logo
from l2g_ray.explain.scores import Model, score_codes
from l2g_ray.results.figures import GREY, _new_figure, _styled, save
from l2g_ray.sequence import ALPHABET, N_CODE, encode
from l2g_ray.tasks.schema import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

N_BASES = len(ALPHABET)
# Codes (batch, length) uint8 and lengths (batch,) to any scores (batch, k).
Score = Callable[[torch.Tensor, torch.Tensor], np.ndarray]


def saturation_mutagenesis(
    score: Score,
    codes: np.ndarray,
    lengths_bp: np.ndarray,
    batch_size: int = 256,
    *,
    region: tuple[int, int] | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of all single-base changes of n sequences.

    Parameters
    ----------
    score : any function of codes and lengths; it sees at most `batch_size` sequences at once.
    codes, lengths_bp : right-padded sequences (n, length) and their lengths (n,), as `sequence.encode` gives them.
    region : positions start to end, counted from 0, the end excluded; all when None.
    progress : told the number of scored sequences.

    Returns
    -------
    reference (n, k), and mutants (n, length, 4, k) float64 in the order A C G T. Where a base is not changed, it is the
    reference's score; beyond the end of a sequence and outside the region it is NaN. At an N all four bases are scored.
    """
    n, width = codes.shape
    start, end = region or (0, width)
    lengths = np.asarray(lengths_bp)
    reference = np.concatenate(
        [
            score(torch.from_numpy(codes[i : i + batch_size]), torch.from_numpy(lengths[i : i + batch_size]))
            for i in range(0, n, batch_size)
        ]
    )
    mutants = np.full((n, width, N_BASES, reference.shape[1]), np.nan)
    rows, positions, bases = [], [], []
    for row in range(n):
        for position in range(start, min(end, int(lengths_bp[row]))):
            for base in range(N_BASES):
                if codes[row, position] == base:
                    mutants[row, position, base] = reference[row]
                else:
                    rows.append(row)
                    positions.append(position)
                    bases.append(base)
    for first in range(0, len(rows), batch_size):
        some = slice(first, first + batch_size)
        changed = codes[rows[some]].copy()
        changed[np.arange(len(changed)), positions[some]] = bases[some]
        found = score(torch.from_numpy(changed), torch.from_numpy(lengths[rows[some]]))
        mutants[rows[some], positions[some], bases[some]] = found
        progress(first + len(changed))
    return reference, mutants


def count_mutants(codes: np.ndarray, lengths_bp: np.ndarray, region: tuple[int, int] | None = None) -> int:
    """How many sequences `saturation_mutagenesis` scores beside the references."""
    start, end = region or (0, codes.shape[1])
    total = 0
    for row, length in zip(codes, lengths_bp, strict=True):
        inside = row[start : min(end, int(length))]
        total += int(np.where(inside == N_CODE, N_BASES, N_BASES - 1).sum())
    return total


@dataclass(frozen=True)
class Mutagenesis:
    """One sequence and one output. `first` is the region's first position, counted from 0; its `sequence` is the region's.

    `differences` (length, 4): score of the changed sequence minus that of the reference, in the order A C G T, 0 where
    nothing is changed. `scores` (length, 4) and `reference`: the probabilities or values themselves. `quantity` names
    what the differences are of: log-odds, or the value for regression.
    """

    sequence: str
    first: int
    output: str
    quantity: str
    reference: float
    scores: np.ndarray
    differences: np.ndarray

    @property
    def contributions(self) -> np.ndarray:
        """Of the base that stands there, (length, 4), else 0: minus the mean difference of the three others."""
        present = np.array([[base == letter for base in ALPHABET] for letter in self.sequence])
        means = self.differences.sum(1) / (N_BASES - 1)
        return np.where(present, -means[:, None], 0.0)

    def strongest(self, n: int = 10) -> list[dict[str, Any]]:
        """The n changes with the largest differences, by size; positions counted from 1."""
        order = np.argsort(-np.abs(self.differences), axis=None, kind="stable")[:n]
        changes = [divmod(int(i), N_BASES) for i in order]
        return [
            {
                "position": self.first + p + 1,
                "from": self.sequence[p],
                "to": ALPHABET[b],
                "difference": float(self.differences[p, b]),
                "score": float(self.scores[p, b]),
            }
            for p, b in changes
            if self.sequence[p] != ALPHABET[b]
        ]


def mutate(
    model: Model,
    task: Task,
    sequence: str,
    outputs: list[int],
    *,
    both_strands: bool,
    batch_size: int = 256,
    region: tuple[int, int] | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Mutagenesis]:
    """Saturation mutagenesis of one clean sequence, a result for each output (index into the task's labels)."""

    def score(codes: torch.Tensor, lengths_bp: torch.Tensor) -> np.ndarray:
        found = score_codes(model, task, codes, lengths_bp, both_strands)
        # Regression: the value stands for both.
        return np.concatenate([found.values, found.values if found.log_odds is None else found.log_odds], 1)

    codes, lengths_bp = encode(pa.array([sequence], pa.large_string()))
    reference, mutants = saturation_mutagenesis(score, codes, lengths_bp, batch_size, region=region, progress=progress)
    start, end = region or (0, len(sequence))
    k = task.n_outputs
    return [
        Mutagenesis(
            sequence=sequence[start:end],
            first=start,
            output=task.labels[i],
            quantity="value" if task.kind == "regression" else "log-odds",
            reference=float(reference[0, i]),
            scores=mutants[0, start:end, :, i],
            differences=mutants[0, start:end, :, k + i] - reference[0, k + i],
        )
        for i in outputs
    ]


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
