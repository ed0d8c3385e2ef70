"""Options of all commands that read a finished run's model: which arm, on which device."""

from __future__ import annotations

from collections.abc import Callable
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
