"""`l2g-ray predict`, and the options of all commands that read a finished run's model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from l2g_ray.cli import complete
from l2g_ray.cli.options import InputFile, OutputFile, command, echo_summary, is_quiet, option, with_quiet
from l2g_ray.run_folder import ARM_CHOICES, BEST

DEVICES = ("auto", "cpu", "cuda")


def with_arm(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--task` and `--arm`."""
    arm = option(
        "--arm",
        type=click.Choice(ARM_CHOICES),
        default=BEST,
        help="Model of the run. 'best' is the model that the run predicts with: its ensemble or, in runs of earlier "
        "versions, the arm that was best on validation. 'average' is the mean of l2g and embedder_only.",
    )
    task = option(
        "--task",
        metavar="NAME",
        shell_complete=complete.run_tasks,
        help="Task of the run. Required where the run has several.",
    )
    return task(arm(function))


def with_device(what: str = "Sequences", default: str = "256") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`--device` and `--batch-size`; the latter counts `what`, and `default` describes its default."""
    device = option(
        "--device",
        type=click.Choice(DEVICES),
        default=DEVICES[0],
        help="Device that computes. 'auto' is a GPU if there is one.",
    )
    batch_size = option(
        "--batch-size",
        type=click.IntRange(min=1),
        metavar="N",
        show_default=default,
        help=f"{what} per batch; halved until a batch fits into memory.",
    )
    return lambda function: device(batch_size(function))


@command()
@click.argument("run")
@option(
    "--input",
    "-i",
    "source",
    required=True,
    type=InputFile(),
    metavar="FILE",
    help="Sequences: FASTA, CSV, TSV or Parquet. Use - for standard input.",
)
@option(
    "--output",
    "-o",
    "target",
    required=True,
    type=OutputFile(),
    metavar="FILE",
    help="Predictions: CSV, TSV or Parquet. Use - for a TSV on standard output.",
)
@with_arm
@option(
    "--sequence-column", metavar="NAME", show_default="the task's", help="Column of the input that holds the sequences."
)
@option("--keep-columns", is_flag=True, help="Write all columns of the input, followed by the predictions.")
@with_device()
@with_quiet
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
    """Predict sequences with a finished RUN: a local folder, s3://... or a model in MLflow, models:/NAME/VERSION.

    The output has a row per sequence, in order, with label names and probabilities. The input is streamed. Ray is not
    started.

    \b
    Examples:
      l2g-ray predict runs/demo-fast --task splice_junction --input new.fa --output predictions.csv
      zcat new.fa.gz | l2g-ray predict runs/demo-fast --task splice_junction -i - -o - | head
    """
    from l2g_ray.api.loading import open_arm
    from l2g_ray.monitor.bars import Bar
    from l2g_ray.predict import load_predictor, predict_file

    with open_arm(run, task, arm) as model:
        predictor = load_predictor(model, device, batch_size)
    with Bar("predicting", quiet=is_quiet()) as bar:
        rows = predict_file(
            predictor,
            source,
            target,
            sequence_column=sequence_column,
            keep_columns=keep_columns,
            progress=bar.update,
        )
    echo_summary(f"{rows} predictions of task '{predictor.task.name}' by arm {predictor.arm.describe()} in {target}")
