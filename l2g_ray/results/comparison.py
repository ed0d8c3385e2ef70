"""Several runs of the same tasks in one table: what a change of settings did."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from l2g_ray.errors import UserError
from l2g_ray.results.leaderboard import write_atomically
from l2g_ray.results.rows import UsedArm, format_interval, format_number, subtract_arms, used_arm
from l2g_ray.results.schema import validate_leaderboard
from l2g_ray.results.terminal import Column, Listing
from l2g_ray.tasks.metrics import METRICS

COLUMNS = (
    Column("Task, metric", words=True),
    Column("Variant", words=True),
    *(Column(h) for h in ("Held-out", "Change", "Used", "Change in test", "L2G", "Embedder", "Difference")),
)


def read_board(run: Path) -> dict[str, Any]:
    """The leaderboard of a run's folder. Raises UserError when there is none."""
    try:
        return validate_leaderboard(json.loads((run / "leaderboard.json").read_text()))
    except (OSError, ValueError) as error:
        raise UserError(f"{run / 'leaderboard.json'}: cannot be read ({error}); run the suite again") from None


def compare_boards(boards: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row a task and variant, tasks in the first board's order.

    'held_out' and 'test' are scores of what the run predicts with ('used'; L2G where the row does not say), 'l2g' and
    'embedder_only' test scores, all of them means over seeds. 'difference' is L2G minus embedder only on test rows,
    'change_held_out' and 'change_test' are against the first variant that has the task. A task that failed in a variant has
    no row there.
    """
    tasks = dict.fromkeys(row["task"] for board in boards.values() for row in board["tasks"])
    found = []
    for task in tasks:
        first: dict[str, Any] | None = None
        for variant, board in boards.items():
            row = next((row for row in board["tasks"] if row["task"] == task), None)
            if row is None:
                continue
            entry: dict[str, Any] = {"task": task, "metric": row["metric"], "variant": variant}
            used = used_arm(row) or UsedArm("l2g", row["test"], row["validation"]["mean"])
            entry |= {"used": used.name, "held_out": used.validation, "test": used.test["mean"]}
            entry |= {"test_ci95": list(used.test.get("ci95") or [None, None])}
            entry |= {name: (row[key] or {}).get("mean") for name, key in (("l2g", "test"), ("embedder_only",) * 2)}
            difference = subtract_arms(row)
            entry |= {"difference": difference.mean, "difference_ci95": list(difference.ci95 or (None, None))}
            entry |= {"verdict": difference.verdict, "wall_s": row["wall_s"]}
            first = first or entry
            for rows in ("held_out", "test"):
                one, other = entry[rows], first[rows]
                entry[f"change_{rows}"] = None if None in (one, other) else one - other
            found.append(entry)
    return found


def render_comparison(rows: list[dict[str, Any]]) -> Listing:
    """The rows for a terminal of any width."""
    listing = Listing(COLUMNS, caption=[_caption()], keys=2)
    for row in rows:
        listing.add(f"{row['task']}, {row['metric']}", *_cells(row))
    return listing


def write_comparison(rows: list[dict[str, Any]], folder: Path) -> list[Path]:
    """Write comparison.json, .csv and .md into `folder`. Returns the paths; raises UserError when that cannot be done."""
    out = io.StringIO()
    flat = [
        {key: value for key, value in row.items() if not key.endswith("_ci95")}
        | dict(zip(("test_lo", "test_hi"), row["test_ci95"]))
        | dict(zip(("difference_lo", "difference_hi"), row["difference_ci95"]))
        for row in rows
    ]
    writer = csv.DictWriter(out, fieldnames=list(flat[0]) if flat else ["task"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    headings = ["Task", "Metric", *(column.heading for column in COLUMNS[1:])]
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * 3 + "---:|" * (len(headings) - 3)]
    for row in rows:
        cells = [cell if isinstance(cell, str) else " ".join(filter(None, cell)) for cell in _cells(row)]
        lines.append("| " + " | ".join([row["task"], row["metric"], *cells]) + " |")
    texts = {
        "comparison.json": json.dumps({"schema": 1, "rows": rows}, indent=1) + "\n",
        "comparison.csv": out.getvalue(),
        "comparison.md": "\n".join([*lines, "", _caption()]) + "\n",
    }
    return [write_atomically(folder / name, text) for name, text in texts.items()]


def _caption() -> str:
    lower = ", ".join(name for name, metric in METRICS.items() if not metric.higher_is_better)
    return (
        "Choose by the score on held-out rows (validation in a run of an earlier version); the test split is for the variant that "
        "was chosen. Used: what the run predicts with, on test. Change: this variant minus the first, two means subtracted, "
        f"without an interval; lower is better for {lower}. Difference: L2G minus embedder only, over the same test rows. "
        "Intervals are 95 % bootstrap."
    )


def _cells(row: dict[str, Any]) -> list[str | list[str]]:
    return [
        row["variant"],
        format_number(row["held_out"]),
        format_number(row["change_held_out"], signed=True),
        [format_number(row["test"]), format_interval({"ci95": row["test_ci95"]})],
        format_number(row["change_test"], signed=True),
        format_number(row["l2g"]),
        format_number(row["embedder_only"]),
        [
            format_number(row["difference"], signed=True),
            format_interval({"ci95": row["difference_ci95"]}),
            row["verdict"],
        ],
    ]
