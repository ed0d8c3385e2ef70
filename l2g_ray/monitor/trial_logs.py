"""What a trial that failed had to say: where its process writes, and the last lines of it.

A trial notes at its start, in the suite's scratch folder, which files of which node take its output. Whoever sees it
fail, also by a signal that left it no time, has the lines fetched from that node.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from l2g_ray.monitor.events import TrialName

LAST_LINES = 200
LAST_BYTES = 64_000
FETCH_S = 20.0
STREAMS = {"output": 1, "errors": 2}


@dataclass(frozen=True)
class TrialNote:
    """Which trial writes where: `files` are {'output': [path, offset], 'errors': [path, offset]} on the node."""

    name: TrialName
    node: str
    pid: int
    files: dict[str, tuple[str, int]]


def note_logs(scratch: Path, note: str, name: TrialName) -> None:
    """Note under the name `note` where this process writes. Called by the process that computes a trial."""
    import ray

    with contextlib.suppress(
        AttributeError, OSError, ValueError
    ):  # a killed process takes with it what it has not written
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    files: dict[str, tuple[str, int]] = {}
    for stream, descriptor in STREAMS.items():
        with contextlib.suppress(OSError):
            file = os.readlink(f"/proc/self/fd/{descriptor}")
            if os.path.isfile(file):  # a process is used again for the next trial: its own lines begin here
                files[stream] = (file, os.path.getsize(file))
    facts = asdict(TrialNote(name, ray.get_runtime_context().get_node_id(), os.getpid(), files))
    path = _place(scratch, note)
    with contextlib.suppress(OSError):  # a help for people: no trial fails for it
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(facts, default=str))


def read_note(scratch: Path, note: str) -> TrialNote | None:
    """Return what `note_logs` wrote; None for a trial that never began."""
    try:
        facts = json.loads(_place(scratch, note).read_text())
    except (OSError, ValueError):
        return None
    return TrialNote(**facts | {"name": TrialName(**facts["name"])})


def fetch_last_lines(note: TrialNote | None) -> str:
    """Return the last lines of a trial's output and errors, from the node where it ran."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if note is None or not note.files:
        return "(its output is not known: it ended before it began)\n"
    there = NodeAffinitySchedulingStrategy(note.node, soft=False)
    fetch = ray.remote(num_cpus=0, max_retries=0)(read_last_lines).options(scheduling_strategy=there)
    try:
        return ray.get(fetch.remote(note.files), timeout=FETCH_S)
    except Exception as error:  # the node is gone, or too busy: report the failure without its output
        return f"(its output could not be fetched from its node: {type(error).__name__})\n"


def read_last_lines(files: dict[str, tuple[str, int]]) -> str:
    """Return the last lines of each file, from an offset on; {name: (path, offset)}."""
    parts = []
    for name, (path, offset) in files.items():
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(offset if offset <= size else 0, size - LAST_BYTES))
            lines = file.read().decode(errors="replace").splitlines()[-LAST_LINES:]
        # Ray's own marks, by which it sorts lines to jobs and actors.
        lines = [line for line in lines if not line.startswith((":job_id:", ":actor_name:", ":task_name:"))]
        parts.append(f"--- last lines of its {name}\n" + "".join(f"{line}\n" for line in lines or ["(nothing)"]))
    return "".join(parts)


def _place(scratch: Path, note: str) -> Path:
    return scratch / "logs" / f"{note}.json"
