"""The table of a sweep: variants against the first that has the task, failed and undefined scores included."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from l2g_ray.errors import UserError
from l2g_ray.results.comparison import compare_boards, read_board, render_comparison, write_comparison


def row(task: str, validation: float, test: float | None, metric: str = "mcc") -> dict[str, Any]:
    interval = [None, None] if test is None else [test - 0.1, test + 0.1]
    return {
        "task": task,
        "metric": metric,
        "validation": {"mean": validation},
        "test": {"mean": test, "ci95": interval},
        "embedder_only": None,
        "difference": {"mean": 0.05},
        "wall_s": 1.0,
    }


BOARDS = {
    "plain": {"tasks": [row("a", 0.5, 0.4)]},  # b failed here
    "other": {"tasks": [row("b", 0.7, None), row("a", 0.75, 0.3)]},
    "third": {"tasks": [row("b", 0.6, 0.6), row("a", 0.5, 0.4)]},
}


def test_changes_are_against_the_first_variant_that_has_the_task() -> None:
    found = {(r["task"], r["variant"]): r for r in compare_boards(BOARDS)}
    assert list(found) == [("a", "plain"), ("a", "other"), ("a", "third"), ("b", "other"), ("b", "third")]
    assert found["a", "other"]["change_held_out"] == pytest.approx(0.25)
    assert found["a", "other"]["change_test"] == pytest.approx(-0.1)
    assert found["a", "plain"]["change_test"] == 0
    assert found["b", "third"]["change_held_out"] == pytest.approx(-0.1)
    assert found["b", "third"]["change_test"] is None  # undefined in the first


def test_what_is_used_is_compared_and_l2g_beside_it() -> None:
    used = {"arm": "ensemble", "test": {"mean": 0.8, "ci95": [0.7, 0.9]}, "oof": {"mean": 0.82}}
    chosen = {"arm": "average", "test": {"mean": 0.5, "ci95": [0.4, 0.6]}, "validation": {"average": 0.55}}
    boards = {
        "now": {"tasks": [row("a", 0.5, 0.4) | {"used": used}]},
        "no_l2g": {"tasks": [row("a", 0.5, 0.4) | {"used": used, "test": None}]},
        "earlier": {"tasks": [row("a", 0.5, 0.4) | {"chosen": chosen}]},
    }
    found = compare_boards(boards)
    told = [(r["used"], r["held_out"], r["test"], r["test_ci95"], r["l2g"]) for r in found]
    assert told == [
        ("ensemble", 0.82, 0.8, [0.7, 0.9], 0.4),
        ("ensemble", 0.82, 0.8, [0.7, 0.9], None),
        ("average", 0.55, 0.5, [0.4, 0.6], 0.4),
    ]
    assert found[2]["change_held_out"] == pytest.approx(-0.27)
    assert found[2]["change_test"] == pytest.approx(-0.3)


def test_files_and_table_say_the_same(tmp_path: Path) -> None:
    rows = compare_boards(BOARDS)
    paths = {path.suffix: path for path in write_comparison(rows, tmp_path / "new")}
    assert json.loads(paths[".json"].read_text())["rows"] == rows
    table = list(csv.DictReader(paths[".csv"].open()))
    assert [line["variant"] for line in table] == [r["variant"] for r in rows]
    assert float(table[1]["test_lo"]) == pytest.approx(0.2)
    console = Console(width=110, record=True, quiet=False, file=(tmp_path / "out").open("w"))
    console.print(render_comparison(rows))
    shown, markdown = console.export_text(), paths[".md"].read_text()
    for text in ("0.750", "+0.250", "[0.200, 0.400]", "Choose by the score on held-out rows"):
        assert text in shown
        assert text in markdown
    assert max(map(len, shown.splitlines())) <= 110


def test_a_run_without_a_leaderboard_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_board(tmp_path)
