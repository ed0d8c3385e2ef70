"""The figures of one task in the report, each with the table behind it, and sentences where a figure would show nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from l2g_ray.results import curves, figures, learning, search_figures
from l2g_ray.results import report_tables as tables
from l2g_ray.results.composition import explain_composition, plot_composition, tabulate_composition
from l2g_ray.results.details import TaskDetails
from l2g_ray.results.report_tables import Table
from l2g_ray.results.rows import format_interval, format_number, list_arms, name_arm
from l2g_ray.results.winning import describe_architecture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Headings of the report, in its order.
ARMS, PREDICTIONS, SEARCH, TRAINING, DATA = "Arms", "Test predictions", "Search", "Training", "Data checks"


@dataclass(frozen=True)
class Picture:
    """A figure of ours with the table behind it, and the heading that it is below."""

    name: str
    figure: Figure
    caption: str
    table: Table
    heading: str = ""

    @property
    def svg(self) -> str:
        """The figure as an `<svg>` element."""
        return figures.inline_svg(self.figure, self.name, self.caption)

    @property
    def width_pt(self) -> float:
        """The width at which its text has its size."""
        return float(self.figure.get_figwidth()) * 72


@dataclass
class TaskPictures:
    """Pictures of a task; by heading, `notes` are sentences, and `tables` are shown as they are, with their captions."""

    prefix: str
    pictures: list[Picture] = field(default_factory=list)
    notes: dict[str, list[str]] = field(default_factory=dict)
    tables: dict[str, tuple[str, Table]] = field(default_factory=dict)

    def add(self, heading: str, name: str, figure: Figure, caption: str, table: Table) -> None:
        """Add a picture."""
        self.pictures.append(Picture(f"{self.prefix}-{name}", figure, caption, table, heading))

    def note(self, heading: str, text: str) -> None:
        """Add a sentence, unless it is empty."""
        if text:
            self.notes.setdefault(heading, []).append(text)


def draw_task(row: Mapping[str, Any], detail: TaskDetails, prefix: str) -> TaskPictures:
    """Draw what is known of a task. Ids of its figures start with `prefix`."""
    found = TaskPictures(prefix)
    _draw_predictions(row, detail, found)
    if len(list_arms(row)) > 1:
        caption = (
            f"What each arm adds: {row['metric']} of the ensemble minus that without the arm, on held-out rows, with 95 % "
            "intervals; hollow: an arm without weight."
        )
        found.add(ARMS, "arms", figures.plot_arms(row), caption, tables.tabulate_adds(row))
    _draw_search(row, detail, found)
    _draw_training(row, detail, found)
    if detail.check.get("composition"):
        found.add(
            DATA,
            "composition",
            plot_composition(detail.check),
            explain_composition(detail.check),
            tables.make_table(*tabulate_composition(detail.check)),
        )
    return found


def _draw_predictions(row: Mapping[str, Any], detail: TaskDetails, found: TaskPictures) -> None:
    frame = detail.predictions
    if frame is None:
        return
    if detail.kind == "regression":
        measured, predicted = (frame[[f"{kind}_{o}" for o in detail.labels]] for kind in ("label", "prediction"))
        found.add(
            PREDICTIONS,
            "measured",
            figures.plot_measured(measured.to_numpy(), predicted.to_numpy(), detail.labels),
            f"Predicted against measured values of {row['task']}, one seed, with Pearson r and its 95 % bootstrap interval over "
            "rows; dashed: equality. Brighter: more sequences.",
            tables.tabulate_measured(measured, predicted, detail.labels),
        )
        return
    if found_curves := curves.list_curves(detail.kind, frame, detail.labels):
        _draw_curves(found_curves, detail, found)
    if detail.kind in ("binary", "multiclass"):
        names = (frame["label"], frame["prediction"], detail.labels)
        caption = f"Confusion matrix of {row['task']} on {len(frame):,} test sequences."
        found.add(PREDICTIONS, "confusion", figures.plot_confusion(*names), caption, tables.tabulate_confusion(*names))


def _draw_curves(measured_curves: list[curves.Curves], detail: TaskDetails, found: TaskPictures) -> None:
    against = {
        "binary": f"'{detail.labels[-1]}' against '{detail.labels[0]}'",
        "multiclass": "each class against the rest",
    }.get(detail.kind, "each label")
    cut = f", the first {curves.MAX_CURVES}" if len(detail.labels) > curves.MAX_CURVES else ""
    of = f"{against}{cut}, one seed; 95 % bootstrap intervals over rows"
    caption = f"Areas under the curves: {of}. Brier score: mean squared error of the probability, lower is better."
    found.tables[PREDICTIONS] = (caption, tables.make_table(*curves.tabulate_areas(measured_curves)))
    for name, draw, table, caption in (
        (
            "roc",
            curves.plot_roc,
            curves.tabulate_curve(measured_curves, "roc"),
            f"ROC: {of}. Legend: AUROC. Dashed: chance.",
        ),
        (
            "precision",
            curves.plot_precision,
            curves.tabulate_curve(measured_curves, "precision"),
            f"Precision and recall: {of}. Legend: average precision. Dashed: share of positives, which is chance.",
        ),
        (
            "calibration",
            curves.plot_calibration,
            curves.tabulate_calibration(measured_curves),
            f"Calibration: {of}, ten bins of equal numbers of rows. Legend: Brier score (lower is better). Dashed: a "
            "calibrated model.",
        ),
    ):
        found.add(PREDICTIONS, name, draw(measured_curves), caption, tables.make_table(*table))


def _draw_search(row: Mapping[str, Any], detail: TaskDetails, found: TaskPictures) -> None:
    history = detail.history
    if any(record["stage"] == "finetune" and record.get("value") is not None for record in history):
        caption = "The fine-tuning search (ASHA): at a rung, trials that are behind the others stop."
        table = tables.tabulate_trials(detail.trials, detail.rungs, history)
        found.add(SEARCH, "trials", figures.plot_trials(history, rungs=detail.rungs), caption, table)
    known = [trial for trial in detail.trials if trial.get("best_score") is not None and trial.get("trial")]
    if len(detail.trials) == 1:
        found.note(SEARCH, "One trial: nothing was searched.")
    if len(detail.trials) < 2 or not known:
        return
    varying, same = search_figures.read_parameters(known)
    if varying:
        caption = (
            "Hyper-parameters of the trials, a line a trial; blue: the best trial. A wide range has a logarithmic axis."
        )
        metric = next((r["metric"] for r in history if r["stage"] == "finetune"), row["metric"])
        table = tables.tabulate_trials(detail.trials, detail.rungs, history)
        found.add(SEARCH, "parallel", search_figures.plot_parallel(known, metric), caption, table)
    if same:
        found.note(
            SEARCH,
            f"The same in all trials: {', '.join(f'{name} {search_figures.show_value(value)}' for name, value in same.items())}.",
        )
    importance = search_figures.measure_importance(detail.trials)
    if importance.values:
        lines = list(importance.values.items())
        table = tables.make_table(["Hyper-parameter", "Importance"], lines)
        found.add(SEARCH, "importance", search_figures.plot_importance(importance), importance.text, table)
    else:
        found.note(SEARCH, importance.text)


def _draw_training(row: Mapping[str, Any], detail: TaskDetails, found: TaskPictures) -> None:
    if row["architecture"]:
        origin = row.get("architecture_from", "searched")
        sentence = describe_architecture(row["architecture"], origin)
        found.note(TRAINING, sentence and f"Architecture: {row['backbone']}, {sentence}")
        if not sentence:
            named = "the searched kernels" if origin == "searched" else f"the kernels of the {origin} network"
            caption = f"The architecture, {named}: one line a layer, one dot a tap."
            table = tables.tabulate_architecture(row["architecture"])
            found.add(TRAINING, "architecture", figures.plot_architecture(row["architecture"]), caption, table)
    if detail.history:
        for sentence in learning.describe_short_stages(detail.history):
            found.note(TRAINING, sentence)
        if learning.has_curves(detail.history):
            caption = "Training loss and validation score of each stage, in the order of the stages; blue: the best trial, where trials compete."
            table = tables.tabulate_learning(detail.history)
            found.add(TRAINING, "learning", learning.plot_learning_curves(detail.history), caption, table)


def tabulate_metrics(detail: TaskDetails, row: Mapping[str, Any]) -> dict[str, Any]:
    """Return arms as columns, with their weights, and metrics as lines; a cell is (mean, interval).

    The interval of the task's metric is that of the leaderboard, where the arm's metrics have none.
    """
    metrics = detail.metrics
    scores = {name_arm(arm): one["test"] for arm, one in (row.get("arms") or {}).items()}
    shares = {name_arm(arm.name): arm.share for arm in list_arms(row)}
    if used := row.get("used"):
        scores[name_arm(used["arm"])] = used["test"]
    names = list(dict.fromkeys(name for arm in metrics.values() for name in arm))
    lines = {}
    for name in names:
        cells = []
        for arm, values in metrics.items():
            value, bounds = _to_cell(values.get(name))
            if name == row["metric"] and not bounds and arm in scores:
                bounds = format_interval(scores[arm])
            cells.append((value, bounds))
        lines[name] = cells
    heads = [(arm, f"weight {shares[arm]:.0%}" if shares.get(arm) else "") for arm in metrics]
    return {"arms": heads, "lines": lines}


def _to_cell(value: Any) -> tuple[str, str]:
    if isinstance(value, Mapping):
        return format_number(value.get("mean")), format_interval(value)
    # NaN is unequal to itself.
    return format_number(value if value == value else None), ""
