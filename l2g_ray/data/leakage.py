"""Rows of one split that stand in another, as they are or as their reverse complement."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

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


def find_overlap(sequences: pa.ChunkedArray, others: pa.ChunkedArray) -> Overlap:
    """Compare n clean (upper-case DNA) sequences with those of another split."""
    # The reverse complement is made once, of the side that is smaller as a rule.
    flipped = reverse_complement_text(others)
    exact = _is_in(sequences, others)
    reverse = _is_in(sequences, flipped) & ~exact
    other_exact = _is_in(others, sequences)
    other_reverse = _is_in(flipped, sequences) & ~other_exact
    return Overlap(exact, reverse, int(other_exact.sum()), int(other_reverse.sum()))


def reverse_complement_text(sequences: pa.ChunkedArray) -> pa.ChunkedArray:
    """Reverse complement of n upper-case sequences, IUPAC letters included."""
    flipped = [text.translate(_COMPLEMENT)[::-1] for text in sequences.to_pylist()]
    return pa.chunked_array([pa.array(flipped, sequences.type)])


def _is_in(sequences: pa.ChunkedArray, others: pa.ChunkedArray) -> np.ndarray:
    value_set = others.combine_chunks() if others.num_chunks != 1 else others.chunk(0)
    return pc.is_in(sequences, value_set=value_set).to_numpy(zero_copy_only=False).astype(bool)
