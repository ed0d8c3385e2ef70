"""`l2g-ray report`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--study",
    "studies",
    multiple=True,
    type=click.Path(path_type=Path),
    help="The folder of an ablation (with study.json) to show too; may be given several times.",
)
@click.option(
    "--mlflow/--no-mlflow",
    default=True,
    show_default=True,
    help="Put report and figures into the suite's MLflow run too.",
)
def report(run: Path, studies: tuple[Path, ...], mlflow: bool) -> None:
    """Make the report of a finished RUN anew: one HTML file that opens anywhere, and its figures.

    A suite writes its report when it ends. Made again, it also has what `explain`, `mutate` and `embed` have left
    since, and ablations.

    \b
    Examples:
      l2g-ray report runs/demo-fast
      l2g-ray report runs/nt-paper --study runs/embedder-study
    """
    from l2g_ray.orchestrate.reporting import log_report, remake_report

    path = remake_report(run, list(studies))
    click.echo(f"{path} and {path.parent / 'figures'}")
    if mlflow:
        click.echo(log_report(run))
