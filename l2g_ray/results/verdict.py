"""The verdict on a run in words: what was trained, what is used, how sure its score is, and what to watch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from l2g_ray.results.lights import LIMITS, Graded
from l2g_ray.results.rows import (
    MIN_SEEDS_FOR_A_VERDICT,
    best_baseline,
    best_simple_arm,
    describe_weights,
    format_interval,
    format_number,
    judge,
    name_arm,
    subtract_baseline,
    used_arm,
    warn_of_baseline,
)

# The score that random predictions have, of metrics where it is known.
CHANCE = {"mcc": 0.0, "pearson_mean": 0.0, "spearman_mean": 0.0, "auroc": 0.5}
# An interval this wide is about that of 300 rows.
WIDE = 0.15
_WORDS = {
    "better": "clearly better than {}",
    "unclear": "not clearly better than {}",
    "worse": "clearly worse than {}",
}


@dataclass(frozen=True)
class Verdict(Graded):
    """A task's verdict: its level, and sentences."""

    level: str
    trained: str
    used: str
    sure: tuple[str, ...]
    watch: tuple[str, ...]
    short: str

    def __str__(self) -> str:
        watch = f" Watch: {' '.join(self.watch)}" if self.watch else ""
        return f"{self.trained} {self.used} {' '.join(self.sure)}{watch}".strip()


def judge_task(row: Mapping[str, Any]) -> Verdict:
    """Return the verdict on a task, from its row of the leaderboard alone."""
    red, amber = _list_problems(row), _list_cautions(row)
    level = "red" if red else "amber" if amber else "green"
    return Verdict(
        level,
        _describe_training(row),
        _describe_used(row),
        tuple(filter(None, (_describe_seeds(row), _describe_comparison(row)))),
        (*red, *amber),
        _describe_shortly(row),
    )


def describe_suite(board: Mapping[str, Any]) -> str:
    """Return the verdict on a suite as one paragraph: what was trained, how often it beats the simple models, what to
    look at.
    """
    rows = board["tasks"]
    if not rows:
        return "No task has a result yet."
    verdicts = {row["task"]: judge_task(row) for row in rows}
    parts = [_join_counts("arm", [len(row.get("arms") or {}) for row in rows])]
    parts.append(_join_counts("fold", [(row.get("used") or {}).get("folds") or 0 for row in rows]))
    parts.append(_join_counts("seed", [_count_seeds(row) for row in rows]))
    shape = ", ".join(filter(None, parts))
    trained = f"{_count(len(rows), 'task')}, preset {board['preset']}{f', {shape}' if shape else ''}."
    verdict_of = [_compare(row)[1] for row in rows]
    counts = Counter(verdict for verdict in verdict_of if verdict)
    compared = [
        f"{word} on {counts[key]}"
        for key, word in (("better", "clearly better"), ("unclear", "not clearly better"), ("worse", "clearly worse"))
        if counts[key]
    ]
    few = sum(count for key, count in counts.items() if key not in _WORDS)
    if few:
        compared.append(f"too few seeds for a verdict on {few}")
    against = f" Against the best simple model: {', '.join(compared)} of {len(rows)}." if compared else ""
    watch = [
        f" {words}: {', '.join(names)}."
        for level, words in (("red", "Problems"), ("amber", "To look at"))
        if (names := [name for name, verdict in verdicts.items() if verdict.level == level])
    ]
    return f"{trained}{against}{''.join(watch) or ' Nothing stands out.'}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' if number != 1 else ''}"


def _join_counts(noun: str, numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    if not high:
        return ""
    return _count(high, noun) if low == high else f"{low:,} to {_count(high, noun)}"


def _count_seeds(row: Mapping[str, Any]) -> int:
    used = used_arm(row)
    return len((used.test if used else row["test"] or {}).get("per_seed") or [0])


def _describe_training(row: Mapping[str, Any]) -> str:
    names = list(row.get("arms") or {}) or [
        arm for arm, score in (("l2g", row["test"]), ("embedder_only", row["embedder_only"])) if score
    ]
    folds = (row.get("used") or {}).get("folds") or 0
    parts = [f"{_count(len(names), 'arm')} ({', '.join(map(name_arm, names))})"]
    if folds:
        parts.append(_count(folds, "fold"))
    parts.append(_count(_count_seeds(row), "seed"))
    return f"Trained: {', '.join(parts)}, on {row['n_train']:,} rows."


def _describe_used(row: Mapping[str, Any]) -> str:
    used = used_arm(row)
    score = used.test if used else row["test"]
    if not score:
        return "No score is known."
    weights = f" ({shares})" if (shares := describe_weights(row, 3)) else ""
    told = f"{format_number(score['mean'])} {format_interval(score)}".strip()
    name = name_arm(used.name) if used else "L2G"
    return f"Used: {name}{weights}. Test {row['metric']}: {told}, on {row['n_test']:,} rows."


def _describe_seeds(row: Mapping[str, Any]) -> str:
    used = used_arm(row)
    values = [v for v in ((used.test if used else row["test"] or {}).get("per_seed") or ()) if v is not None]
    if len(values) < MIN_SEEDS_FOR_A_VERDICT:
        known = _count(_count_seeds(row), "seed")
        return f"{known}: the interval is of the test rows alone, without the noise of training."
    return f"The {len(values)} seeds score {format_number(min(values))} to {format_number(max(values))}."


def _compare(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return the best simple model, the verdict of the difference (see `rows.judge`), and the difference as text."""
    if simple := best_simple_arm(row):
        name, paired = f"the best k-mer arm, {name_arm(simple[0])}", simple[1].get("difference") or {}
        verdict = judge(paired.get("ci95"), row["metric"], _count_seeds(row))
        return name, verdict, _format(paired.get("mean"), paired)
    known = best_baseline(row)
    if known is None:
        return "", "", ""
    difference = subtract_baseline(row, known[0])
    told = _format(difference.mean, {"ci95": difference.ci95})
    return f"the best baseline, {name_arm(known[0])}", difference.verdict, told


def _format(mean: float | None, paired: Mapping[str, Any]) -> str:
    return "" if mean is None else f"{format_number(mean, signed=True)} {format_interval(paired)}".strip()


def _describe_comparison(row: Mapping[str, Any]) -> str:
    name, verdict, difference = _compare(row)
    if not verdict:
        return ""
    if verdict in _WORDS:
        words = _WORDS[verdict].format(name)
        return f"{words[0].upper()}{words[1:]}: {difference}."
    return f"Minus {name}: {difference}; no verdict with {verdict}."


def _describe_shortly(row: Mapping[str, Any]) -> str:
    used = used_arm(row)
    score = used.test if used else row["test"]
    told = f"{row['metric']} {format_number(score['mean'] if score else None)} {format_interval(score)}".strip()
    name, verdict, difference = _compare(row)
    simple = name.split(",")[0]
    few = f"{difference.split()[0]} against {simple} ({verdict})" if verdict and difference else ""
    words = _WORDS[verdict].format(simple) if verdict in _WORDS else few
    name = name_arm(used.name) if used else "L2G"
    return f"{name}, {told}{f', {words}' if words else ''}"


def _list_problems(row: Mapping[str, Any]) -> list[str]:
    """Return sentences about a score that is like chance, or a test split that nobody should score on."""
    found, used = [], used_arm(row)
    score = used.test if used else row["test"]
    low = ((score or {}).get("ci95") or (None, None))[0]
    chance = CHANCE.get(row["metric"])
    constant = (row.get("baselines") or {}).get("majority")
    paired = (constant.get("difference") or {}).get("ci95") if isinstance(constant, Mapping) else None
    if (low is not None and chance is not None and low <= chance) or (
        judge(paired, row["metric"], MIN_SEEDS_FOR_A_VERDICT) in ("unclear", "worse")
    ):
        found.append("The score may be chance: shuffled labels would score alike.")
    for split in ("train", "test"):
        if LIMITS[f"Size, {split}"].find_level(row[f"n_{split}"]) == "red":
            found.append(f"Very few {split} rows: {row[f'n_{split}']:,}.")
    return found


def _list_cautions(row: Mapping[str, Any]) -> list[str]:
    found, used, check = [], used_arm(row), row.get("check") or {}
    for split in ("train", "test"):
        if LIMITS[f"Size, {split}"].find_level(row[f"n_{split}"]) == "amber":
            found.append(f"Few {split} rows: {row[f'n_{split}']:,}.")
    score = used.test if used else row["test"]
    low, high = (score or {}).get("ci95") or (None, None)
    if low is not None and high is not None and row["metric"] in CHANCE and high - low >= WIDE:
        found.append(f"The interval is wide: {format_number(high - low)}.")
    warnings = " ".join(warn_of_baseline(row))
    for rows in ("held-out rows", "validation", "test"):
        if f" on {rows} than" in warnings:
            found.append(f"Another arm or baseline scores better on {rows}.")
    near = check.get("near_duplicates") or 0
    if row["n_test"] and LIMITS["Near-duplicates"].find_level(near / row["n_test"]) != "green":
        found.append(f"{near / row['n_test']:.1%} of the test rows have a near-duplicate in train.")
    if count := check.get("warnings"):
        found.append(f"The data check has {_count(count, 'warning')}.")
    if row.get("synthetic"):
        found.append("The sequences are synthetic.")
    return found
