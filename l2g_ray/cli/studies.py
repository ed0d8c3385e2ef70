"""`l2g-ray ablate`, `l2g-ray baseline` and `l2g-ray scale`."""

from __future__ import annotations

import json
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from l2g_ray.arms import BASELINES
from l2g_ray.cli import complete
from l2g_ray.cli.options import (
    command,
    loading,
    option,
    run_console,
    table_console,
    with_cpus,
    with_experiment,
    with_json,
    with_out,
    with_quiet,
    with_set,
    with_verbose,
)
from l2g_ray.cli.suite import make_request, run_stoppable, show_result, with_common
from l2g_ray.errors import UserError, nearest

if TYPE_CHECKING:
    from l2g_ray.studies.study import Study

# What the paper's Fig. 5 shows.
FIGURE_5 = ("weights", "loss", "embedder")


@command()
@click.argument("tasks", nargs=-1, shell_complete=complete.sources)
@option(
    "--study",
    "studies",
    multiple=True,
    metavar="NAME",
    group="Training",
    shell_complete=complete.studies,
    help="A study, or 'all' for the three of the paper. Repeatable.",
)
@option(
    "--vary",
    metavar="KEY=A;B;C",
    group="Training",
    shell_complete=complete.assignments,
    help="Instead of --study: one arm per value of a setting.",
)
@option(
    "--arms",
    metavar="A,B",
    group="Training",
    show_default="all",
    help="Arms of the study to run. The others are compared with the first.",
)
@option("--list", "as_list", is_flag=True, help="List the studies and their arms.")
@with_common
def ablate(
    tasks: tuple[str, ...],
    studies: tuple[str, ...],
    vary: str | None,
    arms: str | None,
    as_list: bool,
    **options: Any,
) -> None:
    """Compare the same tasks with and without parts of the method.

    TASKS are BENCH/TASK of the catalogue, or your own folders. The arms run in parallel as one suite, shared stages are
    computed once, and each arm is compared with the study's first arm on the same test rows.

    \b
    Examples:
      l2g-ray ablate --list
      l2g-ray ablate nt/H3 nt/enhancers nt/promoter_tata --study all --seeds 3 --data-dir data
      l2g-ray ablate demo/splice_junction --vary "model.target_tokens=8;16;32"
    """
    from l2g_ray.results.comparison import render_study
    from l2g_ray.results.terminal import print_fitted

    as_json = options["as_json"]
    console = run_console(as_json)
    with loading(console):
        from l2g_ray.studies.study import run_study

    if as_list:
        _list_studies(as_json)
        return
    if not tasks:
        raise UserError("give at least one task, for example demo/splice_junction; `l2g-ray tasks` lists them")
    chosen = _choose(studies, vary)
    if arms is not None:
        chosen = [_keep(study, [arm.strip() for arm in arms.split(",") if arm.strip()]) for study in chosen]
    found, sources = find_tasks_and_sources(tasks, options["data_dir"])
    failed, shown, found_studies = False, table_console(as_json), []
    for study in chosen:
        name = f"ablate-{study.name}-{'-'.join(task.name for task in found)}"[:80]
        request = make_request("ablation", found, {}, name, options, suffix=study.name if len(chosen) > 1 else "")
        result = run_stoppable(partial(run_study, request, study, sources, console))
        show_result(result.suite, shown, table=False)
        shown.print()
        if not as_json:
            print_fitted(shown, render_study(result.study))
        shown.print(f"study        {result.suite.folder / 'study.json'} (.csv, .md, .svg, .png)", soft_wrap=True)
        found_studies.append(result.study)
        failed = failed or bool(result.suite.failures)
    if as_json:
        click.echo(json.dumps(found_studies, indent=1))
    if failed:
        sys.exit(1)


def find_tasks_and_sources(names: tuple[str, ...], data_dir: Path | None) -> tuple[list[Any], dict[str, Any]]:
    """Return tasks, and the rows' source of each. Raises UserError for an unknown task, or two of the same name."""
    from l2g_ray.api.requests import find_source

    tasks: list[Any] = []
    sources: dict[str, Any] = {}
    for name in names:
        found = find_source((name,), {}, data_dir)
        if found.task.name in sources:
            raise UserError(f"{name}: a task named '{found.task.name}' is already given; give it once")
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
        raise UserError("--arms: give at least two arms; the others are compared with the first")
    return replace(study, arms={arm: study.arms[arm] for arm in wanted})


def _list_studies(as_json: bool) -> None:
    from l2g_ray.results.terminal import Column, Listing, print_fitted
    from l2g_ray.studies.study import read_studies

    studies = list(read_studies().values())
    if as_json:
        listed = [{"study": one.name, "arms": list(one.arms), "about": one.about} for one in studies]
        click.echo(json.dumps(listed, indent=1))
        return
    headings = ("Study", "Arms (compared with the first)", "About")
    listing = Listing([Column(heading, words=True) for heading in headings])
    for study in studies:
        listing.add(study.name, ", ".join(study.arms), study.about)
    print_fitted(table_console(), listing)


@command()
@click.argument("names", required=False)
@click.argument("tasks", nargs=-1, shell_complete=complete.sources)
@option("--list", "as_list", is_flag=True, help="List the baselines.")
@with_common
def baseline(names: str | None, tasks: tuple[str, ...], as_list: bool, **options: Any) -> None:
    """Run simple models and other methods on the same rows, metrics and seeds.

    NAMES are baselines separated by commas, or 'simple' or 'all'. Simple models (k-mers, one-hot, boosted trees) are
    fitted in this process. Methods that are L2G with other settings (CNN only, ORCA, vanilla, frozen) run as arms of a
    suite, next to L2G.

    \b
    Examples:
      l2g-ray baseline --list
      l2g-ray baseline simple nt/H3 nt/enhancers --data-dir data
      l2g-ray baseline cnn_only,vanilla,kmer_linear demo/splice_junction
    """
    from l2g_ray.results.comparison import render_study
    from l2g_ray.results.terminal import print_fitted

    as_json = options["as_json"]
    console, shown = run_console(as_json), table_console(as_json)
    with loading(console):
        from l2g_ray.studies.simple import run_simple
        from l2g_ray.studies.study import Study, read_baseline_arms, run_study

    if as_list:
        _list(as_json)
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
        shown.print()
        if not as_json:
            print_fitted(shown, render_study(result))
        shown.print(f"table        {request.out / request.name / 'study.json'} (.csv, .md, .svg, .png)", soft_wrap=True)
        if as_json:
            click.echo(json.dumps(result, indent=1))
        return
    known = read_baseline_arms()
    study = Study("baseline", "L2G and other methods", {"l2g": {}} | {arm: known[arm]["set"] for arm in arms})
    request.assignments["baselines.names"] = simple
    ran = run_stoppable(lambda: run_study(request, study, sources, console))
    show_result(ran.suite, shown, table=False)
    shown.print()
    if not as_json:
        print_fitted(shown, render_study(ran.study))
    shown.print(f"study        {ran.suite.folder / 'study.json'} (.csv, .md, .svg, .png)", soft_wrap=True)
    if as_json:
        click.echo(json.dumps(ran.study, indent=1))
    if ran.suite.failures:
        sys.exit(1)


def _choose_baselines(text: str | None) -> tuple[list[str], list[str]]:
    """Return simple models, and methods that are arms."""
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


def _list(as_json: bool) -> None:
    from l2g_ray.results.terminal import Column, Listing, print_fitted
    from l2g_ray.studies.study import read_baseline_arms

    abouts = {name: kind.about for name, kind in BASELINES.items()}
    abouts |= {name: arm["about"] for name, arm in read_baseline_arms().items()}
    if as_json:
        click.echo(json.dumps([{"baseline": name, "about": about} for name, about in abouts.items()], indent=1))
        return
    listing = Listing([Column("Baseline", words=True), Column("About", words=True)])
    for name, about in abouts.items():
        listing.add(name, about)
    print_fitted(table_console(), listing)


# Two workers on two cores end within two minutes. Given options override it.
QUICK: dict[str, Any] = {
    "rows": 128,
    "batch_size": 32,
    "epochs": 3,
    "trials": 4,
    "preset": "smoke",
}
QUICK_SETTINGS = {"model.language_model_layers": 2, "model.target_tokens": 16}
FULL: dict[str, Any] = {"rows": 2048, "batch_size": 64, "epochs": 4, "trials": 8, "preset": "fast"}


@command()
@option("--workers", default="1,2", metavar="N,N", group="Cluster", help="Numbers of workers per trial to compare.")
@option(
    "--slots",
    metavar="N,N",
    group="Cluster",
    show_default="as --workers",
    help="Numbers of concurrent trials to compare.",
)
@option(
    "--trials",
    type=click.IntRange(1),
    metavar="N",
    group="Training",
    show_default=str(FULL["trials"]),
    help="Trials in total, for each number of slots.",
)
@option(
    "--rows",
    type=click.IntRange(8),
    metavar="N",
    group="Data",
    show_default=str(FULL["rows"]),
    help="Training rows per worker.",
)
@option(
    "--batch-size",
    type=click.IntRange(2),
    metavar="N",
    group="Training",
    show_default=str(FULL["batch_size"]),
    help="Rows of a batch per worker.",
)
@option(
    "--length-bp", type=click.IntRange(20), default=200, metavar="BP", group="Data", help="Length of each sequence."
)
@option(
    "--epochs",
    type=click.IntRange(2),
    metavar="N",
    group="Training",
    show_default=str(FULL["epochs"]),
    help="Epochs of each trial. The first is not measured.",
)
@option(
    "--language-model",
    default="minilm",
    metavar="MODEL",
    group="Training",
    help="Language model: a Hugging Face id, a local folder, or 'minilm'.",
)
@option(
    "--preset",
    metavar="NAME|FILE",
    group="Training",
    show_default=FULL["preset"],
    shell_complete=complete.presets,
    help="Settings to start from: smoke, fast, paper, or a YAML file.",
)
@with_set
@option(
    "--gpus-per-worker",
    type=click.FloatRange(0),
    metavar="NUMBER",
    group="Cluster",
    show_default="1 on a cluster with GPUs",
    help="GPUs that a worker takes.",
)
@with_cpus
@with_out("Folder in which runs are stored.", default=Path("runs"))
@option("--name", default="scaling", metavar="NAME", group="Output", help="Name of the folder within --out.")
@with_experiment
@option("--quick", is_flag=True, group="Training", help="Use few rows and a small model: two minutes on two cores.")
@with_json
@with_quiet
@with_verbose
def scale(**options: Any) -> None:
    """Measure how fine-tuning scales: several workers on one model, and several concurrent trials.

    Strong scaling splits one batch over the workers, weak scaling gives each worker a full batch. Sequences are random:
    only time is measured. Writes a table, a plot and JSON to OUT/NAME, and an MLflow run.

    \b
    Examples:
      l2g-ray scale --quick
      l2g-ray scale --workers 1,2,4,8 --language-model FacebookAI/roberta-base --length-bp 500
    """
    from l2g_ray.presets import parse_assignments, resolve
    from l2g_ray.results.comparison import render_scaling
    from l2g_ray.results.terminal import print_fitted

    as_json = options["as_json"]
    console, shown = run_console(as_json, width=130), table_console(as_json, width=130)
    with loading(console):
        from l2g_ray.models.locate import locate
        from l2g_ray.orchestrate.cluster import describe_start
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
    console.print(describe_start(), soft_wrap=True)
    found = measure_scaling(request, lambda line: console.print(line, soft_wrap=True))
    folder = options["out"] / options["name"]
    uri = record_scaling(found, options["out"], folder, options["experiment"])
    shown.print()
    if not as_json:
        print_fitted(shown, render_scaling(found))
    shown.print(f"table, plot, JSON  {folder}", soft_wrap=True)
    shown.print(f"MLflow             {uri}", soft_wrap=True)
    if as_json:
        click.echo(json.dumps(found, indent=1))


def _read_sizes(flag: str, text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1 or list(sizes) != sorted(set(sizes)):
        raise UserError(f"{flag} {text}: give increasing whole numbers from 1, for example {flag} 1,2,4")
    return sizes
