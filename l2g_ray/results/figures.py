"""Figures of a run, drawn without a display. Colours are of the Okabe-Ito set, which colour-blind readers tell apart.

Figures are plain `Figure` objects, not pyplot's: safe in any thread.
"""

from __future__ import annotations

import functools
import io
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypedDict

import numpy as np
import pandas as pd

from l2g_ray.results.intervals import correlate
from l2g_ray.results.rows import best_published, list_arms, name_arm, name_held_out, name_task, used_arm
from l2g_ray.tasks.metrics import find_metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Arguments = ParamSpec("Arguments")


class Epoch(TypedDict):
    """An epoch of a trial, counted from 1: the validation score and the mean training loss, None where not finite."""

    stage: str
    trial: str
    epoch: int
    metric: str
    value: float | None
    loss: float | None


BLUE, ORANGE, VERMILION, GREY = "#0072B2", "#E69F00", "#D55E00", "#8A8F98"
# Text and axes; `inline_svg` turns it into the page's own text colour.
INK = "#23272E"
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "l2g_ray",
    "font.family": ["DejaVu Sans"],
}
# Above this a scatter hides its own density.
MAX_SCATTER_ROWS = 1500
MAX_PANELS = 6
# Widths in inches: three figures, or two, next to each other on a page, and one on a phone, in a text of 9 points (12 pixels).
SMALL, MEDIUM = 3.6, 5.4
# Letters of a task's name in a line; a longer name would leave no room for the scores.
LONGEST_NAME = 24


def _styled(draw: Callable[Arguments, Figure]) -> Callable[Arguments, Figure]:
    @functools.wraps(draw)
    def draw_in_style(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Figure:
        import matplotlib

        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return draw_in_style


@_styled
def plot_scores(board: Mapping[str, Any]) -> Figure:
    """Test scores with 95 % intervals, one line a task: what is used, L2G, embedder only, the best comparable published
    score."""
    rows = list(board["tasks"])[::-1]
    figure, (axes,) = _new_figure(7.2, 1.1 + 0.7 * max(len(rows), 1))
    used = [one.test if (one := used_arm(row)) else None for row in rows]
    arms = (
        (used, "used", INK, "D", 0.24),
        ([row["test"] for row in rows], "L2G", BLUE, "o", 0.0),
        ([row["embedder_only"] for row in rows], "embedder only", ORANGE, "s", -0.24),
    )
    for scores, label, colour, marker, shift in arms:
        points = [(y + shift, score) for y, score in enumerate(scores) if score and score["mean"] is not None]
        if not points:
            continue
        means = np.array([score["mean"] for _, score in points], dtype=float)
        bounds = [score["ci95"] if None not in score["ci95"] else (score["mean"],) * 2 for _, score in points]
        # A mean may fall outside a percentile interval; matplotlib takes no negative length.
        spans = np.abs(np.array(bounds, dtype=float).reshape(-1, 2).T - means)
        heights = [y for y, _ in points]
        axes.errorbar(means, heights, xerr=spans, fmt=marker, color=colour, capsize=3, markersize=5, label=label)
    published = [(y, best) for y, row in enumerate(rows) if (best := best_published(row))]
    if published:
        xs, ys = [best["value"] for _, best in published], [y for y, _ in published]
        axes.errorbar(xs, ys, fmt="^", color=VERMILION, markersize=5, label="best comparable published")
    names = ["\n".join([*textwrap.wrap(name_task(row), LONGEST_NAME), row["metric"]]) for row in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel("test score (points: mean over seeds; bars: 95 % bootstrap interval)")
    axes.grid(axis="x", color=GREY, alpha=0.25, linewidth=0.6)
    _put_legend_above(axes)
    return figure


@_styled
def plot_arms(row: Mapping[str, Any]) -> Figure:
    """Return what the ensemble of a task gains by each arm on held-out rows, with 95 % intervals, the largest weight
    on top.
    """
    arms = list_arms(row)[::-1]
    figure, (axes,) = _new_figure(MEDIUM, 1.1 + 0.3 * max(len(arms), 1))
    axes.axvline(0, color=GREY, linewidth=0.8)
    for y, arm in enumerate(arms):
        if arm.adds.mean is None:
            continue
        lo, hi = arm.adds.ci95 or (None, None)
        spans = None if lo is None or hi is None else [[abs(arm.adds.mean - lo)], [abs(hi - arm.adds.mean)]]
        fill = BLUE if arm.share else "none"
        axes.errorbar(
            [arm.adds.mean], [y], xerr=spans, fmt="o", color=BLUE, markerfacecolor=fill, capsize=3, markersize=5
        )
    names = [f"{name_arm(arm.name)}, {arm.share:.0%}" if arm.share else name_arm(arm.name) for arm in arms]
    axes.set_yticks(range(len(arms)), names)
    axes.set_ylim(-0.6, len(arms) - 0.4)
    axes.locator_params(axis="x", nbins=6)
    metric = find_metric(row["metric"])
    better = "" if metric.higher_is_better else "\nbelow 0 is better"
    label = f"{name_held_out(row)} {row['metric']} of the ensemble minus that without the arm"
    axes.set_xlabel(f"{textwrap.fill(label, 40)}{better}")
    axes.grid(axis="x", color=GREY, alpha=0.25, linewidth=0.6)
    return figure


@_styled
def plot_trials(history: Sequence[Epoch], stage: str = "finetune", rungs: Sequence[int] = ()) -> Figure:
    """Return the ASHA search: for every trial of a stage, best first, the epochs that it reached and its best score.

    `rungs` are the epochs after which a trial is compared with others and may be stopped.
    """
    trials = summarise_trials(history, stage)
    figure, (axes,) = _new_figure(MEDIUM, 0.9 + 0.26 * max(len(trials), 1))
    most = trials["epochs"].max() if len(trials) else 1
    ys = np.arange(len(trials))[::-1]
    colours = [BLUE if epochs == most else GREY for epochs in trials["epochs"]]
    axes.barh(ys, trials["epochs"], color=colours, height=0.66)
    for y, epochs, score in zip(ys, trials["epochs"], trials["score"], strict=True):
        ending = " stopped" if epochs < most else ""
        axes.text(epochs + 0.02 * most, y, f"{score:.3f}{ending}", va="center")
    for rung in rungs:
        axes.axvline(rung, color=VERMILION, linewidth=1, linestyle=":")
        axes.text(rung, 1.0, "rung", transform=axes.get_xaxis_transform(), ha="center", va="bottom")
    axes.set_yticks(ys, [str(name) for name in trials.index])
    axes.set_xlim(0, most * 1.35)
    _use_whole_numbers(axes)
    metric = next((record["metric"] for record in history if record["stage"] == stage), "score")
    axes.set_xlabel(f"epochs reached (numbers: best validation {metric})")
    axes.set_ylabel("trial, best first")
    return figure


@_styled
def plot_confusion(labels: Iterable[str], predictions: Iterable[str], classes: Sequence[str]) -> Figure:
    """Confusion matrix of class names (n,), in counts, shaded by the share of the true class."""
    codes = {name: i for i, name in enumerate(classes)}
    counts = np.zeros((len(classes), len(classes)), dtype=int)
    for label, prediction in zip(labels, predictions, strict=True):
        counts[codes[str(label)], codes[str(prediction)]] += 1
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = 1.6 + 0.65 * len(classes)
    figure, (axes,) = _new_figure(side + 0.7, side)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (i, j), count in np.ndenumerate(counts):
        text = f"{count}\n{shares[i, j]:.0%}"
        # A fixed colour, since the cell under it does not follow the page's theme.
        axes.text(j, i, text, ha="center", va="center", color="white" if shares[i, j] > 0.5 else "black")
    axes.set_xticks(range(len(classes)), classes, rotation=30, ha="right")
    axes.set_yticks(range(len(classes)), classes)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class (count, share of row)")
    return figure


@_styled
def plot_measured(measured: np.ndarray, predicted: np.ndarray, names: Sequence[str]) -> Figure:
    """Predicted against measured values (n, C) of the first six outputs `names` (C,), with Pearson r and its interval.

    Hexagons above 1,500 rows.
    """
    measured, predicted = (np.asarray(v, dtype=float).reshape(-1, len(names)) for v in (measured, predicted))
    shown = list(names)[:MAX_PANELS]
    columns = min(len(shown), 3)
    lines = -(-len(shown) // columns)
    figure, panels = _new_figure(0.2 + 3.4 * columns, 0.2 + 3.4 * lines, rows=lines, columns=columns)
    for i, name in enumerate(shown):
        axes, known = panels[i], ~np.isnan(measured[:, i])
        x, y = measured[known, i], predicted[known, i]
        if len(x) > MAX_SCATTER_ROWS:
            axes.hexbin(x, y, gridsize=40, cmap="viridis", mincnt=1, bins="log", linewidths=0)
        else:
            axes.plot(x, y, "o", color=BLUE, markersize=2.5, alpha=0.45, markeredgewidth=0)
        both = np.concatenate([x, y]) if len(x) else np.array([0.0, 1.0])
        axes.plot([both.min(), both.max()], [both.min(), both.max()], color=VERMILION, linewidth=1, linestyle="--")
        r, low, high = correlate(x, y)
        axes.set_title(f"{name}\nr {r:.3f} [{low:.3f}, {high:.3f}]")
        axes.set_xlabel("measured")
        axes.set_ylabel("predicted" if i % columns == 0 else "")
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    return figure


@_styled
def plot_architecture(architecture: Sequence[Mapping[str, int]]) -> Figure:
    """Return the kernels that the search chose: for every layer a dot a tap, at its offset in the layer's input."""
    figure, (axes,) = _new_figure(MEDIUM, 1.0 + 0.26 * max(len(architecture), 1))
    reach = max((a["dilation"] * (a["kernel_size"] // 2) for a in architecture), default=1)
    for layer, choice in enumerate(architecture):
        kernel, dilation = choice["kernel_size"], choice["dilation"]
        taps = (np.arange(kernel) - kernel // 2) * dilation
        axes.plot(taps[[0, -1]], [layer, layer], color=GREY, linewidth=0.8, alpha=0.7)
        axes.plot(taps, np.full(kernel, layer), "o", color=BLUE, markersize=4)
        axes.text(reach * 1.1, layer, f"kernel {kernel}, dilation {dilation}", va="center")
    axes.set_yticks(range(len(architecture)), [str(i + 1) for i in range(len(architecture))])
    axes.set_ylim(len(architecture) - 0.4, -0.6)
    axes.set_xlim(-reach * 1.1, reach * 2.4)
    _use_whole_numbers(axes)
    axes.set_xlabel("offset of the taps (positions in the layer's input)")
    axes.set_ylabel("layer")
    return figure


def save(figure: Figure, path_stem: Path) -> tuple[Path, Path]:
    """Write `<path_stem>.svg` and `<path_stem>.png` (150 dpi, white ground). Returns both paths."""
    import matplotlib

    path_stem.parent.mkdir(parents=True, exist_ok=True)
    svg, png = (path_stem.with_name(f"{path_stem.name}.{kind}") for kind in ("svg", "png"))
    with matplotlib.rc_context(STYLE):
        figure.savefig(svg, facecolor="white", metadata={"Date": None})
        figure.savefig(png, facecolor="white", dpi=150)
    return svg, png


def inline_svg(figure: Figure, name: str, description: str) -> str:
    """Return the figure as one `<svg>` element for an HTML page: text and blue in the page's colours, ids that start
    with `name`.
    """
    import matplotlib

    out = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(out, format="svg", metadata={"Date": None})
    svg = re.sub(INK, "currentColor", embed_svg(out.getvalue(), name, description), flags=re.IGNORECASE)
    return re.sub(BLUE, "var(--accent)", svg, flags=re.IGNORECASE)


def embed_svg(svg: str, name: str, description: str) -> str:
    """Return a stored SVG file's text as an `<svg>` element for an HTML page, in its own colours; ids start with
    `name`.
    """
    import html

    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\n?", "", svg, flags=re.DOTALL)
    # Ids must differ between the figures of one page.
    svg = re.sub(r'(\bid="|href="#|url\(#)', lambda match: f"{match[1]}{name}-", svg)
    width = re.search(r'width="([\d.]+)pt"', svg)
    view = re.sub(r' (width|height)="[\d.]+pt"', "", svg.split(">", 1)[0]) + ' role="img"'
    natural = f"{float(width[1]) if width else 500:.0f}pt"
    view += f' aria-label="{html.escape(description)}" style="max-width:{natural};--natural:{natural}"'
    return f"{view}>{svg.split('>', 1)[1]}"


def _new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """Return a figure of `width` by `height` inches and its axes, row by row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False)
    return figure, list(panels.ravel())


def _put_legend_above(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:  # without any, as where a task has no score, matplotlib warns
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, handletextpad=0.3, columnspacing=1.2, borderpad=0)


def _use_whole_numbers(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))


def summarise_trials(history: Sequence[Epoch], stage: str) -> pd.DataFrame:
    """Epochs and best score (`epochs`, `score`) of each trial of a stage that has a score, the best trial first."""
    frame = _to_frame(history)
    frame = frame[(frame["stage"] == stage) & frame["value"].notna()]
    lower = any(not find_metric(metric).higher_is_better for metric in frame["metric"].unique())
    trials = frame.groupby("trial").agg(epochs=("epoch", "nunique"), score=("value", "min" if lower else "max"))
    return trials.sort_values(["score", "epochs"], ascending=[lower, False])


def _to_frame(history: Sequence[Epoch]) -> pd.DataFrame:
    frame = pd.DataFrame(list(history), columns=["stage", "trial", "epoch", "metric", "value", "loss"])
    return frame.astype({"value": float, "loss": float, "trial": str})


def _find_best_trial(frame: pd.DataFrame) -> str | None:
    scores = list(zip(frame["trial"], frame["value"], strict=True))
    best = find_metric(frame["metric"].iloc[0]).best(scores, lambda pair: pair[1])
    return str(best[0]) if best else None
