"""References of an attribution: dinucleotide-preserving shuffles of each sequence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from l2g_ray.sequence import N_CODE


def shuffle_dinucleotides(
    codes: np.ndarray, lengths_bp: np.ndarray, n: int = 20, seed: int = 0, rows: Sequence[int] | None = None
) -> np.ndarray:
    """Shuffles of right-padded codes (batch, length) uint8 that keep all dinucleotide counts and both end bases.

    Returns (batch, n, length) uint8. N and padding stay in place: each stretch between them is shuffled by itself. A row's
    shuffles depend on `seed` and its number in `rows` (its place by default), not on the rows beside it. A stretch that has no
    other order (a run of one base) comes back as it is.
    """
    shuffled = np.repeat(codes[:, None], n, axis=1)
    for row, length_bp in enumerate(lengths_bp):
        row_seed = np.random.SeedSequence((seed, row if rows is None else int(rows[row]))).generate_state(1)[0]
        for start, end in _find_stretches(codes[row, :length_bp]):
            shuffled[row, :, start:end] = _shuffle(codes[row, start:end], n, int(row_seed) + start)
    return shuffled


def _find_stretches(codes: np.ndarray) -> list[tuple[int, int]]:
    real = np.concatenate([[False], codes != N_CODE, [False]])
    edges = np.flatnonzero(real[1:] != real[:-1])
    # Of three bases both ends stay, so nothing can move.
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a > 3]


def _shuffle(codes: np.ndarray, n: int, seed: int) -> np.ndarray:
    from tangermeme.ersatz import dinucleotide_shuffle

    one_hot = torch.eye(4)[torch.from_numpy(codes.astype(np.int64))].T.repeat(n, 1, 1)
    # One shuffle a copy: of several shuffles of one sequence it refuses those that all come out alike.
    seeds = [(seed + i) % 2**31 for i in range(n)]
    return dinucleotide_shuffle(one_hot, n=1, random_state=seeds)[:, 0].argmax(1).numpy().astype(np.uint8)
