"""`l2g-ray report` and `l2g-ray status`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from l2g_ray.cli.options import LocalRun, command, option, table_console, with_json

if TYPE_CHECKING:
    from l2g_ray.monitor.status import SuiteStatus


@command()
@click.argument("run", type=LocalRun())
@option(
    "--study",
    "studies",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Folder of an ablation (with study.json) to include. Repeatable.",
)
@option("--mlflow/--no-mlflow", default=True, help="Log report and figures to the suite's MLflow run.")
def report(run: Path, studies: tuple[Path, ...], mlflow: bool) -> None:
    """Write the report of a finished RUN again: one HTML file that opens anywhere, and its figures.

    A suite writes its report when it ends. The new one adds results of `explain`, `mutate` and `embed`, and ablations.

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


STYLES = {"running": "cyan", "finished": "green", "stopped": "yellow", "unsent": "yellow"}


@command()
@click.argument("run", type=LocalRun(), default=Path("runs"))
@with_json
def status(run: Path, as_json: bool) -> None:
    """Show the progress of the suite in RUN: tasks, stages, trials, whether its driver is alive, and what to do next.

    RUN is a suite's folder, or the folder of all runs. Works from any shell that can read the folder, during the suite
    and after it ended, failed or was killed. Needs neither Ray nor MLflow.

    \b
    Examples:
      l2g-ray status runs/demo-fast
      l2g-ray status runs --json
    """
    from l2g_ray.monitor.status import find_runs, read_status

    found = [read_status(path) for path in find_runs(run)]
    if as_json:
        shown = [one.to_json() for one in found]
        click.echo(json.dumps(shown if len(shown) > 1 else shown[0], indent=1))
        return
    for one in found:
        _show(one)


def _show(found: SuiteStatus) -> None:
    from rich.markup import escape

    from l2g_ray.monitor.outline import name_stage
    from l2g_ray.results.terminal import Column, Listing, print_fitted

    console = table_console()
    state, driver = found.state, found.driver
    style = STYLES.get(state, "red")
    elapsed = f", {_clock(found.elapsed_s)}" if found.elapsed_s is not None else ""
    doing = f" ({found.doing})" if found.doing and found.doing != state else ""
    console.print(f"[bold]{escape(found.name)}[/bold]: [{style}]{state}[/{style}]{doing}{elapsed}", soft_wrap=True)
    if found.tasks:
        words, numbers = ("task", "state", "stage"), ("trials", "failed", "epoch", "best", "time")
        columns = [*(Column(name, words=True) for name in words), *map(Column, numbers), Column("result", words=True)]
        listing = Listing(columns)
        for task in found.tasks:
            status = task.status
            listing.add(
                task.name,
                status.state,
                name_stage(status.stage or ""),
                f"{status.trials_begun} of {status.trials}" if status.trials else "",
                str(status.failures or ""),
                str(status.epoch or ""),
                f"{status.best:.3f}" if status.best is not None else "",
                _clock(task.elapsed_s) if task.elapsed_s is not None else "",
                status.result or "",
            )
        print_fitted(console, listing)
    if event := found.last_event:
        console.print(f"last event  {_clock(event.ago_s)} ago: {escape(event.text)}", soft_wrap=True)
    if driver.silent_s is not None:
        where = f"process {driver.pid} on {driver.host}, last sign of life {_clock(driver.silent_s)} ago"
        console.print(f"driver      {'alive' if driver.alive else 'gone'}: {where}", soft_wrap=True)
    for name, link in found.links.items():
        console.print(f"{name:<11} {escape(link)}", soft_wrap=True)
    console.print(f"next        {escape(found.next)}", soft_wrap=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
