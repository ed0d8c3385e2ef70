"""Near-duplicates between two splits, or within one: sequences whose k-mers are largely the same, on either strand.

The similarity of two sequences is the Jaccard index of their sets of canonical k-mers: shared k-mers over all k-mers.
The threshold of 0.5 is met by windows of n k-mers each that are shifted by up to n / 3, and by 5 spread substitutions
in 200 bp or 13 in 500 bp at k = 12; sequences that are not related stay below 0.1 (tests/test_check.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from l2g_ray.data.check.index import Best, build_index, find_best
from l2g_ray.data.check.kmers import choose_k
from l2g_ray.data.check.part import Part
from l2g_ray.data.check.verify import find_strand, measure_pairs, read_rows

THRESHOLD = 0.5
MAX_EXAMPLES = 20
# K-mers of both sides together; more are sampled. 20 million take a few seconds and about half a GiB.
BUDGET_KMERS = 20_000_000
# Multiplications of a product; a thousand million take about 10 seconds.
BUDGET_WORK = 1e9
# A row with fewer k-mers than this says nothing; sampling stops where a usual row would keep fewer than the second.
FEWEST_KMERS, FEWEST_SAMPLED = 8, 24
# Similarities are looked at from this share of the threshold on, so that few are lost where they are estimates first.
_FLOOR = 0.6
_BIN_WIDTH = 0.05


@dataclass(frozen=True)
class _Rows:
    """Distinct sequences of a part: the first row of each (u,), a mask of these (n,), and each row's number (n,)."""

    first: np.ndarray
    kept: np.ndarray
    number: np.ndarray
    repeated: np.ndarray


def find_similar(
    part: Part,
    other: Part | None = None,
    *,
    k: int | None = None,
    threshold: float = THRESHOLD,
    budget: float = BUDGET_KMERS,
    work: float = BUDGET_WORK,
) -> dict[str, Any]:
    """Rows of a part that have a near-duplicate in another part, and the other way round; within the part when None.

    Both parts are streamed, the part block by block; of the other (give the smaller one) the k-mers are held. Memory:
    about 30 bytes a held k-mer, of which there are at most `budget` (or, where there are very many short rows, 24 a
    row), 64 MiB for a table of the k-mers, about 100 MiB for a block, and 40 bytes a row.

    Parameters
    ----------
    k : 8 to 12; by `choose_k` from all lengths when None.
    budget : k-mers of both sides (within a part, of that one). Above it a sample of one in `scale` is compared
        (FracMinHash), and pairs that come near the threshold are then measured on all their k-mers; so no pair is
        wrong, but some may be missed.
    work : multiplications. Above it the most frequent k-mers (repeats) are left out, and pairs are measured likewise.

    Returns
    -------
    JSON-ready: k, threshold, scale, sampled (pairs may be missed), dropped_kmers; near (rows with a partner at or above
    the threshold), near_only (of these, those that are no exact or reverse-complement duplicates), unmeasured (rows
    with too few k-mers for a verdict, as short ones, those of N, and those of repeats left out); the same three with
    `other_` before them when there is another part, and other_near_rows, the numbers (from 0) of the rows that other_near
    counts; histogram (rows by the similarity to their best partner, from 0.3
    on: edges, counts, other_counts); examples of near_only (row, other_row, similarity, strand; rows from 1).
    """
    others = part if other is None else other
    ours = _find_distinct(part)
    theirs = ours if other is None else _find_distinct(other)
    k = k or choose_k(np.concatenate([part.facts.length_bp, others.facts.length_bp]))
    bounds = [np.maximum(p.facts.length_bp[r.first] - k + 1, 0) for p, r in ((part, ours), (others, theirs))]
    scale = _choose_scale(bounds[:1] if other is None else bounds, budget)
    floor = _FLOOR * threshold

    index = build_index(others, theirs.kept, k, scale, bounds[0].sum() / scale, work)
    best, other_best, sizes = find_best(index, part, ours.kept, floor, within=other is None)
    if not index.is_exact:
        best, other_best = _verify((part, ours, best), (others, theirs, other_best), k, budget)

    exact = ours.repeated if other is None else np.isin(part.facts.canonical, other.facts.canonical)
    found = _count(best, ours, exact, sizes, threshold)
    report: dict[str, Any] = {
        "k": k,
        "threshold": threshold,
        "scale": round(scale, 2),
        "sampled": not index.is_exact,
        "dropped_kmers": index.dropped,
        **found,
        "histogram": {"edges": _edges(floor), "counts": _histogram(best, ours, exact, floor)},
    }
    if other is not None:
        exact = np.isin(other.facts.canonical, part.facts.canonical)
        found = _count(other_best, theirs, exact, index.sizes, threshold)
        report |= {f"other_{key}": value for key, value in found.items()}
        counted = exact | (other_best.similarity[theirs.number] >= threshold)
        report["other_near_rows"] = np.flatnonzero(counted).tolist()
        report["histogram"]["other_counts"] = _histogram(other_best, theirs, exact, floor)
    near = ~exact[theirs.first] & (other_best.similarity >= threshold)
    report["examples"] = _list_examples(part, ours, others, theirs, other_best, near, k)
    return report


def _find_distinct(part: Part) -> _Rows:
    # A sequence and its copies on either strand have one set of k-mers: compared once, counted for every row.
    _, first, number, copies = np.unique(
        part.facts.canonical, return_index=True, return_inverse=True, return_counts=True
    )
    order = np.argsort(first)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    kept = np.zeros(len(part), bool)
    kept[first] = True
    return _Rows(first[order], kept, rank[number], copies[number] > 1)


def _choose_scale(bounds: list[np.ndarray], budget: float) -> float:
    usual = float(np.median(np.concatenate(bounds))) if sum(map(len, bounds)) else 0.0
    wanted = sum(float(b.sum()) for b in bounds) / budget
    return max(1.0, min(wanted, usual / FEWEST_SAMPLED))


def _verify(
    side: tuple[Part, _Rows, Best], other: tuple[Part, _Rows, Best], k: int, budget: float
) -> tuple[Best, Best]:
    """The best partners again, of the pairs that were found, by all of their k-mers."""
    (part, rows, best), (others, other_rows, other_best) = side, other
    mine, yours = np.flatnonzero(best.partner >= 0), np.flatnonzero(other_best.partner >= 0)
    pairs = np.concatenate([np.stack([mine, best.partner[mine]], 1), np.stack([other_best.partner[yours], yours], 1)])
    pairs = np.unique(pairs, axis=0)
    similarity = measure_pairs(part, rows.first, others, other_rows.first, pairs, k, budget)
    result = Best.none(len(best.partner)), Best.none(len(other_best.partner))
    result[0].update(pairs[:, 0], pairs[:, 1], similarity)
    result[1].update(pairs[:, 1], pairs[:, 0], similarity)
    return result


def _count(best: Best, rows: _Rows, exact: np.ndarray, sizes: np.ndarray, threshold: float) -> dict[str, int]:
    near = best.similarity[rows.number] >= threshold
    silent = (sizes[rows.number] < FEWEST_KMERS) & ~near & ~exact
    return {"near": int((near | exact).sum()), "near_only": int((near & ~exact).sum()), "unmeasured": int(silent.sum())}


def _edges(floor: float) -> list[float]:
    return [round(floor + _BIN_WIDTH * i, 3) for i in range(round((1 - floor) / _BIN_WIDTH) + 1)]


def _histogram(best: Best, rows: _Rows, exact: np.ndarray, floor: float) -> list[int]:
    similarity = np.where(exact, 1.0, best.similarity[rows.number].astype(float))
    # float32 lies a little beside the edges.
    counts, _ = np.histogram(np.round(similarity[similarity >= floor], 6), [*_edges(floor)[:-1], 1.0])
    return [int(count) for count in counts]


def _list_examples(
    part: Part, rows: _Rows, others: Part, other_rows: _Rows, best: Best, near: np.ndarray, k: int
) -> list[dict[str, Any]]:
    chosen = np.flatnonzero(near)
    chosen = chosen[np.argsort(-best.similarity[chosen], kind="stable")][:MAX_EXAMPLES]
    pairs = [(int(rows.first[best.partner[i]]), int(other_rows.first[i]), float(best.similarity[i])) for i in chosen]
    texts, other_texts = read_rows(part, {a for a, _, _ in pairs}), read_rows(others, {b for _, b, _ in pairs})
    return [
        {
            "row": a + 1,
            "other_row": b + 1,
            "similarity": round(s, 3),
            "strand": find_strand(texts[a], other_texts[b], k),
        }
        for a, b, s in pairs
    ]
