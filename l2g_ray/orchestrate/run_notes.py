"""Descriptions of MLflow runs, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from l2g_ray.results.leaderboard import format_interval, format_number, name_arm

MAX_CHARS = 4900  # below what a tag may have; see `tracking.MAX_TAG_CHARS`
REST = "\n\nThe whole table is the artifact `leaderboard.md`."


def describe_suite(leaderboard: str, command: str) -> str:
    """The leaderboard (the text of `leaderboard.md`), whole lines of it as far as they fit, and the command."""
    head = f"```sh\n{command}\n```\n\n" if command and len(command) < MAX_CHARS // 2 else ""
    room, kept = MAX_CHARS - len(head) - len(REST), list[str]()
    for line in leaderboard.strip().splitlines():
        room -= len(line) + 1
        if room < 0:
            return head + "\n".join(kept).rstrip() + REST
        kept.append(line)
    return head + "\n".join(kept)


def describe_task(row: Mapping[str, Any]) -> str:
    """What the stored model is, and the scores of all arms and baselines, means over seeds."""
    chosen, metric = row["chosen"], row["metric"]
    arms = {"l2g": row["test"], "embedder_only": row["embedder_only"], "average": row.get("average")}
    lines = [f"| arm | validation {metric} | test {metric} | 95 % interval |", "|---|---:|---:|---|"]
    for arm, score in arms.items():
        if score:
            used = " (used)" if arm == chosen["arm"] else ""
            lines.append(_line(f"{name_arm(arm)}{used}", chosen["validation"].get(arm), score))
    for name, score in row["baselines"].items():
        if isinstance(score, Mapping):
            lines.append(_line(name, score.get("validation"), score))
    seeds = len(row["test"]["per_seed"])
    means = f"Means over {seeds} seeds; the model and its `test_*` metrics are of one of them. " if seeds > 1 else ""
    used = f"The model is **{name_arm(chosen['arm'])}**, which was best on validation. "
    warnings = [f"- {warning}" for warning in row["warnings"]]
    table = "\n".join(lines)
    return "\n\n".join([f"{used}{means}".strip(), table, *(["\n".join(warnings)] if warnings else [])])[:MAX_CHARS]


def _line(name: str, validation: float | None, score: Mapping[str, Any]) -> str:
    return f"| {name} | {format_number(validation)} | {format_number(score['mean'])} | {format_interval(score)} |"
