"""Runs, arms of a study, and scaling measurements side by side: tables in the terminal and files, and pictures."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from pydantic import JsonValue

from l2g_ray.arms import ENSEMBLE, is_seeded
from l2g_ray.errors import UserError
from l2g_ray.results.figures import BLUE, GREY, ORANGE, VERMILION, _new_figure, _styled, save
from l2g_ray.results.intervals import PairedDifference, Summary
from l2g_ray.results.leaderboard import write_atomically
from l2g_ray.results.rows import UsedArm, format_interval, format_number, judge, subtract_arms, used_arm
from l2g_ray.results.schema import Board, validate_leaderboard
from l2g_ray.results.terminal import Column, Listing
from l2g_ray.tasks.metrics import METRICS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = (
    Column("Task, metric", words=True),
    Column("Variant", words=True),
    *(Column(h) for h in ("Held-out", "Change", "Used", "Change in test", "L2G", "Embedder", "Difference")),
)


def read_board(run: Path) -> Board:
    """Return the leaderboard of a run's folder. Raises UserError when there is none."""
    try:
        return validate_leaderboard(json.loads((run / "leaderboard.json").read_text()))
    except (OSError, ValueError) as error:
        raise UserError(f"{run / 'leaderboard.json'}: cannot be read ({error}); run the suite again") from None


def compare_boards(boards: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one row a task and variant, tasks in the first board's order.

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
    """Return the rows for a terminal of any width."""
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


# Arms of a run that another seed would change; `average` is of an earlier version.
SEEDED = (ENSEMBLE, "average")
HEADINGS = ("Task, metric", "Arm", "Test", "Validation", "Difference", "p (Holm)", "CPU s")


class Compared(TypedDict):
    """One arm of one task: its test score, and arm minus control over the same test rows and seeds."""

    task: str
    arm: str
    metric: str
    test: Summary
    validation: float | None
    difference: PairedDifference | None
    cpu_s: float


class StudyFile(TypedDict):
    """The form of `study.json`. The first of `arms` is the control; `key` is of simple models, for which no suite runs."""

    schema: int
    study: str
    about: str
    arms: dict[str, dict[str, JsonValue]]
    preset: str
    command: str
    compared: list[Compared]
    key: NotRequired[str]


def write_study(folder: Path, study: StudyFile) -> list[Path]:
    """Write study.json, .csv, .md, and the picture as study.png and study.svg. Returns the paths.

    Raises UserError for a folder that cannot be written to.
    """
    paths = [
        write_atomically(folder / "study.json", json.dumps(study, indent=1, allow_nan=False) + "\n"),
        write_atomically(folder / "study.csv", _to_csv(study)),
        write_atomically(folder / "study.md", _to_markdown(study)),
    ]
    if study["compared"]:
        paths += save(plot_study(study), folder / "study")
    return paths


def render_study(study: StudyFile) -> Listing:
    """Return the study for a terminal of any width."""
    columns = [*(Column(h, words=True) for h in HEADINGS[:2]), *(Column(h) for h in HEADINGS[2:])]
    listing = Listing(columns, title=f"{study['study']}: {study['about']}", caption=[_explain(study)], keys=2)
    for one in study["compared"]:
        listing.add(f"{one['task']}, {one['metric']}", one["arm"], *_arm_cells(one, study), strong=[1])
    return listing


def _arm_cells(one: Compared, study: StudyFile) -> list[str | list[str]]:
    told, p = ["", ""], None
    if difference := one["difference"]:
        told = [format_number(difference["mean"], signed=True), format_interval(difference)]
        p = difference.get("p_holm")
    return [
        [format_number(one["test"]["mean"]), format_interval(one["test"])],
        format_number(one["validation"]),
        [*told, judge_arm(one, study)],
        "" if p is None else f"{p:.3f}",
        f"{one['cpu_s']:,.0f}" if one["cpu_s"] else "",
    ]


def judge_arm(one: Compared, study: StudyFile) -> str:
    """better, worse or unclear than the control, or the number of seeds where these are too few to say."""
    arms = study.get("arms", {})
    scores = {c["arm"]: c["test"] for c in study["compared"] if c["task"] == one["task"]}
    seeded = {*arms, *SEEDED, *filter(is_seeded, scores)}
    known = [scores[arm] for arm in (next(iter(arms), ""), one["arm"]) if arm in scores and arm in seeded]
    seeds = min((len(score.get("per_seed") or [0]) for score in known), default=1)
    return judge(one["difference"].get("ci95") if one["difference"] else None, one["metric"], seeds)


def _explain(study: StudyFile) -> str:
    control = next(iter(study["arms"]))
    return (
        f"Difference = arm minus '{control}' over the same test rows; intervals are 95 % bootstrap, from three seeds on "
        "over seeds too, and no verdict before. p: two-sided, corrected over all rows of this table."
    )


def _to_csv(study: StudyFile) -> str:
    out = io.StringIO()
    fields = ["task", "arm", "metric", "test", "lo", "hi", "seeds", "validation", "difference", "difference_lo"]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*fields, "difference_hi", "verdict", "p_holm", "cpu_s"])
    for one in study["compared"]:
        mean = lo = hi = p = None
        if difference := one["difference"]:
            mean, (lo, hi), p = difference["mean"], difference["ci95"], difference.get("p_holm")
        first = [one["task"], one["arm"], one["metric"], one["test"]["mean"], *one["test"]["ci95"]]
        middle = [len(one["test"]["per_seed"]), one["validation"], mean, lo, hi]
        writer.writerow([*first, *middle, judge_arm(one, study), p, one["cpu_s"]])
    return out.getvalue()


def _to_markdown(study: StudyFile) -> str:
    lines = [f"# {study['study']}: {study['about']}", "", f"`{study['command']}`", ""]
    lines += ["| " + " | ".join(HEADINGS) + " |", "|---|---|---:|---:|---:|---:|---:|"]
    for one in study["compared"]:
        cells = [cell if isinstance(cell, str) else " ".join(filter(None, cell)) for cell in _arm_cells(one, study)]
        lines.append("| " + " | ".join([f"{one['task']}, {one['metric']}", one["arm"], *cells]) + " |")
    return "\n".join([*lines, "", _explain(study)]) + "\n"


@_styled
def plot_study(study: StudyFile) -> Figure:
    """Test scores with intervals, one panel a task, one line an arm; the control's score is a line through all."""
    tasks = list(dict.fromkeys(one["task"] for one in study["compared"]))
    longest = max(sum(one["task"] == task for one in study["compared"]) for task in tasks)
    figure, panels = _new_figure(3.4 * len(tasks) + 1.2, 1.2 + 0.34 * longest, columns=len(tasks))
    for axes, task in zip(panels, tasks, strict=True):
        arms = [one for one in study["compared"] if one["task"] == task][::-1]
        for y, one in enumerate(arms):
            mean, (lo, hi) = one["test"]["mean"], one["test"]["ci95"]
            if mean is None:
                continue
            spans = None if None in (lo, hi) else [[max(0.0, mean - lo)], [max(0.0, hi - mean)]]
            colour = BLUE if one["arm"] in study["arms"] else ORANGE
            axes.errorbar([mean], [y], xerr=spans, fmt="o", color=colour, capsize=3, markersize=5)
            if one["arm"] == next(iter(study["arms"])):
                axes.axvline(mean, color=GREY, linewidth=0.8, linestyle=":")
        axes.set_yticks(range(len(arms)), [one["arm"] for one in arms])
        axes.set_ylim(-0.6, len(arms) - 0.4)
        axes.set_title(task)
        axes.set_xlabel(arms[0]["metric"])
        axes.grid(axis="x", color=GREY, alpha=0.25, linewidth=0.6)
    return figure


KINDS = {
    "strong": ("strong: one batch", "workers", "rows_per_s"),
    "weak": ("weak: a batch each", "workers", "rows_per_s"),
    "trials": ("trials side by side", "slots", "trials_per_min"),
}
SCALING_HEADINGS = ("Measured", "Number", "Rows", "Batch", "Epoch", "Speed", "Speed-up", "Efficiency", "Start")


def list_rows(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the measurements as text, a row each, under `SCALING_HEADINGS`."""
    rows: list[tuple[str, ...]] = []
    for kind, (title, size, speed) in KINDS.items():
        for one in found[kind]:
            unit = "rows/s" if speed == "rows_per_s" else "trials/min"
            trains = kind != "trials"
            rows.append(
                (
                    title,
                    str(one[size]),
                    f"{one['rows']:,}" if trains else f"{one['trials']} trials",
                    str(one["batch_size"]) if trains else "",
                    f"{one['epoch_s']:.2f} s" if trains else f"{one['wall_s']:.1f} s",
                    f"{one[speed]:.3g} {unit}",
                    f"{one['speedup']:.2f}",
                    f"{one['efficiency']:.0%}",
                    f"{one['start_s']:.1f} s" if trains else "",
                )
            )
    return rows


def render_scaling(found: Mapping[str, Any]) -> Listing:
    """Render for a terminal of any width."""
    shape, machine, rows = found["shape"], found["machine"], list_rows(found)
    title = (
        f"Scaling of fine-tuning: {shape['language_model']}, {shape['length_bp']} bp, {machine['cores']} CPU cores, "
        f"{shape['gpus_per_worker']:g} GPU a worker, {shape.get('precision', 'fp32')}"
    )
    begins = [i for i in range(1, len(rows)) if rows[i][0] != rows[i - 1][0]]
    columns = [Column(SCALING_HEADINGS[0], words=True), *map(Column, SCALING_HEADINGS[1:])]
    listing = Listing(columns, title=title, keys=2, sections=begins)
    for row in rows:
        listing.add(*row)
    return listing


def write_markdown(found: Mapping[str, Any]) -> str:
    """Return the same table in Markdown."""
    lines = ["| " + " | ".join(SCALING_HEADINGS) + " |", "|---|" + "---:|" * (len(SCALING_HEADINGS) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in list_rows(found)]
    return "\n".join(lines) + "\n"


@_styled
def plot_scaling(found: Mapping[str, Any]) -> Figure:
    """Speed-up over workers (strong, weak) and over slots (trials), each beside the ideal."""
    figure, panels = _new_figure(7.2, 3.0, columns=2)
    for kind, colour, marker in (("strong", BLUE, "o"), ("weak", ORANGE, "s")):
        _draw(panels[0], found[kind], "workers", KINDS[kind][0], colour, marker)
    _draw(panels[1], found["trials"], "slots", KINDS["trials"][0], VERMILION, "^")
    for axes, kind, size in ((panels[0], "strong", "workers of one trial"), (panels[1], "trials", "trials at once")):
        sizes = [one[KINDS[kind][1]] for one in found[kind]]
        axes.plot(sizes, [n / sizes[0] for n in sizes], color=GREY, linestyle=":", label="ideal")
        axes.set(xlabel=size, ylabel="speed-up", ylim=(0, None), xticks=sizes)
        axes.legend(loc="upper left")
    return figure


def _draw(axes: Axes, rows: list[dict[str, Any]], size: str, label: str, colour: str, marker: str) -> None:
    axes.plot([row[size] for row in rows], [row["speedup"] for row in rows], color=colour, marker=marker, label=label)
