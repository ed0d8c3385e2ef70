"""`l2g-ray suite` and `l2g-ray run`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from l2g_ray.arms import ARMS
from l2g_ray.cli.source import show_notes, with_source_flags

EXIT_INTERRUPTED = 130
EXPERIMENT = click.option(
    "--experiment",
    envvar="MLFLOW_EXPERIMENT_NAME",
    show_envvar=True,
    default="l2g_ray",
    show_default=True,
    metavar="NAME",
    help="MLflow experiment.",
)
COMMON = [
    click.option("--preset", default="fast", show_default=True, metavar="NAME", help="smoke, fast or paper."),
    click.option("--data-dir", type=click.Path(path_type=Path), help="Folder that holds the benchmarks' files."),
    click.option("--language-model", metavar="MODEL", help="Hub id, local folder, or 'minilm'."),
    click.option(
        "--seeds", type=click.IntRange(1), help="How often every arm is trained, each time with its own seed."
    ),
    click.option(
        "--set",
        "assignments",
        multiple=True,
        metavar="KEY=VALUE",
        help="One setting, e.g. finetune.trials=8. Repeatable.",
    ),
    click.option("--out", default="runs", show_default=True, metavar="FOLDER|s3://...", help="Where runs are kept."),
    click.option("--name", help="Name of the run; made of benchmark and preset by default."),
    click.option(
        "--replace", is_flag=True, help="Replace a finished run of this name that had other data or settings."
    ),
    EXPERIMENT,
    click.option("--cpus", type=click.IntRange(1), help="Cores of a local cluster; all by default."),
    click.option(
        "--gpus-per-trial",
        type=click.FloatRange(0),
        help="By default 1 where the cluster has GPUs, and less once a trial of the kind has been measured.",
    ),
    click.option(
        "--workers-per-trial",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help="Processes that train one model together, each with its share of every batch and its own GPU.",
    ),
    click.option(
        "--slots",
        type=click.IntRange(1),
        help="Trials to plan for on a cluster that grows by itself: as many as it may get. Counted when not given.",
    ),
    click.option(
        "--keep-duplicates", is_flag=True, help="Keep train rows that stand in test; the leaderboard says so."
    ),
    click.option("--register", is_flag=True, help="Register each task's model in MLflow."),
    click.option("-v", "--verbose", is_flag=True, help="Show Ray's own messages too."),
]


ARMS_OPTION = click.option(
    "--arms",
    "trained_arms",
    metavar="all|A,B",
    help=f"What to train: {', '.join(ARMS)}.",
)


def with_common(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of every command that runs suites."""
    for option in reversed(COMMON):
        command = option(command)
    return command


@click.command()
@click.option("--bench", required=True, metavar="NAME", help="Benchmark: see `l2g-ray tasks`.")
@click.option("--tasks", metavar="A,B", help="Only these tasks.")
@ARMS_OPTION
@with_common
def suite(bench: str, tasks: str | None, **options: Any) -> None:
    """All tasks of a benchmark, side by side on a Ray cluster.

    A second run of the same command trains nothing; a run that was stopped goes on.

    \b
    Example:
      l2g-ray suite --bench nt --data-dir data --tasks H3,enhancers --seeds 3
    """
    from l2g_ray.api.requests import request_suite, split_list

    _run(request_suite(bench, split_list(tasks) if tasks else None, **name_options(options)))


@click.command("run")
@click.argument("source", nargs=-1, required=True)
@with_source_flags
@ARMS_OPTION
@with_common
def run_one(source: tuple[str, ...], source_flags: dict[str, Any], **options: Any) -> None:
    """One task: BENCH/TASK of the catalogue, or files of your own.

    SOURCE is a folder with train and test files; one table, FASTA or BED file, which is then parted; or several FASTA
    or BED files, a class each. It is checked and prepared first, as `l2g-ray data prepare` does.

    \b
    Examples:
      l2g-ray run demo/splice_junction
      l2g-ray run my_data                      # train.csv, test.csv with sequence,label
      l2g-ray run peaks.bed --genome hg38.fa --window-bp 200 --test-chromosomes chr8,chr9
      l2g-ray run enhancers.fa background.fa   # a class each
    """
    from l2g_ray.api.requests import request_task

    _run(request_task(source, source_flags, **name_options(options)))


def _run(request: Any) -> None:
    from rich.console import Console

    from l2g_ray.orchestrate.suite import run_suite

    console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)
    result = run_stoppable(lambda: run_suite(request, console))
    show_result(result, console)
    if len(request.tasks) == 1:
        show_notes(request.tasks[0], console)
    if result.failures:
        sys.exit(1)


def run_stoppable(call: Callable[[], Any]) -> Any:
    """What `call` returns; a suite that is stopped from outside says how it stands, and ends with exit code 130."""
    from l2g_ray.orchestrate.cluster import SuiteStopped, sigterm_interrupts

    try:
        with sigterm_interrupts():
            return call()
    except SuiteStopped as stopped:
        click.echo(str(stopped), err=True)
        sys.exit(EXIT_INTERRUPTED)


def make_request(
    bench: str,
    chosen: list[Any],
    sources: dict[str, Any],
    default_name: str,
    options: dict[str, Any],
    suffix: str = "",
) -> Any:
    """A `SuiteRequest` from the common options. `suffix` is added to a given --name: several suites of one command.

    Raises UserError for a setting that cannot be.
    """
    from l2g_ray.api import requests

    return requests.make_request(bench, chosen, sources, default_name, suffix=suffix, **name_options(options))


# Options that `api.requests.make_request` has under the same names.
_SAME_NAMES = (
    "preset", "data_dir", "language_model", "seeds", "out", "name", "replace", "experiment", "cpus", "gpus_per_trial",
    "workers_per_trial", "slots", "keep_duplicates", "register", "verbose",
)  # fmt: skip


def name_options(options: dict[str, Any]) -> dict[str, Any]:
    """The common options under the names that `api.requests.make_request` has for them."""
    from l2g_ray.places import show_command
    from l2g_ray.presets import parse_assignments

    return {
        **{name: options[name] for name in _SAME_NAMES},
        "settings": parse_assignments(options["assignments"]),
        "arms": options.get("trained_arms"),  # only some commands have the option
        "command": show_command(*sys.argv[1:]),
    }


def show_result(result: Any, console: Any, table: bool = True) -> None:
    """The end of a suite in the terminal: leaderboard (with `table`), failures, and where everything is."""
    from rich.markup import escape

    from l2g_ray.places import show_command
    from l2g_ray.redaction import redact
    from l2g_ray.results.leaderboard import describe_slots, render_table
    from l2g_ray.results.terminal import print_fitted
    from l2g_ray.run_folder import choose_arm, list_arms

    console.print()
    if table and result.board["tasks"]:
        print_fitted(console, render_table(result.board))
    for task, reason in result.failures.items():
        console.print(f"[red]{task} failed[/red]: {escape(reason)}", soft_wrap=True)
    if result.relogged:
        console.print("Nothing to train: all of it was there already, and was logged anew in MLflow.")
    elif not result.fresh:
        console.print("Nothing to do: all of it was there already.")
    elif sentence := describe_slots(result.board):
        console.print(sentence, soft_wrap=True)
    if result.stored is not None:
        console.print(f"stored in    {redact(str(result.stored))}   (below: this machine's copy)", soft_wrap=True)
    folder = result.folder
    models = [choose_arm(path) for path in sorted(folder.glob("[!.]*")) if list_arms(path)]
    console.print(f"report       {folder / 'report.html'}", soft_wrap=True)
    console.print(f"leaderboard  {folder / 'leaderboard.json'} (.csv, .md)", soft_wrap=True)
    for model in models:
        console.print(f"model        {model.folder}   ({model.describe()})", soft_wrap=True)
    console.print(f"MLflow       {result.tracking_uri}   (browse: {show_command('ui', folder)})", soft_wrap=True)
    console.print(f"took         {result.wall_s:.1f} s")
    if n_failed := len(result.failures):
        console.print(
            f"{n_failed} task{'s' if n_failed > 1 else ''} failed: mend what stands above and run the same command again; "
            "finished stages are kept",
            soft_wrap=True,
        )
