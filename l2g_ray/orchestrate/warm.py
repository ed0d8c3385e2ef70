"""Jobs as Ray tasks. Ray gives a task a worker process that is idle, so most jobs find torch and the rest imported.

Kept free of heavy imports: the pipeline, which only sends jobs, needs none of them.
"""

from __future__ import annotations

import contextlib
import gc
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from l2g_ray.errors import UserError
from l2g_ray.monitor.events import make_trial_event
from l2g_ray.monitor.trial_logs import note_logs
from l2g_ray.orchestrate.cluster import MAX_FAILURES, Slots

# A process is replaced after so many jobs, whatever a library may have kept in it.
JOBS_PER_PROCESS = 64
WARMED = 8


def run_jobs_warm(
    specs: list[dict[str, Any]],
    runner: str,
    slots: Slots,
    held: dict[str, Any],
    board: Any,
    on_failure: Callable[[int, Exception, bool], None] = lambda index, error, again: None,
    on_end: Callable[[int], None] = lambda index: None,
) -> list[Exception | None]:
    """Run jobs as Ray tasks, as many at once as there are slots; the error of each, None for those that are done.

    A job whose process dies, or that raises, is started again, at most `MAX_FAILURES` times, and goes on from its last
    epoch; a user's mistake is not tried again. `on_failure` hears of each failure: the job's number, the error as Ray
    gives it, whether it is started again; `on_end` of each job that is done. With `runner` 'train' a task starts a Ray Train run and waits for it.
    """
    import ray

    remote = ray.remote(**_ask(runner, slots))(run_warm)
    errors: list[Exception | None] = [None] * len(specs)
    failures = [0] * len(specs)
    waiting = list(range(len(specs)))
    running: dict[Any, int] = {}
    while waiting or running:
        while waiting and len(running) < slots.count:
            index = waiting.pop(0)
            running[remote.remote(specs[index], runner, slots, held, board)] = index
        (done, *_), _ = ray.wait(list(running))
        index = running.pop(done)
        try:
            ray.get(done)
        except Exception as error:
            failures[index] += 1
            again = failures[index] <= MAX_FAILURES and not isinstance(find_cause(error), UserError)
            on_failure(index, error, again)
            if again:
                waiting.insert(0, index)
            else:
                errors[index] = error
        else:
            on_end(index)
    return errors


def find_cause(error: BaseException) -> Exception:
    """The error at the bottom of what Ray wraps around it; a UserError wherever it stands."""
    while True:
        # Of a Train run's workers any will do: they fail together. What Ray wraps around a UserError is one by type, too.
        failures = list(getattr(error, "worker_failures", {}).values())
        inner = failures[0] if failures else getattr(error, "cause", None)
        if inner is None and not isinstance(error, UserError):
            inner = error.__cause__
        if inner is None or inner is error:
            return error if isinstance(error, Exception) else RuntimeError(str(error))
        error = inner


def _ask(runner: str, slots: Slots) -> dict[str, Any]:
    options: dict[str, Any] = {"max_retries": 0, "max_calls": JOBS_PER_PROCESS}
    if runner == "train":  # its workers ask for the slot
        return options | {"num_cpus": 0}
    options |= {"num_cpus": slots.cpus, "num_gpus": slots.gpus}
    # A process stays with the GPU that it first saw, and Ray may give the next job another: there, one job a process.
    return options | ({"max_calls": 1} if slots.gpus else {})


def warm_up(slots: Slots) -> None:
    """Have a process a slot, but not a whole large cluster, import what jobs need while the caller goes on."""
    import ray

    if not slots.gpus:  # see `_ask`
        remote = ray.remote(**_ask("process", slots))(_import_all)
        for _ in range(min(slots.count, WARMED)):
            remote.remote()


def _import_all() -> None:
    import l2g_ray.orchestrate.jobs  # noqa: F401
    from l2g_ray.stages.registry import STAGES

    for stage in STAGES.values():
        if stage.run:
            stage.load()


def run_warm(spec: dict[str, Any], runner: str, slots: Slots, held: dict[str, Any], board: Any) -> None:
    """Run one job, in this process or as a Ray Train run, and put its epochs on the board."""
    import ray

    spec = spec | {"note": spec["key"]}
    note_logs(spec)
    told: list[Any] = []
    try:
        if runner == "train":
            from l2g_ray.orchestrate.train import run_in_train

            fixed = {name: spec[name] for name in ("label", "params", "key", "stage")}
            with _own_interrupts():
                run_in_train(spec, slots, fixed, board)
        else:
            from l2g_ray.orchestrate.jobs import run_job
            from l2g_ray.orchestrate.residence import open_held

            sources = open_held(held)
            run_job(
                spec,
                lambda row: told.append(board.put.remote(make_trial_event(spec, row))),
                sources.get("train"),
                sources.get("valid"),
            )
    finally:
        ray.get(told)  # on the board before the pipeline says that the stage is over
        sources = {}
        gc.collect()  # models hold cycles, and the next job may be far away


@contextlib.contextmanager
def _own_interrupts() -> Iterator[None]:
    """Ray Train leaves its handler of SIGINT behind; the process goes on to other jobs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
