"""The leaderboard of a suite: its files (JSON, CSV, Markdown) and its table in the terminal."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l2g_ray.arms import ARMS
from l2g_ray.atomic import write_text
from l2g_ray.errors import UserError
from l2g_ray.results.rows import (
    EXPLAIN_ADDS,
    MIN_SEEDS_FOR_A_VERDICT,
    best_baseline,
    best_published,
    best_simple_arm,
    describe_ensemble,
    describe_weights,
    format_interval,
    format_number,
    head_arms,
    list_arms,
    name_arm,
    name_task,
    subtract_arms,
    tabulate_arms,
    used_arm,
)
from l2g_ray.results.schema import validate_leaderboard
from l2g_ray.results.terminal import Column, Listing, Sentence

if TYPE_CHECKING:
    from rich.console import RenderableType

# Whose scores a row has without near-duplicates.
APART = ("used", "l2g", "embedder_only")
# With more tasks than this, the terminal does not show the arms of each.
MOST_TASKS = 4
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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error.strerror}); name another folder with --out") from None
    return path


def describe_slots(board: Mapping[str, Any]) -> str:
    """Describe how busy the slots were; empty if the board has no use of slots, as when nothing was trained."""
    use = board.get("slots")
    if not use:
        return ""
    return (
        f"{use['trials']:,} trial{'s' if use['trials'] != 1 else ''} on {use['slots']} "
        f"slot{'s' if use['slots'] != 1 else ''}: busy {use['busy']:.0%} of {use['span_s']:,.0f} s, from the first "
        "trial's begin to the last one's end."
    )


def find_baseline(row: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Return the best baseline, where no arm of k-mers takes its place."""
    return None if best_simple_arm(row) else best_baseline(row)


def render_table(board: Mapping[str, Any]) -> RenderableType:
    """Return the board for a terminal, or a file, of any width: the tasks, the arms of each, notes and warnings."""
    from rich.console import Group

    rows = board["tasks"]
    parts: list[RenderableType] = [_list_tasks(board)]
    for row in rows if len(rows) <= MOST_TASKS else ():
        for part in _describe_arms(row):
            parts += ["", part]
    return Group(*parts, *([""] if rows else []), *map(Sentence, _list_notes(board)))


def _list_tasks(board: Mapping[str, Any]) -> Listing:
    rows = board["tasks"]
    shown = {
        "used": any(used_arm(row) for row in rows),
        "test": any(row["test"] for row in rows),
        "embedder_only": any(row["embedder_only"] for row in rows),
        "kmer": any(best_simple_arm(row) for row in rows),
        "baseline": any(find_baseline(row) for row in rows),
        "published": any(best_published(row) for row in rows),
    }
    columns = [
        Column("Task, metric", words=True),
        *([Column("Used", words=True, whole=2)] if shown["used"] else []),
        *([Column("L2G")] if shown["test"] else []),
        *([Column("Embedder")] if shown["embedder_only"] else []),
        *([Column("Best k-mer arm")] if shown["kmer"] else []),
        *([Column("Baseline")] if shown["baseline"] else []),
        *([Column("Published", words=True)] if shown["published"] else []),
        Column("!"),
    ]
    listing = Listing(columns, title=f"{board['bench']} · preset {board['preset']} · {board['language_model']}")
    for row in rows:
        used, simple, baseline = used_arm(row), best_simple_arm(row), find_baseline(row)
        cells: list[list[str]] = [[row["task"], *_describe_row(row)]]
        if shown["used"]:
            cells.append([*_score_lines(used.test), describe_weights(row, 3) or name_arm(used.name)] if used else [])
        cells += [_score_lines(row[arm]) for arm in ("test", "embedder_only") if shown[arm]]
        if shown["kmer"]:
            cells.append([*_score_lines(simple[1]["test"]), simple[0]] if simple else [])
        if shown["baseline"]:
            cells.append([*_score_lines(baseline[1]), baseline[0]] if baseline else [])
        if shown["published"]:
            best = best_published(row)
            cells.append([format_number(best["value"]), best["model"]] if best else [])
        listing.add(*cells, [str(len(row["warnings"]) or "")], strong=[0, 1])
    return listing


def _score_lines(score: Mapping[str, Any] | None) -> list[str]:
    return [format_number(score["mean"] if score else None), format_interval(score)]


def _describe_row(row: Mapping[str, Any]) -> list[str]:
    return [
        ", ".join(filter(None, (row["metric"], row["backbone"]))),
        *(["(synthetic)"] if row.get("synthetic") else []),
    ]


def _describe_arms(row: Mapping[str, Any]) -> list[RenderableType]:
    """Return the arms of a task as a table, and how the ensemble was made."""
    lines, told = tabulate_arms(row), describe_ensemble(row)
    if not lines:
        return [Sentence(f"{row['task']}: {told}")] if told else []
    first, *others = head_arms(row)
    columns = [Column(first, words=True), *map(Column, others)]
    listing = Listing(columns, title=f"{row['task']}: arms, {row['metric']}", caption=[told])
    for number, line in enumerate(lines):
        listing.add(*line, strong=[] if number else [0])
    return [listing]


def _list_notes(board: Mapping[str, Any]) -> list[str]:
    rows = board["tasks"]
    notes = ["Intervals are 95 % bootstrap over test rows. Used: what `l2g-ray predict` predicts with."]
    if any(row.get("arms") for row in rows):
        notes.append(EXPLAIN_ADDS)
        if len(rows) > MOST_TASKS:
            notes.append("The arms of each task are in leaderboard.md and in the report.")
    if any(best_simple_arm(row) for row in rows):
        notes.append("Best k-mer arm: of the arms that count words, the one with the best score on held-out rows.")
    if any(find_baseline(row) for row in rows):
        notes.append("Baseline: the simple model with the best score on validation; leaderboard.json has all of them.")
    if any(subtract_arms(row).verdict.split(" ")[0].isdigit() for row in rows):
        notes.append(EXPLAIN_SEEDS)
    said: dict[str, list[str]] = {}
    for row in rows:
        for warning in row["warnings"]:
            said.setdefault(warning, []).append(row["task"])
    all_tasks = len(rows) if len(rows) > 1 else 0
    names = {w: "all tasks" if len(tasks) == all_tasks else ", ".join(tasks) for w, tasks in said.items()}
    return [*notes, *(f"! {names[warning]}: {warning}" for warning in said)]


def _to_csv(board: Mapping[str, Any]) -> str:
    arms = [arm for arm in ARMS if any(arm in (row.get("arms") or {}) for row in board["tasks"])]
    records = [_flatten_row(row, arms) for row in board["tasks"]]
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(records[0]) if records else ["task"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


def _flatten_row(row: Mapping[str, Any], arms: Sequence[str]) -> dict[str, Any]:
    published, difference = best_published(row) or {}, subtract_arms(row)
    used, about = used_arm(row), row.get("used") or {}
    flat: dict[str, Any] = {key: row[key] for key in ("task", "kind", "metric")}
    flat["synthetic"] = bool(row.get("synthetic"))
    flat |= {"used": used.name if used else "", **_spread("used", used.test if used else None)}
    flat |= {"used_oof": used.validation if used and about else None}
    flat |= {key: about.get(key) for key in ("ensemble", "folds")}
    flat |= {f"used_{key}": about.get(key) for key in ("models", "bytes", "rows_per_s")}
    for arm in ("test", "validation", "embedder_only"):
        flat |= _spread(arm, row[arm])
    lo, hi = difference.ci95 or (None, None)
    flat |= {"difference": difference.mean, "difference_lo": lo, "difference_hi": hi, "verdict": difference.verdict}
    for arm in arms:
        one = (row.get("arms") or {}).get(arm) or {}
        flat |= {f"{arm}_{part}": (one.get(part) or {}).get("mean") for part in ("test", "oof")}
        flat |= {f"{arm}_weight": one.get("weight"), f"{arm}_adds": (one.get("adds") or {}).get("mean")}
    flat |= {"near_duplicates": (row.get("check") or {}).get("near_duplicates")}
    flat |= _spread("used_without_near", (row.get("test_without_near_duplicates") or {}).get("used"))
    name, simple = best_baseline(row) or ("", {})
    flat |= {"baseline": name, "baseline_mean": simple.get("mean")}
    flat |= {"published_value": published.get("value"), "published_model": published.get("model")}
    flat |= {key: row[key] for key in ("n_train", "n_test", "backbone")}
    flat["architecture"] = " ".join(f"{a['kernel_size']}x{a['dilation']}" for a in row["architecture"])
    flat |= {key: row[key] for key in ("trials", "wall_s", "cpu_s", "gpu_s", "model_uri")}
    return flat | {"warnings": "; ".join(row["warnings"])}


def _spread(name: str, score: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a score as three columns."""
    lo, hi = (score or {}).get("ci95") or (None, None)
    return {f"{name}_mean": (score or {}).get("mean"), f"{name}_lo": lo, f"{name}_hi": hi}


def _to_markdown(board: Mapping[str, Any]) -> str:
    scores = ("Used", "L2G", "Embedder only", "Difference", "Best k-mer arm", "Baseline", "Published")
    table = _Table("Task", "Metric", *(f"{name}:" for name in scores), "Backbone", "Test rows:")
    for row in board["tasks"]:
        used, simple, baseline, published = used_arm(row), best_simple_arm(row), best_baseline(row), best_published(row)
        table.add(
            name_task(row),
            row["metric"],
            f"{_score(used.test)} {name_arm(used.name)}" if used else "–",
            _score(row["test"]),
            _score(row["embedder_only"]),
            str(subtract_arms(row)),
            f"{_score(simple[1]['test'])} {simple[0]}" if simple else "–",
            f"{format_number(baseline[1]['mean'])} {baseline[0]}" if baseline else "–",
            f"{format_number(published['value'])} {published['model']}" if published else "–",
            row["backbone"],
            str(row["n_test"]),
        )
    title = f"# {board['bench']}: preset {board['preset']}, language model {board['language_model']}"
    lines = [title, "", *table.lines, *_write_arms(board), *_tabulate_apart(board)]
    notes = [f"- {row['task']}: {warning}" for row in board["tasks"] for warning in row["warnings"]]
    if notes:
        lines += ["", "## Warnings", "", *notes]
    costs = _Table("Task", "Trials:", "Wall s:", "CPU s:", "GPU s:")
    for row in board["tasks"]:
        costs.add(name_task(row), str(row["trials"]), *(f"{row[name]:,.1f}" for name in ("wall_s", "cpu_s", "gpu_s")))
    lines += ["", "## Cost", "", *costs.lines]
    if sentence := describe_slots(board):
        lines += ["", sentence]
    return "\n".join(lines) + "\n"


class _Table:
    """A table in Markdown; a heading that ends with a colon is of numbers."""

    def __init__(self, *headings: str) -> None:
        self.lines = [
            "| " + " | ".join(heading.removesuffix(":") for heading in headings) + " |",
            "|" + "".join(f"---{':' if heading.endswith(':') else ''}|" for heading in headings),
        ]

    def add(self, *cells: str) -> None:
        escaped = (cell.strip().replace("|", "\\|").replace("\n", " ") for cell in cells)
        self.lines.append("| " + " | ".join(escaped) + " |")


def _score(score: Mapping[str, Any] | None) -> str:
    return " ".join(_score_lines(score)).strip()


def _write_arms(board: Mapping[str, Any]) -> list[str]:
    """Return what is used, and the arms of each task: how the ensemble was made, and what each of them adds."""
    lines: list[str] = []
    for row in board["tasks"]:
        told, arms = describe_ensemble(row), tabulate_arms(row)
        if not told:
            continue
        lines += ["", f"### {name_task(row)}", "", told]
        if arms:
            first, *others = head_arms(row)
            table = _Table(first, *(f"{heading}:" for heading in others), "Used minus it:")
            behind = ["", *(str(arm.less) for arm in list_arms(row))]
            for line, less in zip(arms, behind, strict=True):
                table.add(*line, less)
            lines += ["", *table.lines]
    if any(row.get("arms") for row in board["tasks"]):
        lines += ["", f"{EXPLAIN_ADDS} Used minus it: on the test rows."]
    return ["", "## What is used", *lines] if lines else []


def _tabulate_apart(board: Mapping[str, Any]) -> list[str]:
    """Return scores on the test rows that are no near-duplicates of train rows; nothing where no row has them."""
    rows = [row for row in board["tasks"] if row.get("test_without_near_duplicates")]
    if not rows:
        return []
    table = _Table("Task", "Metric", "Rows:", "Left out:", "Used:", "L2G:", "Embedder only:")
    for row in rows:
        apart = row["test_without_near_duplicates"]
        counts = (f"{apart[name]:,}" for name in ("n", "dropped"))
        table.add(name_task(row), row["metric"], *counts, *(_score(apart.get(arm)) for arm in APART))
    return ["", "## Test rows that are no near-duplicates of train rows", "", *table.lines]
