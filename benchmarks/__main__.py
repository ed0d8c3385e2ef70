"""`python -m benchmarks [NAME...]`: run benchmarks, print a table, write JSON.

Without names all are run but those that take an hour by themselves; these say so: `ONLY_BY_NAME = True`.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import sys
import time
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

import benchmarks
from benchmarks.measure import Options, describe_machine

_NO_BENCHMARK = {"__main__", "growth_work", "l2g_runs", "measure", "synthetic"}
_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def list_benchmarks() -> list[str]:
    """Return names of the modules of this package that measure something."""
    return sorted(
        m.name for m in pkgutil.iter_modules(benchmarks.__path__) if not m.ispkg and m.name not in _NO_BENCHMARK
    )


@click.command()
@click.argument("names", nargs=-1)
@click.option(
    "--data-dir", type=click.Path(path_type=Path), default=_DATA, help="Folder with the real benchmarks' files."
)
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks/results"), show_default=True)
@click.option("--quick", is_flag=True, help="Measure less: only to see that a benchmark runs.")
@click.option("--threads", default=1, show_default=True, help="Of each side; a trial has one.")
def main(names: tuple[str, ...], data_dir: Path, out: Path, quick: bool, threads: int) -> None:
    """Run the named benchmarks; without names all but the long ones, which have ONLY_BY_NAME.

    A table here, NAME.json in --out.
    """
    known = list_benchmarks()
    for name in names:
        if name not in known:
            raise click.UsageError(f"no benchmark '{name}'; there are: {', '.join(known)}")
    console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)
    out.mkdir(parents=True, exist_ok=True)
    for name in names or known:
        module = importlib.import_module(f"benchmarks.{name}")
        if not names and getattr(module, "ONLY_BY_NAME", False):
            continue
        console.print(f"[bold]{name}[/bold]: {(module.__doc__ or '').strip().splitlines()[0]}")
        begun = time.monotonic()
        rows = module.run(Options(data_dir, quick, out, threads))
        if not rows:
            console.print(f"  nothing measured: no data at {data_dir}")
            continue
        table = Table()
        for column in rows[0]:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(
                *(
                    f"{v:,.4g}" if isinstance(v, float) else f"{v:,}" if isinstance(v, int) else str(v)
                    for v in row.values()
                )
            )
        console.print(table)
        found = {"benchmark": name, "quick": quick, "machine": describe_machine(), "rows": rows}
        found |= {"wall_s": round(time.monotonic() - begun, 1)}
        (out / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
