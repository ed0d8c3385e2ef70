"""What a shell completes beyond names of options: benchmarks, tasks, presets, settings, studies."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

import click
from click.shell_completion import CompletionItem

_Context: TypeAlias = click.Context
_Parameter: TypeAlias = click.Parameter


def benches(ctx: _Context, param: _Parameter, incomplete: str) -> list[CompletionItem]:
    """Benchmarks of the catalogue."""
    from l2g_ray.tasks.catalogue import list_benches

    return _matching(list_benches(), incomplete)


def sources(ctx: _Context, param: _Parameter, incomplete: str) -> list[CompletionItem]:
    """BENCH/TASK of the catalogue, otherwise files."""
    return tasks(ctx, param, incomplete) or [CompletionItem(incomplete, type="file")]


def tasks(ctx: _Context, param: _Parameter, incomplete: str) -> list[CompletionItem]:
    """BENCH/TASK of the catalogue."""
    from l2g_ray.tasks.catalogue import list_benches, load_bench

    bench, slash, _ = incomplete.partition("/")
    if not slash:
        return _matching([f"{name}/" for name in list_benches()], incomplete)
    if bench not in list_benches():
        return []
    return _matching([f"{bench}/{name}" for name in load_bench(bench).tasks], incomplete)


def bench_tasks(ctx: _Context, param: _Parameter, incomplete: str) -> list[CompletionItem]:
    """Return tasks of the benchmark that `--bench` names, after the commas that are there."""
    from l2g_ray.tasks.catalogue import list_benches, load_bench

    bench = ctx.params.get("bench")
    return _listed(load_bench(bench).tasks, incomplete) if bench in list_benches() else []


def run_tasks(ctx: _Context, param: _Parameter, incomplete: str) -> list[CompletionItem]:
    """Return tasks of the run that the command reads."""
    run = Path(str(ctx.params.get("run") or ""))
    names = [path.parent.name for path in run.glob("*/stages.json")] if run.is_dir() else []
    return _matching(sorted(names), incomplete)


def presets(ctx: _Context, param: _Parameter, incomplete: str) -> list[CompletionItem]:
    """Presets, otherwise files."""
    from l2g_ray.presets import list_presets

    return _matching(list_presets(), incomplete) or [CompletionItem(incomplete, type="file")]


def assignments(ctx: _Context, param: _Parameter, incomplete: str) -> list[CompletionItem]:
    """Keys of settings; nothing after the equals sign."""
    from l2g_ray.config import known_keys

    return [] if "=" in incomplete else _matching([f"{key}=" for key in known_keys()], incomplete)


def machines(ctx: _Context, param: _Parameter, incomplete: str) -> list[CompletionItem]:
    """Devices that a plan knows."""
    from l2g_ray.plan.costs import read_known

    return _matching(read_known().machines, incomplete)


def arms(ctx: _Context, param: _Parameter, incomplete: str) -> list[CompletionItem]:
    """Return arms of a run, after the commas that are there."""
    from l2g_ray.arms import ARMS

    return _listed(["all", *ARMS], incomplete)


def studies(ctx: _Context, param: _Parameter, incomplete: str) -> list[CompletionItem]:
    """Studies of `l2g-ray ablate`."""
    from importlib import resources

    import yaml

    file = resources.files("l2g_ray") / "studies" / "arms.yaml"  # studies.study imports Ray
    return _matching(["all", *yaml.safe_load(file.read_text())["studies"]], incomplete)


def _listed(names: Iterable[str], incomplete: str) -> list[CompletionItem]:
    before, comma, last = incomplete.rpartition(",")
    return [CompletionItem(f"{before}{comma}{name}") for name in names if name.startswith(last)]


def _matching(names: Iterable[str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]
