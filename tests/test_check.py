"""The data check on planted answers, and on real sets whose counts are known."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from scipy import stats
from sklearn.metrics import roc_auc_score

from l2g_ray.data.check import Part, check_splits
from l2g_ray.data.check.balance import measure_balance
from l2g_ray.data.check.conflicts import count_repeats, find_conflicts
from l2g_ray.data.check.kmers import choose_k, iterate_kmers
from l2g_ray.data.check.numbers import compare_values
from l2g_ray.data.check.shifts import measure_leak, measure_shift
from l2g_ray.data.check.similar import find_similar
from l2g_ray.data.facts import _multipliers, join_facts, measure_facts
from l2g_ray.data.leakage import find_overlap
from l2g_ray.errors import UserError
from l2g_ray.results.data_check import render_check, render_summary, write_check_page
from l2g_ray.tasks.catalogue import find_tasks, parse_task
from l2g_ray.tasks.schema import Task

SHARED = Path(__file__).parents[2] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no real data at {SHARED}")
COMPLEMENT = str.maketrans("ACGTRYSWKMBDHVN", "TGCAYRSWMKVHDBN")


def flip(text: str) -> str:
    return text.translate(COMPLEMENT)[::-1]


def draw(n: int, length: int = 70, seed: int = 0, letters: str = "ACGT") -> list[str]:
    generator = np.random.default_rng(seed)
    return ["".join(row) for row in generator.choice(list(letters), (n, length))]


def make_part(texts: Sequence[str], labels: np.ndarray | None = None, rows_a_table: int = 37) -> Part:
    column = pa.array(texts, pa.large_string())
    cuts = range(0, max(len(texts), 1), rows_a_table)
    labels = np.zeros(len(texts), np.int64) if labels is None else np.asarray(labels)
    return Part(measure_facts(column), labels, lambda: (column.slice(i, rows_a_table) for i in cuts))


def make_task(**fields) -> Task:
    base = {"bench": "user", "name": "own", "kind": "binary", "labels": ["negative", "positive"]}
    return parse_task({**base, **fields}, "test")


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
    monkeypatch.setattr("l2g_ray.data.facts._LONGEST_BLOCK", 40)
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


# ---- near-duplicates -------------------------------------------------------------------------------------------------


def kmer_set(text: str, k: int) -> frozenset[str]:
    words = (text[i : i + k] for i in range(len(text) - k + 1))
    return frozenset(min(word, flip(word)) for word in words if set(word) <= set("ACGT"))


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / max(len(one | other), 1)


def compare_all(texts: list[str], others: list[str], k: int) -> np.ndarray:
    sets, other_sets = [kmer_set(t, k) for t in texts], [kmer_set(t, k) for t in others]
    return np.array([[jaccard(a, b) for b in other_sets] for a in sets])


def substitute(text: str, n: int, generator: np.random.Generator) -> str:
    letters = list(text)
    for place in generator.choice(len(text), n, replace=False):
        letters[place] = generator.choice([letter for letter in "ACGT" if letter != letters[place]])
    return "".join(letters)


def plant(length: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Unrelated rows, and beside them shifted windows, 1 to 5 substitutions, either strand, copies and N."""
    generator = np.random.default_rng(seed)
    texts, others = draw(150, length, seed + 1), draw(60, length, seed + 2)
    for i, text in enumerate(texts[:80]):
        shifted = int(generator.integers(1, length // 2))
        changed = [
            text[shifted:] + draw(1, shifted, 100 + i)[0],
            substitute(text, 1 + i % 5, generator),
            text,
            text[: length // 2] + "N" + text[length // 2 + 1 :],
        ][i % 4]
        others.append(flip(changed) if i % 3 == 0 else changed)
    return texts, others


@pytest.mark.parametrize("length", [60, 70, 200])
def test_near_duplicates_equal_all_pairs(length: int) -> None:
    texts, others = plant(length)
    found = find_similar(make_part(texts), make_part(others))
    k = choose_k(np.array([length]))
    assert (found["k"], found["sampled"]) == (k, False)
    truth = compare_all(texts, others, k)
    exact = np.array([[a in (b, flip(b)) for b in others] for a in texts])
    near = truth >= 0.5
    assert found["near"] == near.any(1).sum() > 30
    assert found["other_near"] == near.any(0).sum()
    assert found["near_only"] == (near.any(1) & ~exact.any(1)).sum()
    assert found["other_near_only"] == (near.any(0) & ~exact.any(0)).sum()
    edges = np.array([*found["histogram"]["edges"][:-1], 1.0])
    best = np.round(truth.max(0), 6)
    assert found["histogram"]["other_counts"] == np.histogram(best[best >= 0.3], edges)[0].tolist()
    assert len(found["examples"]) == min(20, found["other_near_only"])
    for pair in found["examples"]:
        a, b = texts[pair["row"] - 1], others[pair["other_row"] - 1]
        assert pair["similarity"] == pytest.approx(jaccard(kmer_set(a, k), kmer_set(b, k)), abs=5e-4)
        same = sum(b[i : i + k] in a for i in range(len(b)))
        reverse = sum(flip(b)[i : i + k] in a for i in range(len(b)))
        assert pair["strand"] == ("same" if same > reverse else "reverse")


def test_unrelated_sequences_are_far_below_the_threshold() -> None:
    for length in (40, 70, 200, 500):
        k = choose_k(np.array([length]))
        assert compare_all(draw(100, length), draw(100, length, 1), k).max() < 0.15


def test_two_substitutions_stay_above_the_threshold() -> None:
    generator = np.random.default_rng(0)
    for length in (57, 72, 86, 110, 500):
        k = choose_k(np.array([length]))
        texts = draw(60, length, length)
        assert min(jaccard(kmer_set(t, k), kmer_set(substitute(t, 2, generator), k)) for t in texts) >= 0.5


def test_near_duplicates_within_a_split() -> None:
    texts, others = plant(70)
    everything = [*texts, *others, texts[140], flip(texts[141])]
    found = find_similar(make_part(everything))
    truth = compare_all(everything, everything, found["k"])
    np.fill_diagonal(truth, 0)
    exact = np.array([sum(a in (b, flip(b)) for b in everything) > 1 for a in everything])
    assert found["near"] == (truth >= 0.5).any(1).sum()
    assert found["near_only"] == ((truth >= 0.5).any(1) & ~exact).sum()
    assert not any(key.startswith("other_") for key in found)


@pytest.mark.parametrize("limit", [{"budget": 20_000}, {"work": 4e4}, {"budget": 20_000, "work": 1e4}])
def test_limits_lose_few_and_invent_none(limit: dict[str, float]) -> None:
    texts, others = plant(300, seed=5)
    repeat = draw(1, 150, 77)[0]
    texts += [repeat + tail for tail in draw(60, 150, 78)]
    others += [repeat + tail for tail in draw(60, 150, 79)]
    truth = compare_all(texts, others, 12)
    found = find_similar(make_part(texts), make_part(others), **limit)
    assert found["sampled"]
    assert (found["scale"] > 1) == ("budget" in limit)
    assert (found["dropped_kmers"] > 0) == ("work" in limit)
    possible = (truth >= 0.5).any(0).sum()
    assert 0.9 * possible <= found["other_near"] <= possible
    for pair in found["examples"]:
        assert pair["similarity"] == pytest.approx(truth[pair["row"] - 1, pair["other_row"] - 1], abs=5e-4)


def test_results_do_not_depend_on_how_the_rows_come(monkeypatch: pytest.MonkeyPatch) -> None:
    texts, others = plant(70)
    expected = find_similar(make_part(texts), make_part(others))
    monkeypatch.setattr("l2g_ray.data.check.kmers._BLOCK_BP", 500)
    monkeypatch.setattr("l2g_ray.data.check.index._PRODUCTS_A_BLOCK", 50)
    assert find_similar(make_part(texts, rows_a_table=3), make_part(others, rows_a_table=1000)) == expected


def test_sets_of_kmers() -> None:
    texts = ["ACGTACGTACGTN", *draw(40, 30, 3, "ACGTNR"), "ACGT", "", "A" * 30]
    blocks = list(iterate_kmers(make_part(texts, rows_a_table=11), 8))
    assert [end for end, _, _ in blocks] == [11, 22, 33, 44]
    rows, codes = (np.concatenate([block[i] for block in blocks]) for i in (1, 2))
    for row, text in enumerate(texts):
        numbers = {int(word.translate(str.maketrans("ACGT", "0123")), 4) for word in kmer_set(text, 8)}
        # In base 4 the order of numbers is that of the words.
        assert set(codes[rows == row].tolist()) == numbers
        assert (rows == row).sum() == len(numbers)


def test_rows_that_say_nothing_are_counted() -> None:
    text = draw(1, 70)[0]
    found = find_similar(make_part([text, "N" * 70, "ACGTACGTA", text[:40]]), make_part([text, "N" * 70]), k=8)
    assert (found["near"], found["near_only"], found["unmeasured"]) == (3, 1, 1)  # a copy of N's is an exact one
    assert (found["other_near"], found["other_near_only"], found["other_unmeasured"]) == (2, 0, 0)


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


# ---- the whole check and its page ------------------------------------------------------------------------------------


def planted_parts() -> dict[str, Part]:
    texts, others = plant(70)
    generator = np.random.default_rng(0)
    labels, other_labels = (generator.integers(2, size=len(t)) for t in (texts, others))
    texts = [text.replace("T", "G", 9) if label else text for text, label in zip(texts, labels, strict=True)]
    valid = [*draw(30, 70, 50), texts[100]]
    return {
        "train": make_part(texts, labels),
        "valid": make_part(valid, np.arange(31) % 2),
        "test": make_part(others, other_labels),
    }


def texts_of(check: dict) -> str:
    return "\n".join(f"{finding['level']}: {finding['text']}" for finding in check["findings"])


def test_findings_tell_numbers_and_what_to_do() -> None:
    check = check_splits(make_task(), planted_parts())
    assert json.loads(json.dumps(check, allow_nan=False)) == check
    counts = check["duplicates"]["train_in_test"]
    told, flipped = texts_of(check), counts["reverse_complement"]
    assert f"warning: {counts['exact'] + flipped:,} of 150 (" in told
    assert f"({flipped} only as reverse complement)" in told
    assert check["duplicates"]["train_in_valid"]["exact"] == 1
    assert "The GC share alone tells 'positive' in train" in texts_of(check)
    near = check["near"]["train_in_test"]["other_near_only"]
    assert f"warning: {near} of 140 (" in texts_of(check)
    levels = [finding["level"] for finding in check["findings"]]
    assert levels == sorted(levels, reverse=True)
    assert all(finding["text"].endswith(".") and "\n" not in finding["text"] for finding in check["findings"])


def test_clean_splits_have_no_findings() -> None:
    parts = {s: make_part(draw(n, 70, n), np.arange(n) % 2) for s, n in (("train", 400), ("valid", 90), ("test", 91))}
    check = check_splits(make_task(), parts)
    assert check["findings"] == []
    assert check["near"]["train_in_test"]["histogram"]["other_counts"] == [0] * 14


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel", "regression"])
@pytest.mark.parametrize("case", ["one row", "unknown letters", "short", "no valid"])
def test_odd_splits_pass(tmp_path: Path, kind: str, case: str) -> None:
    names = ["a", "b"] if kind == "binary" else ["a", "b", "c"]
    task = make_task(kind=kind, labels=names)
    texts = {"one row": draw(1), "unknown letters": ["N" * 70] * 3, "short": ["A", "C", "GT"], "no valid": draw(9)}[
        case
    ]
    n = len(texts)
    labels = np.arange(n) % 2 if task.is_classification else np.full((n, 3), [0.0, 1.0, np.nan], np.float32)
    splits = ("train", "test") if case == "no valid" else ("train", "valid", "test")
    check = check_splits(task, {split: make_part(texts, labels) for split in splits})
    json.dumps(check, allow_nan=False)
    assert check["duplicates"]["train_in_test"]["exact"] == n
    assert ("train_in_valid" in check["duplicates"]) == (case != "no valid")
    Console(file=io.StringIO(), width=110).print(render_check(check, "odd"))
    assert write_check_page(tmp_path, {"odd": check}).exists()


def test_near_can_be_left_out(tmp_path: Path) -> None:
    check = check_splits(make_task(), planted_parts(), near=False)
    assert check["near"] is None
    assert write_check_page(tmp_path, {"own": check}).exists()


@pytest.mark.parametrize("plain", [True, False])
def test_terminal_view_fits(plain: bool) -> None:
    console = Console(width=110, force_terminal=not plain, color_system=None, record=True, file=io.StringIO())
    console.print(render_check(check_splits(make_task(), planted_parts()), "user/own", plain=plain))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 110
    assert "test seen in train" in text
    assert "…" not in text


def test_summary_of_many_fits() -> None:
    check = check_splits(make_task(), planted_parts())
    console = Console(width=110, file=io.StringIO(), record=True)
    console.print(render_summary({f"genomic_benchmarks/human_ensembl_regulatory_{i}": check for i in range(3)}))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 110
    near = check["near"]["train_in_test"]
    assert text.count(f" {near['near_only']} / {near['other_near_only']} ") == 3


class Page(HTMLParser):
    VOID = ("meta", "link", "img", "br", "use", "path")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href"):
                self.links.append(value or "")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_page_is_whole_and_needs_nothing_else(tmp_path: Path) -> None:
    check = check_splits(make_task(labels=["<none>", "a & b"]), planted_parts())
    path = write_check_page(tmp_path / "new", {"user/own": check, "user/<two>": check})
    text = path.read_text("utf-8")
    page = Page(text)
    assert page.open == []
    assert page.tags.count("svg") == 6
    assert len(page.ids) == len(set(page.ids))
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert "script" not in page.tags
    assert "@import" not in text
    assert "<none>" not in text
    assert "user/<two>" not in text
    assert "prefers-color-scheme: dark" in text
    assert all(
        finding["text"].split(":")[0].replace("'", "&#39;").split("&#39;")[0] in text for finding in check["findings"]
    )
    assert text.index(check["findings"][0]["text"][:40]) < text.index("<svg")
    assert json.loads((tmp_path / "new" / "check.json").read_text()) == {"user/own": check, "user/<two>": check}
    assert {p.name for p in (tmp_path / "new").iterdir()} == {"check.html", "check.json"}


def test_page_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_check_page(tmp_path / "file" / "folder", {})


def test_results_need_no_torch() -> None:
    code = "import sys, l2g_ray.results.data_check; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- real sets -------------------------------------------------------------------------------------------------------


def read_real(bench: str, name: str) -> tuple[Task, dict[str, Part]]:
    (task,) = find_tasks(bench, [name])
    parts = {}
    for split in ("train", "valid", "test"):
        path = SHARED / str(task.folder) / f"{split}.parquet"
        if path.exists():
            table = pq.read_table(path, partitioning=None)
            labels = np.stack([table[c].to_numpy() for c in task.label_columns], 1)
            labels = labels[:, 0] if task.is_classification else labels
            column = table["sequence"]
            parts[split] = Part(measure_facts(column), labels, lambda c=column: iter(c.chunks))
    return task, parts


REAL = [("nt", "enhancers", 100, 100), ("nt", "splice_sites_all", 31, 32), ("gue", "prom_core_all", 42, 43)]


@needs_shared
@pytest.mark.parametrize(("bench", "name", "train_rows", "test_rows"), REAL)
def test_published_overlaps(bench: str, name: str, train_rows: int, test_rows: int) -> None:
    task, parts = read_real(bench, name)
    check = check_splits(task, parts, near=False)
    assert check["duplicates"]["train_in_test"] == {
        "exact": train_rows,
        "reverse_complement": 0,
        "other_exact": test_rows,
        "other_reverse_complement": 0,
    }
    texts = {split: [t for chunk in part.sequences() for t in chunk.to_pylist()] for split, part in parts.items()}
    for split, rows in texts.items():
        assert check["repeats"][split]["exact"] == len(rows) - len(set(rows))


@needs_shared
def test_near_duplicates_of_a_real_set_equal_all_pairs() -> None:
    _, parts = read_real("uci", "splice_junction")
    texts = {split: [t for chunk in part.sequences() for t in chunk.to_pylist()] for split, part in parts.items()}
    found = find_similar(parts["train"], parts["test"], k=8)
    sets = {split: [kmer_set(t, 8) for t in dict.fromkeys(texts[split])] for split in ("train", "test")}
    near = sum(any(jaccard(a, b) >= 0.5 for a in sets["train"]) for b in sets["test"])
    unique = list(dict.fromkeys(texts["test"]))
    again = find_similar(parts["train"], make_part(unique), k=8)
    assert again["other_near"] == near <= found["other_near"]
