"""Several runs of the same tasks in one table: what a change of settings did."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l2g_ray.errors import UserError
from l2g_ray.results.leaderboard import format_interval, format_number, write_atomically
from l2g_ray.results.schema import validate_leaderboard

if TYPE_CHECKING:
    from rich.table import Table

CAPTION = (
    "Choose by validation; the test split is for the one that was chosen. Change: against the first variant, "
    "as far as the metric goes (lower is better for mse). Intervals are 95 % bootstrap."
)


def read_board(run: Path) -> dict[str, Any]:
    """The leaderboard of a run's folder. Raises UserError when there is none."""
    try:
        return validate_leaderboard(json.loads((run / "leaderboard.json").read_text()))
    except (OSError, ValueError) as error:
        raise UserError(f"{run / 'leaderboard.json'}: cannot be read ({error}); run the suite again") from None


def compare_boards(boards: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row a task and variant, tasks in the first board's order.

    'validation', 'test' and 'embedder_only' are means over seeds, 'difference' is L2G minus embedder only on test rows,
    'change_validation' and 'change_test' are against the first variant that has the task. A task that failed in a
    variant has no row there.
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
            entry |= {"validation": row["validation"]["mean"], "test": row["test"]["mean"]}
            entry |= {"test_ci95": list(row["test"].get("ci95") or [None, None])}
            entry |= {"embedder_only": (row["embedder_only"] or {}).get("mean")}
            entry |= {"difference": (row.get("difference") or {}).get("mean"), "wall_s": row["wall_s"]}
            first = first or entry
            for split in ("validation", "test"):
                one, other = entry[split], first[split]
                entry[f"change_{split}"] = None if None in (one, other) else one - other
            found.append(entry)
    return found


def render_comparison(rows: list[dict[str, Any]]) -> Table:
    """The rows as a rich table of at most 110 columns."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, caption=CAPTION, caption_justify="left", padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("Task, metric", "Variant"):
        table.add_column(name, overflow="fold")
    for name in ("Validation", "Change", "Test", "", "Change", "Embedder only", "Difference"):
        table.add_column(name, justify="right", no_wrap=True)
    for before, row in zip([None, *rows], rows):
        begins = before is None or before["task"] != row["task"]
        table.add_row(f"{row['task']}, {row['metric']}" if begins else "", *_cells(row))
    return table


def write_comparison(rows: list[dict[str, Any]], folder: Path) -> list[Path]:
    """Write comparison.json, .csv and .md into `folder`. Returns the paths; raises UserError when that cannot be done."""
    out = io.StringIO()
    flat = [
        {key: value for key, value in row.items() if key != "test_ci95"}
        | dict(zip(("test_lo", "test_hi"), row["test_ci95"]))
        for row in rows
    ]
    writer = csv.DictWriter(out, fieldnames=list(flat[0]) if flat else ["task"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    headings = [
        "Task",
        "Metric",
        "Variant",
        "Validation",
        "Change",
        "Test",
        "95 %",
        "Change",
        "Embedder only",
        "Difference",
    ]
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * 3 + "---:|" * (len(headings) - 3)]
    lines += ["| " + " | ".join([row["task"], row["metric"], *_cells(row)]) + " |" for row in rows]
    texts = {
        "comparison.json": json.dumps({"schema": 1, "rows": rows}, indent=1) + "\n",
        "comparison.csv": out.getvalue(),
        "comparison.md": "\n".join([*lines, "", CAPTION]) + "\n",
    }
    return [write_atomically(folder / name, text) for name, text in texts.items()]


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        row["variant"],
        format_number(row["validation"]),
        format_number(row["change_validation"], signed=True),
        format_number(row["test"]),
        format_interval({"ci95": row["test_ci95"]}),
        format_number(row["change_test"], signed=True),
        format_number(row["embedder_only"]),
        format_number(row["difference"], signed=True),
    ]
