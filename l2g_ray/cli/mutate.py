"""`l2g-ray mutate`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from l2g_ray.cli.model import with_arm, with_device

if TYPE_CHECKING:
    from l2g_ray.explain.mutagenesis import Mutagenesis
    from l2g_ray.predict import Predictor


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
    from l2g_ray.data.overwrite import refuse_overwrite
    from l2g_ray.errors import UserError, how_to_install
    from l2g_ray.explain.mutagenesis_files import list_files, write_mutagenesis
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
