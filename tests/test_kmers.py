"""k-mer features against plain Python."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from l2g_ray.models import kmers
from l2g_ray.models.kmers import GAPPED, MOST_PLACES, POSITIONAL, SHORT, Pattern, Places, count_kmers
from l2g_ray.sequence import encode, reverse_complement

SEQUENCES = st.lists(st.text("ACGTN", min_size=1, max_size=30), min_size=1, max_size=5)
PATTERNS = st.sampled_from([p for p in (*GAPPED, *SHORT) if len(p.offsets) <= 6])


def codes_of(sequences: list[str]) -> np.ndarray:
    return encode(pa.array(sequences))[0]


def words_of(sequence: str, pattern: Pattern) -> Counter[str]:
    windows = (sequence[start : start + pattern.span] for start in range(len(sequence) - pattern.span + 1))
    words = ("".join(window[offset] for offset in pattern.offsets) for window in windows)
    return Counter(word for word in words if "N" not in word)


def complement(sequence: str) -> str:
    return sequence[::-1].translate(str.maketrans("ACGT", "TGCA"))


def number(word: str) -> int:
    return int("".join(str("ACGT".index(letter)) for letter in word), 4)


def test_no_pattern_counts_twice() -> None:
    assert len(set(GAPPED)) == len(GAPPED) == 21
    mirrored = {tuple(p.offsets[-1] - offset for offset in reversed(p.offsets)) for p in GAPPED if not p.is_symmetric}
    assert not mirrored & {p.offsets for p in GAPPED}


@settings(deadline=None)
@given(SEQUENCES, PATTERNS)
def test_counts_of_one_strand_are_those_of_a_loop(sequences: list[str], pattern: Pattern) -> None:
    (counted,) = count_kmers(codes_of(sequences), [pattern], both_strands=False)
    expected = np.zeros((len(sequences), pattern.n_kmers))
    for row, sequence in enumerate(sequences):
        for word, times in words_of(sequence, pattern).items():
            expected[row, number(word)] = times
    np.testing.assert_array_equal(counted.toarray(), expected)


@settings(deadline=None)
@given(SEQUENCES, PATTERNS)
def test_counts_of_both_strands_are_those_of_a_loop(sequences: list[str], pattern: Pattern) -> None:
    (counted,) = count_kmers(codes_of(sequences), [pattern], both_strands=True)
    expected = np.zeros((len(sequences), pattern.n_kmers))
    for row, sequence in enumerate(sequences):
        for strand in (sequence, complement(sequence)):
            for word, times in words_of(strand, pattern).items():
                expected[row, number(word)] += times
    if pattern.is_symmetric:  # a word and its reverse complement share a column, and a window counts once
        merged = np.zeros(counted.shape)
        for word in range(pattern.n_kmers):
            merged[:, pattern.canonical[word]] = expected[:, word]
        palindromes = np.bincount(pattern.canonical) == 1
        expected = np.where(palindromes, merged / 2, merged)
    np.testing.assert_array_equal(counted.toarray(), expected)


@settings(deadline=None)
@given(SEQUENCES, PATTERNS)
def test_counts_do_not_know_the_strand_nor_the_padding(sequences: list[str], pattern: Pattern) -> None:
    codes, lengths = (torch.from_numpy(np.ascontiguousarray(x)) for x in encode(pa.array(sequences)))
    (given_strand,) = count_kmers(codes.numpy(), [pattern], both_strands=True)
    wider = np.pad(reverse_complement(codes, lengths).numpy(), ((0, 0), (0, 3)), constant_values=4)
    (other_strand,) = count_kmers(wider, [pattern], both_strands=True)
    assert (given_strand != other_strand).nnz == 0


def test_chunks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = np.random.default_rng(0).integers(0, 5, (50, 40)).astype(np.uint8)
    whole, places = count_kmers(codes, GAPPED, both_strands=True), Places(40).find(codes)
    monkeypatch.setattr(kmers, "CHUNK_POSITIONS", 200)
    for one, other in zip(whole, count_kmers(codes, GAPPED, both_strands=True), strict=True):
        assert (one != other).nnz == 0
    assert (places != Places(40).find(codes)).nnz == 0


@settings(deadline=None, max_examples=30)
@given(SEQUENCES)
def test_places_are_those_of_a_loop(sequences: list[str]) -> None:
    features = Places(30)
    expected = np.zeros((len(sequences), features.n_features))
    for row, sequence in enumerate(sequences):
        start = 0
        for k, reach in POSITIONAL.items():
            for at in range(len(sequence) - k + 1):
                word = sequence[at : at + k]
                for place in range(max(0, at - reach), min(29, at + reach) + 1):
                    if "N" not in word:
                        expected[row, start + place * 4**k + number(word)] = 1
            start += 30 * 4**k
    np.testing.assert_array_equal(features.find(codes_of(sequences)).toarray(), expected)


def test_places_of_a_long_sequence_are_bins() -> None:
    features = Places(20_000)
    assert features.n_places == MOST_PLACES
    assert features.bin_bp == 20
    codes = np.full((1, 20_000), 4, np.uint8)
    codes[0, 45] = 2
    found = features.find(codes)
    assert found.nnz == 1
    assert found.indices[0] == 2 * 4 + 2  # the third bin, the letter G
