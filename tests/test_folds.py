"""Folds: every row once, no sequence or group on two sides."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import plant

from l2g_ray.data.batches import InMemorySource
from l2g_ray.data.folds import SelectedRows, assign_folds, find_groups
from l2g_ray.errors import UserError


def complement(sequence: str) -> str:
    return sequence[::-1].translate(str.maketrans("ACGT", "TGCA"))


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(["AAC", "GTT", "ACG", "CGT", "TTTT", "GATTACA", "AA"]), min_size=8, max_size=40),
    st.integers(0, 3),
)
def test_no_sequence_is_on_two_sides_as_itself_or_as_reverse_complement(sequences: list[str], seed: int) -> None:
    half = len(sequences) // 2
    sources = [InMemorySource(pa.table({"sequence": part})) for part in (sequences[:half], sequences[half:])]
    groups = find_groups(sources)
    different = {min(s, complement(s)) for s in sequences}
    assert len(np.unique(groups)) == len(different)
    n_folds = min(3, len(different))
    folds = assign_folds(groups, None, n_folds, seed, "rows")
    assert folds.shape == (len(sequences),)
    assert set(folds.tolist()) == set(range(n_folds))
    for one, fold in zip(sequences, folds, strict=True):
        for other, other_fold in zip(sequences, folds, strict=True):
            if other in (one, complement(one)):
                assert fold == other_fold


def test_given_groups_are_joined_through_equal_sequences() -> None:
    sequences = ["AAC", "CCC", "GTT", "TAT", "CAC", "GAG"]
    # The reverse complement of the first is in b, so that a and b cannot be on two sides.
    table = pa.table({"sequence": sequences, "chrom": ["a", "a", "b", "b", "c", "d"]})
    groups = find_groups([InMemorySource(table)], "chrom")
    assert len(set(groups[:4])) == 1
    assert len(set(groups)) == 3


def test_classes_are_dealt_out_evenly() -> None:
    classes = np.repeat([0, 1, 2], [80, 15, 5])
    folds = assign_folds(np.arange(100), classes, 5, 0, "rows")
    for code, share in ((0, 16), (1, 3), (2, 1)):
        assert (np.bincount(folds[classes == code], minlength=5) == share).all()
    assert (folds == assign_folds(np.arange(100), classes, 5, 0, "rows")).all()
    assert (folds != assign_folds(np.arange(100), classes, 5, 1, "rows")).any()


def test_too_few_rows_for_the_folds_are_refused() -> None:
    with pytest.raises(UserError, match="2 different sequences or groups are too few for 3 folds"):
        assign_folds(np.array([0, 0, 1]), None, 3, 0, "rows")


def test_selected_rows_are_those_of_all_sources_in_order() -> None:
    tables = [plant(5), plant(4, seed=1)]
    wanted = np.array([1, 0, 0, 1, 0, 0, 1, 1, 0], bool)
    selected = SelectedRows(tuple(InMemorySource(t) for t in tables), wanted)
    whole = pa.concat_tables(tables)
    assert selected.n_rows == 4
    for _ in range(2):
        assert pa.concat_tables(selected.tables()) == whole.filter(pa.array(wanted))
