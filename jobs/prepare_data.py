"""The data of a benchmark's tasks as a Ray job: a Ray task each, side by side on the cluster.

    python jobs/submit.py jobs/prepare_data.yaml -- --bench nt --data-dir /shared/data --out /shared/runs

Shards go where a suite with the same --out, --preset and --set looks for them; it then starts with training. Without this
job it prepares them itself, one after the other. Files of your own: `l2g-ray data prepare`.
"""

from pathlib import Path

import click

from l2g_ray.errors import UserError


def prepare_one(
    bench: str, name: str, preset: str, assignments: tuple[str, ...], data_dir: Path | None, out: Path
) -> str:
    """Check, split and write one task. Returns a line on what was found; runs on any node."""
    from l2g_ray.data.sources.official import find_raw
    from l2g_ray.orchestrate.identity import prepare_for_runs
    from l2g_ray.presets import parse_assignments, resolve
    from l2g_ray.tasks.catalogue import find_tasks

    (task,) = find_tasks(bench, [name])
    raw = find_raw(task, data_dir)
    settings = resolve(preset, raw.task.overrides, parse_assignments(assignments)).for_task(raw.task.strand_specific)
    prepared = prepare_for_runs(out, raw.task, raw, settings.data)
    counts = ", ".join(f"{facts['rows']:,} {split}" for split, facts in prepared.manifest["splits"].items())
    return f"{name}: {counts}; {prepared.folder}"


@click.command()
@click.option("--bench", required=True)
@click.option("--tasks", help="Only these, separated by commas.")
@click.option("--data-dir", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs"), show_default=True)
@click.option("--preset", default="fast", show_default=True)
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE")
def prepare(bench: str, tasks: str | None, out: Path, **options: object) -> None:
    """Prepare all tasks of BENCH, or some of them."""
    from l2g_ray.orchestrate.cluster import connect
    from l2g_ray.tasks.catalogue import find_tasks

    names = [task.name for task in find_tasks(bench, tasks.split(",") if tasks else None)]
    ray = connect()
    remote = ray.remote(num_cpus=1)(prepare_one)
    waiting = {remote.remote(bench, name, out=out.resolve(), **options): name for name in names}
    failed = 0
    while waiting:
        (done,), _ = ray.wait(list(waiting))
        name = waiting.pop(done)
        try:
            click.echo(f"{len(names) - len(waiting)} of {len(names)}  {ray.get(done)}")
        except ray.exceptions.RayTaskError as error:
            if not isinstance(error.cause, UserError):
                raise
            failed += 1
            click.echo(f"{len(names) - len(waiting)} of {len(names)}  {name}: {error.cause}", err=True)
    if failed:
        raise click.ClickException(f"{failed} of {len(names)} tasks could not be prepared; the lines above say why")


if __name__ == "__main__":
    prepare()
