"""From a finished task to its embeddings, silhouette scores and pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from l2g_ray.data.dataset import PreparedTask
from l2g_ray.errors import UserError, nearest
from l2g_ray.explain.embeddings import LAYERS, Point, embed, measure_silhouette, project, sample_rows
from l2g_ray.predict import BATCH_SIZE, CPU
from l2g_ray.results.figures import BLUE, GREY, ORANGE, VERMILION, _new_figure, _styled, save
from l2g_ray.stages.evaluate import read_evaluated_rows
from l2g_ray.tasks.schema import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEMA = 1
COLOURS = (BLUE, ORANGE, "#009E73", VERMILION, "#CC79A7", "#56B4E9", "#F0E442", GREY)
LAYER_NAMES = {"backbone": "CNN features", "tokens": "tokens", "language_model": "language model"}


@dataclass(frozen=True)
class Rows:
    """The rows that are embedded: `classes` (n,) names for the silhouette, None for regression; `values` (n,) what the
    picture is coloured by there. `total` rows has the split."""

    split: str
    ids: list[str]
    sequences: pa.ChunkedArray
    classes: np.ndarray | None
    values: np.ndarray | None
    label: str
    total: int


def read_rows(prepared: PreparedTask, split: str, output: str | None, max_rows: int, seed: int) -> Rows:
    """Rows of a split; of more than `max_rows`, a sample drawn from `seed` in which each class keeps its share.

    `output` says which label of a multilabel task makes the two classes, or which output colours a regression; the
    first when None. Raises UserError for a name that the task does not have.
    """
    task = prepared.task
    table = read_evaluated_rows(prepared) if split == "test" else prepared.table(split)
    classes, values, label = _read_labels(task, table, output)
    total = len(table)
    rows = sample_rows(classes if classes is not None else np.zeros(total), max_rows, seed)
    table = table.take(pa.array(rows))
    return Rows(
        split,
        table["id"].to_pylist(),
        table["sequence"],
        None if classes is None else classes[rows],
        None if values is None else values[rows],
        label,
        total,
    )


def _read_labels(task: Task, table: pa.Table, output: str | None) -> tuple[np.ndarray | None, np.ndarray | None, str]:
    if task.is_classification:
        if output is not None:
            raise UserError(f"--output: task '{task.name}' has one label, its classes; leave the option out")
        return np.array(task.labels)[table["label"].to_numpy()], None, "class"
    name = output or task.labels[0]
    if name not in task.labels:
        raise UserError(f"--output '{name}': no such output of task '{task.name}' ({nearest(name, task.labels)})")
    flat = table["label"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    column = flat.reshape(-1, task.n_outputs)[:, task.labels.index(name)]
    if task.kind == "regression":
        return None, column, name
    known = np.where(np.isnan(column), "unknown", np.where(column > 0.5, name, f"not {name}"))
    return known, None, name


def write_embeddings(
    points: list[Point],
    rows: Rows,
    folder: Path,
    facts: dict[str, Any],
    metric: str = "euclidean",
    progress: Callable[[int], None] = lambda done: None,
    *,
    device: torch.device = CPU,
    batch_size: int = BATCH_SIZE,
) -> dict[str, Any]:
    """Embed rows at every point; write embeddings.npz, embeddings.json and the picture (SVG, PNG). Returns the summary.

    embeddings.npz has an array (n, width) a point and layer, `<point>/<layer>`, and `ids`, `labels`. Points and layers
    are told in the summary with silhouette (None for regression) and the variance that the picture shows.
    """
    arrays: dict[str, np.ndarray] = {}
    panels: list[dict[str, Any]] = []
    for number, point in enumerate(points):
        shifted = _shifted(progress, number * len(rows.sequences))
        found = embed(point, rows.sequences, batch_size, shifted, device)
        for layer, values in found.items():
            arrays[f"{point.name}/{layer}"] = values
            places, shares = project(values)
            silhouette = None if rows.classes is None else measure_silhouette(values, rows.classes, metric)
            panels.append(
                {
                    "point": point.name,
                    "layer": layer,
                    "silhouette": silhouette,
                    "variance": shares.tolist(),
                    "places": places,
                }
            )
    labels = rows.classes if rows.classes is not None else rows.values
    summary = {
        "schema": SCHEMA,
        **facts,
        "split": rows.split,
        "rows": len(rows.ids),
        "rows_of_split": rows.total,
        "label": rows.label,
        "metric": metric,
        "embeddings": [{k: v for k, v in panel.items() if k != "places"} for panel in panels],
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(
            folder / "embeddings.npz",
            ids=np.array(rows.ids, dtype=str),
            labels=np.array(labels),
            **arrays,  # type: ignore[arg-type]
        )
        (folder / "embeddings.json").write_text(json.dumps(summary, indent=1))
        save(plot_embeddings(panels, rows, facts.get("predicts_from", ())), folder / "embeddings")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error}); choose another with --out") from None
    return summary


def _shifted(progress: Callable[[int], None], before: int) -> Callable[[int], None]:
    return lambda done: progress(before + done)


@_styled
def plot_embeddings(panels: list[dict[str, Any]], rows: Rows, marked: Collection[str] = ()) -> Figure:
    """Principal components: a column a point of training, a row a layer; a star at the names that are `marked`."""
    names = list(dict.fromkeys(panel["point"] for panel in panels))
    layers = [layer for layer in LAYERS if any(panel["layer"] == layer for panel in panels)]
    figure, axes = _new_figure(0.6 + 2.1 * len(names), 0.5 + 2.1 * len(layers), len(layers), len(names))
    by_place = {(panel["layer"], panel["point"]): panel for panel in panels}
    size = float(np.clip(2000 / max(len(rows.ids), 1), 1.5, 9))
    kinds = [] if rows.classes is None else list(dict.fromkeys(sorted(rows.classes)))
    shown: list[Any] = []
    for i, layer in enumerate(layers):
        for j, name in enumerate(names):
            panel, ax = by_place.get((layer, name)), axes[i * len(names) + j]
            ax.set_xticks([])
            ax.set_yticks([])
            if i == 0:
                ax.set_title(f"{name} *" if name in marked else name)
            if j == 0:
                ax.set_ylabel(LAYER_NAMES[layer])
            if panel is None:
                ax.text(0.5, 0.5, "none", ha="center", va="center", transform=ax.transAxes, color=GREY)
                continue
            x, y = panel["places"].T
            share = 100 * sum(panel["variance"])
            score = "" if panel["silhouette"] is None else f"silhouette {panel['silhouette']:.2f}, "
            ax.set_xlabel(f"{score}{share:.0f} % of variance", fontsize=7.5)
            if rows.classes is None:
                ax.scatter(x, y, c=rows.values, s=size, cmap="viridis", linewidths=0, rasterized=True)
                continue
            shown = [
                ax.scatter(
                    x[rows.classes == kind],
                    y[rows.classes == kind],
                    color=COLOURS[k % len(COLOURS)],
                    s=size,
                    alpha=0.7,
                    linewidths=0,
                    label=kind,
                    rasterized=True,
                )
                for k, kind in enumerate(kinds)
            ]
    if 0 < len(kinds) <= len(COLOURS):
        figure.legend(shown, kinds, loc="outside upper left", ncols=min(len(kinds), 4), markerscale=2)
    return figure
