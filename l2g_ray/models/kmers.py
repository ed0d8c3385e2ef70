"""Sparse k-mer features of sequence codes: contiguous, gapped and positional.

numpy and scipy only, vectorised over rows and positions. A row's features depend on that row alone, so rows may come in any
chunks. Where both strands are the same example, a sequence and its reverse complement have the same features.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse

from l2g_ray.sequence import N_CODE

# Positions a chunk, about: rows are counted in chunks, which bounds the memory of a pattern's index arrays.
CHUNK_POSITIONS = 1_000_000


@dataclass(frozen=True)
class Pattern:
    """The positions of a window that a k-mer reads, as increasing offsets from 0: (0, 1, 2) is a 3-mer, (0, 1, 4) has a gap."""

    offsets: tuple[int, ...]

    @property
    def span(self) -> int:
        """Width of the window in bp."""
        return self.offsets[-1] + 1

    @property
    def n_kmers(self) -> int:
        """Words of this pattern: 4^k."""
        return 4 ** len(self.offsets)

    @property
    def is_symmetric(self) -> bool:
        """Whether the pattern reads the same from either end, so that each word has a reverse complement among the words."""
        return all(a + b == self.offsets[-1] for a, b in zip(self.offsets, reversed(self.offsets), strict=True))

    @cached_property
    def canonical(self) -> np.ndarray:
        """(4^k,) int32: a number for each word, the same one for a word and its reverse complement."""
        number = np.arange(self.n_kmers)
        reverse, rest = np.zeros_like(number), number.copy()
        for _ in self.offsets:
            reverse, rest = reverse * 4 + (3 - rest % 4), rest // 4
        return np.unique(np.minimum(number, reverse), return_inverse=True)[1].astype(np.int32)

    def count_features(self, both_strands: bool) -> int:
        """Return columns of this pattern: 4^k words; half of them (rounded up) where word and reverse complement are
        merged.
        """
        return int(self.canonical.max()) + 1 if both_strands and self.is_symmetric else self.n_kmers


@dataclass(frozen=True)
class Words:
    """A word in each window of n sequences: the `columns` (n, windows) of their features, whether there is one that counts
    (`known`, (n, windows)), and which bases of a window it reads, as `offsets` from the window's first."""

    columns: np.ndarray
    known: np.ndarray
    offsets: tuple[int, ...]


def _contiguous(k: int) -> Pattern:
    return Pattern(tuple(range(k)))


def _halves(k: int, gap: int) -> Pattern:
    return Pattern((*range(k), *range(k + gap, 2 * k + gap)))


def _offsets(digits: str) -> Pattern:
    return Pattern(tuple(map(int, digits)))


# 21 patterns: contiguous, two halves with a gap as dimers bind, and spaced seeds of PatternHunter's kind.
GAPPED: tuple[Pattern, ...] = (
    *(_contiguous(k) for k in (5, 6, 7)),
    *(_halves(3, gap) for gap in range(1, 9)),
    *(_halves(4, gap) for gap in range(4)),
    *map(_offsets, ("013467", "023457", "01356", "0124678", "014589", "024579")),
)
# Composition and short words, for trees.
SHORT: tuple[Pattern, ...] = tuple(_contiguous(k) for k in range(1, 7))
# Word length to how far, in bins to either side, a word still counts for a place.
POSITIONAL: dict[int, int] = {1: 0, 2: 0, 3: 1, 4: 2}
# The most places of a sequence; places of longer sequences have several bp each.
MOST_PLACES = 1000


def iter_chunks(codes: np.ndarray) -> Iterator[slice]:
    """Slices of the rows of codes (n, length) that hold at most about `CHUNK_POSITIONS` positions each."""
    rows = max(1, CHUNK_POSITIONS // max(1, codes.shape[1]))
    for start in range(0, len(codes), rows):
        yield slice(start, start + rows)


def count_kmers(codes: np.ndarray, patterns: Iterable[Pattern], both_strands: bool) -> list[Any]:
    """Count words of each pattern.

    Parameters
    ----------
    codes : (n, length) uint8, A C G T = 0..3; a window with any other code (N, padding) is no word.
    both_strands : a sequence's counts are those of itself and of its reverse complement.

    Returns
    -------
    A CSR matrix (n, columns of the pattern) float32 for each pattern.
    """
    return [
        _stack([_count(codes[rows], p, both_strands) for rows in iter_chunks(codes)], p, both_strands) for p in patterns
    ]


def _stack(parts: list[Any], pattern: Pattern, both_strands: bool) -> Any:
    if not parts:
        return scipy.sparse.csr_matrix((0, pattern.count_features(both_strands)), dtype=np.float32)
    return scipy.sparse.vstack(parts, format="csr") if len(parts) > 1 else parts[0]


def find_words(codes: np.ndarray, pattern: Pattern, both_strands: bool) -> list[Words]:
    """Find the words of a pattern in the given strand and, where these are other words, in its reverse complement.

    Arguments as of `count_kmers`; a sequence's count of a word is how often it is found.
    """
    if codes.shape[1] < pattern.span:
        return []
    numbers, known = _number(codes, pattern)
    if both_strands and pattern.is_symmetric:
        return [Words(pattern.canonical[numbers], known, pattern.offsets)]
    found = [Words(numbers, known, pattern.offsets)]
    if both_strands:
        # The reverse complement, read by the same pattern, in the order of the given strand.
        mirrored = Pattern(tuple(pattern.offsets[-1] - offset for offset in reversed(pattern.offsets)))
        found.append(Words(*_number(codes, mirrored, complement=True), mirrored.offsets))
    return found


def _count(codes: np.ndarray, pattern: Pattern, both_strands: bool) -> Any:
    return _to_csr(find_words(codes, pattern, both_strands), len(codes), pattern.count_features(both_strands))


def _number(codes: np.ndarray, pattern: Pattern, complement: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Return number (n, windows) of the word in each window, and whether it is one; of the window's reverse
    complement if asked.
    """
    windows = codes.shape[1] - pattern.span + 1
    numbers = np.zeros((len(codes), windows), np.int32)
    known = np.ones((len(codes), windows), bool)
    for offset in reversed(pattern.offsets) if complement else pattern.offsets:
        letters = codes[:, offset : offset + windows]
        known &= letters < N_CODE
        numbers <<= 2
        numbers += (3 - letters) & 3 if complement else letters & 3
    return numbers, known


def _to_csr(words: list[Words], n_rows: int, n_columns: int) -> Any:
    """Return counts (n_rows, n_columns) of the words that were found."""
    if not words:
        return scipy.sparse.csr_matrix((n_rows, n_columns), dtype=np.float32)
    columns, known = (np.concatenate([getattr(one, name) for one in words], 1) for name in ("columns", "known"))
    starts = np.concatenate([[0], np.cumsum(known.sum(1))])
    indices = columns[known]
    counts = scipy.sparse.csr_matrix((np.ones(len(indices), np.float32), indices, starts), (n_rows, n_columns))
    counts.sum_duplicates()
    return counts


@dataclass(frozen=True)
class Places:
    """(word, place) features: words of k letters where they stand, `POSITIONAL` says how exactly.

    A place is one bp of sequences up to `MOST_PLACES` long, else `bin_bp` bp. Columns: for each k, place by place, 4^k words.
    """

    length_bp: int

    @property
    def bin_bp(self) -> int:
        """Width of a place in bp."""
        return -(-self.length_bp // MOST_PLACES)

    @property
    def n_places(self) -> int:
        """Places of the longest sequence."""
        return -(-self.length_bp // self.bin_bp)

    @property
    def n_features(self) -> int:
        """Columns."""
        return sum(4**k for k in POSITIONAL) * self.n_places

    def find(self, codes: np.ndarray) -> Any:
        """Return a CSR matrix (n, n_features) float32 of ones where a word stands at, or near, a place; codes as
        `count_kmers`.
        """
        parts = [self._find(codes[rows]) for rows in iter_chunks(codes)]
        empty = scipy.sparse.csr_matrix((0, self.n_features), dtype=np.float32)
        return scipy.sparse.vstack(parts, format="csr") if parts else empty

    def find_words(self, codes: np.ndarray) -> list[Words]:
        """Return the positions of the words, once for each place that they count for."""
        found, first = [], 0
        for k, reach in POSITIONAL.items():
            if codes.shape[1] >= k:
                pattern = _contiguous(k)
                numbers, known = _number(codes, pattern)
                places = np.arange(numbers.shape[1]) // self.bin_bp
                for step in range(-reach, reach + 1):
                    moved = places + step
                    within = (moved >= 0) & (moved < self.n_places)
                    columns = first + np.clip(moved, 0, self.n_places - 1).astype(np.int32)[None] * 4**k + numbers
                    found.append(Words(columns, known & within[None], pattern.offsets))
            first += 4**k * self.n_places
        return found

    def _find(self, codes: np.ndarray) -> Any:
        found = _to_csr(self.find_words(codes), len(codes), self.n_features)
        found.data[:] = 1
        return found
