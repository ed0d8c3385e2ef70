"""`l2g-ray suite` and `l2g-ray run`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import click

from l2g_ray.arms import ARMS
from l2g_ray.cli import complete
from l2g_ray.cli.options import (
    command,
    loading,
    option,
    run_console,
    table_console,
    with_cpus,
    with_data_dir,
    with_experiment,
    with_json,
    with_keep_duplicates,
    with_language_model,
    with_options,
    with_preset,
    with_quiet,
    with_runs,
    with_seeds,
    with_set,
    with_verbose,
)
from l2g_ray.cli.source import show_notes, with_source_flags

EXIT_INTERRUPTED = 130
COMMON = [
    with_preset,
    with_data_dir,
    with_language_model,
    with_seeds,
    with_set,
    with_runs,
    option(
        "--name",
        metavar="NAME",
        group="Output",
        show_default="made of benchmark and preset",
        help="Name of the run and of its folder.",
    ),
    option(
        "--replace",
        is_flag=True,
        group="Output",
        help="Replace a finished run of this name that had other data or settings.",
    ),
    with_experiment,
    with_cpus,
    option(
        "--gpus-per-trial",
        type=click.FloatRange(0),
        metavar="NUMBER",
        group="Cluster",
        show_default="1 on a cluster with GPUs, less once a trial of the kind has been measured",
        help="GPUs that a trial takes.",
    ),
    option(
        "--workers-per-trial",
        type=click.IntRange(1),
        default=1,
        metavar="N",
        group="Cluster",
        help="Processes that train one model together, each with its share of every batch and its own GPU.",
    ),
    option(
        "--slots",
        type=click.IntRange(1),
        metavar="N",
        group="Cluster",
        show_default="counted",
        help="Trials to run at once on a cluster that grows: as many as its largest size has room for.",
    ),
    with_keep_duplicates,
    option("--register", is_flag=True, group="Output", help="Register each task's model in MLflow."),
    with_json,
    with_quiet,
    with_verbose,
]


with_trained_arms = option(
    "--arms",
    "trained_arms",
    metavar="all|A,B",
    group="Training",
    show_default="the preset's",
    shell_complete=complete.arms,
    help=f"Arms to train: {', '.join(ARMS)}.",
)


with_common = with_options(COMMON)


@command()
@option(
    "--bench",
    required=True,
    metavar="NAME",
    group="Data",
    shell_complete=complete.benches,
    help="Benchmark, see `l2g-ray tasks`.",
)
@option(
    "--tasks",
    metavar="A,B",
    group="Data",
    show_default="all",
    shell_complete=complete.bench_tasks,
    help="Tasks of the benchmark to run.",
)
@with_trained_arms
@with_common
def suite(bench: str, tasks: str | None, **options: Any) -> None:
    """Run all tasks of a benchmark in parallel on a Ray cluster.

    Finished results are reused: the same command resumes a stopped run, and trains nothing after a finished one.

    \b
    Example:
      l2g-ray suite --bench nt --data-dir data --tasks H3,enhancers --seeds 3
    """
    from l2g_ray.api.requests import request_suite, split_list

    names = split_list(tasks) if tasks else None
    _run(lambda: request_suite(bench, names, **name_options(options)), options["as_json"])


@command("run")
@click.argument("source", nargs=-1, required=True, shell_complete=complete.sources)
@with_source_flags
@with_trained_arms
@with_common
def run_one(source: tuple[str, ...], source_flags: dict[str, Any], **options: Any) -> None:
    """Run one task: BENCH/TASK of the catalogue, or your own files.

    SOURCE is a folder with train and test files; a single table, FASTA or BED file, which is split into train,
    validation and test; or several FASTA or BED files, one per class. It is checked and prepared first, as `l2g-ray data
    prepare` does.

    \b
    Examples:
      l2g-ray run demo/splice_junction
      l2g-ray run my_data                      # train.csv, test.csv with sequence,label
      l2g-ray run peaks.bed --genome hg38.fa --window-bp 200 --test-chromosomes chr8,chr9
      l2g-ray run enhancers.fa background.fa   # one class per file
    """
    from l2g_ray.api.requests import request_task

    _run(lambda: request_task(source, source_flags, **name_options(options)), options["as_json"])


def _run(make: Callable[[], Any], as_json: bool) -> None:
    console = run_console(as_json)
    with loading(console):
        request = make()
        from l2g_ray.orchestrate.suite import run_suite

    result = run_stoppable(lambda: run_suite(request, console))
    shown = table_console(as_json)
    show_result(result, shown, table=not as_json)
    if len(request.tasks) == 1:
        show_notes(request.tasks[0], shown)
    if as_json:
        click.echo(json.dumps(result.board, indent=1))
    if result.failures:
        sys.exit(1)


def run_stoppable(call: Callable[[], Any]) -> Any:
    """Return what `call` returns. Of a suite that was stopped, print its state and exit with code 130."""
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
    """Return the `SuiteRequest` of the common options. `suffix` is added to --name where one command runs several suites.

    Raises UserError for an invalid setting.
    """
    from l2g_ray.api import requests

    return requests.make_request(bench, chosen, sources, default_name, suffix=suffix, **name_options(options))


# Options that `api.requests.make_request` has under the same names.
_SAME_NAMES = (
    "preset", "data_dir", "language_model", "seeds", "out", "name", "replace", "experiment", "cpus", "gpus_per_trial",
    "workers_per_trial", "slots", "keep_duplicates", "register", "verbose",
)  # fmt: skip


def name_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the common options under the names that `api.requests.make_request` has for them."""
    from l2g_ray.places import show_command
    from l2g_ray.presets import parse_assignments

    return {
        **{name: options[name] for name in _SAME_NAMES},
        "settings": parse_assignments(options["assignments"]),
        "arms": options.get("trained_arms"),  # only some commands have the option
        "command": show_command(*sys.argv[1:]),
    }


def show_result(result: Any, console: Any, table: bool = True) -> None:
    """Print the end of a suite: leaderboard (with `table`), failures, and paths of the results."""
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
        console.print("Nothing to train: all results exist, and were logged in MLflow again.")
    elif not result.fresh:
        console.print("Nothing to do: all results exist.")
    elif sentence := describe_slots(result.board):
        console.print(sentence, soft_wrap=True)
    if result.stored is not None:
        console.print(
            f"stored in    {redact(str(result.stored))}   (the paths below are this machine's copy)", soft_wrap=True
        )
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
            f"{n_failed} task{'s' if n_failed > 1 else ''} failed: fix the errors above and run the same command again; "
            "finished stages are kept",
            soft_wrap=True,
        )
