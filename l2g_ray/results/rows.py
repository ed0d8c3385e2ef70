"""What a row of the leaderboard says: the ensemble and its arms, the best rivals, differences and the words for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from l2g_ray.arms import ARMS, is_seeded, name_arm
from l2g_ray.tasks.metrics import find_metric

# With fewer seeds of training, the interval of a difference knows nothing of their spread.
MIN_SEEDS_FOR_A_VERDICT = 3


@dataclass(frozen=True)
class UsedArm:
    """What a run predicts with: its name, its test score, and its score on the rows that chose it: held-out rows, or
    validation in a row of an earlier version."""

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
    """Return what `l2g-ray predict` uses: the ensemble; None where the row does not say."""
    if used := row.get("used"):
        return UsedArm(used["arm"], used["test"], used["oof"]["mean"])
    chosen = row.get("chosen")
    if not chosen:
        return None
    return UsedArm(chosen["arm"], chosen["test"], (chosen.get("validation") or {}).get(chosen["arm"]))


def list_weights(row: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Return the arms that the ensemble uses with their shares of all weights, the largest first; nothing where there
    is none.
    """
    weights = {arm: one["weight"] for arm, one in (row.get("arms") or {}).items() if one["weight"]}
    total = sum(weights.values())
    return sorted(((arm, weight / total) for arm, weight in weights.items()), key=lambda pair: -pair[1])


def describe_weights(row: Mapping[str, Any], most: int | None = None) -> str:
    """Return the arms that the ensemble uses with their shares, the `most` largest: "cnn 61%, gapped_kmer 22% and 2
    more".
    """
    weights = list_weights(row)
    shown = weights[:most]
    rest = len(weights) - len(shown)
    text = ", ".join(f"{name_arm(arm)} {share:.0%}" for arm, share in shown)
    return f"{text} and {rest} more" if rest else text


def best_simple_arm(row: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Name and scores of the k-mer arm with the best score on held-out rows; None where a row has none."""
    arms = {arm: one for arm, one in (row.get("arms") or {}).items() if ARMS[arm].simple and one["oof"]}
    name = find_metric(row["metric"]).best(arms, lambda arm: arms[arm]["oof"]["mean"])
    return (name, dict(arms[name])) if name else None


def list_board_arms(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the arms that any row's ensemble uses, and each row's best k-mer arm, in the order of `ARMS`.

    L2G and the embedder are left out: every board has a column for them.
    """
    shown: set[str] = set()
    for row in rows:
        simple = best_simple_arm(row)
        shown |= {*dict(list_weights(row)), *([simple[0]] if simple else [])}
    return [arm for arm in ARMS if arm in shown - {"l2g", "embedder_only"}]


def best_published(row: Mapping[str, Any], comparable: bool = True) -> dict[str, Any] | None:
    """Return the best published score of a row, of the comparable ones only unless told otherwise; None where there
    is none.
    """
    known = [p for p in row["published"] if p["comparable"] or not comparable]
    return find_metric(row["metric"]).best(known, lambda p: p["value"])


def best_baseline(row: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Name and scores of the baseline with the best validation score: the test split chooses nothing."""
    scores = {n: s for n, s in (row.get("baselines") or {}).items() if isinstance(s, Mapping)}
    name = find_metric(row["metric"]).best(scores, lambda n: scores[n].get("validation"))
    return (name, dict(scores[name])) if name else None


def warn_of_baseline(row: Mapping[str, Any]) -> list[str]:
    """Return sentences where a k-mer arm is better than what the run predicts with on held-out rows, or an arm or
    baseline on test with an interval of the difference that is clear of 0.

    In a row of an earlier version: where the best baseline is better on validation.
    """
    used = used_arm(row)
    if used is None:
        return []
    if not row.get("used"):
        name, score = best_baseline(row) or ("", {})
        known = score.get("validation")
        return [_warn_of(f"baseline {name}", "validation", known, score["mean"], row)] if _beats(known, row) else []
    found = []
    if (arm := best_simple_arm(row)) and _beats(arm[1]["oof"]["mean"], row):
        found.append(_warn_of(f"arm {arm[0]}", "held-out rows", arm[1]["oof"]["mean"], arm[1]["test"]["mean"], row))
    others = [(f"arm {name_arm(arm)}", one["test"], one) for arm, one in row["arms"].items()]
    others += [(f"baseline {name}", one, one) for name, one in row["baselines"].items() if isinstance(one, Mapping)]
    for who, score, one in others:
        # Seeds or not: the interval over the test rows is enough for a warning.
        if judge((one.get("difference") or {}).get("ci95"), row["metric"], MIN_SEEDS_FOR_A_VERDICT) == "worse":
            found.append(
                f"The {who} has a better {row['metric']} on test than what the run predicts with: "
                f"{format_number(score['mean'])} {format_interval(score)}, {name_arm(used.name)} "
                f"{format_number(used.test['mean'])} {format_interval(used.test)}."
            )
    return found


def _beats(known: float | None, row: Mapping[str, Any]) -> bool:
    used = used_arm(row)
    if known is None or used is None:
        return False
    return used.validation is None or find_metric(row["metric"]).is_better(known, used.validation)


def _warn_of(who: str, rows: str, known: float | None, test: float | None, row: Mapping[str, Any]) -> str:
    used = used_arm(row)
    assert used is not None
    return (
        f"The {who} has a better {row['metric']} on {rows} than what the run predicts with: {who.split()[-1]} "
        f"{format_number(known)} (test {format_number(test)}), {name_arm(used.name)} "
        f"{format_number(used.validation)} (test {format_number(used.test['mean'])})."
    )


def warn_of_near_duplicates(row: Mapping[str, Any]) -> list[str]:
    """Return a sentence where test rows are near-duplicates of train rows, with the score without them where it is
    known.
    """
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
    """Return a sentence where the data check has warnings; the report lists them."""
    check = row.get("check") or {}
    counts = [
        f"{check[level]} {noun}{'s' if check[level] != 1 else ''}"
        for level, noun in (("warnings", "warning"), ("notes", "note"))
        if check.get(level)
    ]
    return [f"The data check has {' and '.join(counts)}, which the report lists."] if check.get("warnings") else []


def describe_result(row: Mapping[str, Any]) -> str:
    """Return what the run predicts with and its test score, of L2G where the row does not say; the best k-mer arm
    beside it.
    """
    used = used_arm(row)
    name, score = (used.name, used.test) if used else ("l2g", row["test"])
    weights = f" of {shares}" if (shares := describe_weights(row, 3)) else ""
    told = f"{name_arm(name)}{weights}, test {row['metric']} {format_number(score['mean'])} {format_interval(score)}"
    simple = best_simple_arm(row)
    beside = f"; best k-mer arm {simple[0]} {format_number(simple[1]['test']['mean'])}" if simple else ""
    return told.rstrip() + beside


def name_task(row: Mapping[str, Any]) -> str:
    """Return the task's name, marked where its sequences are synthetic."""
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
    """L2G minus embedder only; nothing where one of them was not trained."""
    l2g, alone = row["test"], row["embedder_only"]
    if not l2g:
        return Difference(None, None, "")
    mean = (row.get("difference") or {}).get("mean")
    if mean is None and alone and None not in (l2g["mean"], alone.get("mean")):
        mean = l2g["mean"] - alone["mean"]
    return make_difference(row["metric"], row.get("difference"), mean, l2g, alone or {})


def subtract_baseline(row: Mapping[str, Any], name: str) -> Difference:
    """Return what the run predicts with (L2G in a row of an earlier version) minus a baseline, where an interval of
    that is known.
    """
    score = row["baselines"][name]
    if not isinstance(score, Mapping):
        return Difference(None, None, "")
    paired = score.get("difference") or {}
    mine = row["used"]["test"] if row.get("used") else row["test"]
    other = score if is_seeded(name) else mine
    return make_difference(row["metric"], paired, paired.get("mean"), mine, other)


def make_difference(
    metric: str, paired: Mapping[str, Any] | None, mean: float | None, one: Mapping[str, Any], other: Mapping[str, Any]
) -> Difference:
    """Return a mean, the interval of a paired difference, and the verdict for the seeds that both scores have."""
    seeds = min(len(score.get("per_seed") or [0]) for score in (one, other))
    ci95 = (paired or {}).get("ci95")
    return Difference(mean, tuple(ci95) if ci95 else None, judge(ci95, metric, seeds))


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
    """Return all arms of a row, those with the largest weights first, then by name."""
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
    """Return what the held-out rows of a row are: OOF (out of fold), or validation where there are no folds."""
    return "OOF" if (row.get("used") or {}).get("folds") else "Validation"


def head_arms(row: Mapping[str, Any]) -> list[str]:
    """Return headings of `tabulate_arms`."""
    return ["Arm", name_held_out(row), "Test", "Weight", "Adds"]


def tabulate_arms(row: Mapping[str, Any]) -> list[list[str]]:
    """Return what is used and all arms as cells of text; nothing for a row without arms."""
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
    """Return how what the run predicts with was made, as sentences; nothing where the row does not say."""
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
    """Return how what is used was made, its size and speed, and L2G minus embedder only, as one paragraph."""
    return " ".join(filter(None, (explain_used(row), describe_size(row), describe_difference(row))))
