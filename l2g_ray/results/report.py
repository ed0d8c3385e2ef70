"""The report of a suite: one HTML file that opens anywhere, without a network, with a light and a dark theme."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from l2g_ray.results import figures, suite_figures
from l2g_ray.results import report_tables as tables
from l2g_ray.results.details import TaskDetails
from l2g_ray.results.explained import Part
from l2g_ray.results.leaderboard import EXPLAIN_SEEDS, describe_slots, find_baseline, write_atomically
from l2g_ray.results.lights import list_lights, tabulate_limits
from l2g_ray.results.report_tables import Table
from l2g_ray.results.rows import (
    EXPLAIN_ADDS,
    best_published,
    describe_ensemble,
    describe_weights,
    format_interval,
    format_number,
    list_board_arms,
    list_weights,
    name_arm,
    name_task,
    subtract_arms,
    subtract_baseline,
    used_arm,
)
from l2g_ray.results.schema import validate_leaderboard
from l2g_ray.results.task_pictures import (
    ARMS,
    DATA,
    PREDICTIONS,
    SEARCH,
    TRAINING,
    Picture,
    TaskPictures,
    draw_task,
    tabulate_metrics,
)
from l2g_ray.results.verdict import describe_suite, judge_task
from l2g_ray.results.winning import list_settings, list_winning, show_value
from l2g_ray.tasks.metrics import find_metric

__all__ = ["REPRODUCE_KEYS", "TaskDetails", "best_other", "format_duration", "write_report"]

# What `suite.json` (or the board itself) may tell about how to get the same numbers again.
REPRODUCE_KEYS = ("command", "git_revision", "versions", "machine", "fingerprints", "seed", "started", "settings")


def write_report(
    run_folder: Path,
    board: Mapping[str, Any],
    details: Sequence[TaskDetails],
    *,
    parameters: Mapping[str, float] | None = None,
    studies: Sequence[Part] = (),
) -> Path:
    """Write `report.html`, and its figures as SVG and PNG below `figures/`.

    How to reproduce the run is read from `suite.json` in the folder, or from keys of the board (`REPRODUCE_KEYS`).
    Tasks without details get their row only. `parameters` are the sizes of our own models (`suite_figures`); `studies` are
    ablations (`explained.read_study`). Returns the report's path. Raises UserError for a board
    that does not fit the schema, or a folder that cannot be written to.
    """
    import jinja2
    from markupsafe import Markup

    plain = validate_leaderboard(board)
    by_name = {detail.task: detail for detail in details}
    overview = _draw_overview(plain, by_name, parameters)
    sections = []
    for number, row in enumerate(plain["tasks"]):
        detail = by_name.get(row["task"]) or TaskDetails(row["task"], row["kind"], ())
        drawn = draw_task(row, detail, f"task{number}")
        sections.append({"row": row, "detail": detail, **_fill_section(row, detail, drawn)})
        for picture in drawn.pictures:
            stem = picture.name.removeprefix(f"task{number}-")
            figures.save(picture.figure, Path(run_folder) / "figures" / row["task"] / stem)
    for picture in overview:
        figures.save(picture.figure, Path(run_folder) / "figures" / picture.name)

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("l2g_ray", "results"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "number": format_number,
        "interval": format_interval,
        "best_published": best_published,
        "weights_of": lambda row: dict(list_weights(row)),
        "describe_ensemble": describe_ensemble,
        "describe_weights": describe_weights,
        "find_baseline": find_baseline,
        "name_arm": name_arm,
        "best_other": best_other,
        "name_task": name_task,
        "subtract_arms": subtract_arms,
        "subtract_baseline": subtract_baseline,
        "used_arm": used_arm,
        "explain_adds": EXPLAIN_ADDS,
        "explain_seeds": EXPLAIN_SEEDS,
        "duration": format_duration,
        "show_value": show_value,
        "headings": {"arms": ARMS, "predictions": PREDICTIONS, "search": SEARCH, "training": TRAINING, "data": DATA},
        # Drawn by us, with its texts escaped by matplotlib.
        "draw": lambda picture: Markup(picture.svg),
        "draw_stored": lambda shown, name: Markup(figures.embed_svg(shown.svg, name, shown.caption)),
    }
    template = environment.get_template("report_template.html")
    page = template.render(
        board=plain,
        overview=overview,
        sections=sections,
        shown={
            "l2g": any(row["test"] for row in plain["tasks"]),
            "alone": any(row["embedder_only"] for row in plain["tasks"]),
            "arms": list_board_arms(plain["tasks"]),
            "baseline": any(find_baseline(row) for row in plain["tasks"]),
            "published": any(best_published(row) or best_other(row) for row in plain["tasks"]),
        },
        studies=studies,
        costs=_tabulate_costs(plain),
        reproduce=_read_reproduce(run_folder, plain),
        verdict=describe_suite(plain),
        limits=tables.make_table(["Check", "Measure", "Amber", "Red"], tabulate_limits()),
        slots_sentence=describe_slots(plain),
    )
    return write_atomically(Path(run_folder) / "report.html", page)


def _fill_section(row: Mapping[str, Any], detail: TaskDetails, drawn: TaskPictures) -> dict[str, Any]:
    headings = dict.fromkeys([*drawn.notes, *(picture.heading for picture in drawn.pictures)])
    kept = (detail.manifest.get("leakage") or {}).get("kept")
    return {
        "verdict": judge_task(row),
        "groups": {
            heading: {
                "notes": drawn.notes.get(heading, []),
                "table": drawn.tables.get(heading),
                "pictures": [picture for picture in drawn.pictures if picture.heading == heading],
            }
            for heading in headings
        },
        "metrics": tabulate_metrics(detail, row),
        "arms": tables.tabulate_arms(row),
        "lights": list_lights(detail.check, dropped=kept is False),
        "winning": list_winning(row, detail.settings, detail.preset) if detail.settings else [],
        "settings": list_settings(detail.settings, detail.preset),
    }


def best_other(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the best published score of a row that is not comparable, where none is."""
    return None if best_published(row) else best_published(row, comparable=False)


def format_duration(seconds: float) -> str:
    """Return seconds as people say them: 42 s, 3 min 4 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _draw_overview(
    board: Mapping[str, Any],
    details: Mapping[str, TaskDetails],
    parameters: Mapping[str, float] | None,
) -> list[Picture]:
    scores = figures.plot_scores(board)
    pictures = [
        Picture("scores", scores, "Test scores of every task with 95 % intervals.", tables.tabulate_scores(board))
    ]
    standings = suite_figures.gather_standings(board, parameters)
    tasks, complete = suite_figures.common_tasks(standings)
    lower = [row["task"] for row in board["tasks"] if not find_metric(row["metric"]).higher_is_better]
    left_out = f" Left out, since lower is better: {', '.join(lower)}." if lower else ""
    open_marks = " Hollow: at least one score is of other data, another split or another protocol."
    if any(standing.model not in suite_figures.OWN for standing in complete):
        figure = suite_figures.plot_mean_scores(complete, tasks)
        caption = (
            f"Mean score over {', '.join(tasks)} by model and size; models with a score for each of them.{open_marks} "
            "Sizes are parameters, if a model's name gives them; the amount of DNA seen in pre-training is not in the "
            f"published tables that ship here (L2G: none).{left_out}"
        )
        pictures.append(Picture("mean-scores", figure, caption, tables.tabulate_means(complete, tasks)))
    types = {row["task"]: _group(row, details) for row in board["tasks"] if find_metric(row["metric"]).higher_is_better}
    if len(set(types.values()) - {""}) > 1:
        types = {task: group or "other" for task, group in types.items()}
        figure = suite_figures.plot_task_types(standings, types)
        table = tables.tabulate_types(standings, types)
        pictures.append(Picture("task-types", figure, f"Mean score by type of task.{open_marks}{left_out}", table))
    if len(tasks) > 2 and len(complete) > 1:
        figure = suite_figures.plot_profile(complete, tasks)
        caption = (
            "Performance profile: on which share of the tasks a model is within tau of the best score of all models; "
            f"drawn are ours and the {suite_figures.MAX_LINES} published ones with the best means.{left_out}"
        )
        pictures.append(Picture("profile", figure, caption, tables.tabulate_profile(complete, tasks)))
    return pictures


def _group(row: Mapping[str, Any], details: Mapping[str, TaskDetails]) -> str:
    detail = details.get(row["task"])
    return row.get("group") or (detail.group if detail else "")


def _tabulate_costs(board: Mapping[str, Any]) -> Table:
    lines = []
    for row in board["tasks"]:
        for stage, cost in (row.get("costs") or {}).items():
            seconds = [cost.get("wall_s"), cost.get("cpu_s"), cost.get("gpu_s")]
            shown = [None if value is None else format_duration(value) for value in seconds]
            lines.append([row["task"], stage, cost.get("trials"), cost.get("epochs"), *shown])
        shown = [format_duration(row[name]) for name in ("wall_s", "cpu_s", "gpu_s")]
        lines.append([row["task"], "all, in this run", row["trials"], None, *shown])
    return tables.make_table(["Task", "Stage", "Trials", "Epochs", "Wall", "CPU", "GPU"], lines)


def _read_reproduce(run_folder: Path, board: Mapping[str, Any]) -> dict[str, Any]:
    path = Path(run_folder) / "suite.json"
    told = {**board, **(json.loads(path.read_text("utf-8")) if path.exists() else {})}
    return {
        key: told[key] if isinstance(told[key], str) else json.dumps(told[key], indent=2, default=str)
        for key in REPRODUCE_KEYS
        if told.get(key) is not None
    }
