"""`l2g-ray predict`, and the options of all commands that read a finished run's model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from l2g_ray.run_folder import ARM_CHOICES, BEST

DEVICES = ("auto", "cpu", "cuda")


def with_arm(command: Callable[..., Any]) -> Callable[..., Any]:
    """`--task` and `--arm`."""
    arm = click.option(
        "--arm",
        type=click.Choice(ARM_CHOICES),
        default=BEST,
        show_default=True,
        help="Which of the run's models; best: what the run predicts with, its ensemble (of an earlier version: the arm "
        "that was best on validation; average: of l2g and embedder_only).",
    )
    return click.option("--task", help="Which task's model, where the run has several.")(arm(command))


def with_device(what: str = "Sequences", default: str = "256") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`--device` and `--batch-size`; the latter counts `what`, and `default` says how many without it."""
    device = click.option(
        "--device",
        type=click.Choice(DEVICES),
        default=DEVICES[0],
        show_default=True,
        help="Where the model computes; auto: on a GPU if there is one.",
    )
    batch_size = click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        help=f"{what} at once; halved where they do not fit into memory.  [default: {default}]",
    )
    return lambda command: device(batch_size(command))


@click.command()
@click.argument("run")
@click.option("--input", "source", required=True, type=click.Path(path_type=Path), help="FASTA, CSV, TSV or Parquet.")
@click.option("--output", "target", required=True, type=click.Path(path_type=Path), help="CSV, TSV or Parquet.")
@with_arm
@click.option("--sequence-column", help="Column of the input that holds the sequences.")
@click.option("--keep-columns", is_flag=True, help="Write all columns of the input too, before the predictions.")
@with_device()
def predict(
    run: str,
    source: Path,
    target: Path,
    task: str | None,
    arm: str,
    sequence_column: str | None,
    device: str,
    batch_size: int | None,
    keep_columns: bool,
) -> None:
    """Predict new sequences with a finished RUN: a folder, here or in s3://, or a model of MLflow, models:/NAME/VERSION.

    The output has label names and probabilities. Files are streamed; Ray need not run.

    \b
    Example:
      l2g-ray predict runs/demo-fast --task splice_junction --input new.fa --output predictions.csv
    """
    from l2g_ray.api.predictor import load
    from l2g_ray.monitor.bars import Bar
    from l2g_ray.predict import predict_file

    predictor = load(run, task, arm, device=device, batch_size=batch_size).model
    with Bar("predicting") as bar:
        rows = predict_file(
            predictor,
            source,
            target,
            sequence_column=sequence_column,
            keep_columns=keep_columns,
            progress=bar.update,
        )
    click.echo(f"{rows} predictions of task '{predictor.task.name}' by arm {predictor.arm.describe()} in {target}")
