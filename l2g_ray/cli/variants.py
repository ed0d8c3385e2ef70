"""`l2g-ray variants`."""

from __future__ import annotations

from pathlib import Path

import click

from l2g_ray.cli.model import with_arm, with_device


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
@with_device
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
    from l2g_ray.explain.effects import VCF_SUFFIXES, score_pairs, score_vcf
    from l2g_ray.explain.variants import Policy
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
