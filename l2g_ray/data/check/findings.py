"""What a check found, in sentences: numbers, and what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# From this share of the rows on, a finding about rows is a warning.
_MANY = 0.01
_RARE = 0.05
_FEATURES = {"length_bp": "length", "gc": "GC share"}


def list_findings(check: Mapping[str, Any]) -> list[dict[str, str]]:
    """The findings of a check without its key `findings`: {level, text}, warnings first."""
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
                f"{_of(count, check['rows'][one])} {one} rows also stand in {other}{strands}, where they are "
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
        told = check["leak"][feature]
        if told["leaks"]:
            measure = "AUROC" if told["measure"] == "auroc" else "|Spearman|"
            yield (
                "warning",
                f"The {name} alone tells '{told['label']}' in train ({measure} {told['value']:.2f}, limit "
                f"{check['leak']['limits'][told['measure']]}): compare every score with that, or choose negatives of "
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
