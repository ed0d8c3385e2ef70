"""`l2g-ray plan`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from l2g_ray.api.requests import find_source
from l2g_ray.cli import complete
from l2g_ray.cli.options import (
    command,
    option,
    table_console,
    with_data_dir,
    with_json,
    with_language_model,
    with_preset,
    with_runs,
    with_seeds,
    with_set,
)
from l2g_ray.cli.source import with_source_flags
from l2g_ray.errors import UserError

if TYPE_CHECKING:
    from l2g_ray.config import Settings
    from l2g_ray.plan.costs import Machine, TaskPlan
    from l2g_ray.plan.finished import FinishedTask
    from l2g_ray.tasks.schema import Task

DEFAULT_GPU = "RTX A6000"


@command()
@click.argument("source", nargs=-1, shell_complete=complete.sources)
@option(
    "--bench",
    metavar="NAME",
    group="Data",
    shell_complete=complete.benches,
    help="Instead of SOURCE: a benchmark, see `l2g-ray tasks`.",
)
@option(
    "--tasks",
    metavar="A,B",
    group="Data",
    show_default="all",
    shell_complete=complete.bench_tasks,
    help="Tasks of the benchmark to plan.",
)
@with_source_flags
@with_preset
@with_data_dir
@with_language_model
@with_seeds
@with_set
@with_runs
@option(
    "--machine",
    metavar="NAME",
    group="Cluster",
    former=("--device", "--gpu"),
    shell_complete=complete.machines,
    show_default=f"{DEFAULT_GPU}; of a finished run on a CPU, 'cpu'",
    help="GPU model to plan for, or 'cpu' for one core.",
)
@option(
    "--price-per-hour",
    type=click.FloatRange(0),
    metavar="NUMBER",
    group="Cluster",
    help="Price of the machine per hour, in any currency.",
)
@option(
    "--utilisation",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="SHARE",
    group="Cluster",
    show_default="0.25",
    help="Share of the machine's peak performance that training reaches.",
)
@with_json
def plan(source: tuple[str, ...], source_flags: dict[str, Any], as_json: bool, **options: Any) -> None:
    """Estimate time, memory and disk of a run, or show what a finished RUN took.

    Counts rows and operations of the models. Nothing is prepared, loaded or trained.

    \b
    Examples:
      l2g-ray plan --bench nt --preset paper --data-dir data --machine "RTX A6000" --price-per-hour 0.8
      l2g-ray plan my_data --language-model minilm --machine cpu
      l2g-ray plan runs/demo-fast          # a finished run
    """
    from l2g_ray.plan.costs import find_machine, read_known
    from l2g_ray.plan.finished import is_run, read_run

    if bool(source) == bool(options["bench"]):
        raise UserError("give a SOURCE, a finished run's folder, or a benchmark with --bench")
    if options["tasks"] and not options["bench"]:
        raise UserError("--tasks needs --bench; add it, or leave --tasks out")
    utilisation = options["utilisation"] or read_known().utilisation
    price = options["price_per_hour"]
    if len(source) == 1 and is_run(Path(source[0])):
        finished = read_run(Path(source[0]))
        on_gpu = any(one.gpu_s for task in finished for one in task.trials)
        machine = find_machine(options["machine"] or (DEFAULT_GPU if on_gpu else "cpu"))
        _show_run(finished, machine, utilisation, price, as_json)
        return
    machine = find_machine(options["machine"] or DEFAULT_GPU)
    plans, notes = _plan_all(source, source_flags, options, machine)
    _show_plans(plans, notes, machine, utilisation, price, as_json)


def _plan_all(
    source: tuple[str, ...], flags: dict[str, Any], options: dict[str, Any], machine: Machine
) -> tuple[list[TaskPlan], list[str]]:
    from l2g_ray.config import resolve_precision
    from l2g_ray.extras import need_for
    from l2g_ray.models.precision_choice import recall_cpu_precision
    from l2g_ray.plan.encoder import read_shape
    from l2g_ray.plan.plan import plan_task
    from l2g_ray.presets import parse_assignments, resolve

    assignments = parse_assignments(options["assignments"])
    if options["language_model"] is not None:
        assignments["model.language_model"] = options["language_model"]
    if options["seeds"] is not None:
        assignments["seeds"] = options["seeds"]
    plans: list[TaskPlan] = []
    notes: list[str] = []
    measured, unmeasured = None if machine.is_gpu else recall_cpu_precision(threads=1), False
    for task, found in _find(source, flags, options):
        settings = resolve(options["preset"], task.overrides, assignments).for_task(task.strand_specific)
        try:
            need_for(settings)
        except UserError as missing:  # on the machine that trains it may be there
            notes += [] if str(missing) in notes else [str(missing)]
        rows = _rows(task, found, settings, options["out"])
        if rows is None:
            notes.append(f"{task.name}: number and length of rows are unknown; give the data's folder with --data-dir")
            continue
        if not rows.known:
            notes.append(f"{task.name}: {rows.origin}, not in the total; give the data's folder with --data-dir")
        precision = resolve_precision(settings.precision, "cuda" if machine.is_gpu else "cpu", measured or "fp32")
        unmeasured |= settings.precision == "auto" and not machine.is_gpu and measured is None
        shape = read_shape(settings.model.language_model)
        plans.append(plan_task(task, settings, rows, shape, precision=precision, on_gpu=machine.is_gpu))
    if not plans:
        raise UserError("; ".join(notes))
    if unmeasured:
        notes.append(
            "planned in fp32: with precision=auto, the first run measures whether bf16 is faster on this machine"
        )
    return plans, notes


def _find(source: tuple[str, ...], flags: dict[str, Any], options: dict[str, Any]) -> list[tuple[Task, Any]]:
    """Return tasks and where their rows are: a raw or prepared task, or None where the data is not here."""
    from l2g_ray.data.sources.official import find_folder, find_raw
    from l2g_ray.tasks.catalogue import find_tasks, list_benches

    data_dir = options["data_dir"]
    bench, names = options["bench"], None
    if bench and options["tasks"]:
        names = [name.strip() for name in options["tasks"].split(",") if name.strip()]
    if source and not Path(source[0]).exists():
        first, _, name = source[0].partition("/")
        if len(source) == 1 and name and first in list_benches():
            bench, names = first, [name]
    if bench:  # the catalogue plans also what is not here, and fetches nothing
        tasks = find_tasks(bench, names)
        found = [find_raw(task, data_dir) if find_folder(task, data_dir) is not None else None for task in tasks]
        return [(raw.task if raw else task, raw) for task, raw in zip(tasks, found, strict=True)]
    one = find_source(source, flags, data_dir)
    return [(one.task, one)]


def _rows(task: Task, found: Any, settings: Settings, out: str) -> Any:
    from l2g_ray.data.dataset import PreparedTask, open_prepared
    from l2g_ray.orchestrate.identity import prepared_folder
    from l2g_ray.plan.rows import assume_rows, count_rows
    from l2g_ray.storage import as_location

    if found is None:
        return assume_rows(task, settings.data)
    if not isinstance(found, PreparedTask):
        folder = prepared_folder(as_location(out), task, found, settings.data)
        if (folder / "task.json").is_file():
            found = open_prepared(folder)
    return count_rows(found, settings.data)


def _assumed(machine: Machine, utilisation: float) -> str:
    return (
        f"Times are for one {machine.name if machine.is_gpu else 'CPU core'} that runs one trial at a time and reaches "
        f"{utilisation:.0%} of its peak performance (assumed; change with --utilisation). {machine.source}."
    )


def _show_plans(
    plans: list[TaskPlan],
    notes: list[str],
    machine: Machine,
    utilisation: float,
    price: float | None,
    as_json: bool,
) -> None:
    from l2g_ray.plan.costs import Amount, add_amounts, read_known
    from l2g_ray.plan.finished import render_plan, show_bytes, show_hours
    from l2g_ray.results.terminal import print_fitted

    context = read_known().context_bytes if machine.is_gpu else 0

    def fits(amount: Amount) -> str:
        if machine.memory_bytes is None:
            return ""
        return "yes" if amount.memory_bytes + context <= machine.memory_bytes else "NO"

    def weigh(task: TaskPlan, expected: Amount, most: Amount) -> dict[str, Any]:
        hours = [machine.hours(a.flops, task.precision, utilisation) + a.start_s / 3600 for a in (expected, most)]
        return {"expected": asdict(expected), "most": asdict(most), "hours": hours, "fits": fits(most)}

    def describe(task: TaskPlan) -> dict[str, Any]:
        return {
            "task": task.task,
            "rows": asdict(task.rows),
            "precision": task.precision,
            "stages": {stage.stage: weigh(task, stage.expected, stage.most) for stage in task.stages},
            "total": weigh(task, task.total("expected"), task.total("most")),
            "prepared_bytes": task.prepared_bytes,
            "output_bytes": task.output_bytes,
            "disk_bytes": task.disk_bytes,
        }

    described = [describe(task) for task in plans]
    known = [task for task in plans if task.rows.known]
    sums = [t for t in described if t["rows"]["known"]]
    total: dict[str, Any] = {
        which: asdict(add_amounts(task.total(which) for task in known)) for which in ("expected", "most")
    } | {"hours": tuple(sum(t["total"]["hours"][i] for t in sums) for i in (0, 1))}
    disk_bytes = sum(task.disk_bytes for task in known)
    if as_json:
        report = {
            "device": asdict(machine),
            "utilisation": utilisation,
            "price_per_hour": price,
            "tasks": described,
            "total": total | {"disk_bytes": disk_bytes},
            "notes": notes,
        }
        click.echo(json.dumps(report, indent=1))
        return
    console = table_console(width=140)
    for task, one in zip(plans, described, strict=True):
        rows = task.rows
        counted = f"{rows.train:,} train, {rows.valid:,} valid, {rows.test:,} test" if rows.known else rows.origin
        lengths = f"{rows.max_bp:,} bp" if not rows.is_padded else f"{rows.min_bp:,} to {rows.max_bp:,} bp"
        title = f"{task.task}: {counted}; {lengths}; {task.precision}"
        print_fitted(console, render_plan(title, one["stages"], one["total"]))
    if len(known) > 1:
        stages = {name: _sum_stage(sums, name) for name in dict.fromkeys(n for t in sums for n in t["stages"])}
        print_fitted(console, render_plan(f"all {len(known)} tasks", stages, total))
    expected, most = total["hours"]
    if known:
        cost = "" if price is None else f", {expected * price:,.2f} to {most * price:,.2f} at {price:g} an hour"
        start = total["expected"]["start_s"] / 3600
        console.print(
            f"time    {show_hours(expected)} expected, {show_hours(most)} at most{cost}; "
            f"including {show_hours(start)} to start trials",
            soft_wrap=True,
        )
        kept_bytes = disk_bytes - sum(task.total().scratch_bytes for task in known)
        console.print(
            f"disk    {show_bytes(kept_bytes)} when finished; {show_bytes(disk_bytes)} at most, with the training states of "
            "all tasks at once",
            soft_wrap=True,
        )
    console.print(_assumed(machine, utilisation), soft_wrap=True)
    for note in notes:
        console.print(f"! {note}", soft_wrap=True)


def _sum_stage(described: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Return a stage over all tasks."""
    from l2g_ray.plan.costs import Amount, add_amounts

    stages = [t["stages"][name] for t in described if name in t["stages"]]
    summed: dict[str, Any] = {
        which: asdict(add_amounts(Amount(**s[which]) for s in stages)) for which in ("expected", "most")
    }
    fits = "NO" if any(s["fits"] == "NO" for s in stages) else stages[0]["fits"]
    return summed | {"hours": tuple(sum(s["hours"][i] for s in stages) for i in (0, 1)), "fits": fits}


def _show_run(
    finished: list[FinishedTask], machine: Machine, utilisation: float, price: float | None, as_json: bool
) -> None:
    from l2g_ray.plan.finished import render_spent, show_seconds, sum_stages
    from l2g_ray.results.terminal import print_fitted

    described = {task.name: _describe_run(task, machine, utilisation) for task in finished}
    unique = {(one.stage, one.key or task.name): one for task in finished for one in task.trials}
    seconds = {name: sum(getattr(one, name) or 0.0 for one in unique.values()) for name in ("wall_s", "cpu_s", "gpu_s")}
    paid_s = seconds["gpu_s"] or seconds["cpu_s"]
    total = seconds | {"price": None if price is None else paid_s / 3600 * price}
    if as_json:
        stages = {name: asdict(one) for name, one in sum_stages(unique.values()).items()}
        report = {
            "device": machine.name,
            "utilisation": utilisation,
            "tasks": {
                task.name: {
                    "stages": described[task.name],
                    "trials": [asdict(one) for one in task.trials],
                    "why_no_plan": task.why_no_plan,
                }
                for task in finished
            },
            "stages": stages,
            "total": total,
        }
        click.echo(json.dumps(report, indent=1))
        return
    console = table_console(width=140)
    for task in finished:
        print_fitted(console, render_spent(task.name, described[task.name]))
        if task.why_no_plan:
            console.print(f"! {task.name}: no plan to compare with: {task.why_no_plan}", soft_wrap=True)
    shown = ", ".join(f"{name[:-2]} {show_seconds(value)}" for name, value in seconds.items())
    cost = (
        ""
        if price is None
        else f"; {total['price']:,.2f} at {price:g} an hour of {'GPU' if seconds['gpu_s'] else 'CPU'}"
    )
    console.print(f"took    {shown}{cost} (shared stages are counted once)", soft_wrap=True)
    console.print(_assumed(machine, utilisation), soft_wrap=True)


def _describe_run(task: FinishedTask, machine: Machine, utilisation: float) -> dict[str, Any]:
    planned = {} if task.plan is None else {s.stage: s.expected for s in task.plan.stages}
    names = sorted(task.spent, key=lambda name: list(planned).index(name) if name in planned else -1)
    rows: dict[str, Any] = {}
    for name in names:
        rows[name] = {"spent": asdict(task.spent[name]), "planned": None}
        if task.plan is not None and name in planned:
            amount = planned[name]
            rows[name]["planned"] = {
                "epochs": amount.epochs,
                "steps": amount.steps,
                "flops": amount.flops,
                "hours": machine.hours(amount.flops, task.plan.precision, utilisation),
            }
    return rows
