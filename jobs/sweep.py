"""The same tasks under several settings as a Ray job: a suite a variant, and one table at the end.

    python jobs/submit.py jobs/sweep.yaml -- --bench nt --tasks H3 --data-dir /shared/data --name combine \\
      --variant "skip" --variant "lm_only --set model.combine=lm_only" --variant "unaligned --set align.alphas=[0.0]"

A variant is a name and options of `l2g-ray suite`, which come after those that all variants have in common. Variants share
every stage that they agree on, so the second one costs only what differs. Stopped and submitted again, the job resumes.
"""

import shlex
import sys
from pathlib import Path

import click

from l2g_ray.errors import UserError

EXIT_TASKS_FAILED = 1


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--variant", "variants", multiple=True, required=True, metavar="'NAME [OPTIONS]'")
@click.option(
    "--name", default="sweep", show_default=True, help="The table's folder, and the first part of runs' names."
)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs"), show_default=True)
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
def sweep(variants: tuple[str, ...], name: str, out: Path, options: tuple[str, ...]) -> None:
    """Run a suite for each variant with OPTIONS of `l2g-ray suite`, then compare them."""
    from rich.console import Console

    from l2g_ray.results.comparison import compare_boards, read_board, render_comparison, write_comparison
    from l2g_ray.results.terminal import print_fitted

    parsed = {own: rest for own, *rest in map(shlex.split, variants)}
    if len(parsed) < len(variants):
        raise UserError("--variant: two variants have the same name; give each its own")
    failed = []
    for own, rest in parsed.items():
        click.echo(f"variant {own}: {shlex.join(rest) or 'nothing changed'}")
        code = run_suite([*options, *rest, "--out", str(out), "--name", f"{name}-{own}"])
        if code == EXIT_TASKS_FAILED:
            failed.append(own)
        elif code:
            sys.exit(code)  # a mistake, or an interrupt: the line above says which
    boards = {own: read_board(out / f"{name}-{own}") for own in parsed}
    rows = compare_boards(boards)
    print_fitted(Console(highlight=False), render_comparison(rows))
    for path in write_comparison(rows, out / name):
        click.echo(f"comparison   {path}")
    if failed:
        raise click.ClickException(f"tasks failed in: {', '.join(failed)}; the same job again repeats only these")


def run_suite(arguments: list[str]) -> int:
    """`l2g-ray suite` in this process, which then connects to Ray only once. Returns its exit code."""
    from l2g_ray.cli.main import run

    sys.argv = ["l2g-ray", "suite", *arguments]
    try:
        run()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


if __name__ == "__main__":
    try:
        sweep()
    except UserError as error:
        sys.exit(f"error: {error}")
