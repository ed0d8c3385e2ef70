"""The k-mers of one side, held as a sparse matrix, and the best partner in it for every row of the other side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from l2g_ray.data.check.kmers import iterate_kmers
from l2g_ray.data.check.part import Part

_PRODUCTS_A_BLOCK = 1 << 22  # multiplications at once, hence the most pairs that are held


@dataclass
class Best:
    """For each of n rows: the similarity (n,) float32 to its best partner and the partner's number (n,), -1 if none."""

    similarity: np.ndarray
    partner: np.ndarray

    @classmethod
    def none(cls, n_rows: int) -> Best:
        """Nothing found yet."""
        return cls(np.zeros(n_rows, np.float32), np.full(n_rows, -1, np.int64))

    def update(self, rows: np.ndarray, partners: np.ndarray, similarities: np.ndarray) -> None:
        """Take in pairs (p,) in any order."""
        order = np.lexsort((similarities, rows))
        rows, partners, similarities = rows[order], partners[order], similarities[order]
        best = np.flatnonzero(np.diff(rows, append=-1))
        best = best[similarities[best] > self.similarity[rows[best]]]
        self.similarity[rows[best]] = similarities[best]
        self.partner[rows[best]] = partners[best]


@dataclass(frozen=True)
class Index:
    """The k-mers of the held side's rows.

    column : (4^k,) int32, the matrix's row for a k-mer; -1 where no held row has it, -2 where too many have it.
    matrix : CSR (k-mers, held rows) of ones.  rows_with : (k-mers,) in how many held rows a k-mer stands.
    sizes : (held rows,) how many of a row's k-mers count.  dropped : how many k-mers stand in too many rows.
    """

    k: int
    scale: float
    column: np.ndarray
    matrix: sparse.csr_matrix
    rows_with: np.ndarray
    sizes: np.ndarray
    dropped: int

    @property
    def is_exact(self) -> bool:
        """Every k-mer counts, so that similarities are those of the whole sets."""
        return self.scale == 1 and self.dropped == 0


def build_index(part: Part, kept: np.ndarray, k: int, scale: float, streamed_kmers: float, work: float) -> Index:
    """Hold the kept rows of a part.

    K-mers that stand in too many rows count on neither side: the most frequent ones are left out until a side of
    `streamed_kmers` k-mers that are spread alike needs no more than `work` multiplications.
    """
    blocks = [(rows, codes) for _, rows, codes in iterate_kmers(part, k, kept, scale)]
    rows = np.concatenate([r.astype(np.int32) for r, _ in blocks]) if blocks else np.empty(0, np.int32)
    codes = np.concatenate([c for _, c in blocks]) if blocks else np.empty(0, np.uint32)
    blocks.clear()
    ordered = np.sort(codes)
    first = np.flatnonzero(np.concatenate([ordered[:1] == ordered[:1], ordered[1:] != ordered[:-1]]))
    kinds, rows_with = ordered[first], np.diff(first, append=len(ordered))
    del ordered
    limit = _find_limit(rows_with, work * len(codes) / max(streamed_kmers, 1.0))
    common = rows_with > limit
    column = np.full(4**k, -1, np.int32)
    column[kinds[common]] = -2
    column[kinds[~common]] = np.arange((~common).sum(), dtype=np.int32)
    columns = column[codes]
    counted = columns >= 0
    n_rows = int(kept.sum())
    sizes = np.bincount(rows[counted], minlength=n_rows)
    ones = np.ones(int(counted.sum()), np.int32)
    shape = (int((~common).sum()), n_rows)
    matrix = sparse.csr_matrix((ones, (columns[counted], rows[counted])), shape=shape)
    return Index(k, scale, column, matrix, rows_with[~common], sizes, int(common.sum()))


def _find_limit(rows_with: np.ndarray, work: float) -> int:
    """The number of rows above which a k-mer is left out; a k-mer in r rows costs r^2."""
    if not len(rows_with):
        return 0
    counts = np.sort(rows_with)
    fitting = int(np.searchsorted(np.cumsum(counts.astype(float) ** 2), work, side="right"))
    if fitting == len(counts):
        return int(counts[-1])
    # All k-mers that are as frequent as the first that does not fit go with it; those in one row never do.
    return max(int(counts[fitting]) - 1, 1)


def find_best(index: Index, part: Part, kept: np.ndarray, floor: float, within: bool) -> tuple[Best, Best, np.ndarray]:
    """The best partners at or above the similarity `floor`, both ways, between the kept rows of a part and the held.

    `within`: the held rows are the same ones, and no row is its own partner.
    Returns the best of the kept rows, the best of the held rows, and how many k-mers of each kept row count.
    """
    n_rows = int(kept.sum())
    ours, theirs, sizes = Best.none(n_rows), Best.none(len(index.sizes)), np.zeros(n_rows, np.int64)
    start = 0
    for end, rows, codes in iterate_kmers(part, index.k, kept, index.scale):
        columns = index.column[codes]
        sizes[start:end] = np.bincount(rows[columns != -2] - start, minlength=end - start)
        shared = columns >= 0
        for first, product in _multiply(index, rows[shared] - start, columns[shared], end - start):
            number = np.repeat(np.arange(product.shape[0]) + start + first, np.diff(product.indptr))
            partner = product.indices.astype(np.int64)
            similarity = product.data / (sizes[number] + index.sizes[partner] - product.data)
            found = (similarity >= floor) & ((number != partner) if within else True)
            number, partner, similarity = number[found], partner[found], similarity[found].astype(np.float32)
            ours.update(number, partner, similarity)
            theirs.update(partner, number, similarity)
        start = end
    return ours, theirs, sizes


def _multiply(
    index: Index, rows: np.ndarray, columns: np.ndarray, n_rows: int
) -> Iterator[tuple[int, sparse.csr_matrix]]:
    """Counts of shared k-mers, some rows at a time: the first row's number, and CSR (rows, held rows)."""
    bounds = np.searchsorted(rows, np.arange(n_rows + 1))
    work = np.concatenate([[0], np.cumsum(index.rows_with[columns])])[bounds]
    start = 0
    while start < n_rows:
        end = max(start + 1, int(np.searchsorted(work, work[start] + _PRODUCTS_A_BLOCK, side="right")) - 1)
        indices = columns[bounds[start] : bounds[end]]
        shape = (end - start, len(index.rows_with))
        block = sparse.csr_matrix(
            (np.ones(len(indices), np.int32), indices, bounds[start : end + 1] - bounds[start]), shape=shape
        )
        yield start, block @ index.matrix
        start = end
