"""The parts of the data check on planted answers: facts, overlaps, conflicts, balance, shifts, leaks."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from check_parts import draw, flip, make_part, make_task
from scipy import stats
from sklearn.metrics import roc_auc_score

from l2g_ray.data.check.balance import (
    compare_values,
    count_repeats,
    find_conflicts,
    measure_balance,
    measure_leak,
    measure_shift,
)
from l2g_ray.data.spool import _multipliers, find_overlap, join_facts, measure_facts

# ---- facts and overlaps ----------------------------------------------------------------------------------------------


def hashes(texts: list[str]) -> tuple[list[int], list[int]]:
    facts = measure_facts(pa.array(texts, pa.large_string()))
    return facts.hash.tolist(), facts.flipped.tolist()


def test_equal_sequences_have_equal_hashes_and_others_do_not() -> None:
    texts = [
        "A",
        "C",
        "AA",
        "AAA",
        "AC",
        "CA",
        "N",
        "R",
        "Y",
        "AN",
        "NA",
        *draw(3000, 9),
        *draw(3000, 200, 1, "ACGTRYN"),
    ]
    forward, flipped = hashes(texts)
    assert len(set(forward)) == len(set(texts))
    assert flipped == hashes([flip(text) for text in texts])[0]
    assert forward == hashes([flip(text) for text in texts])[1]
    assert forward == [hashes([text])[0][0] for text in texts[:50]] + forward[50:]


def test_every_iupac_letter_is_kept_apart() -> None:
    forward, flipped = hashes([f"AC{letter}GA" for letter in "ACGTRYSWKMBDHVN"])
    assert len(set(forward)) == len(set(flipped)) == 15


def test_slices_chunks_blocks_and_empty_rows_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["", "ACGT", "", *draw(50, 33), "GATTACA", "", ""]
    whole = measure_facts(pa.array(texts, pa.string()))
    array = pa.array(["TT", *texts, "CC"], pa.large_string()).slice(1, len(texts))
    chunked = pa.chunked_array([array.slice(0, 7), array.slice(7)])
    monkeypatch.setattr("l2g_ray.data.spool._LONGEST_BLOCK", 40)
    joined = join_facts([measure_facts(array.slice(0, 5)), measure_facts(array.slice(5))])
    for other in (measure_facts(array), measure_facts(chunked), joined):
        for name in ("hash", "flipped", "length_bp", "gc"):
            assert np.array_equal(getattr(other, name), getattr(whole, name), equal_nan=name == "gc")
    assert whole.hash[-3] == hashes(["GATTACA"])[0][0]
    assert whole.length_bp.tolist() == [len(text) for text in texts]


def test_multipliers_do_not_depend_on_the_longest_sequence() -> None:
    assert np.array_equal(_multipliers(1000)[:10], _multipliers(10))


def test_gc_leaves_unknown_letters_out() -> None:
    facts = measure_facts(pa.array(["GGCA", "NNSS", "GNNA", ""]))
    assert facts.gc.tolist()[:3:2] == [0.75, 0.5]
    assert np.isnan(facts.gc[[1, 3]]).all()


def test_no_rows() -> None:
    for empty in (measure_facts(pa.array([], pa.string())), measure_facts(pa.chunked_array([], pa.large_string()))):
        assert len(empty) == 0
        assert empty.hash.dtype == empty.flipped.dtype == np.uint64
    assert len(join_facts([])) == 0


def test_overlap_counts_both_sides_and_both_strands() -> None:
    a, b, c, palindrome = *draw(3, 40), "ACGTACGT"
    one = measure_facts(pa.array([a, a, b, c, palindrome, "AAAA"]))
    other = measure_facts(pa.array([flip(b), a, palindrome, flip(b), "GGGG"]))
    overlap = find_overlap(one, other)
    assert overlap.exact.tolist() == [True, True, False, False, True, False]
    assert overlap.reverse_complement.tolist() == [False, False, True, False, False, False]
    assert overlap.count() == {"exact": 3, "reverse_complement": 1, "other_exact": 2, "other_reverse_complement": 2}


# ---- conflicts and repeats -------------------------------------------------------------------------------------------


def test_repeats_by_strand() -> None:
    a, b = draw(2, 30)
    assert count_repeats(make_part([a, a, flip(a), b, a, flip(b)])) == {"exact": 2, "reverse_complement": 2}


def test_conflicts_within_and_across() -> None:
    a, b, c, d = draw(4, 30)
    parts = {
        "train": make_part([a, a, b, c, d], np.array([0, 1, 0, 1, 1])),
        "test": make_part([b, flip(c), d, d], np.array([1, 0, 1, 1])),
    }
    found = find_conflicts(make_task(), parts)
    assert found["within"] == {"train": {"sequences": 1, "rows": 2}, "test": {"sequences": 0, "rows": 0}}
    assert found["across"] == {"sequences": 2, "rows": 4}
    assert found["total"] == {"sequences": 3, "rows": 6}
    shown = {frozenset((r["split"], r["row"], r["label"]) for r in rows) for rows in found["examples"]}
    assert shown == {
        frozenset({("train", 1, "negative"), ("train", 2, "positive")}),
        frozenset({("train", 3, "negative"), ("test", 1, "positive")}),
        frozenset({("train", 4, "positive"), ("test", 2, "negative")}),
    }
    stranded = find_conflicts(make_task(strand_specific=True), parts)
    assert stranded["across"] == {"sequences": 1, "rows": 2}


def test_an_example_shows_the_rows_that_differ() -> None:
    (text,) = draw(1, 30)
    parts = {"train": make_part([text] * 40, np.array([0] * 39 + [1])), "test": make_part(draw(1, 30, 1))}
    (rows,) = find_conflicts(make_task(), parts)["examples"]
    assert len(rows) == 4
    assert rows[-1] == {"split": "train", "row": 40, "label": "positive"}


def test_conflicts_of_numbers_and_of_missing_values() -> None:
    a, b, c = draw(3, 30)
    values = np.array([[0, 1], [0.1, np.nan], [5, 1], [0, np.nan], [10, 2]], np.float32)
    parts = {"train": make_part([a, a, b, b, c], values), "test": make_part([c, a], np.array([[10, 2], [np.nan, 9]]))}
    found = find_conflicts(make_task(kind="regression", labels=["x", "y"]), parts)
    assert found["within"]["train"] == {"sequences": 1, "rows": 2}
    assert found["across"] == {"sequences": 1, "rows": 3}
    several = find_conflicts(make_task(kind="multilabel", labels=["x", "y"]), {"train": parts["train"]})
    assert several["within"]["train"] == {"sequences": 2, "rows": 4}


# ---- balance, shifts, leaks ------------------------------------------------------------------------------------------


def test_balance_of_classes() -> None:
    task = make_task(kind="multiclass", labels=["a", "b", "c"])
    labels = {"train": np.array([0] * 500 + [1] * 300 + [2] * 200), "test": np.array([0] * 300 + [1] * 300 + [2] * 400)}
    found = measure_balance(task, labels)
    assert found["splits"]["train"] == {"a": 500, "b": 300, "c": 200}
    assert found["distances"]["train_test"] == {"value": 0.2, "where": "a", "large": True}
    few = {"train": labels["train"], "test": np.array([0, 2])}
    assert not measure_balance(task, few)["distances"]["train_test"]["large"]


def test_balance_of_outputs() -> None:
    generator = np.random.default_rng(0)
    one, other = generator.normal(size=(2000, 2)), generator.normal([0, 1], [1, 1], size=(1500, 2))
    one[::2, 0] = np.nan
    task = make_task(kind="regression", labels=["x", "y"])
    found = measure_balance(task, {"train": one, "test": other})
    assert found["splits"]["train"]["x"]["missing"] == found["splits"]["train"]["x"]["rows"] == 1000
    assert found["distances"]["train_test"]["where"] == "y"
    ks = stats.ks_2samp(one[:, 1], other[:, 1]).statistic
    assert found["distances"]["train_test"]["value"] == pytest.approx(ks, abs=1e-4)
    flags = {"train": (one > 0).astype(float), "test": (other > 0).astype(float)}
    several = measure_balance(make_task(kind="multilabel", labels=["x", "y"]), flags)
    shares = np.abs((one[:, 1] > 0).mean() - (other[:, 1] > 0).mean())
    assert several["distances"]["train_test"] == {"value": pytest.approx(shares, abs=1e-4), "where": "y", "large": True}


def test_comparison_equals_scipy() -> None:
    generator = np.random.default_rng(1)
    one, other = generator.normal(size=300), np.round(generator.normal(0.5, 1, size=200), 1)
    found = compare_values(np.append(one, np.nan), other)
    assert found["ks"] == pytest.approx(stats.ks_2samp(one, other).statistic, abs=1e-4)
    pooled = np.sqrt((299 * one.var(ddof=1) + 199 * other.var(ddof=1)) / 498)
    assert found["effect"] == pytest.approx((other.mean() - one.mean()) / pooled, abs=1e-4)
    assert found["large"]
    assert compare_values(one[:10], other[:10])["large"] is False
    assert compare_values(one[:0], other) == {"ks": None, "effect": None, "large": False}
    assert compare_values(one[:1], other[:1])["ks"] == 1


def test_shift_of_length_and_gc() -> None:
    facts = {
        "train": make_part([*draw(300, 50), *draw(300, 60)]).facts,
        "test": make_part([*draw(200, 60, 1, "AACGT"), "N" * 60]).facts,
    }
    found = measure_shift(facts)
    assert found["length_bp"]["pairs"]["train_test"]["ks"] == 0.5
    assert found["length_bp"]["splits"]["train"]["quantiles"]["0.5"] == 55
    assert found["gc"]["pairs"]["train_test"]["effect"] < -1
    counts = found["gc"]["histogram"]["counts"]
    assert (sum(counts["train"]), sum(counts["test"])) == (600, 200)


def test_one_feature_leaks() -> None:
    generator = np.random.default_rng(2)
    codes = generator.integers(3, size=600)
    texts = [draw(1, 40 + (20 if c == 2 else 0) + int(generator.integers(30)), i)[0] for i, c in enumerate(codes)]
    part = make_part(texts, codes)
    found = measure_leak(make_task(kind="multiclass", labels=["a", "b", "c"]), part.facts, codes)
    truth = roc_auc_score(codes == 2, part.facts.length_bp)
    assert found["length_bp"] == {"measure": "auroc", "value": round(truth, 4), "label": "c", "leaks": True}
    assert not found["gc"]["leaks"]
    flipped = measure_leak(make_task(), part.facts, (codes != 2).astype(int))
    assert flipped["length_bp"]["value"] == pytest.approx(truth, abs=1e-4)
    assert flipped["length_bp"]["label"] == "positive"
    flags = np.stack([np.where(np.arange(600) % 2, np.nan, codes == 2), codes == 0], 1)
    several = measure_leak(make_task(kind="multilabel", labels=["x", "y"]), part.facts, flags)
    half = roc_auc_score(codes[::2] == 2, part.facts.length_bp[::2])
    assert several["length_bp"]["value"] == pytest.approx(half, abs=1e-4)
    values = np.stack([generator.normal(size=600), -part.facts.gc + 0.01 * generator.normal(size=600)], 1)
    numbers = measure_leak(make_task(kind="regression", labels=["x", "y"]), part.facts, values)
    rho = abs(stats.spearmanr(values[:, 1], part.facts.gc).statistic)
    assert numbers["gc"] == {"measure": "spearman", "value": pytest.approx(rho, abs=1e-4), "label": "y", "leaks": True}
    tiny = measure_leak(make_task(), part.facts.take(np.arange(4)), np.array([0, 0, 1, 1]))
    assert not tiny["length_bp"]["leaks"]
