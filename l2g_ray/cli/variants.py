"""`l2g-ray variants` and `l2g-ray mutate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from l2g_ray.cli.options import (
    OutputFile,
    command,
    echo_summary,
    is_quiet,
    option,
    with_input,
    with_out,
    with_quiet,
    with_target,
)
from l2g_ray.cli.predict import with_arm, with_device

if TYPE_CHECKING:
    from l2g_ray.predict import Predictor


@command()
@click.argument("run")
@with_arm
@with_input(
    "Variants: a VCF, plain, gzip or bgzip, whose header is optional; or a CSV, TSV or Parquet table with the sequences of "
    "both alleles in the columns ref and alt.",
    required=True,
    former=("--vcf", "--pairs"),
)
@option(
    "--genome",
    "fasta",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Genome FASTA, plain or bgzip. Required with a VCF.",
)
@option(
    "--output",
    "-o",
    "targets",
    multiple=True,
    type=OutputFile(),
    metavar="FILE",
    show_default="a TSV and, of a VCF, a VCF, in the current folder",
    help="Scores: CSV, TSV, Parquet, VCF or VCF.GZ. Use - for a TSV on standard output. Repeatable.",
)
@option(
    "--on-mismatch",
    type=click.Choice(["error", "skip", "swap"]),
    default="error",
    help="A row whose REF is not in the genome: stop, leave it without scores, or swap REF and ALT where ALT is.",
)
@option(
    "--at-edge",
    type=click.Choice(["pad", "skip"]),
    default="pad",
    help="A window that extends over the end of a contig: pad it with N, or leave it without scores.",
)
@option(
    "--strand",
    type=click.Choice(["auto", "+", "-", "both"]),
    default="auto",
    help="Strand that the model reads; 'both' is the mean of both strands, 'auto' is + for strand-specific tasks, else "
    "both.",
)
@option(
    "--window-bp",
    type=click.IntRange(min=1),
    metavar="BP",
    show_default="the model's",
    help="Length of the window around a variant.",
)
@with_device()
@with_quiet
def variants(
    run: str,
    task: str | None,
    arm: str,
    input: Path,
    fasta: Path | None,
    targets: tuple[Path, ...],
    on_mismatch: str,
    at_edge: str,
    strand: str,
    window_bp: int | None,
    device: str,
    batch_size: int | None,
) -> None:
    """Score both alleles of variants, and their difference, with the model of a finished RUN.

    The input is streamed. Ray is not started.

    \b
    Examples:
      l2g-ray variants runs/demo-fast --task enhancer_grammar --input new.vcf.gz --genome hg38.fa --output scores.tsv
      l2g-ray variants runs/demo-fast --task enhancer_grammar --input pairs.csv --output scores.csv
    """
    from l2g_ray.api.loading import open_arm
    from l2g_ray.data.readers import strip_suffixes
    from l2g_ray.errors import UserError
    from l2g_ray.explain.effects import score_variants
    from l2g_ray.monitor.bars import Bar
    from l2g_ray.predict import load_predictor

    are_pairs = _holds_pairs(input)
    if not are_pairs and fasta is None:
        raise UserError(f"{input}: a VCF needs --genome, the FASTA file that the variants were called on")
    if are_pairs and (fasta is not None or window_bp is not None or strand == "-"):
        raise UserError(
            f"{input}: a table holds whole sequences; leave out --genome, --window-bp and --strand -, or give a VCF"
        )
    if not targets:
        stem = strip_suffixes(input.name) if are_pairs else input.name.partition(".vcf")[0]
        targets = tuple(Path(f"{stem}.scores{suffix}") for suffix in ((".tsv",) if are_pairs else (".tsv", ".vcf")))
    with open_arm(run, task, arm) as chosen:
        predictor = load_predictor(chosen, device, batch_size)
    with Bar("scoring", quiet=is_quiet()) as bar:
        found = score_variants(
            predictor,
            vcf=None if are_pairs else input,
            genome=fasta,
            pairs=input if are_pairs else None,
            targets=targets,
            on_mismatch=on_mismatch,
            at_edge=at_edge,
            strand=strand,
            window_bp=window_bp,
            progress=bar.update,
        )
    model = f"task '{predictor.task.name}', arm {predictor.arm.describe()}, strand {found.strand}"
    for warning in found.warnings:
        click.echo(f"warning: {warning}", err=True)
    echo_summary(f"{found.scored} by {model}, in {', '.join(map(str, targets))}")
    for note in found.notes:
        echo_summary(f"  {note}")


@command()
@click.argument("run")
@with_arm
@option("--sequence", "text", metavar="ACGT...", help="The sequence, instead of --input.")
@with_input("File with the sequence: FASTA, CSV, TSV or Parquet.", former=("--sequences",))
@option("--id", "identity", metavar="ID", help="Id of the sequence. Required where the file has several.")
@option(
    "--sequence-column", metavar="NAME", show_default="the task's", help="Column of the input that holds the sequences."
)
@with_target("Class or output to score. By default all; of a binary task the second class.")
@option("--region", metavar="START-END", help="Positions to change, counted from 1. By default all.")
@option(
    "--strand",
    type=click.Choice(["auto", "+", "both"]),
    default="auto",
    help="Strand that the model reads; 'both' is the mean of both strands, 'auto' is + for strand-specific tasks, else "
    "both.",
)
@with_out("Folder for matrix, heat map and logo.", show_default="mutagenesis/ARM/ID in the task's folder")
@with_device()
@with_quiet
def mutate(
    run: str,
    task: str | None,
    arm: str,
    text: str | None,
    input: Path | None,
    identity: str | None,
    sequence_column: str | None,
    target: str | None,
    region: str | None,
    strand: str,
    out: Path | None,
    device: str,
    batch_size: int | None,
) -> None:
    """Score every single-base change of one sequence with the model of a finished RUN (saturation mutagenesis).

    Writes a matrix (TSV, NPZ), a heat map and a logo (SVG, PNG), and a summary (JSON).

    \b
    Examples:
      l2g-ray mutate runs/demo-fast --task splice_junction --input new.fa --id seq7
      l2g-ray mutate runs/demo-fast --task enhancer_grammar --sequence ACGT... --target developmental
    """
    from l2g_ray.api.loading import open_arm
    from l2g_ray.data.table_writer import refuse_overwrite
    from l2g_ray.errors import UserError
    from l2g_ray.explain.mutagenesis import choose_outputs, list_files, mutate_sequence, parse_region, write_mutagenesis
    from l2g_ray.explain.scores import scored_outputs
    from l2g_ray.extras import need
    from l2g_ray.monitor.bars import Bar
    from l2g_ray.names import safe_name, safe_names
    from l2g_ray.predict import load_predictor

    need("explain", "the logo", "logomaker")
    if (text is None) == (input is None):
        raise UserError("give either --sequence or --input")
    with open_arm(run, task, arm) as chosen:
        predictor = load_predictor(chosen, device, batch_size)
    outputs = choose_outputs(predictor.task, target, "--target")
    name, sequence = _read(predictor, text, input, identity, sequence_column)
    bounds = parse_region(region, len(sequence))
    both = predictor.strand_averaged if strand == "auto" else strand == "both"
    own = Path("mutagenesis", chosen.name, safe_name(name, otherwise="sequence"))
    folder = out or chosen.local_folder("name an output folder (--out)") / own
    # Calls for different outputs of one sequence do not share a folder either.
    each = len(outputs) > 1 or (out is None and len(scored_outputs(predictor.task)) > 1)
    names = safe_names(predictor.task.labels, otherwise="output")
    places = [folder / names[i] if each else folder for i in outputs]
    refuse_overwrite([input, chosen.folder], [path for place in places for path in list_files(place)])
    click.echo(f"arm {chosen.describe()}")
    with Bar("scoring mutants", quiet=is_quiet()) as bar:
        mutants = mutate_sequence(
            predictor,
            sequence,
            outputs,
            region=bounds,
            both_strands=both,
            progress=lambda done, total: bar.show("scoring mutants", done, total),
        )
    for found, place in zip(mutants, places, strict=True):
        facts = {**predictor.facts(), "id": name, "length_bp": len(sequence)}
        write_mutagenesis(found, place, facts | {"strand": "both" if both else "+"})
        strongest = found.strongest(3)
        shown = ", ".join(f"{c['from']}{c['position']}{c['to']} {c['difference']:+.3g}" for c in strongest)
        click.echo(f"{found.output}: {found.reference:.4g}; largest changes in {found.quantity}: {shown}; in {place}")


def _holds_pairs(path: Path) -> bool:
    """Return whether a file is a table of pairs; otherwise it is a VCF. A text file that starts with # is a VCF."""
    from l2g_ray.data.readers import recognise
    from l2g_ray.data.text import open_lines
    from l2g_ray.storage import as_location

    kind = recognise(path.name)
    if kind != "tsv" or not path.is_file():
        return kind is not None
    with open_lines(as_location(path)) as lines:
        return not next(iter(lines), "").startswith("#")


def _read(
    predictor: Predictor, text: str | None, source: Path | None, identity: str | None, column: str | None
) -> tuple[str, str]:
    """Return the name and the clean sequence."""
    import pyarrow as pa

    from l2g_ray.data.readers import read_table
    from l2g_ray.errors import UserError, nearest

    if source is None:
        name, where, row = "sequence", "--sequence", 1
        raw = pa.array([text], pa.large_string())
    else:
        table = read_table(source, column or predictor.task.sequence_column)
        ids = table["id"].to_pylist()
        if identity is None and len(ids) > 1:
            raise UserError(f"{source}: {len(ids):,} sequences; choose one with --id")
        name = ids[0] if identity is None else identity
        if name not in ids:
            raise UserError(f"{source}: no sequence '{name}' ({nearest(name, ids)}); check --id")
        if ids.count(name) > 1:
            raise UserError(f"{source}: {ids.count(name)} sequences are named '{name}'; give each a unique name")
        where, row = str(source), ids.index(name) + 1
        raw = table["sequence"].slice(row - 1, 1)
    return str(name), predictor.clean(raw, where, row)[0].as_py()
