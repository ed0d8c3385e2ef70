"""Saturation mutagenesis: every single change of a sequence, scored, as a table and pictures."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from l2g_ray.errors import UserError, nearest
from l2g_ray.explain.logos import plot_logo
from l2g_ray.explain.scores import Model, score_codes, scored_outputs
from l2g_ray.predict import Predictor
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
    """Return scores of all single-base changes of n sequences.

    Parameters
    ----------
    score : any function of codes and lengths; it sees at most `batch_size` sequences at once.
    codes, lengths_bp : right-padded sequences (n, length) and their lengths (n,), as `sequence.encode` gives them.
    region : positions start to end, counted from 0, the end excluded; all when None.
    progress : called with the number of scored sequences.

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
    """Return how many sequences `saturation_mutagenesis` scores beside the references."""
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
        """Contribution of the observed base, (length, 4), else 0: minus the mean difference of the three others."""
        present = np.array([[base == letter for base in ALPHABET] for letter in self.sequence])
        means = self.differences.sum(1) / (N_BASES - 1)
        return np.where(present, -means[:, None], 0.0)

    def table(self) -> pd.DataFrame:
        """Return a row for each position, counted from 1: `position`, `base`, and the differences for A, C, G and T."""
        positions = range(self.first + 1, self.first + len(self.sequence) + 1)
        columns = dict(zip(ALPHABET, self.differences.T, strict=True))
        return pd.DataFrame({"position": positions, "base": list(self.sequence), **columns})

    def strongest(self, n: int = 10) -> list[dict[str, Any]]:
        """Return the n changes with the largest differences, by size; positions counted from 1."""
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


def mutate_sequence(
    predictor: Predictor,
    sequence: str,
    outputs: list[int],
    *,
    region: tuple[int, int] | None = None,
    both_strands: bool | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Mutagenesis]:
    """Saturation mutagenesis of one clean sequence by a predictor.

    Parameters
    ----------
    outputs : indices into the task's labels; see `choose_outputs`.
    region : see `parse_region`; the whole sequence by default.
    both_strands : predict means over both strands; by default as the model does.
    progress : gets the number of scored mutants, and of how many.
    """
    codes, lengths_bp = encode(pa.array([sequence], pa.large_string()))
    total = count_mutants(codes, lengths_bp, region)
    reader = predictor.read(predictor.strand_averaged if both_strands is None else both_strands)
    return mutate(
        reader.forward,
        reader.task,
        sequence,
        outputs,
        both_strands=reader.strands_apart,
        batch_size=reader.batch_size,
        region=region,
        progress=lambda done: progress(done, total),
    )


def choose_outputs(task: Task, name: str | None, option: str) -> list[int]:
    """Return indices of the outputs to score: the named one, else those of `scored_outputs` where these are at most
    ten.

    Raises UserError for an unknown name, or too many outputs; messages name the `option`.
    """
    labels = list(task.labels)
    if name is not None:
        if name not in labels:
            raise UserError(f"{option} '{name}': no such output of task '{task.name}' ({nearest(name, labels)})")
        return [labels.index(name)]
    chosen = scored_outputs(task)
    if len(chosen) > MOST_OUTPUTS:
        raise UserError(f"task '{task.name}' has {len(chosen)} outputs; choose one with {option}")
    return chosen


def parse_region(region: str | None, length_bp: int) -> tuple[int, int]:
    """Read START-END, counted from 1 and both included, as start and end counted from 0, the end excluded.

    The whole sequence when None. Raises UserError for anything outside of the sequence.
    """
    if region is None:
        return 0, length_bp
    found = re.fullmatch(r"(\d+)-(\d+)", region)
    if found is None or not 1 <= int(found[1]) <= int(found[2]) <= length_bp:
        raise UserError(f"region '{region}': give START-END within 1-{length_bp}, the sequence's length")
    return int(found[1]) - 1, int(found[2])


MOST_OUTPUTS = 10
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
        found.table().to_csv(folder / MATRIX, sep="\t", index=False, float_format="%.6g", lineterminator="\n")
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
        raise UserError(
            f"{folder}: cannot be written ({error.strerror or error}); name another output folder (--out)"
        ) from None
    return list_files(folder)


def list_files(folder: Path) -> list[Path]:
    """Return what `write_mutagenesis` writes into a folder."""
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
