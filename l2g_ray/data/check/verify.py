"""Chosen pairs of rows, looked at in full."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from scipy import sparse

from l2g_ray.data.check.kmers import iterate_kmers
from l2g_ray.data.check.part import Part
from l2g_ray.data.leakage import reverse_complement_text


def measure_pairs(
    part: Part, first: np.ndarray, others: Part, other_first: np.ndarray, pairs: np.ndarray, k: int, budget: float
) -> np.ndarray:
    """Jaccard index (p,) float32 of all k-mers of pairs (p, 2).

    A pair numbers a sequence of `first` (u,) and one of `other_first` (v,), which are rows of the parts. The parts are
    read once for every `budget` k-mers of the pairs.
    """
    similarity = np.zeros(len(pairs), np.float32)
    bound = part.facts.length_bp[first][pairs[:, 0]] + others.facts.length_bp[other_first][pairs[:, 1]]
    for chosen in _group(bound, budget):
        mine, place = np.unique(first[pairs[chosen, 0]], return_inverse=True)
        yours, other_place = np.unique(other_first[pairs[chosen, 1]], return_inverse=True)
        a, b = _read_sets(part, mine, k), _read_sets(others, yours, k)
        shared = np.asarray(a[place].multiply(b[other_place]).sum(axis=1)).ravel()
        union = np.diff(a.indptr)[place] + np.diff(b.indptr)[other_place] - shared
        similarity[chosen] = shared / np.maximum(union, 1)
    return similarity


def _group(sizes: np.ndarray, budget: float) -> Iterator[slice]:
    ends = np.cumsum(sizes)
    start = 0
    while start < len(sizes):
        before = ends[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(ends, before + budget, side="right")))
        yield slice(start, end)
        start = end


def _read_sets(part: Part, rows: np.ndarray, k: int) -> sparse.csr_matrix:
    """CSR (rows, 4^k) of ones: the k-mer sets of some rows (sorted, distinct)."""
    kept = np.zeros(len(part), bool)
    kept[rows] = True
    blocks = [(numbers, codes) for _, numbers, codes in iterate_kmers(part, k, kept)]
    numbers, codes = (np.concatenate(column) for column in zip(*blocks, strict=True))
    bounds = np.searchsorted(numbers, np.arange(len(rows) + 1))
    ones = np.ones(len(codes), np.int32)
    return sparse.csr_matrix((ones, codes.astype(np.int32), bounds), shape=(len(rows), 4**k))


def read_rows(part: Part, rows: set[int]) -> dict[int, str]:
    """The text of a few rows, counted from 0."""
    texts: dict[int, str] = {}
    wanted = np.array(sorted(rows), np.int64)
    read = 0
    for sequences in part.sequences() if rows else ():
        here = wanted[(wanted >= read) & (wanted < read + len(sequences))]
        texts |= dict(zip(here.tolist(), sequences.take(pa.array(here - read)).to_pylist(), strict=True))
        read += len(sequences)
    return texts


def find_strand(one: str, other: str, k: int) -> str:
    """'same', or 'reverse' where more k-mers of one are found in the reverse complement of the other."""
    flipped = reverse_complement_text(pa.array([other])).to_pylist()[0]
    sets = [{text[i : i + k] for i in range(len(text) - k + 1)} for text in (one, other, flipped)]
    return "same" if len(sets[0] & sets[1]) >= len(sets[0] & sets[2]) else "reverse"
