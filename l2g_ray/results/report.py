"""The report of a suite: one HTML file that opens anywhere, without a network, with a light and a dark theme."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from l2g_ray.results import figures, suite_figures
from l2g_ray.results import report_tables as tables
from l2g_ray.results.explained import Part
from l2g_ray.results.leaderboard import EXPLAIN_SEEDS, describe_slots, find_baseline, write_atomically
from l2g_ray.results.report_tables import Table
from l2g_ray.results.rows import (
    EXPLAIN_ADDS,
    best_published,
    best_simple_arm,
    describe_ensemble,
    describe_weights,
    format_interval,
    format_number,
    list_arms,
    name_arm,
    name_task,
    subtract_arms,
    subtract_baseline,
    used_arm,
)
from l2g_ray.results.schema import validate_leaderboard
from l2g_ray.tasks.metrics import find_metric

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What `suite.json` (or the board itself) may tell about how to get the same numbers again.
REPRODUCE_KEYS = ("command", "git_revision", "versions", "machine", "fingerprints", "seed", "started", "settings")


@dataclass(frozen=True)
class TaskDetails:
    """What the report shows of one task beyond its row of the leaderboard.

    `task` is the row's name. `labels` are the classes or outputs. `metrics` maps an arm ("ensemble", "L2G", ...)
    to its metrics; a metric is a number or a score {mean, ci95}. `history` holds the records that `figures` draws.
    `predictions` has one row a test sequence: classification, the class names in the columns `label` and
    `prediction`; regression, the columns `label_<output>` and `prediction_<output>`. Other frames are not drawn.
    `group` is the type of task that means are taken over. `trials` are those of the fine-tuning search in order (`trial`
    its settings, `epochs`, `best_score`, `error`), `rungs` the epochs at which they were compared. `findings` are those
    of the data check (`level`, `text`), `explained` what was made of the model later (see `explained`).
    `manifest` is shown as it is: counts, splits, dropped rows.
    """

    task: str
    kind: str
    labels: Sequence[str]
    title: str = ""
    description: str = ""
    source: str = ""
    licence: str = ""
    group: str = ""
    metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    history: Sequence[figures.Epoch] = ()
    predictions: pd.DataFrame | None = None
    trials: Sequence[Mapping[str, Any]] = ()
    rungs: Sequence[int] = ()
    findings: Sequence[Mapping[str, Any]] = ()
    explained: Sequence[Part] = ()
    manifest: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Picture:
    """A figure of ours with the table behind it."""

    name: str
    figure: Figure
    caption: str
    table: Table

    @property
    def svg(self) -> str:
        return figures.inline_svg(self.figure, self.name, self.caption)


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
        pictures = _draw_task(row, detail, f"task{number}")
        parts = {"pictures": pictures, "metrics": _tabulate(detail.metrics), "arms": tables.tabulate_arms(row)}
        sections.append({"row": row, "detail": detail, **parts})
        for picture in pictures:
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
        "best_simple_arm": best_simple_arm,
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
            "kmer": any(best_simple_arm(row) for row in plain["tasks"]),
            "baseline": any(find_baseline(row) for row in plain["tasks"]),
            "published": any(best_published(row) or best_other(row) for row in plain["tasks"]),
        },
        studies=studies,
        costs=_tabulate_costs(plain),
        reproduce=_read_reproduce(run_folder, plain),
        slots_sentence=describe_slots(plain),
    )
    return write_atomically(Path(run_folder) / "report.html", page)


def best_other(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """The best published score of a row that is not comparable, where none is."""
    return None if best_published(row) else best_published(row, comparable=False)


def format_duration(seconds: float) -> str:
    """Seconds as people say them: 42 s, 3 min 4 s, 2 h 5 min."""
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
) -> list[_Picture]:
    scores = figures.plot_scores(board)
    pictures = [
        _Picture("scores", scores, "Test scores of every task with 95 % intervals.", tables.tabulate_scores(board))
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
        pictures.append(_Picture("mean-scores", figure, caption, tables.tabulate_means(complete, tasks)))
    types = {row["task"]: _group(row, details) for row in board["tasks"] if find_metric(row["metric"]).higher_is_better}
    if len(set(types.values()) - {""}) > 1:
        types = {task: group or "other" for task, group in types.items()}
        figure = suite_figures.plot_task_types(standings, types)
        table = tables.tabulate_types(standings, types)
        pictures.append(_Picture("task-types", figure, f"Mean score by type of task.{open_marks}{left_out}", table))
    if len(tasks) > 2 and len(complete) > 1:
        figure = suite_figures.plot_profile(complete, tasks)
        caption = (
            "Performance profile: on which share of the tasks a model is within tau of the best score of all models; "
            f"drawn are ours and the {suite_figures.MAX_LINES} published ones with the best means.{left_out}"
        )
        pictures.append(_Picture("profile", figure, caption, tables.tabulate_profile(complete, tasks)))
    return pictures


def _group(row: Mapping[str, Any], details: Mapping[str, TaskDetails]) -> str:
    detail = details.get(row["task"])
    return row.get("group") or (detail.group if detail else "")


def _draw_task(row: Mapping[str, Any], detail: TaskDetails, prefix: str) -> list[_Picture]:
    pictures = []

    def add(name: str, figure: Figure, caption: str, table: Table) -> None:
        pictures.append(_Picture(f"{prefix}-{name}", figure, caption, table))

    if len(list_arms(row)) > 1:
        caption = (
            f"What each arm adds: {row['metric']} of the ensemble minus that without the arm, on held-out rows, with 95 % "
            "intervals; hollow: an arm without weight."
        )
        add("arms", figures.plot_arms(row), caption, tables.tabulate_adds(row))
    frame = detail.predictions
    if frame is not None and detail.kind in ("binary", "multiclass"):
        names = (frame["label"], frame["prediction"], detail.labels)
        caption = f"Confusion matrix of {row['task']} on {len(frame):,} test sequences."
        add("confusion", figures.plot_confusion(*names), caption, tables.tabulate_confusion(*names))
    if frame is not None and detail.kind == "regression":
        measured, predicted = (frame[[f"{kind}_{o}" for o in detail.labels]] for kind in ("label", "prediction"))
        add(
            "measured",
            figures.plot_measured(measured.to_numpy(), predicted.to_numpy(), detail.labels),
            f"Predicted against measured values of {row['task']}; dashed: equality. Brighter: more sequences.",
            tables.tabulate_measured(measured, predicted, detail.labels),
        )
    history = detail.history
    if any(record["stage"] == "finetune" and record.get("value") is not None for record in history):
        caption = "The fine-tuning search (ASHA): at a rung, trials that are behind the others stop."
        table = tables.tabulate_trials(detail.trials, detail.rungs, history)
        add("trials", figures.plot_trials(history, rungs=detail.rungs), caption, table)
    if row["architecture"]:
        found = row.get("architecture_from", "searched")
        origin = "the searched kernels" if found == "searched" else f"the kernels of the {found} network"
        caption = f"The architecture, {origin}: one line a layer, one dot a tap."
        table = tables.tabulate_architecture(row["architecture"])
        add("architecture", figures.plot_architecture(row["architecture"]), caption, table)
    if history:
        caption = "Training loss (above) and validation score (below) of every stage; blue: the best trial."
        add("learning", figures.plot_learning_curves(history), caption, tables.tabulate_learning(history))
    return pictures


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


def _tabulate(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Arms as columns and metrics as lines; a cell is (mean, interval)."""
    names = list(dict.fromkeys(name for arm in metrics.values() for name in arm))
    lines = {name: [_to_cell(arm.get(name)) for arm in metrics.values()] for name in names}
    return {"arms": list(metrics), "lines": lines}


def _to_cell(value: Any) -> tuple[str, str]:
    if isinstance(value, Mapping):
        return format_number(value.get("mean")), format_interval(value)
    # NaN is unequal to itself.
    return format_number(value if value == value else None), ""


def _read_reproduce(run_folder: Path, board: Mapping[str, Any]) -> dict[str, Any]:
    path = Path(run_folder) / "suite.json"
    told = {**board, **(json.loads(path.read_text("utf-8")) if path.exists() else {})}
    return {
        key: told[key] if isinstance(told[key], str) else json.dumps(told[key], indent=2, default=str)
        for key in REPRODUCE_KEYS
        if told.get(key) is not None
    }
