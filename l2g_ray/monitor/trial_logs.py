"""What a trial that failed had to say: where its process writes, and the last lines of it.

A trial notes at its start, in the suite's scratch folder, which files of which node take its output. Whoever sees it
fail, also by a signal that left it no time, has the lines fetched from that node.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

LAST_LINES = 200
LAST_BYTES = 64_000
FETCH_S = 20.0
STREAMS = {"output": 1, "errors": 2}


def note_logs(spec: dict[str, Any]) -> None:
    """Note where this process writes, under the name `spec['note']`. Called by the process that computes."""
    import ray

    with contextlib.suppress(
        AttributeError, OSError, ValueError
    ):  # a killed process takes with it what it has not written
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    files = {}
    for name, descriptor in STREAMS.items():
        with contextlib.suppress(OSError):
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            if os.path.isfile(path):  # a process is used again for the next trial: its own lines begin here
                files[name] = [path, os.path.getsize(path)]
    facts = {key: spec[key] for key in ("stage", "label", "key", "params")}
    facts |= {"node": ray.get_runtime_context().get_node_id(), "pid": os.getpid(), "files": files}
    note = _place(Path(spec["scratch"]), spec["note"])
    with contextlib.suppress(OSError):  # a help for people: no trial fails for it
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(facts, default=str))


def read_note(scratch: Path, name: str) -> dict[str, Any]:
    """What `note_logs` wrote; empty for a trial that never began."""
    try:
        return json.loads(_place(scratch, name).read_text())
    except (OSError, ValueError):
        return {}


def fetch_last_lines(note: dict[str, Any]) -> str:
    """The last lines of a trial's output and errors, from the node where it ran."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if not note.get("files"):
        return "(its output is not known: it ended before it began)\n"
    there = NodeAffinitySchedulingStrategy(note["node"], soft=False)
    fetch = ray.remote(num_cpus=0, max_retries=0)(read_last_lines).options(scheduling_strategy=there)
    try:
        return ray.get(fetch.remote(note["files"]), timeout=FETCH_S)
    except Exception as error:  # the node is gone, or too busy: the failure is told without
        return f"(its output could not be fetched from its node: {type(error).__name__})\n"


def read_last_lines(files: dict[str, list[Any]]) -> str:
    """The last lines of each file, from an offset on; {name: [path, offset]}."""
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


def _place(scratch: Path, name: str) -> Path:
    return scratch / "logs" / f"{name}.json"
