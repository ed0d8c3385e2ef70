"""`l2g-ray config` and `l2g-ray tasks`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from l2g_ray.errors import UserError


@click.group()
def config() -> None:
    """Show or check settings."""


@config.command()
@click.option("--preset", default="fast", show_default=True, metavar="NAME", help="smoke, fast or paper.")
@click.option("--task", "task_name", metavar="BENCH/TASK", help="With this task's own settings.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE")
def show(preset: str, task_name: str | None, assignments: tuple[str, ...]) -> None:
    """The resolved settings of a preset, as YAML."""
    import yaml

    from l2g_ray.presets import parse_assignments, resolve
    from l2g_ray.tasks.catalogue import find_tasks

    given = parse_assignments(assignments)
    if task_name is None:
        settings = resolve(preset, None, given)
    else:
        bench, _, name = task_name.partition("/")
        task = find_tasks(bench, [name])[0]
        settings = resolve(preset, task.overrides, given).for_task(task.strand_specific)
    click.echo(f"# l2g-ray suite --bench BENCH --preset {preset}")
    click.echo(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False), nl=False)


@config.command()
@click.argument("file", type=click.Path(path_type=Path))
def validate(file: Path) -> None:
    """Check a YAML file of settings, as `config show` prints it; `--preset FILE` runs with it."""
    from l2g_ray.presets import read_preset
    from l2g_ray.presets import validate as validate_settings

    if file.suffix not in (".yaml", ".yml"):
        raise UserError(f"{file}: settings are read from a .yaml file; rename it")
    validate_settings(read_preset(str(file)), str(file))
    click.echo(f"{file}: valid")


@click.command()
@click.argument("bench", required=False)
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
def tasks(bench: str | None, as_json: bool) -> None:
    """The catalogue: all benchmarks, or the tasks of BENCH."""
    from rich.console import Console

    from l2g_ray.results.terminal import Column, Listing, print_fitted
    from l2g_ray.tasks.catalogue import list_benches, load_bench

    benches = [load_bench(name) for name in ([bench] if bench else list_benches())]
    if as_json:
        listed = {
            b.name: {n: t.model_dump(mode="json", exclude={"overrides"}) for n, t in b.tasks.items()} for b in benches
        }
        click.echo(json.dumps(listed, indent=1))
        return
    console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)
    for found in benches:
        headings = ("Task", "Kind", "Labels", "Metric", "Up to bp", "Strand")
        columns = [Column(heading, words=heading != "Up to bp") for heading in headings]
        listing = Listing(columns, title=f"{found.name}: {found.title}")
        for task in found.tasks.values():
            labels = ", ".join(task.labels[:4]) + (", ..." if len(task.labels) > 4 else "")
            name = f"{task.name} (synthetic)" if task.synthetic else task.name
            strand = "given" if task.strand_specific else "both"
            listing.add(name, task.kind, labels, task.metric, str(task.length_bp or "any"), strand)
        print_fitted(console, listing)
