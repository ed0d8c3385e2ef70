"""`l2g-ray baseline`."""

from __future__ import annotations

import sys
from typing import Any

import click

from l2g_ray.arms import BASELINES
from l2g_ray.cli.ablate import find_tasks_and_sources
from l2g_ray.cli.suite import make_request, run_stoppable, show_result, with_common
from l2g_ray.errors import UserError, nearest


@click.command()
@click.argument("names", required=False)
@click.argument("tasks", nargs=-1)
@click.option("--list", "as_list", is_flag=True, help="Show the baselines.")
@with_common
def baseline(names: str | None, tasks: tuple[str, ...], as_list: bool, **options: Any) -> None:
    """Simple models and other methods on the same rows, metrics and seeds.

    NAMES are baselines separated by commas, or 'simple' or 'all'. Simple models (k-mers, one-hot, boosted trees) are fitted
    here and now; methods that are L2G with other settings (CNN only, ORCA, vanilla, frozen) run beside it as arms.

    \b
    Examples:
      l2g-ray baseline --list
      l2g-ray baseline simple nt/H3 nt/enhancers --data-dir data
      l2g-ray baseline cnn_only,vanilla,kmer_linear demo/splice_junction
    """
    from rich.console import Console

    from l2g_ray.orchestrate.arms import Study, read_baseline_arms
    from l2g_ray.orchestrate.simple import run_simple
    from l2g_ray.orchestrate.study import run_study
    from l2g_ray.results.arms_table import render_study
    from l2g_ray.results.terminal import print_fitted

    console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)
    if as_list:
        _list(console)
        return
    simple, arms = _choose(names)
    if not tasks:
        raise UserError("give at least one task, for example demo/splice_junction; `l2g-ray tasks` lists them")
    found, sources = find_tasks_and_sources(tasks, options["data_dir"])
    default = "-".join(["baseline", *str(names).split(","), *(task.name for task in found)])[:80]
    wanting = {name: BASELINES[name].language_model for name in simple if BASELINES[name].language_model}
    if wanting and not arms:  # nothing else here reads a language model
        if options["language_model"] is None:
            raise UserError(f"{next(iter(wanting))}: give a genomic model's hub id or folder with --language-model")
        given = [f"baselines.{setting}={options['language_model']}" for setting in wanting.values()]
        options["assignments"] = (*options["assignments"], *given)
        options["language_model"] = None
    request = make_request("baseline", found, sources, default, options)
    if not arms:
        result = run_simple(request, simple, console)
        console.print()
        print_fitted(console, render_study(result))
        console.print(
            f"table        {request.out / request.name / 'study.json'} (.csv, .md, .svg, .png)", soft_wrap=True
        )
        return
    known = read_baseline_arms()
    study = Study("baseline", "L2G beside other methods", {"l2g": {}} | {arm: known[arm]["set"] for arm in arms})
    request.assignments["baselines.names"] = simple
    ran = run_stoppable(lambda: run_study(request, study, sources, console))
    show_result(ran.suite, console, table=False)
    console.print()
    print_fitted(console, render_study(ran.to_dict(request)))
    console.print(f"study        {ran.suite.folder / 'study.json'} (.csv, .md, .svg, .png)", soft_wrap=True)
    if ran.suite.failures:
        sys.exit(1)


def _choose(text: str | None) -> tuple[list[str], list[str]]:
    """Simple models, and methods that are arms."""
    from l2g_ray.orchestrate.arms import read_baseline_arms

    arms = list(read_baseline_arms())
    if not text:
        raise UserError(f"give baselines, separated by commas: {', '.join([*BASELINES, *arms])}; or 'simple', or 'all'")
    simple = [name for name, kind in BASELINES.items() if not kind.language_model]
    given = {"simple": simple, "all": [*simple, *arms]}.get(text) or [n.strip() for n in text.split(",")]
    for name in given:
        if name not in (*BASELINES, *arms):
            raise UserError(f"unknown baseline '{name}': {nearest(name, [*BASELINES, *arms])}")
    return [name for name in given if name in BASELINES], [name for name in given if name in arms]


def _list(console: Any) -> None:
    from l2g_ray.orchestrate.arms import read_baseline_arms
    from l2g_ray.results.terminal import Column, Listing, print_fitted

    listing = Listing([Column("Baseline", words=True), Column("What it is", words=True)])
    abouts = {name: kind.about for name, kind in BASELINES.items()}
    abouts |= {name: arm["about"] for name, arm in read_baseline_arms().items()}
    for name, about in abouts.items():
        listing.add(name, about)
    print_fitted(console, listing)
