"""`l2g-ray ablate`, `l2g-ray baseline` and `l2g-ray scale`."""

from __future__ import annotations

import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from l2g_ray.arms import BASELINES
from l2g_ray.cli.suite import EXPERIMENT, make_request, run_stoppable, show_result, with_common
from l2g_ray.errors import UserError, nearest

if TYPE_CHECKING:
    from l2g_ray.studies.study import Study

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

    from l2g_ray.results.comparison import render_study
    from l2g_ray.results.terminal import print_fitted
    from l2g_ray.studies.study import run_study

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
        print_fitted(console, render_study(result.study))
        console.print(f"study        {result.suite.folder / 'study.json'} (.csv, .md, .svg, .png)", soft_wrap=True)
        failed = failed or bool(result.suite.failures)
    if failed:
        sys.exit(1)


def find_tasks_and_sources(names: tuple[str, ...], data_dir: Path | None) -> tuple[list[Any], dict[str, Any]]:
    """Tasks, and where the rows of each are. Raises UserError for an unknown one, or two of the same name."""
    from l2g_ray.api.requests import find_source

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
    from l2g_ray.config import known_keys
    from l2g_ray.presets import parse_assignments
    from l2g_ray.studies.study import find_study, vary

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
    from l2g_ray.results.terminal import Column, Listing, print_fitted
    from l2g_ray.studies.study import read_studies

    headings = ("Study", "Arms (the first is the control)", "About")
    listing = Listing([Column(heading, words=True) for heading in headings])
    for study in read_studies().values():
        listing.add(study.name, ", ".join(study.arms), study.about)
    print_fitted(console, listing)


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

    from l2g_ray.results.comparison import render_study
    from l2g_ray.results.terminal import print_fitted
    from l2g_ray.studies.simple import run_simple
    from l2g_ray.studies.study import Study, read_baseline_arms, run_study

    console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)
    if as_list:
        _list(console)
        return
    simple, arms = _choose_baselines(names)
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
    print_fitted(console, render_study(ran.study))
    console.print(f"study        {ran.suite.folder / 'study.json'} (.csv, .md, .svg, .png)", soft_wrap=True)
    if ran.suite.failures:
        sys.exit(1)


def _choose_baselines(text: str | None) -> tuple[list[str], list[str]]:
    """Simple models, and methods that are arms."""
    from l2g_ray.studies.study import read_baseline_arms

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
    from l2g_ray.results.terminal import Column, Listing, print_fitted
    from l2g_ray.studies.study import read_baseline_arms

    listing = Listing([Column("Baseline", words=True), Column("What it is", words=True)])
    abouts = {name: kind.about for name, kind in BASELINES.items()}
    abouts |= {name: arm["about"] for name, arm in read_baseline_arms().items()}
    for name, about in abouts.items():
        listing.add(name, about)
    print_fitted(console, listing)


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
    from l2g_ray.results.comparison import render_scaling
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
