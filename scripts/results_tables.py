"""From finished runs to small JSON files that are committed, and from these to the tables of docs/results.md.

    python scripts/results_tables.py RUN...      # results/<bench>-<task>.json of each task, then the tables
    python scripts/results_tables.py             # the tables alone
    python scripts/results_tables.py --check     # fails where docs/results.md is not what the files say

A file holds the leaderboard row with all arms, seeds and intervals, what it took, and how to make it again; no weights and no
sequences.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from l2g_ray.config import known_keys
from l2g_ray.presets import resolve
from l2g_ray.results.rows import best_published, format_interval, format_number, list_weights, name_arm

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "results", ROOT / "docs" / "results.md"
KEPT = [
    "task",
    "kind",
    "metric",
    "n_train",
    "n_valid",
    "n_test",
    "used",
    "arms",
    "difference",
    "test",
    "embedder_only",
    "baselines",
    "published",
    "backbone",
    "architecture_from",
    "wall_s",
    "cpu_s",
    "gpu_s",
    "warnings",
    "test_without_near_duplicates",
    "check",
]
BEGIN, END = "<!-- tables: scripts/results_tables.py -->", "<!-- end of tables -->"


def collect(run: Path) -> list[Path]:
    """Write a file for each finished task of a run; returns the paths."""
    board, suite = (json.loads((run / name).read_text()) for name in ("leaderboard.json", "suite.json"))
    written = []
    for row in board["tasks"]:
        settings = suite["settings"][row["task"]]
        content = {
            "bench": suite["bench"],
            "command": re.sub(r" --(out|data-dir) \S+", r" --\1 DIR", suite["command"]),
            "commit": suite["git_revision"],
            "machine": {name: suite["machine"][name] for name in ("processor", "cores", "accelerators")},
            "versions": suite["versions"],
            "stage_versions": suite["stage_versions"],
            "preset": suite["preset"],
            "language_model": board["language_model"],
            "settings": find_differences(settings, resolve(suite["preset"]).model_dump(mode="json")),
            "row": {name: row.get(name) for name in KEPT},
        }
        path = RESULTS / f"{suite['bench']}-{row['task']}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, indent=1) + "\n")
        written.append(path)
    return written


def find_differences(settings: dict[str, Any], preset: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys of the settings that are not the preset's, with their values."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        other = preset.get(name)
        if isinstance(value, dict) and isinstance(other, dict):
            found |= find_differences(value, other, f"{prefix}{name}.")
        elif value != other and prefix + name in set(known_keys()):
            found[prefix + name] = value
    return found


def make_tables(files: list[dict[str, Any]]) -> str:
    """Markdown: a row a task, and a table of every task's arms."""
    lines = ["| task | metric | used, test | seeds | OOF | best published, comparable | CPU s | made of |"]
    lines.append("|---|---|---|---:|---:|---|---:|---|")
    for one in files:
        row, used = one["row"], one["row"]["used"]
        best = best_published(row)
        shares = ", ".join(f"{name_arm(arm)} {share:.0%}" for arm, share in list_weights(row))
        cells = [
            f"{one['bench']}/{row['task']}",
            row["metric"],
            f"**{format_number(used['test']['mean'])}** {format_interval(used['test'])}",
            str(len(used["test"]["per_seed"])),
            format_number(used["oof"]["mean"]),
            f"{format_number(best['value'])} {best['model']}" if best else "–",
            f"{row['cpu_s']:,.0f}",
            shares,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    for one in files:
        row = one["row"]
        lines += ["", f"`{one['command']}` ({one['commit'][:7]}, {one['machine']['processor']})", ""]
        lines += [f"| {one['bench']}/{row['task']}: arm | OOF {row['metric']} | test | weight | adds on OOF |"]
        lines += ["|---|---:|---|---:|---|"]
        for arm, found in row["arms"].items():
            adds = found["adds"] or {"mean": None}
            gain = f"{format_number(adds['mean'], signed=True)} {format_interval(adds)}"
            known = format_number((found["oof"] or {}).get("mean"))
            test = f"{format_number(found['test']['mean'])} {format_interval(found['test'])}"
            lines.append(f"| {name_arm(arm)} | {known} | {test} | {found['weight']:.2f} | {gain} |")
    return "\n".join(lines)


def write_page(check: bool) -> bool:
    """Put the tables into docs/results.md; with `check`, only say whether they are there already."""
    files = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    made = f"{before}{BEGIN}\n\n{make_tables(files)}\n\n{END}{after}"
    if not check:
        PAGE.write_text(made)
    return made == text


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    for run in options.runs:
        for path in collect(run):
            print(path)
    if not write_page(options.check) and options.check:
        sys.exit("docs/results.md is not what results/*.json say; run python scripts/results_tables.py")


if __name__ == "__main__":
    main()
