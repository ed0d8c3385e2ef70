"""`l2g-ray variants` and `l2g-ray mutate`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from l2g_ray.cli.predict import with_arm, with_device

if TYPE_CHECKING:
    from l2g_ray.explain.mutagenesis import Mutagenesis
    from l2g_ray.predict import Predictor


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@with_arm
@click.option(
    "--vcf", type=click.Path(path_type=Path), help="Variants: VCF, plain, gzip or bgzip; a header is optional."
)
@click.option("--genome", "fasta", type=click.Path(path_type=Path), help="The genome's FASTA, plain or bgzip.")
@click.option(
    "--pairs", type=click.Path(path_type=Path), help="Instead: a table with the columns ref and alt, sequences."
)
@click.option(
    "--output",
    "targets",
    multiple=True,
    type=click.Path(path_type=Path),
    help="CSV, TSV, Parquet, VCF or VCF.GZ; may be given twice. Default: a TSV and, of a VCF, a VCF, in this folder.",
)
@click.option(
    "--on-mismatch",
    type=click.Choice(["error", "skip", "swap"]),
    default="error",
    show_default=True,
    help="A row that does not fit the genome: stop, leave it without scores, or take it where the genome has the ALT.",
)
@click.option(
    "--at-edge",
    type=click.Choice(["pad", "skip"]),
    default="pad",
    show_default=True,
    help="A window that reaches over a contig's edge: N there, or no scores.",
)
@click.option(
    "--strand",
    type=click.Choice(["auto", "+", "-", "both"]),
    default="auto",
    show_default=True,
    help="Which strand the model reads; both: the mean. auto: both, unless the task belongs to one strand (then +).",
)
@click.option("--window-bp", type=click.IntRange(min=1), help="Length of the window.  [default: the model's]")
@with_device()
def variants(
    run: Path,
    task: str | None,
    arm: str,
    vcf: Path | None,
    fasta: Path | None,
    pairs: Path | None,
    targets: tuple[Path, ...],
    on_mismatch: str,
    at_edge: str,
    strand: str,
    window_bp: int | None,
    device: str,
    batch_size: int | None,
) -> None:
    """Scores of both alleles of variants, and their difference, from a finished RUN. Streams; Ray need not run.

    \b
    Examples:
      l2g-ray variants runs/demo-fast --task enhancer_grammar --vcf new.vcf.gz --genome hg38.fa --output scores.tsv
      l2g-ray variants runs/demo-fast --task enhancer_grammar --pairs pairs.csv --output scores.csv
    """
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn

    from l2g_ray.data.genome import Genome
    from l2g_ray.data.readers import strip_suffixes
    from l2g_ray.data.table_writer import SUFFIXES
    from l2g_ray.errors import UserError
    from l2g_ray.explain.variants import VCF_SUFFIXES, Policy, score_pairs, score_vcf
    from l2g_ray.predict import load_predictor
    from l2g_ray.run_folder import find_arm

    if (vcf is None) == (pairs is None):
        raise UserError("give either --vcf with --genome, or --pairs")
    if vcf is not None and fasta is None:
        raise UserError("--vcf needs --genome, the FASTA file that the variants were called on")
    if pairs is not None and (fasta is not None or window_bp is not None or strand == "-"):
        raise UserError("--pairs takes the sequences as they are; leave out --genome, --window-bp and --strand -")
    for target in targets:
        if not target.name.endswith((*SUFFIXES, *VCF_SUFFIXES)):
            raise UserError(f"{target}: the output must end in {', '.join((*SUFFIXES, *VCF_SUFFIXES))}")
        if not target.absolute().parent.is_dir():
            raise UserError(f"{target}: no such folder; make it first")
    predictor = load_predictor(find_arm(run, task, arm), device, batch_size)
    if window_bp is not None and window_bp > predictor.length_bp:
        raise UserError(f"--window-bp {window_bp:,}: this model reads up to {predictor.length_bp:,} bp; lower it")
    if strand == "auto":
        strand = "both" if predictor.strand_averaged else "+"
    if predictor.task.strand_specific and strand == "both":
        click.echo("warning: this task belongs to one strand; the mean over both mixes two questions", err=True)
    if not targets:
        stem = vcf.name.partition(".vcf")[0] if vcf is not None else strip_suffixes(pairs.name)  # type: ignore[union-attr]
        targets = tuple(
            Path(f"{stem}.scores{suffix}") for suffix in ((".tsv", ".vcf") if vcf is not None else (".tsv",))
        )
    console = Console(stderr=True, highlight=False)
    columns = (SpinnerColumn(), TextColumn("{task.completed} rows"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        shown = progress.add_task("scoring", total=None)
        if pairs is not None:
            n = score_pairs(predictor, pairs, targets, strand == "both", lambda d: progress.update(shown, completed=d))
            told, notes = f"{n:,} pairs scored", []
        else:
            policy = Policy(window_bp or predictor.length_bp, on_mismatch, at_edge, strand)
            with Genome(fasta) as genome:  # type: ignore[arg-type]
                tally = score_vcf(
                    predictor,
                    vcf,  # type: ignore[arg-type]
                    genome,
                    policy,
                    targets,
                    lambda d: progress.update(shown, completed=d),
                )
            told, notes = f"{tally.scored:,} alleles of {tally.rows:,} rows scored", tally.describe()
    model = f"task '{predictor.task.name}', arm {predictor.arm.describe()}, strand {strand}"
    click.echo(f"{told} by {model}, in {', '.join(map(str, targets))}")
    for note in notes:
        click.echo(f"  {note}")


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@with_arm
@click.option("--sequence", "text", help="The sequence itself.")
@click.option("--sequences", "source", type=click.Path(path_type=Path), help="Or a FASTA, CSV, TSV or Parquet file.")
@click.option("--id", "identity", help="Which sequence of the file, where it has several.")
@click.option("--sequence-column", help="Column of the file that holds the sequences.")
@click.option("--output", help="Which class or output, by name.  [default: all; of a binary task the second]")
@click.option("--region", help="Change only positions START-END, counted from 1.")
@click.option(
    "--strand", type=click.Choice(["auto", "+", "both"]), default="auto", show_default=True, help="As in variants."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder to write to.  [default: mutagenesis/ARM/ID in the task's folder]",
)
@with_device()
def mutate(
    run: Path,
    task: str | None,
    arm: str,
    text: str | None,
    source: Path | None,
    identity: str | None,
    sequence_column: str | None,
    output: str | None,
    region: str | None,
    strand: str,
    out: Path | None,
    device: str,
    batch_size: int | None,
) -> None:
    """Saturation mutagenesis: every base of one sequence changed into every other, scored by a finished RUN.

    Writes a matrix (TSV, NPZ), a heat map and a logo (SVG, PNG), and a summary (JSON).

    \b
    Examples:
      l2g-ray mutate runs/demo-fast --task splice_junction --sequences new.fa --id seq7
      l2g-ray mutate runs/demo-fast --task enhancer_grammar --sequence ACGT... --output developmental
    """
    from l2g_ray.data.table_writer import refuse_overwrite
    from l2g_ray.errors import UserError, how_to_install
    from l2g_ray.explain.mutagenesis import list_files, write_mutagenesis
    from l2g_ray.explain.scores import scored_outputs
    from l2g_ray.names import safe_name, safe_names
    from l2g_ray.predict import load_predictor
    from l2g_ray.run_folder import find_arm

    try:
        import logomaker  # noqa: F401 - before anything is computed
    except ImportError:
        raise UserError(f"the logo needs logomaker; run: {how_to_install('explain')}") from None
    if (text is None) == (source is None):
        raise UserError("give either --sequence or --sequences")
    chosen = find_arm(run, task, arm)
    predictor = load_predictor(chosen, device, batch_size)
    outputs = _choose(predictor, output)
    name, sequence = _read(predictor, text, source, identity, sequence_column)
    bounds = _parse_region(region, len(sequence))
    both = predictor.strand_averaged if strand == "auto" else strand == "both"
    folder = out or chosen.task_folder / "mutagenesis" / chosen.name / safe_name(name, otherwise="sequence")
    # Outputs of one sequence, made one after the other, do not share a folder either.
    each = len(outputs) > 1 or (out is None and len(scored_outputs(predictor.task)) > 1)
    names = safe_names(predictor.task.labels, otherwise="output")
    places = [folder / names[i] if each else folder for i in outputs]
    refuse_overwrite([source, chosen.folder], [path for place in places for path in list_files(place)])
    click.echo(f"arm {chosen.describe()}")
    for found, place in zip(_run(predictor.read(both), sequence, outputs, bounds), places, strict=True):
        facts = {**predictor.facts(), "id": name, "length_bp": len(sequence)}
        write_mutagenesis(found, place, facts | {"strand": "both" if both else "+"})
        strongest = found.strongest(3)
        shown = ", ".join(f"{c['from']}{c['position']}{c['to']} {c['difference']:+.3g}" for c in strongest)
        click.echo(f"{found.output}: {found.reference:.4g}; largest changes in {found.quantity}: {shown}; in {place}")


def _run(predictor: Predictor, sequence: str, outputs: list[int], bounds: tuple[int, int]) -> list[Mutagenesis]:
    import pyarrow as pa
    from rich.console import Console
    from rich.progress import Progress

    from l2g_ray.explain.mutagenesis import count_mutants, mutate
    from l2g_ray.sequence import encode

    console = Console(stderr=True, highlight=False)
    total = count_mutants(*encode(pa.array([sequence], pa.large_string())), bounds)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        shown = progress.add_task("scoring mutants", total=total)
        return mutate(
            predictor.forward,
            predictor.task,
            sequence,
            outputs,
            both_strands=predictor.strands_apart,
            batch_size=predictor.batch_size,
            region=bounds,
            progress=lambda done: progress.update(shown, completed=done),
        )


def _choose(predictor: Predictor, output: str | None) -> list[int]:
    from l2g_ray.errors import UserError, nearest
    from l2g_ray.explain.scores import scored_outputs

    labels = list(predictor.task.labels)
    if output is not None:
        if output not in labels:
            raise UserError(
                f"--output '{output}': no such output of task '{predictor.task.name}' ({nearest(output, labels)})"
            )
        return [labels.index(output)]
    chosen = scored_outputs(predictor.task)
    if len(chosen) > 10:
        raise UserError(f"task '{predictor.task.name}' has {len(chosen)} outputs; choose one with --output")
    return chosen


def _read(
    predictor: Predictor, text: str | None, source: Path | None, identity: str | None, column: str | None
) -> tuple[str, str]:
    """The name and the clean sequence."""
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
            raise UserError(f"{source}: {ids.count(name)} sequences are named '{name}'; give each a name of its own")
        where, row = str(source), ids.index(name) + 1
        raw = table["sequence"].slice(row - 1, 1)
    return str(name), predictor.clean(raw, where, row)[0].as_py()


def _parse_region(region: str | None, length_bp: int) -> tuple[int, int]:
    from l2g_ray.errors import UserError

    if region is None:
        return 0, length_bp
    found = re.fullmatch(r"(\d+)-(\d+)", region)
    if found is None or not 1 <= int(found[1]) <= int(found[2]) <= length_bp:
        raise UserError(f"--region {region}: give START-END within 1-{length_bp}, the sequence's length")
    return int(found[1]) - 1, int(found[2])
