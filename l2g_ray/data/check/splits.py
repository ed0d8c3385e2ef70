"""All checks of a task's splits as one report, with what they found in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from l2g_ray.data.check.balance import (
    Part,
    choose_k,
    count_repeats,
    find_conflicts,
    measure_balance,
    measure_leak,
    measure_shift,
)
from l2g_ray.data.check.composition import measure_composition
from l2g_ray.data.check.similar import find_similar
from l2g_ray.data.spool import find_overlap
from l2g_ray.tasks.schema import Task

# From this share of the rows on, a finding about rows is a warning.
_MANY = 0.01
_RARE = 0.05
_FEATURES = {"length_bp": "length", "gc": "GC share"}


def list_findings(check: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the findings of a check without its key `findings`: {level, text}, warnings first."""
    found = [
        finding
        for look in (_duplicates, _near, _conflicts, _leak, _balance, _shift, _repeats)
        for finding in look(check)
    ]
    found.sort(key=lambda finding: finding[0] != "warning")
    return [{"level": level, "text": text} for level, text in found]


def _of(count: int, total: int) -> str:
    share = count / total if total else 0.0
    return f"{count:,} of {total:,} ({share:.1%})" if share >= 0.0005 or not count else f"{count:,} of {total:,}"


def _duplicates(check: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, counts in check["duplicates"].items():
        one, other = name.split("_in_")
        count, flipped = counts["exact"] + counts["reverse_complement"], counts["reverse_complement"]
        others = counts["other_exact"] + counts["other_reverse_complement"]
        if count:
            strands = f" ({flipped:,} only as reverse complement)" if flipped else ""
            yield (
                "warning",
                f"{_of(count, check['rows'][one])} {one} rows are also in {other}{strands}, where they are "
                f"{_of(others, check['rows'][other])} rows: drop them from {one} before a {other} score is read.",
            )


def _near(check: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    near = check["near"] or {}
    for name, counts in near.items():
        if name == "within":
            continue
        one, other = name.split("_in_")
        count, total = counts["other_near_only"], check["rows"][other]
        sample = ", found in a sample, so that there may be more" if counts["sampled"] else ""
        if count:
            yield (
                "warning" if count >= _MANY * total else "note",
                f"{_of(count, total)} {other} rows are near-duplicates of {one} rows (similarity of {counts['threshold']} "
                f"or more over {counts['k']}-mers of either strand, equal sequences not counted){sample}: split by group or by region, "
                f"or score those rows apart.",
            )
        if counts["other_unmeasured"]:
            yield (
                "note",
                f"{_of(counts['other_unmeasured'], total)} {other} rows have too few {counts['k']}-mers to be compared "
                f"with {one}: look at them by other means if they matter.",
            )
    # Copies within valid or test lead nobody astray who does not cut those splits again.
    counts = near.get("within", {}).get("train")
    if counts and counts["near_only"] >= _MANY * check["rows"]["train"] > 0:
        yield (
            "note",
            f"{_of(counts['near_only'], check['rows']['train'])} train rows have a near-duplicate in train itself: a "
            "validation split that is cut from them at random shares their sequences, so cut it by group.",
        )


def _conflicts(check: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    share = check["conflicts"]["sd_share"]
    what = f"values that differ by more than {share} sd" if share else "different labels"
    places = {f"within {split}": counts for split, counts in check["conflicts"]["within"].items()}
    for place, counts in {**places, "across splits": check["conflicts"]["across"]}.items():
        if counts["sequences"]:
            n = counts["sequences"]
            yield (
                "warning",
                f"{n:,} sequence{'s have' if n > 1 else ' has'} {what} {place} ({counts['rows']:,} rows): find out which "
                "is right, or drop these rows.",
            )


def _leak(check: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for feature, name in _FEATURES.items():
        leak = check["leak"][feature]
        if leak["leaks"]:
            measure = "AUROC" if leak["measure"] == "auroc" else "|Spearman|"
            yield (
                "warning",
                f"The {name} alone predicts '{leak['label']}' in train ({measure} {leak['value']:.2f}, limit "
                f"{check['leak']['limits'][leak['measure']]}): compare every score with that, or choose negatives of "
                f"the same {name}.",
            )


def _balance(check: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, distance in check["balance"]["distances"].items():
        if distance["large"]:
            one, other = name.split("_")
            yield (
                "warning",
                f"Labels differ between {one} and {other}, '{distance['where']}' the most (distance "
                f"{distance['value']:.2f}): look how the splits were made, and do not compare scores between them.",
            )
    if check["kind"] not in ("binary", "multiclass"):
        return
    for split, counts in check["balance"]["splits"].items():
        total = sum(counts.values())
        for label, count in counts.items():
            if count < _RARE * total:
                yield (
                    "note" if count else "warning",
                    f"{_of(count, total)} {split} rows have the label '{label}': read a metric that weighs classes "
                    "alike, not accuracy.",
                )


def _shift(check: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for feature, name in _FEATURES.items():
        for pair, found in check["shift"][feature]["pairs"].items():
            if found["large"]:
                one, other = pair.split("_")
                effect = "" if found["effect"] is None else f", means {abs(found['effect']):.2f} sd apart"
                yield (
                    "note",
                    f"The {name} differs between {one} and {other} (Kolmogorov-Smirnov {found['ks']:.2f}{effect}): "
                    "the splits were not drawn alike, so look how they were made.",
                )


def _repeats(check: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for split, counts in check["repeats"].items():
        count, total = counts["exact"] + counts["reverse_complement"], check["rows"][split]
        if count:
            yield (
                "note",
                f"{_of(count, total)} {split} rows repeat an earlier row ({counts['exact']:,} exactly, "
                f"{counts['reverse_complement']:,} as reverse complement): keep one of each if the copies are no "
                "independent measurements.",
            )


SCHEMA = 1
# In this order, so that of each pair the second, as a rule the smaller one, is held by `find_similar`.
_PAIRS = (("train", "test"), ("train", "valid"), ("valid", "test"))


def check_splits(task: Task, parts: dict[str, Part], *, near: bool = True) -> dict[str, Any]:
    """Check the splits 'train' and 'test', and 'valid' where there is one, against each other and in themselves.

    near : look for near-duplicates too, which takes most of the time and reads the sequences again.

    Returns
    -------
    JSON-ready: schema, task, kind, labels, strand_specific, rows; duplicates (by pair, 'train_in_test'; see
    `Overlap.count`); repeats (by split); near (by pair, and by split under 'within'; see `find_similar`; None if not
    asked for); conflicts, balance, shift, leak (leak is of train); composition (see `measure_composition`); findings, a list of
    {level: 'warning' or 'note', text: one sentence}, the warnings first.
    """
    pairs = [(a, b) for a, b in _PAIRS if a in parts and b in parts]
    check: dict[str, Any] = {
        "schema": SCHEMA,
        "task": f"{task.bench}/{task.name}",
        "kind": task.kind,
        "labels": list(task.labels),
        "strand_specific": task.strand_specific,
        "rows": {split: len(part) for split, part in parts.items()},
        "duplicates": {f"{a}_in_{b}": find_overlap(parts[a].facts, parts[b].facts).count() for a, b in pairs},
        "repeats": {split: count_repeats(part) for split, part in parts.items()},
        "near": None,
        "conflicts": find_conflicts(task, parts),
        "balance": measure_balance(task, {split: part.labels for split, part in parts.items()}),
        "shift": measure_shift({split: part.facts for split, part in parts.items()}),
        "leak": measure_leak(task, parts["train"].facts, parts["train"].labels),
        "composition": measure_composition(task, parts),
    }
    if near:
        # One k for all, so that the numbers can be compared.
        k = choose_k(np.concatenate([part.facts.length_bp for part in parts.values()]))
        between = {f"{a}_in_{b}": find_similar(parts[a], parts[b], k=k) for a, b in pairs}
        check["near"] = between | {"within": {split: find_similar(part, k=k) for split, part in parts.items()}}
    check["findings"] = list_findings(check)
    return check
