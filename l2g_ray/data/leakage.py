"""Rows of one split that stand in another, as they are or as their reverse complement."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from l2g_ray.data.facts import Facts

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
