"""`l2g-ray explain` and `l2g-ray embed`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from l2g_ray.arms import ENSEMBLE
from l2g_ray.cli.predict import with_arm, with_device

if TYPE_CHECKING:
    from l2g_ray.run_folder import Arm

_METHODS = ("deeplift-shap", "integrated-gradients", "gradient-shap", "deeplift", "mutagenesis")


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@with_arm
@click.option(
    "--output",
    help="Class or output to explain, or how its name begins.  [default: all of up to four; of a binary task the second]",
)
@click.option(
    "--sequences",
    type=click.Path(path_type=Path),
    help="FASTA, CSV, TSV or Parquet.  [default: validation rows of the run, and training rows where these are few]",
)
@click.option("--sequence-column", help="Column of that file that holds the sequences.")
@click.option(
    "--top", type=click.IntRange(min=1), default=500, show_default=True, help="How many of them to explain, by --pick."
)
@click.option(
    "--pick",
    type=click.Choice(["highest", "random"]),
    default="highest",
    show_default=True,
    help="Those with the highest value, or any: among the highest, motifs of middling strength are few.",
)
@click.option(
    "--method",
    type=click.Choice(_METHODS),
    default=_METHODS[0],
    show_default=True,
    help="How contributions are computed; only the default adds up. Of arms that are linear in k-mers they are exact.",
)
@click.option(
    "--references",
    "n_references",
    type=click.IntRange(1, 1000),
    default=20,
    show_default=True,
    help="Dinucleotide shuffles of each sequence to compare it with.",
)
@click.option(
    "--steps",
    type=click.IntRange(min=2),
    default=50,
    show_default=True,
    help="Of integrated-gradients: points of a path; of gradient-shap: draws a reference.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the references, and of --pick random.")
@click.option("--rc-average", is_flag=True, help="Explain the mean prediction over both strands.")
@click.option("--motifs/--no-motifs", "with_motifs", default=True, show_default=True, help="Look for motifs.")
@click.option(
    "--core-bp",
    type=click.IntRange(min=5),
    help="TF-MoDISco's window.  [default: 21, or 15 where sequences are shorter than 200 bp]",
)
@click.option("--flank-bp", type=click.IntRange(min=1), help="On either side of it.  [default: 10, or 5]")
@click.option(
    "--min-seqlets", type=click.IntRange(min=1), default=100, show_default=True, help="Of a sign, for any motif."
)
@click.option("--max-seqlets", type=click.IntRange(min=1), default=20_000, show_default=True, help="Of a sign.")
@click.option(
    "--database",
    "databases",
    multiple=True,
    help="Known motifs to name the found ones by: jaspar:GROUP or a MEME file; several allowed.  "
    "[default: jaspar:vertebrates]",
)
@click.option(
    "--known",
    help="Motifs to expect: a file with one name a line, or a shipped list (deepstarr/deepstarr:developmental).",
)
@click.option(
    "--truth", type=click.Path(path_type=Path), help="Parquet of planted sites: id, motif, start, end, strand, output."
)
@click.option("--out", type=click.Path(path_type=Path), help="Folder.  [default: explain/ARM in the task's folder]")
@with_device("Pairs of a sequence and a reference", "what takes about 1 GB")
def explain(run: Path, **options: Any) -> None:
    """What a finished RUN's model has learned: contributions, motifs, names, logos, and a page.

    For an ensemble stands its arm with the largest weight of cnn, embedder_only and l2g; where none of these has weight, of
    gapped_kmer and positional_kmer.

    \b
    Examples:
      l2g-ray explain runs/demo-fast --task splice_junction --output exon_intron
      l2g-ray explain runs/demo-fast --task enhancer_grammar --output dev --database jaspar:insects
    """
    from rich.console import Console

    from l2g_ray.explain import page
    from l2g_ray.explain.request import ExplainRequest
    from l2g_ray.monitor.bars import Bar
    from l2g_ray.results.explain_page import render_explanation
    from l2g_ray.results.terminal import print_fitted

    request = ExplainRequest(run=run, **{**options, "databases": options["databases"] or None})
    with Bar("explaining", as_lines=True) as bar:
        found = page.explain(request, bar.show)
    shown = Console(highlight=False)
    click.echo(f"arm {found.arm.describe()}, model {found.arm.folder}")
    for explanation in found.explanations:
        print_fitted(shown, render_explanation(explanation.summary()))
    click.echo(f"page: {found.page}")
    for explanation in found.explanations:
        for warning in explanation.warnings:
            click.secho(f"WARNING: {explanation.output}: {warning}", err=True, fg="red", bold=True)


VANILLA = "vanilla"


@click.command()
@click.argument("run")
@with_arm
@click.option(
    "--input",
    "-i",
    "source",
    type=click.Path(path_type=Path),
    help="Embed the sequences of this FASTA, CSV, TSV or Parquet file, instead of the run's rows.",
)
@click.option(
    "--output",
    "-o",
    "target_file",
    help="With --input: CSV, TSV or Parquet to write, with the columns id, embedding_0, embedding_1, ...",
)
@click.option(
    "--layer",
    type=click.Choice(["backbone", "tokens", "language_model"]),
    help="With --input: whose output; tokens are what the embedder gives the language model.  "
    "[default: language_model, of embedder_only tokens]",
)
@click.option("--per-token", is_flag=True, help="With --input: a row for each token, instead of their mean.")
@click.option("--sequence-column", help="Column of --input that holds the sequences.")
@click.option(
    "--split",
    type=click.Choice(["valid", "train", "test"]),
    default="valid",
    show_default=True,
    help="Whose rows; test only when named.",
)
@click.option(
    "--target",
    help="Label of a multilabel task, or output of a regression, that colours the picture.  [default: the first]",
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
    run: str,
    task: str | None,
    arm: str,
    source: Path | None,
    target_file: str | None,
    layer: str | None,
    per_token: bool,
    sequence_column: str | None,
    device: str,
    batch_size: int | None,
    **options: Any,
) -> None:
    """Embeddings: of new sequences as a table, or of a finished RUN's rows before and after each stage as a picture.

    With --input and --output, the mean over the tokens of each sequence, from the arm that the run predicts with; an
    ensemble is represented by the one of l2g and embedder_only with the larger weight. Where an arm has several fold
    models, the first one is used.

    Without --input, silhouette scores and principal components (SVG, PNG), the embeddings (NPZ) and a summary (JSON): of
    the arm l2g each of its stages and the control, of embedder_only its own two, of average its members. Those that the
    arm predicts from carry a star.

    \b
    Examples:
      l2g-ray embed runs/demo-fast --task splice_junction --input new.fa --output embeddings.parquet
      l2g-ray embed runs/demo-fast --task splice_junction
      l2g-ray embed runs/demo-fast --task splice_junction --vanilla runs/baseline
    """
    from l2g_ray.errors import UserError

    if source is None:
        if layer is not None or per_token or sequence_column is not None:
            raise UserError("--layer, --per-token and --sequence-column need --input, a file of new sequences")
        if target_file is not None:  # the name of this option before --target
            if options["target"] is not None:
                raise UserError("--output names the file for --input; leave it out, or add --input")
            click.echo("note: --output is the file for --input now; name the label with --target", err=True)
            options["target"] = target_file
        _embed_rows(Path(run), task, arm, device=device, batch_size=batch_size, **options)
        return
    if target_file is None:
        raise UserError("--input needs --output, a CSV, TSV or Parquet file to write")
    _embed_file(run, task, arm, source, Path(target_file), layer, per_token, sequence_column, device, batch_size)


def _embed_file(
    run: str,
    task: str | None,
    arm: str,
    source: Path,
    target: Path,
    layer: str | None,
    per_token: bool,
    sequence_column: str | None,
    device: str,
    batch_size: int | None,
) -> None:
    from l2g_ray.api.predictor import open_arm
    from l2g_ray.explain.vectors import SequenceEmbedder, embed_file
    from l2g_ray.monitor.bars import Bar

    with open_arm(run, task, arm) as found:
        embedder = SequenceEmbedder(found, layer, device, batch_size)
    with Bar("embedding") as bar:
        n = embed_file(
            embedder, source, target, per_token=per_token, sequence_column=sequence_column, progress=bar.update
        )
    model = f"task '{embedder.predictor.task.name}', arm {embedder.predictor.arm.describe()}, layer {embedder.layer}"
    click.echo(f"{n:,} sequences embedded by {model}, in {target}")


def _embed_rows(
    run: Path,
    task: str | None,
    arm: str,
    *,
    split: str,
    target: str | None,
    metric: str,
    max_rows: int,
    seed: int,
    vanilla: Path | None,
    data: Path | None,
    out: Path | None,
    device: str,
    batch_size: int | None,
) -> None:
    from rich.console import Console

    from l2g_ray.data.dataset import open_prepared
    from l2g_ray.data.table_writer import refuse_overwrite
    from l2g_ray.errors import UserError
    from l2g_ray.explain.embeddings import (
        ARM_POINTS,
        LAYER_NAMES,
        WITH_TOKENS,
        list_files,
        load_point,
        load_points,
        read_rows,
        write_embeddings,
    )
    from l2g_ray.explain.request import find_prepared
    from l2g_ray.monitor.bars import Bar
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
    rows = read_rows(prepared, split, target, max_rows, seed)
    folder = out or task_folder / "embeddings" / chosen.name
    read = [
        prepared.folder,
        chosen.folder,
        beside.folder if beside else None,
        *(task_folder / name for name in ("task.json", "stages.json")),
    ]
    refuse_overwrite(read, list_files(folder))
    with Bar("embedding", len(points) * len(rows.ids)) as bar:
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
            bar.update,
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
    from l2g_ray.run_folder import find_arm, list_arms
    from l2g_ray.studies.study import JOINT

    arm = f"{task_folder.name.split(JOINT)[0]}{JOINT}{VANILLA}"
    if run is not None:
        return find_arm(run, None if list_arms(run) else arm, "l2g")
    return list_arms(task_folder.parent / arm).get("l2g")


def _read_settings(task_folder: Path, name: str) -> dict[str, Any]:
    try:
        return json.loads((task_folder.parent / "suite.json").read_text())["settings"][name]
    except (OSError, ValueError, KeyError):
        return {}
