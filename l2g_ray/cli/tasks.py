"""`l2g-ray tasks`."""

from __future__ import annotations

import json
import sys

import click


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
