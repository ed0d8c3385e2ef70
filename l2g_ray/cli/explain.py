"""`l2g-ray explain` and `l2g-ray embed`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from l2g_ray.arms import ENSEMBLE
from l2g_ray.cli.options import (
    LocalRun,
    OutputFile,
    command,
    echo_summary,
    is_quiet,
    option,
    table_console,
    with_input,
    with_json,
    with_out,
    with_quiet,
    with_target,
)
from l2g_ray.cli.predict import with_arm, with_device

if TYPE_CHECKING:
    from l2g_ray.run_folder import Arm

_METHODS = ("deeplift-shap", "integrated-gradients", "gradient-shap", "deeplift", "mutagenesis")


@command()
@click.argument("run")
@with_arm
@with_target(
    "Class or output to explain, or the start of its name. By default all, if there are at most four; of a binary task "
    "the second class."
)
@with_input(
    "Sequences: FASTA, CSV, TSV or Parquet. By default validation rows of the run, and training rows where these are few.",
    former=("--sequences",),
)
@option(
    "--sequence-column", metavar="NAME", show_default="the task's", help="Column of the input that holds the sequences."
)
@option(
    "--top", type=click.IntRange(min=1), default=500, metavar="N", help="Number of sequences to explain, see --pick."
)
@option(
    "--pick",
    type=click.Choice(["highest", "random"]),
    default="highest",
    help="Explain the sequences with the highest predicted value, or a random sample, which shows moderate motifs too.",
)
@option(
    "--method",
    type=click.Choice(_METHODS),
    default=_METHODS[0],
    help="How contributions are computed. Only the default adds up to the prediction. Contributions of arms that are "
    "linear in k-mers are exact.",
)
@option(
    "--references",
    "n_references",
    type=click.IntRange(1, 1000),
    default=20,
    metavar="N",
    help="Dinucleotide shuffles that each sequence is compared with.",
)
@option(
    "--steps",
    type=click.IntRange(min=2),
    default=50,
    metavar="N",
    help="Points per path of integrated-gradients, or draws per reference of gradient-shap.",
)
@option("--seed", type=int, default=0, metavar="N", help="Seed of the references and of --pick random.")
@option("--rc-average", is_flag=True, help="Explain the mean prediction over both strands.")
@option("--motifs/--no-motifs", "with_motifs", default=True, help="Find motifs.")
@option(
    "--core-bp",
    type=click.IntRange(min=5),
    metavar="BP",
    show_default="21, or 15 where sequences are shorter than 200 bp",
    help="Core window of TF-MoDISco.",
)
@option(
    "--flank-bp",
    type=click.IntRange(min=1),
    metavar="BP",
    show_default="10, or 5 where sequences are shorter than 200 bp",
    help="Flank on each side of the core window.",
)
@option(
    "--min-seqlets",
    type=click.IntRange(min=1),
    default=100,
    metavar="N",
    help="Fewest seqlets per sign from which motifs are made.",
)
@option(
    "--max-seqlets",
    type=click.IntRange(min=1),
    default=20_000,
    metavar="N",
    help="Most seqlets per sign that are used.",
)
@option(
    "--database",
    "databases",
    multiple=True,
    metavar="jaspar:GROUP|FILE",
    show_default="jaspar:vertebrates",
    help="Known motifs for names: a group of JASPAR or a MEME file. Repeatable.",
)
@option(
    "--known",
    metavar="FILE|LIST",
    help="Motifs to expect: a file with one name per line, or a shipped list (deepstarr/deepstarr:developmental).",
)
@option(
    "--truth",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Parquet file of planted sites: id, motif, start, end, strand, output.",
)
@with_out("Folder for the page and its files.", show_default="explain/ARM in the task's folder")
@with_device("Pairs of a sequence and a reference", "what takes about 1 GB")
@with_json
@with_quiet
def explain(
    run: str, task: str | None, arm: str, as_json: bool, target: str | None, input: Path | None, **options: Any
) -> None:
    """Explain the model of a finished RUN: contributions of bases, motifs, their names, logos, and a page.

    Of an ensemble, the arm with the largest weight is explained: one of cnn, embedder_only and l2g, otherwise one of
    gapped_kmer and positional_kmer.

    \b
    Examples:
      l2g-ray explain runs/demo-fast --task splice_junction --target exon_intron
      l2g-ray explain runs/demo-fast --task enhancer_grammar --target dev --database jaspar:insects
    """
    from rich.console import Console
    from rich.markup import escape

    from l2g_ray.api.loading import open_arm
    from l2g_ray.explain import page
    from l2g_ray.explain.request import ExplainRequest
    from l2g_ray.monitor.bars import Bar
    from l2g_ray.results.explain_page import render_explanation
    from l2g_ray.results.terminal import print_fitted

    databases = options.pop("databases") or None
    with (
        open_arm(run, task, arm, with_all=True) as model,
        Bar("explaining", as_lines=True, quiet=is_quiet()) as bar,
    ):
        request = ExplainRequest(model, output=target, sequences=input, databases=databases, **options)
        found = page.explain(request, bar.show)
    shown = table_console(as_json)
    shown.print(escape(f"arm {found.arm.describe()}, model {found.arm.facts()['model']}"), soft_wrap=True)
    if as_json:
        click.echo(json.dumps([explanation.summary() for explanation in found.explanations], indent=1))
    else:
        for explanation in found.explanations:
            print_fitted(shown, render_explanation(explanation.summary()))
    shown.print(escape(f"page: {found.page}"), soft_wrap=True)
    for explanation in found.explanations:
        for warning in explanation.warnings:
            text = escape(f"WARNING: {explanation.output}: {warning}")
            Console(stderr=True, highlight=False).print(f"[bold red]{text}[/bold red]", soft_wrap=True)


VANILLA = "vanilla"


@command()
@click.argument("run")
@with_arm
@with_input("Embed the sequences of this FASTA, CSV, TSV or Parquet file, instead of the run's rows.")
@option(
    "--output",
    "-o",
    "target_file",
    type=OutputFile(),
    metavar="FILE",
    help="With --input: CSV, TSV or Parquet to write, with the columns id, embedding_0, embedding_1, ... Use - for a TSV on "
    "standard output.",
)
@option(
    "--layer",
    type=click.Choice(["backbone", "tokens", "language_model"]),
    show_default="language_model, of embedder_only tokens",
    help="With --input: layer whose output is written. Tokens are the embedder's output, which the language model reads.",
)
@option("--per-token", is_flag=True, help="With --input: write a row per token instead of the mean.")
@option(
    "--sequence-column", metavar="NAME", show_default="the task's", help="Column of the input that holds the sequences."
)
@option(
    "--split",
    type=click.Choice(["valid", "train", "test"]),
    default="valid",
    help="Split whose rows are embedded. The test split is read only when it is named here.",
)
@option(
    "--target",
    metavar="NAME",
    show_default="the first",
    help="Label of a multilabel task, or output of a regression, that colours the picture.",
)
@option(
    "--metric",
    type=click.Choice(["euclidean", "cosine"]),
    default="euclidean",
    help="Distance of the silhouette scores.",
)
@option(
    "--max-rows", type=click.IntRange(min=2), default=5000, metavar="N", help="Largest number of rows, by a sample."
)
@option("--seed", default=0, metavar="N", help="Seed of the sample.")
@option(
    "--vanilla",
    type=click.Path(path_type=Path),
    metavar="RUN",
    show_default="RUN itself",
    help="A finished run of `l2g-ray baseline vanilla TASK`, to compare with vanilla fine-tuning.",
)
@option("--data", type=click.Path(path_type=Path), metavar="FOLDER", help="Prepared data, where it was moved.")
@with_out("Folder for the embeddings.", show_default="embeddings/ARM in the task's folder")
@with_device()
@with_json
@with_quiet
def embed(
    run: str,
    task: str | None,
    arm: str,
    input: Path | None,
    target_file: Path | None,
    layer: str | None,
    per_token: bool,
    sequence_column: str | None,
    device: str,
    batch_size: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Embed new sequences with a finished RUN, or compare embeddings of its rows before and after each stage.

    With --input, writes the mean over the tokens of each sequence to --output. Of an ensemble, the one of l2g and
    embedder_only with the larger weight is used; of several fold models, the first.

    Without --input, writes silhouette scores and principal components (SVG, PNG), the embeddings (NPZ) and a summary
    (JSON). The arm l2g has its stages and the embedder-only control, embedder_only its two stages, average its members. A
    star marks the embeddings that the arm predicts from.

    \b
    Examples:
      l2g-ray embed runs/demo-fast --task splice_junction --input new.fa --output embeddings.parquet
      l2g-ray embed runs/demo-fast --task splice_junction
      l2g-ray embed runs/demo-fast --task splice_junction --vanilla runs/baseline
    """
    from l2g_ray.errors import UserError

    if input is None:
        if layer is not None or per_token or sequence_column is not None:
            raise UserError("--layer, --per-token and --sequence-column need --input, a file of new sequences")
        if target_file is not None:  # the name of this option before --target
            if options["target"] is not None:
                raise UserError("--output names the file for --input; leave it out, or add --input")
            click.echo("note: --output is the file for --input now; name the label with --target", err=True)
            options["target"] = str(target_file)
        _embed_rows(
            LocalRun().convert(run, None, None),
            task,
            arm,
            device=device,
            batch_size=batch_size,
            as_json=as_json,
            **options,
        )
        return
    if as_json:
        raise UserError("--json prints silhouette scores of the run's rows; leave it out, or --input")
    if target_file is None:
        raise UserError("--input needs --output, a CSV, TSV or Parquet file to write")
    _embed_file(run, task, arm, input, target_file, layer, per_token, sequence_column, device, batch_size)


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
    from l2g_ray.api.loading import open_arm
    from l2g_ray.explain.vectors import SequenceEmbedder, embed_file
    from l2g_ray.monitor.bars import Bar

    with open_arm(run, task, arm, with_all=True) as found:
        embedder = SequenceEmbedder(found, layer, device, batch_size)
    with Bar("embedding", quiet=is_quiet()) as bar:
        n = embed_file(
            embedder, source, target, per_token=per_token, sequence_column=sequence_column, progress=bar.update
        )
    model = f"task '{embedder.predictor.task.name}', arm {embedder.predictor.arm.describe()}, layer {embedder.layer}"
    echo_summary(f"{n:,} sequences embedded by {model}, in {target}")


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
    as_json: bool,
) -> None:
    from rich.markup import escape

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
    with Bar("embedding", len(points) * len(rows.ids), quiet=is_quiet()) as bar:
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
    shown = table_console(as_json)
    shown.print(escape(f"arm {chosen.describe()}: a star marks the embeddings that it predicts from"), soft_wrap=True)
    shown.print(f"{sample} rows of the {where}; silhouette: {metric}, exact on these rows", soft_wrap=True)
    listing = Listing(
        [Column("", words=True), Column("Point", words=True), Column("Layer", words=True), Column("Silhouette")]
    )
    for entry in summary["embeddings"]:
        score = "–" if entry["silhouette"] is None else f"{entry['silhouette']:+.3f}"
        star = "*" if entry["point"] in predicts_from else ""
        listing.add(star, entry["point"], LAYER_NAMES[entry["layer"]], score)
    if as_json:
        click.echo(json.dumps(summary, indent=1))
    else:
        print_fitted(shown, listing)
    for note in notes:
        shown.print(escape(f"note: {note}"), soft_wrap=True)
    shown.print(escape(f"in {folder}"), soft_wrap=True)


def _find_vanilla(task_folder: Path, run: Path | None) -> Arm | None:
    """Return the task's arm of vanilla fine-tuning in `run`, else beside it; None where there is none."""
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
