"""In-silico saturation mutagenesis: every base of a sequence put into every other, and what that does to the score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from l2g_ray.explain.scores import Model, score_codes
from l2g_ray.sequence import ALPHABET, N_CODE, encode
from l2g_ray.tasks.schema import Task

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
