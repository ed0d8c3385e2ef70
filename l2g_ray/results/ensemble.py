"""What a row of the leaderboard says of its ensemble: how it was made, its arms, and what each of them adds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from l2g_ray.results.rows import (
    Difference,
    format_interval,
    format_number,
    list_weights,
    make_difference,
    name_arm,
    subtract_arms,
)

# How the weights of the arms come about, by the setting `ensemble`.
WEIGHTS = {
    "stack": "weights by ridge regression on",
    "greedy": "weights by greedy selection on",
    "mean": "equal weights, not fitted to",
    "best": "the arm with the lowest loss on",
}
EXPLAIN_ADDS = (
    "Weight: the share of all weights. Adds: the score of the ensemble minus that of an ensemble without the arm, on held-out "
    "rows; the weights of both were fitted to other rows."
)


@dataclass(frozen=True)
class ArmLine:
    """One arm of a row: its scores on held-out rows and on test, its share of all weights, what the ensemble gains by it on
    held-out rows, and the ensemble minus the arm on test."""

    name: str
    held_out: Mapping[str, Any] | None
    test: Mapping[str, Any]
    share: float
    adds: Difference
    less: Difference


def list_arms(row: Mapping[str, Any]) -> list[ArmLine]:
    """All arms of a row, those with the largest weights first, then by name."""
    shares, arms = dict(list_weights(row)), row.get("arms") or {}
    return [
        ArmLine(
            arm,
            arms[arm]["oof"],
            arms[arm]["test"],
            shares.get(arm, 0.0),
            _read_difference(row["metric"], arms[arm].get("adds"), arms[arm]["oof"]),
            _read_difference(row["metric"], arms[arm].get("difference"), arms[arm]["test"]),
        )
        for arm in sorted(arms, key=lambda arm: (-shares.get(arm, 0.0), arm))
    ]


def _read_difference(metric: str, paired: Mapping[str, Any] | None, score: Mapping[str, Any] | None) -> Difference:
    return make_difference(metric, paired, (paired or {}).get("mean"), score or {}, score or {})


def name_held_out(row: Mapping[str, Any]) -> str:
    """What the held-out rows of a row are: OOF (out of fold), or validation where there are no folds."""
    return "OOF" if (row.get("used") or {}).get("folds") else "Validation"


def head_arms(row: Mapping[str, Any]) -> list[str]:
    """Headings of `tabulate_arms`."""
    return ["Arm", name_held_out(row), "Test", "Weight", "Adds"]


def tabulate_arms(row: Mapping[str, Any]) -> list[list[str]]:
    """What is used and all arms as cells of text; nothing for a row without arms."""
    arms, used = list_arms(row), row.get("used")
    if not arms or not used:
        return []
    lines = [[f"{name_arm(used['arm'])} (used)", *_score(used["oof"], used["test"]), "", ""]]
    for arm in arms:
        share = f"{arm.share:.0%}" if arm.share else "–"
        lines.append([name_arm(arm.name), *_score(arm.held_out, arm.test), share, " ".join(arm.adds.parts[:2]).strip()])
    return lines


def _score(held_out: Mapping[str, Any] | None, test: Mapping[str, Any]) -> list[str]:
    known = format_number(held_out["mean"] if held_out else None)
    return [known, f"{format_number(test['mean'])} {format_interval(test)}".strip()]


def explain_used(row: Mapping[str, Any]) -> str:
    """How what the run predicts with was made, as sentences; nothing where the row does not say."""
    used = row.get("used")
    if not used:
        return _explain_choice(row)
    how, folds = WEIGHTS[used.get("ensemble", "stack")], used.get("folds")
    if folds:
        return (
            f"The ensemble: {how} out-of-fold (OOF) predictions. Each arm is trained {folds} times, each time without one "
            f"of {folds} folds of the train and validation rows, and predicts that fold; for new sequences it predicts the mean "
            "of these models. Rows of the validation split do not count for the OOF score, because settings were chosen on them."
        )
    return (
        f"The ensemble: {how} the predictions for the validation rows. Each arm is trained once, on the train rows. Settings "
        "were chosen on the validation rows too, so scores on them are optimistic."
    )


def _explain_choice(row: Mapping[str, Any]) -> str:
    scores = (row.get("chosen") or {}).get("validation") or {}
    told = ", ".join(f"{name_arm(arm)} {format_number(value)}" for arm, value in scores.items())
    return f"Used is the arm with the best score on validation: {told}." if told else ""


def describe_size(row: Mapping[str, Any]) -> str:
    """Models, megabytes and speed of what the run predicts with, as far as the row says."""
    used, parts = row.get("used") or {}, []
    if models := used.get("models"):
        parts.append(f"{models} model{'s' if models != 1 else ''}")
    if size := used.get("bytes"):
        parts.append(f"{size / 1e6:,.1f} MB")
    if speed := used.get("rows_per_s"):
        parts.append(f"{speed:,.0f} sequences per second")
    return f"Size and speed: {', '.join(parts)}." if parts else ""


def describe_difference(row: Mapping[str, Any]) -> str:
    """L2G minus embedder only; nothing where one of them was not trained."""
    number, interval, verdict = subtract_arms(row).parts
    if subtract_arms(row).mean is None:
        return ""
    return f"L2G minus embedder only on test: {f'{number} {interval}'.strip()}{f', {verdict}' if verdict else ''}."


def describe_ensemble(row: Mapping[str, Any]) -> str:
    """How what is used was made, its size and speed, and L2G minus embedder only, as one paragraph."""
    return " ".join(filter(None, (explain_used(row), describe_size(row), describe_difference(row))))
