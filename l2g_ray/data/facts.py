"""What is kept of every row while it passes by (hashes of both strands, length, GC), and which rows stand in another split."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from l2g_ray.sequence import bytes_and_offsets

_LETTERS = "ACGTRYSWKMBDHVN"
_COMPLEMENTS = "TGCAYRSWMKVHDBN"
_LONGEST_BLOCK = 1 << 16  # bases hashed at once: what the cache holds


@dataclass(frozen=True)
class Facts:
    """Arrays (n,) over the rows of a split, in order.

    hash, flipped : uint64 of the sequence and of its reverse complement; equal sequences have equal hashes, others
        differ but for a chance of about n^2 / 2^63.
    length_bp : int64; gc : float32, the share of G and C among A C G T (NaN where there is none).
    """

    hash: np.ndarray
    flipped: np.ndarray
    length_bp: np.ndarray
    gc: np.ndarray

    @property
    def canonical(self) -> np.ndarray:
        """One hash for both strands (n,)."""
        return np.minimum(self.hash, self.flipped)

    def take(self, rows: np.ndarray) -> Facts:
        """The facts of some rows: indices, or a mask (n,)."""
        return Facts(self.hash[rows], self.flipped[rows], self.length_bp[rows], self.gc[rows])

    def __len__(self) -> int:
        return len(self.hash)


def measure_facts(sequences: pa.Array | pa.ChunkedArray) -> Facts:
    """The facts of n clean (upper-case DNA) sequences."""
    raw, offsets = bytes_and_offsets(sequences)
    lengths = np.diff(offsets)
    positions = _multipliers(int(lengths.max()) if len(lengths) else 0)
    parts = [_measure_block(raw, offsets[a : b + 1], positions) for a, b in _blocks(offsets)]
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)] if parts else [np.empty(0, np.uint64)] * 3
    return Facts(mix_bits(columns[0]), mix_bits(columns[1]), lengths, columns[2].astype(np.float32))


def join_facts(parts: Iterable[Facts]) -> Facts:
    """The facts of several tables, one after the other."""
    parts = list(parts) or [measure_facts(pa.array([], pa.large_string()))]
    return Facts(
        *(np.concatenate([getattr(p, name) for p in parts]) for name in ("hash", "flipped", "length_bp", "gc"))
    )


def _tables() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(20_240_229)
    values = {letter: generator.integers(1, 1 << 63, dtype=np.uint64) | np.uint64(1) for letter in _LETTERS}
    forward, flipped = np.zeros(256, np.uint64), np.zeros(256, np.uint64)
    strong, known = np.zeros(256, np.int64), np.zeros(256, np.int64)
    for letter, complement in zip(_LETTERS, _COMPLEMENTS, strict=True):
        forward[ord(letter)], flipped[ord(letter)] = values[letter], values[complement]
        strong[ord(letter)], known[ord(letter)] = letter in "GC", letter in "ACGT"
    return forward, flipped, strong, known


_FORWARD, _FLIPPED, _STRONG, _KNOWN = _tables()


def _multipliers(width: int) -> np.ndarray:
    """One random odd multiplier a position, the same for every call and any width."""
    generator = np.random.Generator(np.random.PCG64(7))
    return generator.integers(1, 1 << 63, size=width, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


def _blocks(offsets: np.ndarray) -> list[tuple[int, int]]:
    edges, start = [], 0
    while start < len(offsets) - 1:
        end = int(np.searchsorted(offsets, offsets[start] + _LONGEST_BLOCK, side="right")) - 1
        end = min(max(end, start + 1), len(offsets) - 1)
        edges.append((start, end))
        start = end
    return edges


def _measure_block(raw: np.ndarray, offsets: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, ...]:
    letters = raw[offsets[0] : offsets[-1]]
    starts = offsets[:-1] - offsets[0]
    lengths = np.diff(offsets)
    column = np.arange(len(letters)) - np.repeat(starts, lengths)
    from_end = np.repeat(lengths, lengths) - 1 - column
    with np.errstate(over="ignore"):
        forward = _sum_rows(_FORWARD[letters] * positions[column], starts, lengths)
        flipped = _sum_rows(_FLIPPED[letters] * positions[from_end], starts, lengths)
    known = _sum_rows(_KNOWN[letters], starts, lengths)
    with np.errstate(invalid="ignore"):
        gc = np.where(known > 0, _sum_rows(_STRONG[letters], starts, lengths) / known, np.nan)
    return forward + lengths.astype(np.uint64), flipped + lengths.astype(np.uint64), gc


def _sum_rows(values: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    sums = np.zeros(len(starts), values.dtype)
    # Empty rows have no letters of their own, and reduceat would give them a neighbour's.
    filled = lengths > 0
    if filled.any():
        sums[filled] = np.add.reduceat(values, starts[filled])
    return sums


def mix_bits(hashes: np.ndarray) -> np.ndarray:
    """Spread the bits (finaliser of splitmix64), so that any of them can be used."""
    h = hashes.astype(np.uint64)
    with np.errstate(over="ignore"):
        h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


_COMPLEMENT = str.maketrans("ACGTRYSWKMBDHVN", "TGCAYRSWMKVHDBN")


@dataclass(frozen=True)
class Overlap:
    """Which of n rows stand in another split: two masks (n,) bool that exclude each other, and the other side's counts.

    `reverse_complement` holds rows that stand there only as their reverse complement.
    """

    exact: np.ndarray
    reverse_complement: np.ndarray
    other_exact: int
    other_reverse_complement: int

    @property
    def any(self) -> np.ndarray:
        """Mask (n,) of rows that stand in the other split either way."""
        return self.exact | self.reverse_complement

    def count(self) -> dict[str, int]:
        """Counts from both sides, for the manifest."""
        return {
            "exact": int(self.exact.sum()),
            "reverse_complement": int(self.reverse_complement.sum()),
            "other_exact": self.other_exact,
            "other_reverse_complement": self.other_reverse_complement,
        }


def find_overlap(facts: Facts, others: Facts) -> Overlap:
    """Compare the n rows of a split with those of another, by their hashes."""
    exact = np.isin(facts.hash, others.hash)
    reverse = np.isin(facts.flipped, others.hash) & ~exact
    other_exact = np.isin(others.hash, facts.hash)
    other_reverse = np.isin(others.flipped, facts.hash) & ~other_exact
    return Overlap(exact, reverse, int(other_exact.sum()), int(other_reverse.sum()))


def reverse_complement_text(sequences: pa.Array | pa.ChunkedArray) -> pa.ChunkedArray:
    """Reverse complement of n upper-case sequences, IUPAC letters included. For a few: a Python loop a row."""
    flipped = [text.translate(_COMPLEMENT)[::-1] for text in sequences.to_pylist()]
    return pa.chunked_array([pa.array(flipped, sequences.type)])
