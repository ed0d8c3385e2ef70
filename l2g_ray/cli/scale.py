"""`l2g-ray scale`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from l2g_ray.cli.suite import EXPERIMENT
from l2g_ray.errors import UserError

# Two workers on two cores end within two minutes. Given flags stand above it.
QUICK: dict[str, Any] = {
    "rows": 128,
    "batch_size": 32,
    "epochs": 3,
    "trials": 4,
    "preset": "smoke",
}
QUICK_SETTINGS = {"model.language_model_layers": 2, "model.target_tokens": 16}
FULL: dict[str, Any] = {"rows": 2048, "batch_size": 64, "epochs": 4, "trials": 8, "preset": "fast"}


@click.command()
@click.option("--workers", default="1,2", show_default=True, metavar="N,N", help="Workers of one trial, to compare.")
@click.option("--slots", metavar="N,N", help="Trials at once, to compare [as --workers].")
@click.option("--trials", type=click.IntRange(1), help=f"Trials in all, for each number of slots [{FULL['trials']}].")
@click.option("--rows", type=click.IntRange(8), help=f"Training rows of one worker [{FULL['rows']}].")
@click.option("--batch-size", type=click.IntRange(2), help=f"Batch of one worker [{FULL['batch_size']}].")
@click.option("--length-bp", type=click.IntRange(20), default=200, show_default=True, help="Of each sequence.")
@click.option("--epochs", type=click.IntRange(2), help=f"Of which the first is not counted [{FULL['epochs']}].")
@click.option("--language-model", default="minilm", show_default=True, metavar="MODEL", help="As for a suite.")
@click.option("--preset", metavar="NAME", help=f"Widths and so on: smoke, fast or paper [{FULL['preset']}].")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="One setting. Repeatable.")
@click.option("--gpus-per-worker", type=click.FloatRange(0), help="1 where the cluster has GPUs.")
@click.option("--cpus", type=click.IntRange(1), help="Cores of a local cluster; all by default.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Where runs are kept."
)
@click.option("--name", default="scaling", show_default=True, help="Name of the folder in it.")
@EXPERIMENT
@click.option("--quick", is_flag=True, help="Few rows and a small model: two minutes on two cores.")
@click.option("-v", "--verbose", is_flag=True, help="Show Ray's own messages too.")
def scale(**options: Any) -> None:
    """Measure how fine-tuning scales: several workers on one model, and several trials at once.

    Strong scaling shares one batch among the workers, weak scaling gives each a batch of its own. On random sequences:
    only time is measured. Leaves a table, a plot and JSON in OUT/NAME, and an MLflow run.

    \b
    Examples:
      l2g-ray scale --quick
      l2g-ray scale --workers 1,2,4,8 --language-model FacebookAI/roberta-base --length-bp 500
    """
    from rich.console import Console

    from l2g_ray.models.language_model import locate
    from l2g_ray.presets import parse_assignments, resolve
    from l2g_ray.results.scale_table import render_scaling
    from l2g_ray.results.terminal import print_fitted
    from l2g_ray.studies.scale import ScaleRequest, measure_scaling, record_scaling
    from l2g_ray.tasks.schema import NAME_PATTERN

    if not NAME_PATTERN.fullmatch(options["name"]):
        raise UserError(
            f"--name {options['name']}: only letters, digits, '.', '_' and '-', beginning with a letter or digit"
        )
    workers = _read_sizes("--workers", options["workers"])
    slots = _read_sizes("--slots", options["slots"]) if options["slots"] else workers
    chosen = {name: options[name] or default for name, default in (QUICK if options["quick"] else FULL).items()}
    assignments = (QUICK_SETTINGS if options["quick"] else {}) | parse_assignments(options["assignments"])
    assignments |= {"model.language_model": options["language_model"], "align.source": "vocabulary"}
    settings = resolve(chosen["preset"], None, assignments)
    locate(settings.model.language_model)
    console = Console(width=None if sys.stdout.isatty() else 130, highlight=False)
    request = ScaleRequest(
        workers=workers,
        slots=slots,
        trials=chosen["trials"],
        rows=chosen["rows"],
        length_bp=options["length_bp"],
        batch_size=chosen["batch_size"],
        epochs=chosen["epochs"],
        settings=settings,
        out=options["out"],
        name=options["name"],
        gpus_per_worker=options["gpus_per_worker"],
        cpus=options["cpus"],
        verbose=options["verbose"],
        command=shlex.join(["l2g-ray", *sys.argv[1:]]),
    )
    found = measure_scaling(request, lambda line: console.print(line, soft_wrap=True))
    folder = options["out"] / options["name"]
    uri = record_scaling(found, options["out"], folder, options["experiment"])
    console.print()
    print_fitted(console, render_scaling(found))
    console.print(f"table, plot, JSON  {folder}", soft_wrap=True)
    console.print(f"MLflow             {uri}", soft_wrap=True)


def _read_sizes(flag: str, text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1 or list(sizes) != sorted(set(sizes)):
        raise UserError(f"{flag} {text}: give growing whole numbers from 1, for example {flag} 1,2,4")
    return sizes
