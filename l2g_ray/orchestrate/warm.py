"""Processes that stay warm: what they import beforehand, and how they run a job from its begin to its end."""

from __future__ import annotations

import contextlib
import gc
import signal
import threading
from collections.abc import Iterator
from typing import Any

from l2g_ray.monitor.events import Epoch
from l2g_ray.monitor.trial_logs import note_logs
from l2g_ray.orchestrate.cluster import Slots
from l2g_ray.orchestrate.memory import Held
from l2g_ray.orchestrate.spec import JobSpec
from l2g_ray.orchestrate.streamed import ask

WARMED = 8


def warm_up(slots: Slots) -> None:
    """Import what jobs need in one process a slot, up to a limit on large clusters; the caller does not wait."""
    import ray

    if not slots.gpus:  # see `ask`
        remote = ray.remote(**ask("process", slots))(_import_all)
        for _ in range(min(slots.count, WARMED)):
            remote.remote()


def _import_all() -> None:
    import l2g_ray.orchestrate.jobs  # noqa: F401
    from l2g_ray.stages.registry import STAGES

    for stage in STAGES.values():
        if stage.run:
            stage.load()


def run_warm(spec: JobSpec, runner: str, slots: Slots, held: Held, board: Any) -> None:
    """Run one job, in this process or as a Ray Train run, and put its epochs on the board."""
    import ray

    name = spec.name
    note_logs(spec.site.scratch, name.key, name)
    sent: list[Any] = []
    try:
        if runner == "train":
            from l2g_ray.orchestrate.train import run_in_train

            with _own_interrupts():
                run_in_train(spec, slots, board)
        else:
            from l2g_ray.orchestrate.jobs import run_job
            from l2g_ray.orchestrate.memory import open_held

            sources = open_held(held)
            run_job(
                spec,
                lambda row: sent.append(board.put.remote(Epoch.from_row(name, row))),
                sources.get("train"),
                sources.get("valid"),
            )
    finally:
        ray.get(sent)  # on the board before the pipeline says that the stage is over
        sources = {}
        gc.collect()  # models hold cycles, and the next job may be far away


@contextlib.contextmanager
def _own_interrupts() -> Iterator[None]:
    """Restore the handler of SIGINT: Ray Train leaves its own, and the process runs further jobs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
