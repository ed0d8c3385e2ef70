"""The comparison of arms: a table in the terminal, Markdown, CSV, JSON and a picture."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l2g_ray.arms import ENSEMBLE, is_seeded
from l2g_ray.results.figures import BLUE, GREY, ORANGE, _new_figure, _styled, save
from l2g_ray.results.leaderboard import write_atomically
from l2g_ray.results.rows import format_interval, format_number, judge
from l2g_ray.results.terminal import Column, Listing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Arms of a run that another seed would change; `average` is of an earlier version.
SEEDED = (ENSEMBLE, "average")
HEADINGS = ("Task, metric", "Arm", "Test", "Validation", "Difference", "p (Holm)", "CPU s")


def write_study(folder: Path, study: Mapping[str, Any]) -> list[Path]:
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


def render_study(study: Mapping[str, Any]) -> Listing:
    """The study for a terminal of any width."""
    columns = [*(Column(h, words=True) for h in HEADINGS[:2]), *(Column(h) for h in HEADINGS[2:])]
    listing = Listing(columns, title=f"{study['study']}: {study['about']}", caption=[_explain(study)], keys=2)
    for one in study["compared"]:
        listing.add(f"{one['task']}, {one['metric']}", one["arm"], *_cells(one, study), strong=[1])
    return listing


def _cells(one: Mapping[str, Any], study: Mapping[str, Any]) -> list[str | list[str]]:
    difference = one["difference"] or {}
    told = ["", ""]
    if difference:
        told = [format_number(difference.get("mean"), signed=True), format_interval(difference)]
    return [
        [format_number(one["test"]["mean"]), format_interval(one["test"])],
        format_number(one["validation"]),
        [*told, judge_arm(one, study)],
        "" if difference.get("p_holm") is None else f"{difference['p_holm']:.3f}",
        f"{one['cpu_s']:,.0f}" if one["cpu_s"] else "",
    ]


def judge_arm(one: Mapping[str, Any], study: Mapping[str, Any]) -> str:
    """better, worse or unclear than the control, or the number of seeds where these are too few to say."""
    arms = study.get("arms") or {}
    scores = {c["arm"]: c["test"] for c in study["compared"] if c["task"] == one["task"]}
    seeded = {*arms, *SEEDED, *filter(is_seeded, scores)}
    known = [scores[arm] for arm in (next(iter(arms), ""), one["arm"]) if arm in scores and arm in seeded]
    seeds = min((len(score.get("per_seed") or [0]) for score in known), default=1)
    return judge((one["difference"] or {}).get("ci95"), one["metric"], seeds)


def _explain(study: Mapping[str, Any]) -> str:
    control = next(iter(study["arms"]))
    return (
        f"Difference = arm minus '{control}' over the same test rows; intervals are 95 % bootstrap, from three seeds on "
        "over seeds too, and no verdict before. p: two-sided, corrected over all rows of this table."
    )


def _to_csv(study: Mapping[str, Any]) -> str:
    out = io.StringIO()
    fields = ["task", "arm", "metric", "test", "lo", "hi", "seeds", "validation", "difference", "difference_lo"]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*fields, "difference_hi", "verdict", "p_holm", "cpu_s"])
    for one in study["compared"]:
        difference = one["difference"] or {}
        lo, hi = difference.get("ci95") or (None, None)
        first = [one["task"], one["arm"], one["metric"], one["test"]["mean"], *one["test"]["ci95"]]
        middle = [len(one["test"]["per_seed"]), one["validation"], difference.get("mean"), lo, hi]
        writer.writerow([*first, *middle, judge_arm(one, study), difference.get("p_holm"), one["cpu_s"]])
    return out.getvalue()


def _to_markdown(study: Mapping[str, Any]) -> str:
    lines = [f"# {study['study']}: {study['about']}", "", f"`{study['command']}`", ""]
    lines += ["| " + " | ".join(HEADINGS) + " |", "|---|---|---:|---:|---:|---:|---:|"]
    for one in study["compared"]:
        cells = [cell if isinstance(cell, str) else " ".join(filter(None, cell)) for cell in _cells(one, study)]
        lines.append("| " + " | ".join([f"{one['task']}, {one['metric']}", one["arm"], *cells]) + " |")
    return "\n".join([*lines, "", _explain(study)]) + "\n"


@_styled
def plot_study(study: Mapping[str, Any]) -> Figure:
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
