"""Descriptions of MLflow runs, in Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from l2g_ray.results.ensemble import EXPLAIN_ADDS, describe_ensemble, list_arms, name_held_out
from l2g_ray.results.rows import describe_weights, format_interval, format_number, name_arm

MAX_CHARS = 4900  # below what a tag may have; see `tracking.MAX_TAG_CHARS`
REST = "\n\nThe whole table is the artifact `leaderboard.md`."


def describe_suite(leaderboard: str, command: str) -> str:
    """The leaderboard (the text of `leaderboard.md`), whole lines of it as far as they fit, and the command."""
    head = f"```sh\n{command}\n```\n\n" if command and len(command) < MAX_CHARS // 2 else ""
    room, kept = MAX_CHARS - len(head) - len(REST), list[str]()
    for line in re.sub("^#+", "####", leaderboard.strip(), flags=re.MULTILINE).splitlines():
        room -= len(line) + 1
        if room < 0:
            return head + "\n".join(kept).rstrip() + REST
        kept.append(line)
    return head + "\n".join(kept)


def describe_task(row: Mapping[str, Any]) -> str:
    """What the stored model is, how it was made, and the scores of all arms and baselines, means over seeds."""
    used, metric = row["used"], row["metric"]
    headings = ("arm", f"{name_held_out(row)} {metric}", f"test {metric}", "95 % interval", "weight", "adds")
    lines = [f"| {' | '.join(headings)} |", "|---|---:|---:|---|---:|---:|"]
    lines.append(_line(f"**{used['arm']}** (used)", used["oof"]["mean"], used["test"]))
    for arm in list_arms(row):
        known = arm.held_out["mean"] if arm.held_out else None
        share = f"{arm.share:.0%}" if arm.share else "–"
        lines.append(_line(name_arm(arm.name), known, arm.test, share, " ".join(arm.adds.parts[:2]).strip()))
    for name, score in row["baselines"].items():
        if isinstance(score, Mapping):
            lines.append(_line(f"{name} (validation)", score.get("validation"), score))
    seeds = len(used["test"]["per_seed"])
    means = f"Means over {seeds} seeds; the model and its `test_*` metrics are of one of them. " if seeds > 1 else ""
    about = f"The model is the ensemble of {describe_weights(row)}. "
    warnings = [f"- {warning}" for warning in row["warnings"]]
    table = "\n".join(lines)
    parts = [f"{about}{means}".strip(), table, EXPLAIN_ADDS, *(["\n".join(warnings)] if warnings else [])]
    return "\n\n".join([*parts, describe_ensemble(row)])[:MAX_CHARS]


def _line(name: str, known: float | None, score: Mapping[str, Any], weight: str = "", adds: str = "") -> str:
    cells = [name, format_number(known), format_number(score["mean"]), format_interval(score), weight, adds]
    return f"| {' | '.join(cells)} |"
