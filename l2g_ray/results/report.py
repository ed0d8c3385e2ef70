"""The report of a suite: one HTML file that opens anywhere, without a network, by day and by night."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from l2g_ray.results import figures
from l2g_ray.results.leaderboard import (
    best_published,
    describe_slots,
    format_interval,
    format_number,
    name_task,
    subtract_arms,
    write_atomically,
)
from l2g_ray.results.schema import validate_leaderboard

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What `suite.json` (or the board itself) may tell about how to get the same numbers again.
REPRODUCE_KEYS = ("command", "git_revision", "versions", "machine", "fingerprints", "seed", "started", "settings")


@dataclass(frozen=True)
class TaskDetails:
    """What the report tells about one task beyond its row of the leaderboard.

    `task` is the row's name. `labels` are the classes or outputs. `metrics` maps an arm ("L2G", "embedder only", ...)
    to its metrics; a metric is a number or a score {mean, ci95}. `history` holds the records that `figures` draws.
    `predictions` has one row a test sequence: classification, the class names in the columns `label` and
    `prediction`; regression, the columns `label_<output>` and `prediction_<output>`. Other frames are not drawn.
    `manifest` is shown as it is: counts, splits, dropped rows.
    """

    task: str
    kind: str
    labels: Sequence[str]
    title: str = ""
    description: str = ""
    source: str = ""
    licence: str = ""
    metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    history: Sequence[Mapping[str, Any]] = ()
    predictions: pd.DataFrame | None = None
    manifest: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Picture:
    name: str
    figure: Figure
    caption: str

    @property
    def svg(self) -> str:
        return figures.inline_svg(self.figure, self.name, self.caption)


def write_report(run_folder: Path, board: Mapping[str, Any], details: Sequence[TaskDetails]) -> Path:
    """Write `report.html`, and its figures as SVG and PNG below `figures/`.

    How to reproduce the run is read from `suite.json` in the folder, or from keys of the board (`REPRODUCE_KEYS`).
    Tasks without details get their row only. Returns the report's path. Raises UserError for a board that does
    not fit the schema, or a folder that cannot be written to.
    """
    import jinja2
    from markupsafe import Markup

    plain = validate_leaderboard(board)
    by_name = {detail.task: detail for detail in details}
    overview = _Picture("scores", figures.plot_scores(plain), "Test scores of every task with 95 % intervals.")
    sections = []
    for number, row in enumerate(plain["tasks"]):
        detail = by_name.get(row["task"]) or TaskDetails(row["task"], row["kind"], ())
        pictures = _draw_task(row, detail, f"task{number}")
        sections.append({"row": row, "detail": detail, "pictures": pictures, "metrics": _tabulate(detail.metrics)})
        for picture in pictures:
            stem = picture.name.removeprefix(f"task{number}-")
            figures.save(picture.figure, Path(run_folder) / "figures" / row["task"] / stem)
    figures.save(overview.figure, Path(run_folder) / "figures" / overview.name)

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
        "name_task": name_task,
        "subtract_arms": subtract_arms,
        "duration": format_duration,
        # Drawn by us, with its texts escaped by matplotlib.
        "draw": lambda picture: Markup(picture.svg),
    }
    template = environment.get_template("report_template.html")
    page = template.render(
        board=plain,
        overview=overview,
        sections=sections,
        reproduce=_read_reproduce(run_folder, plain),
        slots_sentence=describe_slots(plain),
    )
    return write_atomically(Path(run_folder) / "report.html", page)


def format_duration(seconds: float) -> str:
    """Seconds as people say them: 42 s, 3 min 4 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _draw_task(row: Mapping[str, Any], detail: TaskDetails, prefix: str) -> list[_Picture]:
    pictures = []

    def add(name: str, figure: Figure, caption: str) -> None:
        pictures.append(_Picture(f"{prefix}-{name}", figure, caption))

    frame = detail.predictions
    if frame is not None and detail.kind in ("binary", "multiclass"):
        figure = figures.plot_confusion(frame["label"], frame["prediction"], detail.labels)
        add("confusion", figure, f"Confusion matrix of {row['task']} on {len(frame):,} test sequences.")
    if frame is not None and detail.kind == "regression":
        measured, predicted = (frame[[f"{kind}_{o}" for o in detail.labels]] for kind in ("label", "prediction"))
        figure = figures.plot_measured(measured.to_numpy(), predicted.to_numpy(), detail.labels)
        add(
            "measured",
            figure,
            f"Predicted against measured values of {row['task']}; dashed: equality. Brighter: more sequences.",
        )
    if detail.history:
        caption = "Training loss (above) and validation score (below) of every stage; blue: the best trial."
        add("learning", figures.plot_learning_curves(detail.history), caption)
    if any(record["stage"] == "finetune" and record.get("value") is not None for record in detail.history):
        add("trials", figures.plot_trials(detail.history), "The fine-tuning search (ASHA): bad trials stop early.")
    if row["architecture"]:
        caption = "The searched kernels: one line a layer, one dot a tap."
        add("architecture", figures.plot_architecture(row["architecture"]), caption)
    return pictures


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
