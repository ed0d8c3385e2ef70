"""Embeddings of sequences before and after each stage, how well they separate the classes (paper, Fig. S2), and their pictures."""

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
from l2g_ray.explain.vectors import LAYERS, WITH_TOKENS, Point, embed, take_first
from l2g_ray.models.embedder import EmbedderConfig, EmbedderNet
from l2g_ray.models.ensemble import AverageModel
from l2g_ray.models.l2g import L2GConfig, L2GModel, load_model
from l2g_ray.models.language_model import LanguageModel, load_transformer
from l2g_ray.places import find_place
from l2g_ray.predict import BATCH_SIZE, CPU
from l2g_ray.results.figures import BLUE, GREY, ORANGE, VERMILION, _new_figure, _styled, save
from l2g_ray.run_folder import Arm, list_arms
from l2g_ray.stages.evaluate import read_evaluated_rows
from l2g_ray.tasks.schema import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BEFORE, ALIGNED, FINETUNED, ALONE = "before training", "after align", "after finetune", "embedder only"
# Of an arm: the points to show, and those of them that it predicts from. An average predicts from its members; L2G
# is shown next to its control.
ARM_POINTS = {
    "l2g": ((BEFORE, ALIGNED, FINETUNED, ALONE), (FINETUNED,)),
    "embedder_only": ((BEFORE, ALONE), (ALONE,)),
    "average": ((BEFORE, ALIGNED, FINETUNED, ALONE), (FINETUNED, ALONE)),
}


def load_points(
    task_folder: Path, settings: dict[str, Any], arm: str = "l2g", say: Callable[[str], None] = lambda sentence: None
) -> list[Point]:
    """Return the points of `ARM_POINTS`: L2G of a finished task before training, after align and after finetune, and
    the control.

    Where an arm has several fold models, the first one is taken. `settings` are the task's, from `suite.json`; they say whether
    the language model was pretrained. A missing point is reported through `say` and left out. Raises UserError if the arm's
    finished model is missing.
    """
    arms = list_arms(task_folder)
    models = {name: load_model(arms[name].folder) for name in WITH_TOKENS if name in arms}
    if n_folds := max((len(model.members) for model in models.values() if isinstance(model, AverageModel)), default=0):
        say(f"an arm is the mean of {n_folds} fold models; the first one is shown")
    finetuned, alone = (take_first(models.get(name)) for name in WITH_TOKENS)
    if not isinstance(finetuned, L2GModel) and (arm != "embedder_only" or alone is None):
        raise UserError(f"{task_folder}: has no L2G model; give the folder of a task that l2g-ray has finished")
    net = finetuned.net if isinstance(finetuned, L2GModel) else alone
    assert isinstance(net, EmbedderNet)
    wanted = ARM_POINTS[arm][0]
    deployed = _read_deployed(task_folder)
    described = finetuned.config if isinstance(finetuned, L2GModel) else L2GConfig(net.config, **_describe(settings))
    language_model = _load_language_model(described, settings, deployed.get("seed", 0), deployed.get("pretrain"), say)
    points: list[Point] = []
    if "seed" in deployed:
        points.append(Point(BEFORE, _untrained(net.config, language_model, deployed["seed"]), None))
    else:
        say(
            f"{task_folder / 'stages.json'}: names no seed (an earlier version wrote it), so 'before training' is left out"
        )
    aligned = _load_stage(deployed.get("align"), "align", say) if ALIGNED in wanted else None
    if aligned is not None:
        points.append(Point(ALIGNED, aligned, None))
    joined = [Point(p.name, p.net, language_model[0] if language_model else None) for p in points]
    if isinstance(finetuned, L2GModel):
        joined.append(Point(FINETUNED, finetuned.net, finetuned.language_model))
    if isinstance(alone, EmbedderNet):
        joined.append(Point(ALONE, alone, None))
    return [point for point in joined if point.name in wanted]


def load_point(name: str, arm: Arm, prepared: PreparedTask) -> Point:
    """Return the finished model of another run of the same rows, to be shown beside; the first of several fold models.

    Raises UserError where it is no L2G model, or was trained on other rows.
    """
    model = take_first(load_model(arm.folder))
    if not isinstance(model, L2GModel):
        raise UserError(f"{arm.folder}: is no L2G model; give a run of `l2g-ray baseline vanilla TASK`")
    try:
        splits = json.loads((arm.task_folder / "task.json").read_text())["splits"]
        same = all(prepared.fingerprint(split) == facts["fingerprint"] for split, facts in splits.items())
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{arm.task_folder}: no readable task.json of a finished task, so its rows are not known"
        ) from None
    if not same:
        raise UserError(
            f"{arm.task_folder}: was trained on other rows than those of {prepared.folder}; "
            "run `l2g-ray baseline vanilla` on the same data"
        )
    return Point(name, model.net, model.language_model)


def _describe(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the language model that a task's settings name."""
    model = settings.get("model", {})
    return {name: model[name] for name in ("language_model", "positions", "language_model_layers") if name in model}


def _read_deployed(task_folder: Path) -> dict[str, Any]:
    try:
        deployed = json.loads((task_folder / "stages.json").read_text()).get("deployed", {})
    except (OSError, ValueError):
        raise UserError(
            f"{task_folder / 'stages.json'}: missing or not readable; give the folder of a finished task"
        ) from None
    return deployed | {n: find_place(deployed[n], task_folder) for n in ("align", "pretrain") if deployed.get(n)}


def _load_language_model(
    config: L2GConfig, settings: dict[str, Any], seed: int, pretrained: str | None, say: Callable[[str], None]
) -> tuple[LanguageModel, torch.Tensor, torch.Tensor] | None:
    """Return the language model as it was before finetune, and its embedding LayerNorm (weight, bias). `pretrained`
    is the folder of one that was trained further on the task's sequences.
    """
    init = settings.get("model", {}).get("language_model_init", "pretrained")
    try:
        transformer = (
            load_transformer(pretrained) if pretrained else load_transformer(config.language_model, init, seed)
        )
    except UserError as error:
        say(f"the language model before finetune cannot be had, so its layer is left out there: {error}")
        return None
    norm = transformer.embeddings.LayerNorm
    weight, bias = norm.weight.detach().clone(), norm.bias.detach().clone()
    model = LanguageModel(transformer, config.positions, config.language_model_layers)
    return model.eval(), weight, bias


def _untrained(
    config: EmbedderConfig, language_model: tuple[LanguageModel, torch.Tensor, torch.Tensor] | None, seed: int
) -> EmbedderNet:
    """Return the very weights that the alignment of this seed started from (`stages.context.build_net`)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = EmbedderNet(config)
    if language_model is not None:
        with torch.no_grad():
            net.embedder.norm.weight.copy_(language_model[1])
            net.embedder.norm.bias.copy_(language_model[2])
    return net.eval()


def _load_stage(folder: str | None, stage: str, say: Callable[[str], None]) -> EmbedderNet | None:
    if folder is None:
        say(
            f"the run does not name the result of stage '{stage}' that its model was trained from (an earlier version wrote it), "
            f"so 'after {stage}' is left out"
        )
        return None
    if not (Path(folder) / "config.json").exists():
        say(
            f"{folder}: the result of stage '{stage}' is not there any more, so 'after {stage}' is left out; delete "
            "suite.json and run the suite's command again to recompute it"
        )
        return None
    net = load_model(Path(folder))
    assert isinstance(net, EmbedderNet)
    return net


def measure_silhouette(values: np.ndarray, classes: np.ndarray, metric: str = "euclidean") -> float | None:
    """Return mean silhouette coefficient (-1 to 1) of points (n, width) by their classes (n,), exact, by scikit-learn.

    None where it is undefined: fewer than two classes, or as many as points.
    """
    from sklearn.metrics import silhouette_score

    if not 2 <= len(np.unique(classes)) < len(classes):
        return None
    return float(silhouette_score(values.astype(np.float64), classes, metric=metric))


def sample_rows(classes: np.ndarray, max_rows: int, seed: int) -> np.ndarray:
    """Sorted rows: all, or about `max_rows` of them, each class in its share and with at least two rows where it has."""
    if len(classes) <= max_rows:
        return np.arange(len(classes))
    rng = np.random.default_rng(seed)
    chosen = []
    for value in np.unique(classes):
        of_class = np.flatnonzero(classes == value)
        wanted = max(round(max_rows * len(of_class) / len(classes)), min(2, len(of_class)))
        chosen.append(rng.choice(of_class, wanted, replace=False))
    return np.sort(np.concatenate(chosen))


def project(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the first two principal components (n, 2), and the shares of variance that they hold (2,)."""
    from sklearn.decomposition import PCA

    n_components = min(2, *values.shape)
    pca = PCA(n_components, svd_solver="full")
    found = np.zeros((len(values), 2))
    shares = np.zeros(2)
    found[:, :n_components] = pca.fit_transform(values.astype(np.float64))
    shares[:n_components] = np.nan_to_num(pca.explained_variance_ratio_)
    return found, shares


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
    """Return rows of a split; of more than `max_rows`, a sample drawn from `seed` in which each class keeps its share.

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
            raise UserError(f"--target: task '{task.name}' has one label, its classes; leave the option out")
        return np.array(task.labels)[table["label"].to_numpy()], None, "class"
    name = output or task.labels[0]
    if name not in task.labels:
        raise UserError(f"--target '{name}': no such output of task '{task.name}' ({nearest(name, task.labels)})")
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

    embeddings.npz has an array (n, width) a point and layer, `<point>/<layer>`, and `ids`, `labels`. The
    summary lists points and layers with silhouette (None for regression) and the variance that the picture shows.
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
        raise UserError(
            f"{folder}: cannot be written ({error.strerror or error}); name another output folder (--out)"
        ) from None
    return summary


def list_files(folder: Path) -> list[Path]:
    """Return what `write_embeddings` writes into a folder."""
    return [folder / f"embeddings.{kind}" for kind in ("npz", "json", "svg", "png")]


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
