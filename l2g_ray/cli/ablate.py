"""`l2g-ray ablate`."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from l2g_ray.cli.suite import make_request, run_stoppable, show_result, with_common
from l2g_ray.errors import UserError, nearest

if TYPE_CHECKING:
    from l2g_ray.orchestrate.arms import Study

# What the paper's Fig. 5 shows.
FIGURE_5 = ("weights", "loss", "embedder")


@click.command()
@click.argument("tasks", nargs=-1)
@click.option("--study", "studies", multiple=True, metavar="NAME", help="A study, or 'all' for the paper's three.")
@click.option("--vary", metavar="KEY=A;B;C", help="A study of your own: an arm for each value of a setting.")
@click.option("--arms", metavar="A,B", help="Only these arms; the first is the control.")
@click.option("--list", "as_list", is_flag=True, help="Show the studies and their arms.")
@with_common
def ablate(
    tasks: tuple[str, ...],
    studies: tuple[str, ...],
    vary: str | None,
    arms: str | None,
    as_list: bool,
    **options: Any,
) -> None:
    """What a part of the method adds: the same tasks with and without it.

    TASKS are BENCH/TASK of the catalogue, or folders of your own. The arms run side by side as one suite, stages that
    they share are computed once, and each arm is compared with the study's first over the same test rows.

    \b
    Examples:
      l2g-ray ablate --list
      l2g-ray ablate nt/H3 nt/enhancers nt/promoter_tata --study all --seeds 3 --data-dir data
      l2g-ray ablate demo/splice_junction --vary "model.target_tokens=8;16;32"
    """
    from rich.console import Console

    from l2g_ray.orchestrate.study import run_study
    from l2g_ray.results.arms_table import render_study
    from l2g_ray.results.terminal import print_fitted

    console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)
    if as_list:
        _list_studies(console)
        return
    if not tasks:
        raise UserError("give at least one task, for example demo/splice_junction; `l2g-ray tasks` lists them")
    chosen = _choose(studies, vary)
    if arms is not None:
        chosen = [_keep(study, [arm.strip() for arm in arms.split(",") if arm.strip()]) for study in chosen]
    found, sources = find_tasks_and_sources(tasks, options["data_dir"])
    failed = False
    for study in chosen:
        name = f"ablate-{study.name}-{'-'.join(task.name for task in found)}"[:80]
        request = make_request("ablation", found, {}, name, options, suffix=study.name if len(chosen) > 1 else "")
        result = run_stoppable(partial(run_study, request, study, sources, console))
        show_result(result.suite, console, table=False)
        console.print()
        print_fitted(console, render_study(result.to_dict(request)))
        console.print(f"study        {result.suite.folder / 'study.json'} (.csv, .md, .svg, .png)", soft_wrap=True)
        failed = failed or bool(result.suite.failures)
    if failed:
        sys.exit(1)


def find_tasks_and_sources(names: tuple[str, ...], data_dir: Path | None) -> tuple[list[Any], dict[str, Any]]:
    """Tasks, and where the rows of each are. Raises UserError for an unknown one, or two of the same name."""
    from l2g_ray.cli.source import find_source

    tasks: list[Any] = []
    sources: dict[str, Any] = {}
    for name in names:
        found = find_source((name,), {}, data_dir)
        if found.task.name in sources:
            raise UserError(f"{name}: a task named '{found.task.name}' is there already; give it once")
        tasks.append(found.task)
        sources[found.task.name] = found
    return tasks, sources


def _choose(studies: tuple[str, ...], vary_text: str | None) -> list[Study]:
    from l2g_ray.config import known_keys, parse_assignments
    from l2g_ray.orchestrate.arms import find_study, vary

    if bool(studies) == bool(vary_text):
        raise UserError("give either --study NAME or --vary KEY=A;B; `l2g-ray ablate --list` shows the studies")
    if vary_text is None:
        names = [name for given in studies for name in (FIGURE_5 if given == "all" else (given,))]
        return [find_study(name) for name in dict.fromkeys(names)]
    key, equals, text = vary_text.partition("=")
    if not equals or key not in known_keys():
        raise UserError(f"--vary {vary_text}: expected KEY=A;B with a setting; {nearest(key, known_keys())}")
    values = [parse_assignments([f"{key}={value.strip()}"])[key] for value in text.split(";") if value.strip()]
    return [vary(key, values)]


def _keep(study: Study, wanted: list[str]) -> Study:
    from dataclasses import replace

    unknown = [arm for arm in wanted if arm not in study.arms]
    if unknown:
        raise UserError(f"study {study.name} has no arm '{unknown[0]}': {nearest(unknown[0], list(study.arms))}")
    if len(wanted) < 2:
        raise UserError("--arms: give at least two arms; the first is the control")
    return replace(study, arms={arm: study.arms[arm] for arm in wanted})


def _list_studies(console: Any) -> None:
    from l2g_ray.orchestrate.arms import read_studies
    from l2g_ray.results.terminal import Column, Listing, print_fitted

    headings = ("Study", "Arms (the first is the control)", "About")
    listing = Listing([Column(heading, words=True) for heading in headings])
    for study in read_studies().values():
        listing.add(study.name, ", ".join(study.arms), study.about)
    print_fitted(console, listing)
