"""What this machine is, and what was measured on it once and is kept for later processes."""

from __future__ import annotations

import contextlib
import fcntl
import json
import platform
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from l2g_ray.atomic import write_json
from l2g_ray.places import cache_folder


@cache
def describe_processor() -> str:
    """Return the processor's model name."""
    return _read_processor("model name") or platform.processor() or platform.machine()


@cache
def read_processor_flags() -> frozenset[str]:
    """Return the instruction sets that Linux lists for the processor; empty on other systems."""
    return frozenset((_read_processor("flags") or _read_processor("Features")).split())


def _read_processor(field: str) -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == field:
                return value.strip()
    return ""


def read_choices(name: str) -> dict[str, str]:
    """Return the content of `<name>.json` in the cache folder; empty where it is missing or unreadable."""
    try:
        read = json.loads((cache_folder() / f"{name}.json").read_text())
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}


@contextlib.contextmanager
def locked_choices(name: str) -> Iterator[dict[str, str]]:
    """Yield the content of `<name>.json` in the cache folder, and write it back if it changed.

    One process measures at a time, the others then read. A cache that cannot be read or written does not stop a run: the
    choice then holds for this process.
    """
    folder = cache_folder()
    with contextlib.ExitStack() as stack:
        kept: dict[str, str] = {}
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context((folder / f"{name}.lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
            kept = read_choices(name)
        before = dict(kept)
        yield kept
        if kept != before:
            with contextlib.suppress(OSError):
                write_json(folder / f"{name}.json", dict(sorted(kept.items())))
