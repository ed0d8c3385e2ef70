"""Near-duplicates of the data check, against all pairs compared one by one."""

from __future__ import annotations

import numpy as np
import pytest
from check_parts import (
    compare_all,
    draw,
    flip,
    jaccard,
    kmer_set,
    make_part,
    needs_shared,
    plant,
    read_real,
    substitute,
)

from l2g_ray.data.check.balance import choose_k, iterate_kmers
from l2g_ray.data.check.similar import find_similar


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
    monkeypatch.setattr("l2g_ray.data.check.balance._BLOCK_BP", 500)
    monkeypatch.setattr("l2g_ray.data.check.similar._PRODUCTS_A_BLOCK", 50)
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
