"""Near-duplicates between two splits, or within one: sequences whose k-mers are largely the same, on either strand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from l2g_ray.data.check.balance import Part, choose_k, iterate_kmers
from l2g_ray.data.spool import reverse_complement_text

_PRODUCTS_A_BLOCK = 1 << 22  # multiplications at once, hence the most pairs that are held


@dataclass
class Best:
    """For each of n rows: the similarity (n,) float32 to its best partner and the partner's number (n,), -1 if none."""

    similarity: np.ndarray
    partner: np.ndarray

    @classmethod
    def none(cls, n_rows: int) -> Best:
        """Return an instance with nothing found yet."""
        return cls(np.zeros(n_rows, np.float32), np.full(n_rows, -1, np.int64))

    def update(self, rows: np.ndarray, partners: np.ndarray, similarities: np.ndarray) -> None:
        """Take in pairs (p,) in any order."""
        order = np.lexsort((similarities, rows))
        rows, partners, similarities = rows[order], partners[order], similarities[order]
        best = np.flatnonzero(np.diff(rows, append=-1))
        best = best[similarities[best] > self.similarity[rows[best]]]
        self.similarity[rows[best]] = similarities[best]
        self.partner[rows[best]] = partners[best]


@dataclass(frozen=True)
class Index:
    """The k-mers of the held side's rows.

    column : (4^k,) int32, the matrix's row for a k-mer; -1 where no held row has it, -2 where too many have it.
    matrix : CSR (k-mers, held rows) of ones.  rows_with : (k-mers,) number of held rows with a k-mer.
    sizes : (held rows,) number of a row's k-mers that count.  dropped : number of k-mers in too many rows.
    """

    k: int
    scale: float
    column: np.ndarray
    matrix: sparse.csr_matrix
    rows_with: np.ndarray
    sizes: np.ndarray
    dropped: int

    @property
    def is_exact(self) -> bool:
        """Every k-mer counts, so that similarities are those of the whole sets."""
        return self.scale == 1 and self.dropped == 0


def build_index(part: Part, kept: np.ndarray, k: int, scale: float, streamed_kmers: float, work: float) -> Index:
    """Hold the kept rows of a part.

    K-mers in too many rows count on neither side. The most frequent ones are left out until comparing with
    `streamed_kmers` k-mers of the same distribution needs at most `work` multiplications.
    """
    blocks = [(rows, codes) for _, rows, codes in iterate_kmers(part, k, kept, scale)]
    rows = np.concatenate([r.astype(np.int32) for r, _ in blocks]) if blocks else np.empty(0, np.int32)
    codes = np.concatenate([c for _, c in blocks]) if blocks else np.empty(0, np.uint32)
    blocks.clear()
    ordered = np.sort(codes)
    first = np.flatnonzero(np.concatenate([ordered[:1] == ordered[:1], ordered[1:] != ordered[:-1]]))
    kinds, rows_with = ordered[first], np.diff(first, append=len(ordered))
    del ordered
    limit = _find_limit(rows_with, work * len(codes) / max(streamed_kmers, 1.0))
    common = rows_with > limit
    column = np.full(4**k, -1, np.int32)
    column[kinds[common]] = -2
    column[kinds[~common]] = np.arange((~common).sum(), dtype=np.int32)
    columns = column[codes]
    del codes, kinds
    counted = columns >= 0
    rows, columns = rows[counted], columns[counted]
    del counted
    n_rows = int(kept.sum())
    sizes = np.bincount(rows, minlength=n_rows)
    shape = (int((~common).sum()), n_rows)
    # Ones of a byte: what they are multiplied with is int32, and so is the product.
    matrix = sparse.csr_matrix((np.ones(len(rows), np.int8), (columns, rows)), shape=shape)
    return Index(k, scale, column, matrix, rows_with[~common], sizes, int(common.sum()))


def _find_limit(rows_with: np.ndarray, work: float) -> int:
    """Return the number of rows above which a k-mer is left out; a k-mer in r rows costs r^2."""
    if not len(rows_with):
        return 0
    counts = np.sort(rows_with)
    fitting = int(np.searchsorted(np.cumsum(counts.astype(float) ** 2), work, side="right"))
    if fitting == len(counts):
        return int(counts[-1])
    # All k-mers that are as frequent as the first that does not fit go with it; those in one row never do.
    return max(int(counts[fitting]) - 1, 1)


def iterate_pairs(
    index: Index, part: Part, kept: np.ndarray, floor: float, within: bool, sizes: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Pairs of kept rows of a part and held rows whose similarity is at or above `floor`, block by block.

    `within`: the held rows are the same ones, and no row is its own partner. `sizes` (kept rows,) is filled on the way: how
    many k-mers of each count.

    Yields
    ------
    Numbers of the kept rows, numbers of the held rows, and similarities, each (p,).
    """
    start = 0
    for end, rows, codes in iterate_kmers(part, index.k, kept, index.scale):
        columns = index.column[codes]
        sizes[start:end] = np.bincount(rows[columns != -2] - start, minlength=end - start)
        shared = columns >= 0
        for first, product in _multiply(index, rows[shared] - start, columns[shared], end - start):
            number = np.repeat(np.arange(product.shape[0]) + start + first, np.diff(product.indptr))
            partner = product.indices.astype(np.int64)
            similarity = product.data / (sizes[number] + index.sizes[partner] - product.data)
            found = (similarity >= floor) & ((number != partner) if within else True)
            yield number[found], partner[found], similarity[found].astype(np.float32)
        start = end


def find_best(index: Index, part: Part, kept: np.ndarray, floor: float, within: bool) -> tuple[Best, Best, np.ndarray]:
    """Return the best partners, both ways, of the pairs of `iterate_pairs`.

    Returns the best of the kept rows, the best of the held rows, and how many k-mers of each kept row count.
    """
    n_rows = int(kept.sum())
    ours, theirs, sizes = Best.none(n_rows), Best.none(len(index.sizes)), np.zeros(n_rows, np.int64)
    for number, partner, similarity in iterate_pairs(index, part, kept, floor, within, sizes):
        ours.update(number, partner, similarity)
        theirs.update(partner, number, similarity)
    return ours, theirs, sizes


def _multiply(
    index: Index, rows: np.ndarray, columns: np.ndarray, n_rows: int
) -> Iterator[tuple[int, sparse.csr_matrix]]:
    """Yield counts of shared k-mers, some rows at a time: the first row's number, and CSR (rows, held rows)."""
    bounds = np.searchsorted(rows, np.arange(n_rows + 1))
    work = np.concatenate([[0], np.cumsum(index.rows_with[columns])])[bounds]
    start = 0
    while start < n_rows:
        end = max(start + 1, int(np.searchsorted(work, work[start] + _PRODUCTS_A_BLOCK, side="right")) - 1)
        indices = columns[bounds[start] : bounds[end]]
        shape = (end - start, len(index.rows_with))
        block = sparse.csr_matrix(
            (np.ones(len(indices), np.int32), indices, bounds[start : end + 1] - bounds[start]), shape=shape
        )
        yield start, block @ index.matrix
        start = end


def measure_pairs(
    part: Part, first: np.ndarray, others: Part, other_first: np.ndarray, pairs: np.ndarray, k: int, budget: float
) -> np.ndarray:
    """Jaccard index (p,) float32 of all k-mers of pairs (p, 2).

    A pair numbers a sequence of `first` (u,) and one of `other_first` (v,), which are rows of the parts. The parts are
    read once for every `budget` k-mers of the pairs.
    """
    similarity = np.zeros(len(pairs), np.float32)
    bound = part.facts.length_bp[first][pairs[:, 0]] + others.facts.length_bp[other_first][pairs[:, 1]]
    for chosen in _group(bound, budget):
        mine, place = np.unique(first[pairs[chosen, 0]], return_inverse=True)
        yours, other_place = np.unique(other_first[pairs[chosen, 1]], return_inverse=True)
        a, b = _read_sets(part, mine, k), _read_sets(others, yours, k)
        shared = np.asarray(a[place].multiply(b[other_place]).sum(axis=1)).ravel()
        union = np.diff(a.indptr)[place] + np.diff(b.indptr)[other_place] - shared
        similarity[chosen] = shared / np.maximum(union, 1)
    return similarity


def _group(sizes: np.ndarray, budget: float) -> Iterator[slice]:
    ends = np.cumsum(sizes)
    start = 0
    while start < len(sizes):
        before = ends[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(ends, before + budget, side="right")))
        yield slice(start, end)
        start = end


def _read_sets(part: Part, rows: np.ndarray, k: int) -> sparse.csr_matrix:
    """CSR (rows, 4^k) of ones: the k-mer sets of some rows (sorted, distinct)."""
    kept = np.zeros(len(part), bool)
    kept[rows] = True
    blocks = [(numbers, codes) for _, numbers, codes in iterate_kmers(part, k, kept)]
    numbers, codes = (np.concatenate(column) for column in zip(*blocks, strict=True))
    bounds = np.searchsorted(numbers, np.arange(len(rows) + 1))
    ones = np.ones(len(codes), np.int32)
    return sparse.csr_matrix((ones, codes.astype(np.int32), bounds), shape=(len(rows), 4**k))


def read_rows(part: Part, rows: set[int]) -> dict[int, str]:
    """Return the text of a few rows, counted from 0."""
    texts: dict[int, str] = {}
    wanted = np.array(sorted(rows), np.int64)
    read = 0
    for sequences in part.sequences() if rows else ():
        here = wanted[(wanted >= read) & (wanted < read + len(sequences))]
        texts |= dict(zip(here.tolist(), sequences.take(pa.array(here - read)).to_pylist(), strict=True))
        read += len(sequences)
    return texts


def find_strand(one: str, other: str, k: int) -> str:
    """Return 'same', or 'reverse' where more k-mers of one are found in the reverse complement of the other."""
    flipped = reverse_complement_text(pa.array([other])).to_pylist()[0]
    sets = [{text[i : i + k] for i in range(len(text) - k + 1)} for text in (one, other, flipped)]
    return "same" if len(sets[0] & sets[1]) >= len(sets[0] & sets[2]) else "reverse"


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
    """Return rows of a part that have a near-duplicate in another part, and the other way round; within the part when
    None.

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


def find_families(
    part: Part, *, threshold: float = THRESHOLD, budget: float = BUDGET_KMERS, work: float = BUDGET_WORK
) -> np.ndarray:
    """Family (n,) int64 of every row: near-duplicates are in one, and so is whatever is joined through them.

    Similarity, threshold and limits are those of `find_similar`; where k-mers are sampled, it is that of the sample. Rows with too
    few k-mers for a verdict are alone, but for their copies on either strand.
    """
    rows = _find_distinct(part)
    k = choose_k(part.facts.length_bp)
    bounds = np.maximum(part.facts.length_bp[rows.first] - k + 1, 0)
    scale = _choose_scale([bounds], budget)
    index = build_index(part, rows.kept, k, scale, bounds.sum() / scale, work)
    family = np.arange(len(rows.first))
    sizes = np.zeros(len(family), np.int64)
    for number, partner, _ in iterate_pairs(index, part, rows.kept, threshold, True, sizes):
        telling = np.minimum(sizes[number], index.sizes[partner]) >= FEWEST_KMERS
        pairs = family[number[telling]], family[partner[telling]]
        edges = sparse.coo_matrix((np.ones(len(pairs[0]), np.int8), pairs), shape=(len(family),) * 2)
        family = connected_components(edges, directed=False)[1][family]
    return family[rows.number].astype(np.int64)


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
    """Return the best partners again, of the pairs that were found, by all of their k-mers."""
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
