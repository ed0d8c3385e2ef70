"""What is told of batches that did not fit into memory and were cut into micro-batches (`stages.loop`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def describe_cut(name: str, row: Mapping[str, Any]) -> str:
    """What to tell when a trial began to cut its batches."""
    return (
        f"{name}: memory did not suffice in epoch {int(row['epoch']) + 1}; each batch now goes through in "
        f"{row['micro_batches']} micro-batches. The effective batch stays; batch norm takes each micro-batch's statistics"
    )


def warn_of_cuts(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """For the leaderboard: stages whose batches were cut, from histories named 'stage/trial'."""
    cut: dict[str, int] = {}
    for name, rows in histories.items():
        if most := _most_cut(rows):
            stage = name.split("/")[0]
            cut[stage] = max(cut.get(stage, 1), most)
    if not cut:
        return []
    stages = ", ".join(f"{stage} (up to {n})" for stage, n in cut.items())
    return [
        f"memory did not suffice: batches went through in micro-batches in {stages}. Gradients accumulate, so the effective "
        "batch is the same, but batch norm took the statistics of each micro-batch"
    ]


def _most_cut(rows: Iterable[Mapping[str, Any]]) -> int:
    return max((int(row.get("micro_batches", 1)) for row in rows if row.get("micro_batches", 1) > 1), default=0)
