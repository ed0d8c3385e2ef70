"""The leaderboard of a suite: its files (JSON, CSV, Markdown) and its table in the terminal."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from l2g_ray.errors import UserError
from l2g_ray.results.rows import (
    MIN_SEEDS_FOR_A_VERDICT,
    best_baseline,
    best_published,
    format_interval,
    format_number,
    name_arm,
    name_task,
    subtract_arms,
    used_arm,
)
from l2g_ray.results.schema import validate_leaderboard
from l2g_ray.results.terminal import Column, Listing

# Whose scores a row has without near-duplicates.
APART = ("used", "l2g", "embedder_only")
EXPLAIN_SEEDS = (
    f"With fewer than {MIN_SEEDS_FOR_A_VERDICT} seeds of training the interval of a difference is of the test rows alone, and "
    "another seed can turn it: no verdict (--seeds 3)."
)


def write_leaderboard(board: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write leaderboard.json, .csv and .md, each whole or not at all. Returns the paths.

    Raises UserError for a board that does not fit the schema, or a folder that cannot be written to.
    """
    plain = validate_leaderboard(board)
    texts = {
        "leaderboard.json": json.dumps(plain, indent=2, allow_nan=False, default=str) + "\n",
        "leaderboard.csv": _to_csv(plain),
        "leaderboard.md": _to_markdown(plain),
    }
    return [write_atomically(Path(folder) / name, text) for name, text in texts.items()]


def write_atomically(path: Path, text: str) -> Path:
    """Write UTF-8 text beside `path`, then put it in its place. Raises UserError when that cannot be done."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(text, encoding="utf-8")
        os.replace(scratch, path)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}); name another folder with --out") from None
    return path


def describe_slots(board: Mapping[str, Any]) -> str:
    """How busy the slots were, where the board tells; empty where it does not, as when nothing had to be trained."""
    use = board.get("slots")
    if not use:
        return ""
    return (
        f"{use['trials']:,} trial{'s' if use['trials'] != 1 else ''} on {use['slots']} "
        f"slot{'s' if use['slots'] != 1 else ''}: busy {use['busy']:.0%} of {use['span_s']:,.0f} s, from the first "
        "trial's begin to the last one's end."
    )


def render_table(board: Mapping[str, Any]) -> Listing:
    """The board for a terminal, or a file, of any width; the warnings below."""
    published = any(best_published(row) for row in board["tasks"])
    simple = any(best_baseline(row) for row in board["tasks"])
    columns = [
        Column("Task, metric", words=True),
        *(Column(heading) for heading in ("L2G", "Embedder only", "Difference")),
        *([Column("Baseline")] if simple else []),
        *([Column("Published", words=True)] if published else []),
        Column("!"),
    ]
    title = f"{board['bench']} · preset {board['preset']} · {board['language_model']}"
    listing = Listing(columns, title=title, caption=_list_notes(board))
    for row in board["tasks"]:
        alone, used = row["embedder_only"], used_arm(row)
        cells: list[list[str]] = [
            [row["task"], *_describe_row(row)],
            _score_lines(row["test"]),
            _score_lines(alone),
            list(subtract_arms(row).parts),
        ]
        if simple:
            name, score = best_baseline(row) or ("", None)
            cells.append([*_score_lines(score), name] if score else [])
        if published:
            best = best_published(row)
            cells.append([format_number(best["value"]), best["model"]] if best else [])
        strong = {"l2g": [1], "embedder_only": [2]}.get(used.name if used else "l2g", [])
        listing.add(*cells, [str(len(row["warnings"]) or "")], strong=[0, *strong])
    return listing


def _score_lines(score: Mapping[str, Any] | None) -> list[str]:
    return [format_number(score["mean"] if score else None), format_interval(score)]


def _describe_row(row: Mapping[str, Any]) -> list[str]:
    lines = [f"{row['metric']}, {row['backbone']}", *(["(synthetic)"] if row.get("synthetic") else [])]
    if used := used_arm(row):
        lines.append(f"uses {name_arm(used.name)} {format_number(used.test['mean'])}")
    return lines


def _list_notes(board: Mapping[str, Any]) -> list[str]:
    rows = board["tasks"]
    notes = ["Intervals are 95 % bootstrap. Difference = L2G minus embedder only, over the same test rows."]
    if any(subtract_arms(row).verdict.split(" ")[0].isdigit() for row in rows):
        notes.append(EXPLAIN_SEEDS)
    if any(best_baseline(row) for row in rows):
        notes.append("Baseline = the simple model that was best on validation; leaderboard.json has all of them.")
    if any(used_arm(row) for row in rows):
        notes.append("uses = the arm that was best on validation: what `l2g-ray predict` predicts with.")
    return [*notes, *(f"! {row['task']}: {warning}" for row in rows for warning in row["warnings"])]


def _to_csv(board: Mapping[str, Any]) -> str:
    records = [_flatten_row(row) for row in board["tasks"]]
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(records[0]) if records else ["task"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


def _flatten_row(row: Mapping[str, Any]) -> dict[str, Any]:
    published, difference = best_published(row) or {}, subtract_arms(row)
    flat: dict[str, Any] = {key: row[key] for key in ("task", "kind", "metric")}
    flat["synthetic"] = bool(row.get("synthetic"))
    for arm in ("test", "validation", "embedder_only"):
        score = row[arm] or {}
        lo, hi = score.get("ci95") or (None, None)
        flat |= {f"{arm}_mean": score.get("mean"), f"{arm}_lo": lo, f"{arm}_hi": hi}
    lo, hi = difference.ci95 or (None, None)
    flat |= {"difference": difference.mean, "difference_lo": lo, "difference_hi": hi, "verdict": difference.verdict}
    name, simple = best_baseline(row) or ("", {})
    used = used_arm(row)
    flat |= {"chosen": used.name if used else "", "chosen_mean": used.test["mean"] if used else None}
    apart = row.get("test_without_near_duplicates") or {}
    lo, hi = (apart.get("used") or {}).get("ci95") or (None, None)
    flat |= {"near_duplicates": (row.get("check") or {}).get("near_duplicates")}
    flat |= {"chosen_without_near_mean": (apart.get("used") or {}).get("mean")}
    flat |= {"chosen_without_near_lo": lo, "chosen_without_near_hi": hi}
    flat |= {"baseline": name, "baseline_mean": simple.get("mean")}
    flat |= {"published_value": published.get("value"), "published_model": published.get("model")}
    flat |= {key: row[key] for key in ("n_train", "n_test", "backbone")}
    flat["architecture"] = " ".join(f"{a['kernel_size']}x{a['dilation']}" for a in row["architecture"])
    flat |= {key: row[key] for key in ("trials", "wall_s", "cpu_s", "gpu_s", "model_uri")}
    return flat | {"warnings": "; ".join(row["warnings"])}


def _to_markdown(board: Mapping[str, Any]) -> str:
    def escape(text: str) -> str:
        return text.replace("|", "\\|").replace("\n", " ")

    headings = [
        "Task",
        "Metric",
        "L2G",
        "Embedder only",
        "Difference",
        "Used",
        "Baseline",
        "Published",
        "Backbone",
        "Test rows",
    ]
    lines = [
        f"# {board['bench']}: preset {board['preset']}, language model {board['language_model']}",
        "",
        "| " + " | ".join(headings) + " |",
        "|" + "|".join(["---", "---"] + ["---:"] * 6 + ["---", "---:"]) + "|",
    ]
    for row in board["tasks"]:
        alone, published = row["embedder_only"], best_published(row)
        simple, used = best_baseline(row), used_arm(row)
        cells = [
            name_task(row),
            row["metric"],
            f"{format_number(row['test']['mean'])} {format_interval(row['test'])}",
            f"{format_number(alone and alone['mean'])} {format_interval(alone)}",
            str(subtract_arms(row)),
            f"{format_number(used.test['mean'])} {name_arm(used.name)}" if used else "–",
            f"{format_number(simple[1]['mean'])} {simple[0]}" if simple else "–",
            f"{format_number(published['value'])} {published['model']}" if published else "–",
            row["backbone"],
            str(row["n_test"]),
        ]
        lines.append("| " + " | ".join(escape(cell.strip()) for cell in cells) + " |")
    lines += _tabulate_apart(board, escape)
    notes = [f"- {row['task']}: {warning}" for row in board["tasks"] for warning in row["warnings"]]
    if notes:
        lines += ["", "## Warnings", "", *notes]
    lines += ["", "## Cost", "", "| Task | Trials | Wall s | CPU s | GPU s |", "|---|---:|---:|---:|---:|"]
    for row in board["tasks"]:
        seconds = " | ".join(f"{row[name]:,.1f}" for name in ("wall_s", "cpu_s", "gpu_s"))
        lines.append(f"| {escape(name_task(row))} | {row['trials']} | {seconds} |")
    if sentence := describe_slots(board):
        lines += ["", sentence]
    return "\n".join(lines) + "\n"


def _tabulate_apart(board: Mapping[str, Any], escape: Callable[[str], str]) -> list[str]:
    """Scores on the test rows that are no near-duplicates of train rows; nothing where no row has them."""
    rows = [row for row in board["tasks"] if row.get("test_without_near_duplicates")]
    if not rows:
        return []
    lines = ["", "## Test rows that are no near-duplicates of train rows", ""]
    lines += ["| Task | Metric | Rows | Left out | Used | L2G | Embedder only |", "|---|---|---:|---:|---:|---:|---:|"]
    for row in rows:
        apart = row["test_without_near_duplicates"]
        scores = [f"{format_number(s['mean'])} {format_interval(s)}" for s in map(apart.get, APART) if s]
        cells = [name_task(row), row["metric"], f"{apart['n']:,}", f"{apart['dropped']:,}", *scores]
        lines.append("| " + " | ".join(escape(cell.strip()) for cell in cells) + " |")
    return lines
