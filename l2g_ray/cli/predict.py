"""`l2g-ray predict`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("run")
@click.option("--input", "source", required=True, type=click.Path(path_type=Path), help="FASTA, CSV, TSV or Parquet.")
@click.option("--output", "target", required=True, type=click.Path(path_type=Path), help="CSV, TSV or Parquet.")
@click.option("--task", help="Which task's model, where the run has several.")
@click.option(
    "--arm",
    type=click.Choice(["best", "l2g", "embedder_only"]),
    default="best",
    show_default=True,
    help="best: the arm that was best on validation.",
)
@click.option("--sequence-column", help="Column of the input that holds the sequences.")
@click.option("--keep-columns", is_flag=True, help="Write all columns of the input too, before the predictions.")
def predict(
    run: str,
    source: Path,
    target: Path,
    task: str | None,
    arm: str,
    sequence_column: str | None,
    keep_columns: bool,
) -> None:
    """Predictions of a finished RUN (a folder, here or in s3://), with label names and probabilities. Streams; Ray need not run.

    \b
    Example:
      l2g-ray predict runs/demo-fast --task splice_junction --input new.fa --output predictions.csv
    """
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn

    from l2g_ray.predict import fetch_model, find_model, load_predictor, predict_file
    from l2g_ray.storage import Location

    where = Location(run)
    if where.is_remote:
        with fetch_model(where, task, arm) as folder:
            predictor = load_predictor(folder)
    else:
        predictor = load_predictor(find_model(where.local, task, arm))
    console = Console(stderr=True, highlight=False)
    columns = (SpinnerColumn(), TextColumn("{task.completed} sequences"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        shown = progress.add_task("predicting", total=None)
        rows = predict_file(
            predictor,
            source,
            target,
            sequence_column=sequence_column,
            keep_columns=keep_columns,
            progress=lambda done: progress.update(shown, completed=done),
        )
    click.echo(f"{rows} predictions of task '{predictor.task.name}' in {target}")
