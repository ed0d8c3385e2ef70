"""`l2g-ray data`: prepare, inspect, check, list."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from l2g_ray.api.requests import find_source, make_options
from l2g_ray.cli import complete
from l2g_ray.cli.options import (
    group,
    option,
    run_console,
    table_console,
    with_data_dir,
    with_json,
    with_keep_duplicates,
    with_out,
    with_quiet,
)
from l2g_ray.cli.source import show_notes, with_source_flags
from l2g_ray.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from l2g_ray.config import DataSettings
    from l2g_ray.data.dataset import PreparedTask
    from l2g_ray.data.raw import RawTask

with_max_length = option(
    "--max-length-bp",
    type=int,
    metavar="BP",
    group="Data",
    show_default="20000",
    help="Longest sequence that is accepted.",
)


@group()
def data() -> None:
    """Check, prepare, inspect and list data.

    \b
    Start with:
      l2g-ray data check my_data        # train.csv, test.csv with sequence,label
      l2g-ray data prepare my_data --out prepared/my_data
      l2g-ray run prepared/my_data
    """


@data.command()
@click.argument("source", nargs=-1, required=True, shell_complete=complete.sources)
@option(
    "--out",
    required=True,
    metavar="FOLDER|s3://...",
    group="Output",
    help="Folder for shards and task.json. An existing one is replaced.",
)
@with_source_flags
@with_data_dir
@option(
    "--valid-fraction",
    type=float,
    metavar="SHARE",
    group="Splits",
    show_default="0.1",
    help="Share of the training rows for validation, where the data has no validation split.",
)
@with_max_length
@option(
    "--rows-per-shard",
    type=click.IntRange(1),
    default=10_000,
    metavar="N",
    group="Output",
    help="Largest number of rows per shard.",
)
@with_keep_duplicates
@with_json
@with_quiet
def prepare(
    source: tuple[str, ...],
    out: str,
    source_flags: dict[str, Any],
    data_dir: Path | None,
    rows_per_shard: int,
    as_json: bool,
    **settings: Any,
) -> None:
    """Validate SOURCE, split it, remove leakage, and write Parquet shards and task.json.

    \b
    Examples:
      l2g-ray data prepare my_data --out prepared/my_data
      l2g-ray data prepare all.csv --label-column dev --label-column hk --out prepared/mpra
      l2g-ray data prepare peaks.narrowPeak --genome hg38.fa --window-bp 200 --test-chromosomes chr8 --out prepared/peaks
      l2g-ray data prepare all.csv --split folds --folds 5 --out prepared/folds   # fold-0 ... fold-4
    """
    from l2g_ray.data.prepare import prepare as prepare_raw
    from l2g_ray.monitor.progress import ReadingProgress
    from l2g_ray.storage import as_location

    console = run_console(as_json)
    chosen = _settings(settings, source_flags)
    make_options(source_flags)  # contradictions are reported before anything is read
    every_fold = source_flags["split"] == "folds" and source_flags["fold"] is None
    folds: list[int | None] = list(range(source_flags["folds"] or 5)) if every_fold else [None]
    manifests = []
    for fold in folds:
        raw = _need_raw(find_source(source, source_flags | ({} if fold is None else {"fold": fold}), data_dir), source)
        target = as_location(out) if fold is None else as_location(out) / f"fold-{fold}"
        with ReadingProgress(console, raw.task.name) as progress:
            prepared = prepare_raw(raw, target, chosen, rows_per_shard, progress.advance)
        manifests.append(prepared.manifest)
        if not as_json:
            _show(prepared, table_console())
    if as_json:
        click.echo(json.dumps(manifests if every_fold else manifests[0], indent=1))


@data.command()
@click.argument("folder", type=click.Path())
@with_json
def inspect(folder: str, as_json: bool) -> None:
    """Show a prepared FOLDER: task, splits, lengths, labels, source, and how it was split."""
    from l2g_ray.data.dataset import open_prepared

    prepared = open_prepared(folder)
    if as_json:
        click.echo(json.dumps(prepared.manifest, indent=1))
        return
    _show(prepared, table_console())


@data.command()
@click.argument("source", nargs=-1, shell_complete=complete.sources)
@option(
    "--bench",
    "benches",
    multiple=True,
    metavar="NAME",
    group="Data",
    shell_complete=complete.benches,
    help="Instead of SOURCE: all data sets of a benchmark in --data-dir, or 'all'. Repeatable.",
)
@with_source_flags
@with_data_dir
@with_out("Folder for check.html and check.json.", default=Path("data-check"))
@with_max_length
@with_json
@with_quiet
def check(
    source: tuple[str, ...],
    benches: tuple[str, ...],
    source_flags: dict[str, Any],
    data_dir: Path | None,
    out: Path,
    as_json: bool,
    **settings: Any,
) -> None:
    """Check SOURCE, or whole benchmarks, for leakage, near-duplicates, conflicting labels, balance and shifts.

    Nothing is removed or changed. Prints a table; check.html and check.json in --out have all details.

    \b
    Examples:
      l2g-ray data check my_data
      l2g-ray data check --bench all --data-dir ../shared/data
    """
    from rich.markup import escape

    from l2g_ray.data.dataset import PreparedTask
    from l2g_ray.data.prepare import check_raw
    from l2g_ray.monitor.progress import ReadingProgress
    from l2g_ray.results.data_check import render_check, render_summary, write_check_page
    from l2g_ray.results.terminal import print_fitted

    if bool(source) == bool(benches):
        raise UserError("give a SOURCE, or a benchmark with --bench")
    console, shown = run_console(as_json), table_console(as_json)
    chosen = _settings(settings, source_flags)
    found = {"": find_source(source, source_flags, data_dir)} if source else _find_benches(benches, data_dir)
    checks: dict[str, dict[str, Any]] = {}
    for name, one in found.items():
        if isinstance(one, PreparedTask):
            checks[name or one.task.name] = one.manifest["check"]
            continue
        with ReadingProgress(console, name or one.task.name) as progress:
            checks[name or one.task.name] = check_raw(one, chosen, progress.advance)
        for note in one.notes:
            shown.print(f"[yellow]! {escape(note)}[/yellow]", soft_wrap=True)
    page = write_check_page(out, checks)
    if as_json:
        click.echo(page.with_suffix(".json").read_text(), nl=False)
    elif len(checks) == 1:
        ((name, only),) = checks.items()
        print_fitted(shown, render_check(only, name))
        show_notes(next(iter(found.values())).task, shown)
    else:
        print_fitted(shown, render_summary(checks))
    shown.print(f"page  {page}   numbers  {page.with_suffix('.json')}", soft_wrap=True)


@data.command("list")
@with_data_dir
@with_json
def list_sets(data_dir: Path | None, as_json: bool) -> None:
    """List the data sets of the catalogue and their origin: a local folder, the package, the hub or a URL."""
    from l2g_ray.data.sources.official import find_folder
    from l2g_ray.results.terminal import Column, Listing, print_fitted
    from l2g_ray.tasks.catalogue import list_benches, load_bench

    rows: list[dict[str, Any]] = []
    for bench in list_benches():
        for task in load_bench(bench).tasks.values():
            folder = find_folder(task, data_dir)
            origin = str(folder) if folder else (f"hub: {task.hub}" if task.hub else task.url or "give --data-dir")
            rows.append(
                {
                    "bench": bench,
                    "task": task.name,
                    "kind": task.kind,
                    "here": folder is not None,
                    "from": origin,
                    "licence": task.licence,
                }
            )
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    headings = ("Data set", "Kind", "Local", "Origin", "Licence")
    listing = Listing([Column(heading, words=True) for heading in headings], title="Data sets of the catalogue")
    for row in rows:
        here = "yes" if row["here"] else "no"
        listing.add(f"{row['bench']}/{row['task']}", row["kind"], here, row["from"], row["licence"] or "not stated")
    print_fitted(table_console(), listing)


def _settings(values: dict[str, Any], flags: dict[str, Any]) -> DataSettings:
    from pydantic import ValidationError

    from l2g_ray.config import DataSettings
    from l2g_ray.tasks.catalogue import describe_invalid

    given = {key: value for key, value in values.items() if value is not None}
    if flags.get("seed") is not None:
        given["split_seed"] = flags["seed"]
    try:
        return DataSettings.model_validate(given)
    except ValidationError as error:
        raise UserError(f"flags: {describe_invalid(error, DataSettings)}") from None


def _need_raw(found: RawTask | PreparedTask, source: tuple[str, ...]) -> RawTask:
    from l2g_ray.data.dataset import PreparedTask
    from l2g_ray.places import show_command

    if isinstance(found, PreparedTask):
        raise UserError(
            f"{source[0]}: is already prepared; show it with `{show_command('data', 'inspect', source[0])}`"
        )
    return found


def _find_benches(benches: tuple[str, ...], data_dir: Path | None) -> dict[str, RawTask]:
    from l2g_ray.data.sources.official import find_folder, find_raw
    from l2g_ray.tasks.catalogue import find_tasks, list_benches

    wanted = list_benches() if "all" in benches else list(benches)
    tasks = [task for bench in wanted for task in find_tasks(bench) if find_folder(task, data_dir) is not None]
    if not tasks:
        raise UserError(f"no data of {', '.join(benches)} found; give its folder with --data-dir")
    return {f"{task.bench}/{task.name}": find_raw(task, data_dir) for task in tasks}


def _show(prepared: PreparedTask, console: Console) -> None:
    from rich.markup import escape

    from l2g_ray.results.terminal import Column, Listing, print_fitted

    task, manifest = prepared.task, prepared.manifest
    console.print(
        f"[bold]{escape(task.name)}[/bold]: {task.kind}, metric {task.metric}; {escape(str(prepared.folder))}"
    )
    listing = Listing(
        [
            Column("Split", words=True),
            Column("Rows"),
            Column("Length bp (min / median / max)", words=True),
            Column("Labels", words=True),
            Column("Shards"),
        ]
    )
    for split, facts in manifest["splits"].items():
        length = facts["length_bp"]
        listing.add(
            split,
            f"{facts['rows']:,}",
            f"{length['min']:,} / {length['median']:,.0f} / {length['max']:,}",
            _describe_labels(facts),
            str(len(manifest["shards"][split])),
        )
    print_fitted(console, listing)
    made, valid = manifest["made"], manifest["valid"]["made"]
    console.print(f"split by: {made['rule']}; validation: {valid}", soft_wrap=True)
    files = ", ".join(sorted({source["file"] for source in manifest["source"].values()}))
    console.print(escape(f"source: {files}" + (f"; {task.source}" if task.source else "")), soft_wrap=True)
    if task.licence:
        console.print(escape(f"licence: {task.licence}"), soft_wrap=True)
    show_notes(task, console)
    found = [finding["text"] for finding in manifest["check"]["findings"] if finding["level"] == "warning"]
    for warning in [*manifest["warnings"], *(f"check: {text}" for text in found)]:
        console.print(f"[yellow]! {escape(warning)}[/yellow]", soft_wrap=True)


def _describe_labels(facts: dict[str, Any]) -> str:
    if "classes" in facts:
        return ", ".join(f"{label} {n:,}" for label, n in facts["classes"].items())
    outputs = facts["outputs"]
    parts = [
        f"{label} {o['mean']:.3g} ± {o['sd']:.3g}" + (f", {o['missing']:,} missing" if o["missing"] else "")
        for label, o in list(outputs.items())[:4]
        if o["mean"] is not None
    ]
    return "; ".join(parts) + (f"; {len(outputs) - 4:,} more" if len(outputs) > 4 else "")
