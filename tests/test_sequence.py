from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from l2g_ray.errors import UserError
from l2g_ray.sequence import N_CODE, decode, encode, make_mask, one_hot, reverse_complement, shift

texts = st.lists(st.text("ACGTN", min_size=0, max_size=40), min_size=1, max_size=12)
quick = settings(max_examples=60, deadline=None)


def encoded(sequences: list[str], length_bp: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    codes, lengths = encode(sequences, length_bp)
    return torch.from_numpy(codes), torch.from_numpy(lengths)


@quick
@given(texts)
def test_decode_inverts_encode(sequences: list[str]) -> None:
    assert decode(*encode(sequences)) == sequences


@quick
@given(texts, st.integers(0, 50))
def test_fixed_width_cuts_and_pads_on_the_right(sequences: list[str], width: int) -> None:
    codes, lengths = encode(sequences, width)
    assert codes.shape == (len(sequences), width)
    assert decode(codes, lengths) == [text[:width] for text in sequences]
    for row, n in zip(codes, lengths):
        assert (row[n:] == N_CODE).all()


@quick
@given(texts, st.integers(0, 11), st.integers(0, 11))
def test_slices_and_chunks_encode_alike(sequences: list[str], cut: int, start: int) -> None:
    whole = pa.array(sequences, pa.string())
    chunked = pa.chunked_array([whole[:cut], whole[cut:]], pa.string())
    expected, lengths = encode(sequences)
    for column in (whole, chunked, whole.cast(pa.large_string()), whole.dictionary_encode()):
        codes, found = encode(column)
        assert np.array_equal(codes, expected)
        assert np.array_equal(found, lengths)
    codes, found = encode(whole[start:])
    assert decode(codes, found) == sequences[start:]


@pytest.mark.parametrize(("text", "read"), [("acgtn", "ACGTN"), ("ACGU", "ACGT"), ("RYSWKMBDHV", "N" * 10)])
def test_case_rna_and_iupac(text: str, read: str) -> None:
    assert decode(*encode([text])) == [read]


@pytest.mark.parametrize("text", ["ACGX", "AC GT", "MEEPQSDPSV", "ÅCGT"])
def test_other_letters_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="row 1, position"):
        encode(["ACGT", text])


@quick
@given(texts, st.integers(0, 5))
def test_c7_reverse_complement_is_its_own_inverse(sequences: list[str], padding: int) -> None:
    codes, lengths = encoded(sequences, max(map(len, sequences)) + padding)
    assert torch.equal(reverse_complement(reverse_complement(codes, lengths), lengths), codes)


@quick
@given(texts, st.integers(0, 5))
def test_reverse_complement_is_the_text_one(sequences: list[str], padding: int) -> None:
    codes, lengths = encoded(sequences, max(map(len, sequences)) + padding)
    flipped = decode(reverse_complement(codes, lengths).numpy(), lengths.numpy())
    assert flipped == [text.translate(str.maketrans("ACGT", "TGCA"))[::-1] for text in sequences]


@quick
@given(texts, st.integers(-45, 45))
def test_shift_moves_bases_and_fills_with_n(sequences: list[str], offset: int) -> None:
    codes, lengths = encoded(sequences)
    moved = decode(shift(codes, lengths, torch.full_like(lengths, offset)).numpy(), lengths.numpy())
    for before, after in zip(sequences, moved):
        n = min(abs(offset), len(before))
        kept = len(before) - n
        expected = "N" * n + before[:kept] if offset > 0 else before[n:] + "N" * n
        assert after == expected


def test_shift_and_reverse_complement_commute_up_to_direction() -> None:
    codes, lengths = encoded(["ACGTTGCAAC", "GGATC"])
    offsets = torch.tensor([2, -1])
    one = reverse_complement(shift(codes, lengths, offsets), lengths)
    other = shift(reverse_complement(codes, lengths), lengths, -offsets)
    assert torch.equal(one, other)


def test_one_hot_by_hand() -> None:
    codes, lengths = encoded(["ACN", "T"])
    mask = make_mask(lengths, 3)
    assert mask.tolist() == [[True, True, True], [True, False, False]]
    four = one_hot(codes, mask)
    assert four[0].tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert four[1].tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 0], [1, 0, 0]]
    five = one_hot(codes, mask, channels=5)
    assert five[0, 4].tolist() == [0, 0, 1]
    assert five[1, 4].tolist() == [0, 0, 0]
