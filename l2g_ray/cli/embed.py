"""`l2g-ray embed`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from l2g_ray.arms import ENSEMBLE
from l2g_ray.cli.model import with_arm, with_device

if TYPE_CHECKING:
    from l2g_ray.run_folder import Arm

VANILLA = "vanilla"


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@with_arm
@click.option(
    "--split",
    type=click.Choice(["valid", "train", "test"]),
    default="valid",
    show_default=True,
    help="Whose rows; test only when named.",
)
@click.option(
    "--output", help="Which label of a multilabel task, or which output of a regression.  [default: the first]"
)
@click.option("--metric", type=click.Choice(["euclidean", "cosine"]), default="euclidean", show_default=True)
@click.option("--max-rows", type=click.IntRange(min=2), default=5000, show_default=True, help="Of more, a sample.")
@click.option("--seed", default=0, show_default=True, help="Of the sample.")
@click.option(
    "--vanilla",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="A finished run of `l2g-ray baseline vanilla TASK`, to show vanilla fine-tuning of it.  [default: RUN itself]",
)
@click.option("--data", type=click.Path(path_type=Path), help="The prepared rows, where they were moved.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder to write to.  [default: embeddings/ARM in the task's folder]"
)
@with_device()
def embed(
    run: Path,
    task: str | None,
    arm: str,
    split: str,
    output: str | None,
    metric: str,
    max_rows: int,
    seed: int,
    vanilla: Path | None,
    data: Path | None,
    out: Path | None,
    device: str,
    batch_size: int | None,
) -> None:
    """Embeddings of a finished RUN before and after each stage: silhouette scores and a picture.

    Of the arm l2g each of its stages and the control, of embedder_only its own two, of average its members: those that the
    arm predicts from carry a star. For an ensemble stands the one of l2g and embedder_only with the larger weight. Where
    an arm has several fold models, the first one is shown.

    Writes the embeddings (NPZ), a summary (JSON) and principal components (SVG, PNG).

    \b
    Examples:
      l2g-ray embed runs/demo-fast --task splice_junction
      l2g-ray embed runs/demo-fast --task splice_junction --vanilla runs/baseline
    """
    from rich.console import Console
    from rich.progress import Progress

    from l2g_ray.data.dataset import open_prepared
    from l2g_ray.data.overwrite import refuse_overwrite
    from l2g_ray.errors import UserError
    from l2g_ray.explain.embedding_files import LAYER_NAMES, list_files, read_rows, write_embeddings
    from l2g_ray.explain.embeddings import ARM_POINTS, WITH_TOKENS, load_point, load_points
    from l2g_ray.explain.rows import find_prepared
    from l2g_ray.predict import BATCH_SIZE, choose_device
    from l2g_ray.results.terminal import Column, Listing, print_fitted
    from l2g_ray.run_folder import choose_member, find_arm

    where = choose_device(device)
    chosen = find_arm(run, task, arm)
    if chosen.name == ENSEMBLE:
        chosen = choose_member(chosen, (WITH_TOKENS,), "embeddings")
    if chosen.name not in ARM_POINTS:
        raise UserError(
            f"{chosen.folder}: the arm '{chosen.name}' has no embeddings; choose one of {', '.join(ARM_POINTS)}"
        )
    task_folder = chosen.task_folder
    otherwise = "name the rows' folder with --data"
    prepared = find_prepared(task_folder, otherwise) if data is None else open_prepared(data)
    notes: list[str] = []
    points = load_points(task_folder, _read_settings(task_folder, prepared.task.name), chosen.name, notes.append)
    beside = _find_vanilla(task_folder, vanilla)
    if beside is not None:
        points.append(load_point("vanilla fine-tuning", beside, prepared))
    else:
        notes.append(
            "the run has no arm of vanilla fine-tuning; `l2g-ray baseline vanilla TASK` makes one, for --vanilla"
        )
    rows = read_rows(prepared, split, output, max_rows, seed)
    folder = out or task_folder / "embeddings" / chosen.name
    read = [
        prepared.folder,
        chosen.folder,
        beside.folder if beside else None,
        *(task_folder / name for name in ("task.json", "stages.json")),
    ]
    refuse_overwrite(read, list_files(folder))
    console = Console(stderr=True, highlight=False)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        shown = progress.add_task("embedding", total=len(points) * len(rows.ids))
        predicts_from = ARM_POINTS[chosen.name][1]
        facts: dict[str, Any] = {"task": prepared.task.name, **chosen.facts(), "predicts_from": predicts_from}
        facts |= {"notes": notes, "vanilla": str(beside.folder) if beside else None}
        if len(rows.ids) < rows.total:
            facts["sample_seed"] = seed
        summary = write_embeddings(
            points,
            rows,
            folder,
            facts,
            metric,
            lambda done: progress.update(shown, completed=done),
            device=where,
            batch_size=batch_size or BATCH_SIZE,
        )
    n, total = len(rows.ids), rows.total
    sample = f"all {n:,}" if n == total else f"a sample (seed {seed}) of {n:,} of the {total:,}"
    where = "TEST split, opened for this picture only" if split == "test" else f"{split} split"
    click.echo(f"arm {chosen.describe()}: predicts from what carries a star")
    click.echo(f"{sample} rows of the {where}; silhouette: {metric}, exact on these rows")
    listing = Listing(
        [Column("", words=True), Column("Point", words=True), Column("Layer", words=True), Column("Silhouette")]
    )
    for entry in summary["embeddings"]:
        score = "–" if entry["silhouette"] is None else f"{entry['silhouette']:+.3f}"
        star = "*" if entry["point"] in predicts_from else ""
        listing.add(star, entry["point"], LAYER_NAMES[entry["layer"]], score)
    print_fitted(Console(highlight=False), listing)
    for note in notes:
        click.echo(f"note: {note}")
    click.echo(f"in {folder}")


def _find_vanilla(task_folder: Path, run: Path | None) -> Arm | None:
    """The task's arm of vanilla fine-tuning in `run`, else beside it; None where there is none."""
    from l2g_ray.orchestrate.arms import JOINT
    from l2g_ray.run_folder import find_arm, list_arms

    arm = f"{task_folder.name.split(JOINT)[0]}{JOINT}{VANILLA}"
    if run is not None:
        return find_arm(run, None if list_arms(run) else arm, "l2g")
    return list_arms(task_folder.parent / arm).get("l2g")


def _read_settings(task_folder: Path, name: str) -> dict[str, Any]:
    try:
        return json.loads((task_folder.parent / "suite.json").read_text())["settings"][name]
    except (OSError, ValueError, KeyError):
        return {}
