"""One split as the checks see it, and the sets of canonical k-mers of its sequences."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from l2g_ray.data.facts import Facts, mix_bits
from l2g_ray.sequence import CODE_TABLE, N_CODE, bytes_and_offsets


@dataclass(frozen=True)
class Part:
    """A split of n rows.

    facts : of its rows, in order.
    labels : (n,) integer codes for classification, else (n, C) floats with NaN for a missing value.
    sequences : each call gives the n clean (upper-case DNA) sequences from the beginning, in arrays of any size.
    """

    facts: Facts
    labels: np.ndarray
    sequences: Callable[[], Iterator[pa.Array | pa.ChunkedArray]]

    def __len__(self) -> int:
        return len(self.facts)


# 4^12 k-mers still index a table (64 MiB of int32); below 8, unrelated sequences share too many.
SHORTEST_K, LONGEST_K = 8, 12
_BLOCK_BP = 1 << 18


def choose_k(lengths_bp: np.ndarray) -> int:
    """The longest k of 8 to 12 at which two substitutions in the median length (n,) leave a similarity of 0.5.

    A substitution takes up to k of the L - k + 1 k-mers away and brings as many new ones, so two of them leave at least
    (L - 3k + 1) / (L + k + 1), if no k-mer comes twice; that is 0.5 at L = 7k - 1. So k is 12 from 83 bp on, 10 at
    70 bp, and 8 below 62 bp, where two substitutions are found for sure from 55 bp on, and one from 31 bp on.
    """
    median = int(np.median(lengths_bp)) if len(lengths_bp) else 0
    return int(np.clip((median + 1) // 7, SHORTEST_K, LONGEST_K))


def iterate_kmers(
    part: Part, k: int, kept: np.ndarray | None = None, scale: float = 1.0
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """The k-mer sets of a part's rows, in blocks of about 260,000 bases.

    Parameters
    ----------
    kept : mask (n,) of the rows to look at; all when None. They are numbered from 0 without gaps.
    scale : only about one k-mer in `scale` is taken, the same ones for every sequence (FracMinHash).

    Yields
    ------
    The end (number of the row after the block's last), and the rows and codes of its distinct k-mers, both (m,), sorted
    by row, then code. A code (uint32) is the lesser of the k-mer's and its reverse complement's number in base 4.
    K-mers with N or an IUPAC letter are left out.
    """
    read, number = 0, 0
    for sequences in part.sequences():
        chosen = sequences if kept is None else sequences.filter(pa.array(kept[read : read + len(sequences)]))
        read += len(sequences)
        raw, offsets = bytes_and_offsets(chosen)
        start = 0
        while start < len(offsets) - 1:
            end = max(start + 1, int(np.searchsorted(offsets, offsets[start] + _BLOCK_BP, side="right")) - 1)
            rows, codes = _measure_block(
                raw[offsets[start] : offsets[end]], np.diff(offsets[start : end + 1]), k, scale
            )
            yield number + end, rows + (number + start), codes
            start = end
        number += len(offsets) - 1


def _measure_block(raw: np.ndarray, lengths: np.ndarray, k: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    windows = len(raw) - k + 1
    if windows <= 0:
        return np.empty(0, np.int64), np.empty(0, np.uint32)
    letters = CODE_TABLE[raw].astype(np.uint32)
    row = np.repeat(np.arange(len(lengths), dtype=np.uint64), lengths)
    forward, flipped = np.zeros(windows, np.uint32), np.zeros(windows, np.uint32)
    for i in range(k):
        letter = letters[i : i + windows]
        forward = (forward << np.uint32(2)) | (letter & np.uint32(3))
        flipped |= (np.uint32(3) - (letter & np.uint32(3))) << np.uint32(2 * i)
    codes = np.minimum(forward, flipped)
    unknown = np.concatenate([[0], np.cumsum(letters >= N_CODE)])
    whole = (unknown[k:] == unknown[:-k]) & (row[:windows] == row[k - 1 :])
    if scale > 1:
        whole &= mix_bits(codes) < np.uint64(int(2**64 / scale))
    keys = (row[:windows][whole] << np.uint64(32)) | codes[whole]
    keys.sort()  # faster than np.unique, which hashes
    keys = keys[np.concatenate([keys[:1] == keys[:1], keys[1:] != keys[:-1]])]
    return (keys >> np.uint64(32)).astype(np.int64), keys.astype(np.uint32)
