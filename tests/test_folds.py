"""Folds: every row once, no sequence or group on two sides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import connected_components
from toys import plant

from l2g_ray.config import DataSettings
from l2g_ray.data.batches import InMemorySource
from l2g_ray.data.check.balance import Part, choose_k
from l2g_ray.data.check.similar import THRESHOLD, find_families
from l2g_ray.data.dataset import GROUPS, open_prepared
from l2g_ray.data.prepare import prepare
from l2g_ray.data.raw import SourceOptions
from l2g_ray.data.sources import open_source
from l2g_ray.data.splits import Fold, SelectedRows, assign_folds, find_groups, make_folds
from l2g_ray.data.spool import measure_facts
from l2g_ray.errors import UserError


def complement(sequence: str) -> str:
    return sequence[::-1].translate(str.maketrans("ACGT", "TGCA"))


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(["AAC", "GTT", "ACG", "CGT", "TTTT", "GATTACA", "AA"]), min_size=8, max_size=40),
    st.integers(0, 3),
)
def test_no_sequence_is_on_two_sides_as_itself_or_as_reverse_complement(sequences: list[str], seed: int) -> None:
    groups = find_groups(measure_facts(pa.array(sequences)).canonical)
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
    chromosomes = np.array(["a", "a", "b", "b", "c", "d"])
    groups = find_groups(measure_facts(pa.array(sequences)).canonical, chromosomes)
    assert groups.tolist() == [0, 0, 0, 0, 1, 2]


def draw_families(n_families: int, n_members: int, seed: int) -> tuple[list[str], list[int]]:
    """Sequences of 120 bp: of each family a random one and relatives with three substitutions, every other one flipped."""
    generator = np.random.default_rng(seed)
    sequences, family = [], []
    for number in range(n_families):
        ancestor = generator.integers(0, 4, 120)
        for member in range(n_members):
            codes = ancestor.copy()
            places = generator.choice(120, 3 if member else 0, replace=False)
            codes[places] = (codes[places] + 1) % 4
            text = "".join("ACGT"[c] for c in codes)
            sequences.append(complement(text) if member % 2 else text)
            family.append(number)
    return sequences, family


@pytest.mark.parametrize("seed", range(3))
def test_families_are_the_near_duplicates_of_all_pairs(seed: int) -> None:
    sequences, family = draw_families(12, 4, seed)
    order = np.random.default_rng(seed).permutation(len(sequences))
    texts = pa.array([sequences[i] for i in order])
    part = Part(measure_facts(texts), np.zeros(len(texts)), lambda: iter([texts]))
    k, n = choose_k(part.facts.length_bp), len(texts)
    sets = [{min(t[i : i + k], complement(t[i : i + k])) for i in range(len(t) - k + 1)} for t in texts.to_pylist()]
    near = np.array([[len(a & b) / len(a | b) >= THRESHOLD for b in sets] for a in sets])
    expected = connected_components(near, directed=False)[1]
    found = find_families(part)
    assert (np.equal.outer(found, found) == np.equal.outer(expected, expected)).all()
    assert len(np.unique(expected)) < n
    # A family of the drawing is one of the found ones, or falls apart into a few; none is joined with another.
    assert all(len({family[order[i]] for i in np.flatnonzero(found == one)}) == 1 for one in np.unique(found))


def test_near_duplicates_are_on_one_side_of_folds_and_of_a_cut_validation(tmp_path: Path) -> None:
    sequences, family = draw_families(40, 5, 0)
    order = np.random.default_rng(1).permutation(200)
    rows = [f"{sequences[i]},{'ab'[family[i] % 2]}" for i in order]
    test, _ = draw_families(20, 1, 9)
    for name, lines in (("train", rows), ("test", [f"{t},{'ab'[i % 2]}" for i, t in enumerate(test)])):
        (tmp_path / f"{name}.csv").write_text("sequence,label\n" + "\n".join(lines) + "\n")
    prepared = prepare(open_source([tmp_path], SourceOptions()), tmp_path / "out", DataSettings())
    kept = {split: prepared.table(split, ["sequence"])["sequence"].to_pylist() for split in ("train", "valid")}
    known = dict(zip(sequences, family, strict=True))
    sides = {split: {known[sequence] for sequence in found} for split, found in kept.items()}
    assert sides["valid"]
    assert not sides["train"] & sides["valid"]
    fold = make_folds(prepared, 4, 0)[0].read(prepared)
    of = [known[sequence] for sequence in kept["train"] + kept["valid"]]
    assert all(len(set(fold[np.array(of) == one].tolist())) == 1 for one in set(of))
    assert np.bincount(fold).max() - np.bincount(fold).min() <= 5
    assert not prepared.manifest["warnings"]


def test_relatives_of_too_many_rows_are_named_and_not_kept_together(tmp_path: Path) -> None:
    related, _ = draw_families(1, 30, 0)
    others, _ = draw_families(60, 1, 1)
    test, _ = draw_families(20, 1, 9)
    for name, texts in (("train", related + others), ("test", test)):
        lines = [f"{text},{'ab'[i % 2]}" for i, text in enumerate(texts)]
        (tmp_path / f"{name}.csv").write_text("sequence,label\n" + "\n".join(lines) + "\n")
    prepared = prepare(open_source([tmp_path], SourceOptions()), tmp_path / "out", DataSettings())
    warnings = [text for text in prepared.manifest["warnings"] if "too large for one fold" in text]
    assert len(warnings) == 1
    assert warnings[0].startswith("30 rows")
    assert len(np.unique(prepared.row_groups())) == 90


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


def write_leaky(folder: Path, groups: bool) -> None:
    """Train and valid rows in which sequences come twice, as they are or as reverse complements; and a test split."""
    rng = np.random.default_rng(0)
    known = ["".join(rng.choice(list("ACGT"), 40)) for _ in range(60)]
    sequences = [*known, *(complement(s) for s in known[:30]), *known[30:40]]
    folder.mkdir()
    for split, rows in (("train", sequences), ("test", ["".join(rng.choice(list("ACGT"), 40)) for _ in range(10)])):
        table = {"sequence": rows, "label": [i % 2 for i in range(len(rows))]}
        if groups:
            table["donor"] = [f"d{i % 12}" for i in range(len(rows))]
        pd.DataFrame(table).to_csv(folder / f"{split}.csv", index=False)


@pytest.mark.parametrize("groups", [False, True])
def test_no_leak_crosses_the_folds_of_a_prepared_task(groups: bool, tmp_path: Path) -> None:
    write_leaky(tmp_path / "rows", groups)
    options = SourceOptions(group_column="donor") if groups else SourceOptions()
    prepared = prepare(open_source([tmp_path / "rows"], options), tmp_path / "out", DataSettings())
    rows = pa.concat_tables([prepared.table("train"), prepared.table("valid")])
    folds = make_folds(prepared, 3, 0)
    dealt = folds[0].read(prepared)
    assert (dealt == folds[2].read(prepared)).all()
    assert len(dealt) == rows.num_rows
    # Each row is held out once, and no sequence is trained on and held out, on either strand.
    held = [np.flatnonzero(dealt == fold.number) for fold in folds]
    assert np.sort(np.concatenate(held)).tolist() == list(range(rows.num_rows))
    sides: dict[str, set[int]] = {}
    for sequence, fold in zip(rows["sequence"].to_pylist(), dealt.tolist(), strict=True):
        sides.setdefault(min(sequence, complement(sequence)), set()).add(fold)
    assert max(len(found) for found in sides.values()) == 1
    assert min(len(rows) for rows in held) > 0
    if groups:
        donor = {row: f"d{row % 12}" for row in range(100)}
        where = {int(i) - 1: fold for i, fold in zip(rows["id"].to_pylist(), dealt.tolist(), strict=True)}
        assert all(len({where[r] for r in where if donor[r] == name}) == 1 for name in set(donor.values()))


def test_folds_of_a_task_that_an_earlier_version_prepared(tmp_path: Path) -> None:
    write_leaky(tmp_path / "rows", False)
    prepared = prepare(open_source([tmp_path / "rows"], SourceOptions()), tmp_path / "out", DataSettings())
    (tmp_path / "out" / GROUPS).unlink()
    with pytest.raises(UserError, match="prepare the task again, or set folds to 0"):
        make_folds(open_prepared(tmp_path / "out"), 3, 0)
    (alone,) = make_folds(prepared, 0, 0)
    assert alone == Fold(0, 0, 0)
    assert (alone.read(prepared) == 0).sum() == prepared.n_rows("valid")
