"""Descriptions of MLflow runs, in Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from l2g_ray.results.rows import format_interval, format_number, list_weights, name_arm

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
    """What the stored model is, and the scores of all arms and baselines, means over seeds."""
    used, metric = row["used"], row["metric"]
    lines = [f"| arm | held-out {metric} | test {metric} | 95 % interval | weight |", "|---|---:|---:|---|---:|"]
    lines.append(_line(f"**{used['arm']}** (used)", used["oof"]["mean"], used["test"]))
    for name, one in row["arms"].items():
        known = (one["oof"] or {}).get("mean")
        lines.append(_line(name_arm(name), known, one["test"], format_number(one["weight"] or None)))
    for name, score in row["baselines"].items():
        if isinstance(score, Mapping):
            lines.append(_line(f"{name} (validation)", score.get("validation"), score))
    seeds = len(used["test"]["per_seed"])
    means = f"Means over {seeds} seeds; the model and its `test_*` metrics are of one of them. " if seeds > 1 else ""
    shares = ", ".join(f"{name_arm(arm)} {share:.0%}" for arm, share in list_weights(row))
    about = f"The model is the ensemble of {shares}. "
    warnings = [f"- {warning}" for warning in row["warnings"]]
    table = "\n".join(lines)
    return "\n\n".join([f"{about}{means}".strip(), table, *(["\n".join(warnings)] if warnings else [])])[:MAX_CHARS]


def _line(name: str, known: float | None, score: Mapping[str, Any], weight: str = "") -> str:
    cells = [name, format_number(known), format_number(score["mean"]), format_interval(score), weight]
    return f"| {' | '.join(cells)} |"
