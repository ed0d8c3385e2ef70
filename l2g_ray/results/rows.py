"""What a row of the leaderboard says: the arm in use, its best rivals, differences and the words for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from l2g_ray.tasks.metrics import find_metric

# With fewer seeds of training, the interval of a difference knows nothing of their spread.
MIN_SEEDS_FOR_A_VERDICT = 3
ARM_NAMES = {"l2g": "L2G", "embedder_only": "embedder", "average": "average"}
# Where a row has the test score of an arm.
_ARM_KEYS = {"l2g": "test", "embedder_only": "embedder_only", "average": "average"}
# Baselines that another seed would change; the others are fitted once and for all.
TRAINED_BASELINES = frozenset({"deepstarr", "genomic_lm"})


@dataclass(frozen=True)
class UsedArm:
    """The arm that a run predicts with: its name, its test score, and its score on validation."""

    name: str
    test: Mapping[str, Any]
    validation: float | None


@dataclass(frozen=True)
class Difference:
    """One score minus another over the same test rows; `verdict` is one word or number of seeds, empty without interval."""

    mean: float | None
    ci95: tuple[float | None, float | None] | None
    verdict: str

    def __str__(self) -> str:
        return " ".join(part for part in self.parts if part)

    @property
    def parts(self) -> tuple[str, str, str]:
        """Number, interval and verdict, as text."""
        return format_number(self.mean, signed=True), format_interval({"ci95": self.ci95}), self.verdict


def used_arm(row: Mapping[str, Any]) -> UsedArm | None:
    """The arm that `l2g-ray predict` uses; None where the row does not say."""
    chosen = row.get("chosen")
    if not chosen:
        return None
    return UsedArm(chosen["arm"], chosen["test"], (chosen.get("validation") or {}).get(chosen["arm"]))


def name_arm(arm: str) -> str:
    """An arm's name for people."""
    return ARM_NAMES.get(arm, arm)


def arm_score(row: Mapping[str, Any], arm: str) -> Mapping[str, Any] | None:
    """The test score of an arm of the method in a row; None where there is none."""
    return row.get(_ARM_KEYS[arm]) if arm in _ARM_KEYS else None


def best_published(row: Mapping[str, Any], comparable: bool = True) -> dict[str, Any] | None:
    """The best published score of a row, of the comparable ones only unless told otherwise; None where there is none."""
    sign = find_metric(row["metric"]).sign
    known = [p for p in row["published"] if p["value"] is not None and (p["comparable"] or not comparable)]
    return max(known, key=lambda p: sign * p["value"], default=None)


def best_baseline(row: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Name and scores of the baseline with the best validation score: the test split chooses nothing."""
    sign = find_metric(row["metric"]).sign
    scores = {n: s for n, s in (row.get("baselines") or {}).items() if isinstance(s, Mapping)}
    known = {n: sign * s["validation"] for n, s in scores.items() if s.get("validation") is not None}
    name = max(known, key=lambda n: known[n], default=None)
    return (name, dict(scores[name])) if name else None


def warn_of_baseline(row: Mapping[str, Any]) -> list[str]:
    """A sentence where the best baseline beats the arm in use on validation; else nothing."""
    simple, used = best_baseline(row), used_arm(row)
    if simple is None or used is None:
        return []
    name, score = simple
    metric = row["metric"]
    if used.validation is not None and not find_metric(metric).is_better(score["validation"], used.validation):
        return []
    return [
        f"The baseline {name} has a better {metric} on validation than what the run predicts with: {name} "
        f"{format_number(score['validation'])} (test {format_number(score['mean'])}), {name_arm(used.name)} "
        f"{format_number(used.validation)} (test {format_number(used.test['mean'])})."
    ]


def warn_of_near_duplicates(row: Mapping[str, Any]) -> list[str]:
    """A sentence where test rows are near-duplicates of train rows, with the score without them where it is known."""
    near = (row.get("check") or {}).get("near_duplicates")
    if not near:
        return []
    found = f"{near:,} of {row['n_test']:,} test rows are near-duplicates of train rows, or equal to one"
    apart, used = row.get("test_without_near_duplicates"), used_arm(row)
    if not apart or used is None:
        return [f"{found}; {'no test row is left without them' if near >= row['n_test'] else 'no score without them'}."]
    before, after = (
        f"{format_number(score['mean'])} {format_interval(score)}".strip() for score in (used.test, apart["used"])
    )
    return [f"{found}: without them, {row['metric']} of {name_arm(used.name)} is {after}, with them {before}."]


def warn_of_findings(row: Mapping[str, Any]) -> list[str]:
    """A sentence where the data check has warnings; the report lists them."""
    check = row.get("check") or {}
    counts = [
        f"{check[level]} {noun}{'s' if check[level] != 1 else ''}"
        for level, noun in (("warnings", "warning"), ("notes", "note"))
        if check.get(level)
    ]
    return [f"The data check has {' and '.join(counts)}: see the report."] if check.get("warnings") else []


def describe_result(row: Mapping[str, Any]) -> str:
    """The test score of the arm in use, of L2G where the row does not say, as one phrase."""
    used = used_arm(row)
    name, score = (used.name, used.test) if used else ("l2g", row["test"])
    return f"{name_arm(name)}, test {row['metric']} {format_number(score['mean'])} {format_interval(score)}".rstrip()


def name_task(row: Mapping[str, Any]) -> str:
    """The task's name, marked where its sequences are synthetic."""
    return f"{row['task']} (synthetic)" if row.get("synthetic") else row["task"]


def judge(ci95: Sequence[float | None] | None, metric: str, seeds: int) -> str:
    """better, worse or unclear, by whether an interval of a difference is clear of 0.

    The number of seeds where these are too few for a verdict, nothing without an interval.
    """
    lo, hi = ci95 or (None, None)
    if lo is None or hi is None:
        return ""
    if seeds < MIN_SEEDS_FOR_A_VERDICT:
        return f"{seeds} seed{'s' if seeds != 1 else ''}"
    if lo <= 0 <= hi:
        return "unclear"
    return "better" if (lo > 0) == find_metric(metric).higher_is_better else "worse"


def subtract_arms(row: Mapping[str, Any]) -> Difference:
    """L2G minus embedder only."""
    alone = row["embedder_only"] or {}
    mean = (row.get("difference") or {}).get("mean")
    if mean is None and None not in (row["test"]["mean"], alone.get("mean")):
        mean = row["test"]["mean"] - alone["mean"]
    return _difference(row, row.get("difference"), mean, alone)


def subtract_baseline(row: Mapping[str, Any], name: str) -> Difference:
    """L2G minus a baseline of the row, where an interval of that is known."""
    score = row["baselines"][name]
    if not isinstance(score, Mapping):
        return Difference(None, None, "")
    paired = score.get("difference") or {}
    return _difference(row, paired, paired.get("mean"), score if name in TRAINED_BASELINES else row["test"])


def _difference(
    row: Mapping[str, Any], paired: Mapping[str, Any] | None, mean: float | None, other: Mapping[str, Any]
) -> Difference:
    seeds = min(len(score.get("per_seed") or [0]) for score in (row["test"], other))
    ci95 = (paired or {}).get("ci95")
    return Difference(mean, tuple(ci95) if ci95 else None, judge(ci95, row["metric"], seeds))


def format_number(value: float | None, signed: bool = False) -> str:
    """Three decimals, a dash for an undefined value."""
    if value is None:
        return "–"
    return f"{value:+.3f}" if signed else f"{value:.3f}"


def format_interval(score: Mapping[str, Any] | None) -> str:
    """`[lo, hi]`, or nothing when there is no interval."""
    if not score or None in (score.get("ci95") or [None]):
        return ""
    return "[{}, {}]".format(*(format_number(bound) for bound in score["ci95"]))
