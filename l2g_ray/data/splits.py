"""The validation split that is cut from train when none is given."""

from __future__ import annotations

import hashlib

import numpy as np


def cut_validation(n_rows: int, fraction: float, seed: int, classes: np.ndarray | None = None) -> np.ndarray:
    """Row indices of the validation part, sorted int64.

    Parameters
    ----------
    classes : (n_rows,) int codes to stratify by: each class gives its share, rounded, and every class of two or more
        rows gives at least one and keeps at least one. None draws from all rows alike.

    The same arguments give the same indices. Empty where no class has two rows.
    """
    generator = np.random.default_rng(seed)
    groups = (
        [np.arange(n_rows)] if classes is None else [np.flatnonzero(classes == code) for code in np.unique(classes)]
    )
    chosen = []
    for group in groups:
        n_chosen = min(max(round(fraction * len(group)), 1), len(group) - 1)
        chosen.append(generator.permutation(group)[: max(n_chosen, 0)])
    return np.sort(np.concatenate(chosen)).astype(np.int64) if chosen else np.empty(0, np.int64)


def hash_indices(indices: np.ndarray) -> str:
    """sha256 of row indices (n,), as little-endian int64."""
    return hashlib.sha256(np.ascontiguousarray(indices, dtype="<i8").tobytes()).hexdigest()
