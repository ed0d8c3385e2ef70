"""A split as the checks see it, its k-mer sets, and checks of repeats, conflicts, balance, shifts and leaks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa

from l2g_ray.data.spool import Facts, mix_bits
from l2g_ray.sequence import CODE_TABLE, N_CODE, bytes_and_offsets
from l2g_ray.tasks.schema import Task


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
    """Return the longest k of 8 to 12 at which two substitutions in the median length (n,) leave a similarity of 0.5.

    A substitution takes up to k of the L - k + 1 k-mers away and brings as many new ones, so two of them leave at least
    (L - 3k + 1) / (L + k + 1), if no k-mer comes twice; that is 0.5 at L = 7k - 1. So k is 12 from 83 bp on, 10 at
    70 bp, and 8 below 62 bp, where two substitutions are found for sure from 55 bp on, and one from 31 bp on.
    """
    median = int(np.median(lengths_bp)) if len(lengths_bp) else 0
    return int(np.clip((median + 1) // 7, SHORTEST_K, LONGEST_K))


def iterate_kmers(
    part: Part, k: int, kept: np.ndarray | None = None, scale: float = 1.0
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield the k-mer sets of a part's rows, in blocks of about 260,000 bases.

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


# Kolmogorov-Smirnov statistics from here on are a finding, if chance makes one of a thousand as large at most.
LARGE_KS = 0.1
_ONE_IN_A_THOUSAND = 1.95


def round_off(value: float | None, digits: int = 4) -> float | None:
    """Return a plain float, or None for an undefined value, which JSON does not have."""
    return None if value is None or not np.isfinite(value) else round(float(value), digits)


def compare_values(one: np.ndarray, other: np.ndarray, large: float = LARGE_KS) -> dict[str, Any]:
    """Return two samples (n,) and (m,), NaN left out.

    ks : the largest difference of the cumulative shares, 0 to 1.  effect : the difference of the means (other minus
    one) in pooled standard deviations.  large : the former is at or above a limit and beyond chance. None where a
    sample is empty or, for the effect, all values are equal.
    """
    one, other = (np.sort(values[~np.isnan(values)].astype(float)) for values in (one, other))
    if not len(one) or not len(other):
        return {"ks": None, "effect": None, "large": False}
    points = np.concatenate([one, other])
    shares = [np.searchsorted(values, points, side="right") / len(values) for values in (one, other)]
    ks = float(np.abs(shares[0] - shares[1]).max())
    chance = _ONE_IN_A_THOUSAND * np.sqrt(1 / len(one) + 1 / len(other))
    squares = ((one - one.mean()) ** 2).sum() + ((other - other.mean()) ** 2).sum()
    sd = np.sqrt(squares / max(len(points) - 2, 1))
    effect = (other.mean() - one.mean()) / sd if sd > 0 else None
    return {"ks": round_off(ks), "effect": round_off(effect), "large": bool(ks >= large and ks > chance)}


MAX_EXAMPLES = 20
_ROWS_AN_EXAMPLE = 4
# Regression: values of one sequence that lie further apart than this share of the train split's sd are a conflict.
CONFLICT_SD = 0.5


def count_repeats(part: Part) -> dict[str, int]:
    """Return rows whose sequence already stood in the split: 'exact', or only as 'reverse_complement'."""
    n_exact = len(part) - len(np.unique(part.facts.hash))
    n_either = len(part) - len(np.unique(part.facts.canonical))
    return {"exact": n_exact, "reverse_complement": n_either - n_exact}


def find_conflicts(task: Task, parts: dict[str, Part]) -> dict[str, Any]:
    """Return sequences that have different labels in different rows.

    A reverse complement is the same sequence, unless the task is strand_specific. Missing values contradict nothing.

    Returns
    -------
    JSON-ready: within (for each split), across (of any two splits) and total: sequences, and the rows that hold them;
    sd_share (None but for regression); examples, those across splits first, each a list of {split, row, label}, rows
    counted from 1.
    """
    names = list(parts)
    split = np.repeat(np.arange(len(names)), [len(part) for part in parts.values()])
    row = np.concatenate([np.arange(len(part)) for part in parts.values()])
    facts = [part.facts for part in parts.values()]
    key = np.concatenate([f.hash if task.strand_specific else f.canonical for f in facts])
    # Labels may be many columns wide: only those of rows that share their sequence are gathered.
    _, number, copies = np.unique(key, return_inverse=True, return_counts=True)
    shared = copies[number] > 1
    split, row, key = split[shared], row[shared], key[shared]
    columns = [_to_columns(task, part.labels[row[split == i]]) for i, part in enumerate(parts.values())]
    labels = np.concatenate(columns)
    limit = _limit(task, parts)

    within = {}
    for i, name in enumerate(names):
        groups = _Groups(key[split == i], labels[split == i], limit)
        within[name] = groups.count(groups.conflicts)
    groups = _Groups(key, labels, limit)
    spread = _reduce(np.maximum, split[groups.order], groups) > _reduce(np.minimum, split[groups.order], groups)
    across = groups.conflicts & spread
    chosen = np.concatenate([np.flatnonzero(across), np.flatnonzero(groups.conflicts & ~across)])[:MAX_EXAMPLES]
    examples = []
    for group in chosen:
        members = np.sort(groups.order[groups.starts[group] :][: groups.sizes[group]])
        examples.append(
            [
                {"split": names[split[m]], "row": int(row[m]) + 1, "label": _name_label(task, labels[m])}
                for m in _pick(members, labels[members])
            ]
        )
    return {
        "within": within,
        "across": groups.count(across),
        "total": groups.count(groups.conflicts),
        "sd_share": CONFLICT_SD if task.kind == "regression" else None,
        "examples": examples,
    }


class _Groups:
    """Rows (n,) in groups of one key: their order, the groups' starts and sizes (g,), and which are conflicts (g,)."""

    def __init__(self, key: np.ndarray, labels: np.ndarray, limit: np.ndarray) -> None:
        self.order = np.argsort(key, kind="stable")
        ordered = key[self.order]
        self.starts = np.flatnonzero(np.concatenate([ordered[:1] == ordered[:1], ordered[1:] != ordered[:-1]]))
        self.sizes = np.diff(self.starts, append=len(key))
        values = labels[self.order]
        # fmax and fmin pass over NaN, a missing value.
        difference = _reduce(np.fmax, values, self) - _reduce(np.fmin, values, self)
        self.conflicts = (difference > limit).any(axis=1)

    def count(self, chosen: np.ndarray) -> dict[str, int]:
        return {"sequences": int(chosen.sum()), "rows": int(self.sizes[chosen].sum())}


def _reduce(function: np.ufunc, ordered: np.ndarray, groups: _Groups) -> np.ndarray:
    return function.reduceat(ordered, groups.starts) if len(ordered) else ordered


def _to_columns(task: Task, labels: np.ndarray) -> np.ndarray:
    return labels.astype(float).reshape(-1, 1 if task.is_classification else task.n_outputs)


def _limit(task: Task, parts: dict[str, Part]) -> np.ndarray:
    """Return by how much the values of a sequence may differ, for each column."""
    if task.kind != "regression":
        return np.zeros(1)
    columns = parts["train"].labels.astype(float).T
    known = [column[~np.isnan(column)] for column in columns]
    return np.array([CONFLICT_SD * values.std() if len(values) else np.inf for values in known])


def _pick(members: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return a few rows of a group, such that different labels are among them."""
    _, first = np.unique(labels, axis=0, return_index=True)
    rest = np.setdiff1d(np.arange(len(members)), first)
    return members[np.sort(np.concatenate([np.sort(first), rest])[:_ROWS_AN_EXAMPLE])]


def _name_label(task: Task, values: np.ndarray) -> Any:
    if task.is_classification:
        return task.labels[int(values[0])]
    return [None if np.isnan(value) else round(float(value), 4) for value in values]


# A distance is a finding when it is this large and larger than chance makes it.
LARGE_DISTANCE = 0.05
_TIMES_CHANCE = 3.0


def measure_balance(task: Task, labels: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return labels by split, and the distance between each two splits ('train_test').

    labels : (n,) codes for classification, else (n, C) floats, NaN for a missing value.

    Splits hold, for classification, a count for each class; else for each output mean, sd, rows and missing rows (the
    mean of a label of 0 and 1 is the share of positives). Distances hold `value`, `where` (the class or output that
    differs most) and `large`: classification, the total-variation distance (half of the summed differences of the
    classes' shares, 0 to 1); multilabel, the largest difference of a share; regression, the largest
    Kolmogorov-Smirnov statistic.
    """
    if task.is_classification:
        counts = {split: np.bincount(codes, minlength=task.n_outputs) for split, codes in labels.items()}
        splits: dict[str, Any] = {s: dict(zip(task.labels, c.tolist(), strict=True)) for s, c in counts.items()}
    else:
        splits = {split: _describe(task, values) for split, values in labels.items()}
    distances = {}
    for a, b in combinations(labels, 2):
        if task.is_classification:
            distances[f"{a}_{b}"] = _compare_classes(task, counts[a], counts[b])
        else:
            distances[f"{a}_{b}"] = _compare_outputs(task, labels[a], labels[b])
    return {"splits": splits, "distances": distances}


def _describe(task: Task, values: np.ndarray) -> dict[str, Any]:
    found = {}
    for name, column in zip(task.labels, values.T, strict=True):
        known = column[~np.isnan(column)].astype(float)
        found[name] = {
            "mean": round_off(known.mean() if len(known) else None),
            "sd": round_off(known.std() if len(known) else None),
            "rows": len(known),
            "missing": len(column) - len(known),
        }
    return found


def _compare_classes(task: Task, one: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    if not one.sum() or not other.sum():
        return {"value": None, "where": None, "large": False}
    difference = np.abs(one / one.sum() - other / other.sum())
    distance = float(difference.sum() / 2)
    pooled = (one + other) / (one + other).sum()
    # The mean of |difference| of two samples of one distribution, were it normal.
    chance = np.sqrt(2 / np.pi * pooled * (1 - pooled) * (1 / one.sum() + 1 / other.sum())).sum() / 2
    large = distance >= LARGE_DISTANCE and distance > _TIMES_CHANCE * chance
    return {"value": round_off(distance), "where": task.labels[int(difference.argmax())], "large": bool(large)}


def _compare_outputs(task: Task, one: np.ndarray, other: np.ndarray) -> dict[str, Any]:
    worst: dict[str, Any] = {"value": None, "where": None, "large": False}
    for name, a, b in zip(task.labels, one.T, other.T, strict=True):
        # Of values 0 and 1, the statistic is the difference of the shares of 1.
        found = compare_values(a, b, LARGE_DISTANCE if task.kind == "multilabel" else LARGE_KS)
        if found["ks"] is not None and (worst["value"] is None or found["ks"] > worst["value"]):
            worst = {"value": found["ks"], "where": name, "large": found["large"]}
    return worst


# A label that length or GC alone predicts this well is a finding. 0.7 is 0.4 on the scale of a correlation (2a - 1).
LEAK_AUROC = 0.7
LEAK_SPEARMAN = 0.4
# ... if it is also this many standard errors from chance.
_BEYOND_CHANCE = 4.0
# Rows that the search for leaks looks at, evenly spread: with hundreds of labels, more would take minutes.
_MOST_ROWS = 100_000
_QUANTILES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)
_BINS = 30


def measure_shift(facts: dict[str, Facts]) -> dict[str, Any]:
    """Return, for 'length_bp' and 'gc', quantiles, mean and sd by split, comparisons of each two splits, histogram
    counts.
    """
    return {
        "length_bp": _compare_feature({split: f.length_bp.astype(float) for split, f in facts.items()}),
        "gc": _compare_feature({split: f.gc.astype(float) for split, f in facts.items()}),
    }


def _compare_feature(values: dict[str, np.ndarray]) -> dict[str, Any]:
    known = {split: v[~np.isnan(v)] for split, v in values.items()}
    pairs = {f"{a}_{b}": compare_values(known[a], known[b]) for a, b in combinations(known, 2)}
    return {
        "splits": {split: _describe_values(v) for split, v in known.items()},
        "pairs": pairs,
        "histogram": _count_bins(known),
    }


def _describe_values(values: np.ndarray) -> dict[str, Any]:
    if not len(values):
        return {"quantiles": None, "mean": None, "sd": None}
    quantiles = {str(q): round_off(v) for q, v in zip(_QUANTILES, np.quantile(values, _QUANTILES), strict=True)}
    return {"quantiles": quantiles, "mean": round_off(values.mean()), "sd": round_off(values.std())}


def _count_bins(values: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return counts by split over common bins, between the smallest and the largest value of all splits."""
    everything = np.concatenate(list(values.values()))
    if not len(everything):
        return {"edges": [], "counts": {split: [] for split in values}}
    low, high = float(everything.min()), float(everything.max())
    edges = np.linspace(low, high, _BINS + 1) if high > low else np.array([low - 0.5, low + 0.5])
    counts = {split: np.histogram(v, edges)[0].tolist() for split, v in values.items()}
    return {"edges": [round(float(edge), 5) for edge in edges], "counts": counts}


def measure_leak(task: Task, facts: Facts, labels: np.ndarray) -> dict[str, Any]:
    """Measure how well length and GC alone predict the label, on at most 100,000 of the n rows of a split.

    labels : (n,) codes for classification, else (n, C) floats, NaN for a missing value.

    For each feature: measure, value (None where it is undefined), label (the class or output that is predicted best) and
    leaks. The measure is 'auroc', in the direction that is better (0.5 to 1) of a class against the rest, or of a
    label's 1 against its 0; for regression 'spearman', without its sign (0 to 1).
    """
    limit = {"auroc": LEAK_AUROC, "spearman": LEAK_SPEARMAN}
    if len(facts) > _MOST_ROWS:
        rows = np.linspace(0, len(facts) - 1, _MOST_ROWS).astype(np.int64)
        facts, labels = facts.take(rows), labels[rows]
    return {"limits": limit} | {
        name: _tell(task, values.astype(float), labels)
        for name, values in (("length_bp", facts.length_bp), ("gc", facts.gc))
    }


def _tell(task: Task, feature: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    regression = task.kind == "regression"
    best: dict[str, Any] = {
        "measure": "spearman" if regression else "auroc",
        "value": None,
        "label": None,
        "leaks": False,
    }
    if len(feature) == 0 or np.nanmin(feature, initial=np.inf) >= np.nanmax(feature, initial=-np.inf):
        return best  # a constant predicts nothing
    for name, target in _targets(task, labels):
        known = ~np.isnan(feature) & ~np.isnan(target)
        value, error = (_spearman if regression else _auroc)(feature[known], target[known])
        if value is None or (best["value"] is not None and value <= best["value"]):
            continue
        limit, chance = (LEAK_SPEARMAN, 0.0) if regression else (LEAK_AUROC, 0.5)
        leaks = value >= limit and value - chance > _BEYOND_CHANCE * error
        best |= {"value": value, "label": name, "leaks": bool(leaks)}
    return best


def _targets(task: Task, labels: np.ndarray) -> list[tuple[str, np.ndarray]]:
    if not task.is_classification:
        return [(name, column.astype(float)) for name, column in zip(task.labels, labels.T, strict=True)]
    # Two classes give the same AUROC, so one is enough.
    codes = [1] if task.kind == "binary" else range(task.n_outputs)
    return [(task.labels[code], (labels == code).astype(float)) for code in codes]


def _auroc(feature: np.ndarray, target: np.ndarray) -> tuple[float | None, float]:
    """Return the area, turned to be 0.5 or more, and its standard error by chance (Mann-Whitney)."""
    positive = target > 0.5
    n, m = int(positive.sum()), int((~positive).sum())
    if not n or not m:
        return None, 0.0
    from scipy.stats import rankdata  # a second, which data that is checked already need not pay

    area = (rankdata(feature)[positive].sum() - n * (n + 1) / 2) / (n * m)
    return round_off(max(area, 1 - area)), float(np.sqrt((n + m + 1) / (12 * n * m)))


def _spearman(feature: np.ndarray, target: np.ndarray) -> tuple[float | None, float]:
    if len(feature) < 3 or np.ptp(feature) == 0 or np.ptp(target) == 0:
        return None, 0.0
    from scipy.stats import spearmanr

    return round_off(abs(float(spearmanr(feature, target).statistic))), 1 / np.sqrt(len(feature) - 1)
