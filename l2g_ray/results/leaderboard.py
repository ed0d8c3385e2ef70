"""The leaderboard of a suite: its files (JSON, CSV, Markdown) and its table in the terminal."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l2g_ray.errors import UserError
from l2g_ray.results.schema import validate_leaderboard

if TYPE_CHECKING:
    from rich.table import Table


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


def best_published(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """The best comparable published score of a row; all metrics of published tables are better when higher."""
    known = [p for p in row["published"] if p["comparable"] and p["value"] is not None]
    return max(known, key=lambda p: p["value"], default=None)


def best_baseline(row: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Name and scores of the baseline with the best validation score: the test split chooses nothing."""
    sign = -1.0 if row["metric"].startswith("mse") else 1.0
    known = {n: s for n, s in (row.get("baselines") or {}).items() if isinstance(s, Mapping) and "validation" in s}
    name = max(known, key=lambda n: sign * (known[n]["validation"] or 0.0), default=None)
    return (name, dict(known[name])) if name else None


def name_task(row: Mapping[str, Any]) -> str:
    """The task's name, marked where its sequences are synthetic."""
    return f"{row['task']} (synthetic)" if row.get("synthetic") else row["task"]


def subtract_arms(row: Mapping[str, Any]) -> tuple[float | None, str]:
    """L2G minus embedder only, and what may be said of it: better, worse, unclear, or nothing without an interval."""
    paired = row.get("difference") or {}
    ours, alone = row["test"]["mean"], (row["embedder_only"] or {}).get("mean")
    value = paired.get("mean")
    if value is None and ours is not None and alone is not None:
        value = ours - alone
    lo, hi = paired.get("ci95") or (None, None)
    if value is None or lo is None or hi is None:
        return value, ""
    if lo <= 0 <= hi:
        return value, "unclear"
    return value, "better" if (lo > 0) != row["metric"].startswith("mse") else "worse"


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


def render_table(board: Mapping[str, Any], plain: bool = False) -> Table:
    """The board as a rich table of at most 100 columns, with the warnings below.

    `plain`: no lines and no styles, for output that is not a terminal.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    # rich reads None as its own default style, "" as none.
    dim, bold = ("", "") if plain else ("dim", "bold")
    title = Text(f"{board['bench']} · preset {board['preset']} · {board['language_model']}", style=bold)
    table = Table(
        title=title,
        title_justify="left",
        caption=_list_warnings(board),
        caption_justify="left",
        caption_style="",
        header_style=bold,
        box=None if plain else box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("Task, metric", min_width=16, max_width=26, overflow="fold")
    for heading in ("L2G", "Embedder only", "Difference"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("Published", justify="right", max_width=15, overflow="fold")
    table.add_column("Baseline", justify="right", max_width=15, overflow="fold")
    table.add_column("!", justify="right", no_wrap=True)

    def two_lines(first: str, second: str, style: str = "") -> Text:
        return Text(first, style=style) + Text(f"\n{second}" if second else "", style=dim)

    for row in board["tasks"]:
        alone, published = row["embedder_only"], best_published(row)
        difference, verdict = subtract_arms(row)
        simple = best_baseline(row)
        table.add_row(
            two_lines(row["task"], _second_line(row), bold),
            two_lines(format_number(row["test"]["mean"]), format_interval(row["test"]), bold),
            two_lines(format_number(alone["mean"] if alone else None), format_interval(alone)),
            two_lines(format_number(difference, signed=True), verdict),
            two_lines(format_number(published["value"]), _shorten(published["model"])) if published else Text("–"),
            two_lines(format_number(simple[1]["mean"]), _shorten(simple[0])) if simple else Text("–"),
            Text(str(len(row["warnings"]) or "")),
        )
    return table


def _second_line(row: Mapping[str, Any]) -> str:
    lines = [f"{row['metric']}, {row['backbone']}", *(["(synthetic)"] if row.get("synthetic") else [])]
    if chosen := row.get("chosen"):
        lines.append(f"uses {name_arm(chosen['arm'])} {format_number(chosen['test']['mean'])}")
    return "\n".join(lines)


def name_arm(arm: str) -> str:
    """An arm's name for people."""
    return {"l2g": "L2G", "embedder_only": "embedder", "average": "average"}.get(arm, arm)


def _shorten(name: str) -> str:
    return name if len(name) <= 15 else name[:14] + "…"


def _list_warnings(board: Mapping[str, Any]) -> Any:
    from rich.text import Text

    lines = [f"! {row['task']}: {warning}" for row in board["tasks"] for warning in row["warnings"]]
    lines.insert(0, "Intervals are 95 % bootstrap; difference = L2G minus embedder only, over the same test rows.")
    if any(row.get("chosen") for row in board["tasks"]):
        lines.insert(1, "uses = the arm that was best on validation: what `l2g-ray predict` predicts with.")
    if any(best_baseline(row) for row in board["tasks"]):
        lines.insert(1, "Baseline = the simple model that was best on validation; leaderboard.json has all of them.")
    return Text("\n".join(lines))


def _to_csv(board: Mapping[str, Any]) -> str:
    records = [_flatten_row(row) for row in board["tasks"]]
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(records[0]) if records else ["task"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


def _flatten_row(row: Mapping[str, Any]) -> dict[str, Any]:
    published, (difference, verdict) = best_published(row) or {}, subtract_arms(row)
    flat: dict[str, Any] = {key: row[key] for key in ("task", "kind", "metric")}
    flat["synthetic"] = bool(row.get("synthetic"))
    for arm in ("test", "validation", "embedder_only"):
        score = row[arm] or {}
        lo, hi = score.get("ci95") or (None, None)
        flat |= {f"{arm}_mean": score.get("mean"), f"{arm}_lo": lo, f"{arm}_hi": hi}
    flat |= {"difference": difference, "verdict": verdict}
    name, simple = best_baseline(row) or ("", {})
    chosen = row.get("chosen") or {}
    flat |= {"chosen": chosen.get("arm", ""), "chosen_mean": (chosen.get("test") or {}).get("mean")}
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
        difference, verdict = subtract_arms(row)
        simple, used = best_baseline(row), row.get("chosen")
        cells = [
            name_task(row),
            row["metric"],
            f"{format_number(row['test']['mean'])} {format_interval(row['test'])}",
            f"{format_number(alone and alone['mean'])} {format_interval(alone)}",
            f"{format_number(difference, signed=True)} {verdict}",
            f"{format_number(used['test']['mean'])} {name_arm(used['arm'])}" if used else "–",
            f"{format_number(simple[1]['mean'])} {simple[0]}" if simple else "–",
            f"{format_number(published['value'])} {published['model']}" if published else "–",
            row["backbone"],
            str(row["n_test"]),
        ]
        lines.append("| " + " | ".join(escape(cell.strip()) for cell in cells) + " |")
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
