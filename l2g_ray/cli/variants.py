"""`l2g-ray variants` and `l2g-ray mutate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from l2g_ray.cli.predict import with_arm, with_device

if TYPE_CHECKING:
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
    from l2g_ray.data.readers import strip_suffixes
    from l2g_ray.explain.effects import score_variants
    from l2g_ray.monitor.bars import Bar
    from l2g_ray.predict import load_predictor
    from l2g_ray.run_folder import find_arm

    if not targets and (named := vcf or pairs):
        stem = named.name.partition(".vcf")[0] if vcf is not None else strip_suffixes(named.name)
        suffixes = (".tsv", ".vcf") if vcf is not None else (".tsv",)
        targets = tuple(Path(f"{stem}.scores{suffix}") for suffix in suffixes)
    predictor = load_predictor(find_arm(run, task, arm), device, batch_size)
    with Bar("scoring") as bar:
        found = score_variants(
            predictor,
            vcf=vcf,
            genome=fasta,
            pairs=pairs,
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
    click.echo(f"{found.scored} by {model}, in {', '.join(map(str, targets))}")
    for note in found.notes:
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
    from l2g_ray.explain.mutagenesis import choose_outputs, list_files, mutate_sequence, parse_region, write_mutagenesis
    from l2g_ray.explain.scores import scored_outputs
    from l2g_ray.monitor.bars import Bar
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
    outputs = choose_outputs(predictor.task, output, "--output")
    name, sequence = _read(predictor, text, source, identity, sequence_column)
    bounds = parse_region(region, len(sequence))
    both = predictor.strand_averaged if strand == "auto" else strand == "both"
    folder = out or chosen.task_folder / "mutagenesis" / chosen.name / safe_name(name, otherwise="sequence")
    # Outputs of one sequence, made one after the other, do not share a folder either.
    each = len(outputs) > 1 or (out is None and len(scored_outputs(predictor.task)) > 1)
    names = safe_names(predictor.task.labels, otherwise="output")
    places = [folder / names[i] if each else folder for i in outputs]
    refuse_overwrite([source, chosen.folder], [path for place in places for path in list_files(place)])
    click.echo(f"arm {chosen.describe()}")
    with Bar("scoring mutants") as bar:
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
