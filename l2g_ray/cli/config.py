"""`l2g-ray config` and `l2g-ray tasks`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from l2g_ray.cli import complete
from l2g_ray.cli.options import command, group, option, table_console, with_json, with_preset, with_set
from l2g_ray.errors import UserError

if TYPE_CHECKING:
    from pydantic import BaseModel


@group()
def config() -> None:
    """Show and check settings."""


@config.command()
@with_preset
@option(
    "--task",
    "task_name",
    metavar="BENCH/TASK",
    group="Data",
    shell_complete=complete.tasks,
    help="Include the task-specific settings of this task.",
)
@with_set
@with_json
def show(preset: str, task_name: str | None, assignments: tuple[str, ...], as_json: bool) -> None:
    """Print the settings of a preset as YAML, each with its description.

    \b
    Example:
      l2g-ray config show --preset paper > mine.yaml      # edit it, then: l2g-ray run my_data --preset mine.yaml
    """
    from l2g_ray.presets import parse_assignments, resolve
    from l2g_ray.tasks.catalogue import find_tasks

    given = parse_assignments(assignments)
    if task_name is None:
        settings = resolve(preset, None, given)
    else:
        bench, _, name = task_name.partition("/")
        task = find_tasks(bench, [name])[0]
        settings = resolve(preset, task.overrides, given).for_task(task.strand_specific)
    if as_json:
        click.echo(settings.model_dump_json(indent=1))
        return
    click.echo(f"# l2g-ray suite --bench BENCH --preset {preset}")
    click.echo("\n".join(_describe(settings)))


def _describe(settings: BaseModel, indent: str = "") -> Iterator[str]:
    """Yield the lines of a YAML file, with each key's description as a comment above it."""
    import textwrap

    import yaml
    from pydantic import BaseModel

    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            yield ""
        lines = textwrap.wrap(field.description or "", 100 - len(indent), break_on_hyphens=False)
        yield from (f"{indent}# {line}" for line in lines)
        if isinstance(value, BaseModel):
            yield f"{indent}{name}:"
            yield from _describe(value, f"{indent}  ")
        else:
            dumped: Any = settings.model_dump(mode="json", include={name})
            # Lists on one line, as in --set.
            text = yaml.safe_dump(dumped[name], default_flow_style=True, width=10_000, sort_keys=False)
            shown = text.removesuffix("...\n").strip()
            yield f"{indent}{name}: {shown}"


@config.command()
@click.argument("file", type=click.Path(path_type=Path))
def validate(file: Path) -> None:
    """Check a YAML file of settings, as `config show` prints it. `--preset FILE` uses it."""
    from l2g_ray.presets import read_preset
    from l2g_ray.presets import validate as validate_settings

    if file.suffix not in (".yaml", ".yml"):
        raise UserError(f"{file}: settings are read from a .yaml file; rename it")
    validate_settings(read_preset(str(file)), str(file))
    click.echo(f"{file}: valid")


@command()
@click.argument("bench", required=False, shell_complete=complete.benches)
@with_json
def tasks(bench: str | None, as_json: bool) -> None:
    """List all benchmarks of the catalogue with their tasks, or the tasks of BENCH."""
    from l2g_ray.results.terminal import Column, Listing, print_fitted
    from l2g_ray.tasks.catalogue import list_benches, load_bench

    benches = [load_bench(name) for name in ([bench] if bench else list_benches())]
    if as_json:
        listed = {
            b.name: {n: t.model_dump(mode="json", exclude={"overrides"}) for n, t in b.tasks.items()} for b in benches
        }
        click.echo(json.dumps(listed, indent=1))
        return
    console = table_console()
    for found in benches:
        headings = ("Task", "Kind", "Labels", "Metric", "Longest (bp)", "Strand")
        columns = [Column(heading, words=heading != "Longest (bp)") for heading in headings]
        listing = Listing(columns, title=f"{found.name}: {found.title}")
        for task in found.tasks.values():
            labels = ", ".join(task.labels[:4]) + (", ..." if len(task.labels) > 4 else "")
            name = f"{task.name} (synthetic)" if task.synthetic else task.name
            strand = "given" if task.strand_specific else "both"
            listing.add(name, task.kind, labels, task.metric, str(task.length_bp or "any"), strand)
        print_fitted(console, listing)
