"""Jobs in warm processes: what is asked of Ray for one, and one whose caller decides after each epoch."""

from __future__ import annotations

import gc
import queue
import threading
from collections.abc import Generator, Iterator
from typing import Any

from l2g_ray.monitor.trial_logs import note_logs
from l2g_ray.orchestrate.cluster import Slots
from l2g_ray.orchestrate.memory import Held
from l2g_ray.orchestrate.spec import JobSpec

# A process is replaced after this number of jobs, which frees what libraries keep in memory.
JOBS_PER_PROCESS = 64


class _Stopped(BaseException):
    """No further epoch of this job is wanted."""


def ask(runner: str, slots: Slots) -> dict[str, float]:
    """Options of a Ray task that runs a job."""
    options: dict[str, float] = {"max_retries": 0, "max_calls": JOBS_PER_PROCESS}
    if runner == "train":  # its workers ask for the slot
        return options | {"num_cpus": 0}
    options |= {"num_cpus": slots.cpus, "num_gpus": slots.gpus}
    # A process stays with the GPU that it first saw, and Ray may give the next job another: there, one job a process.
    return options | ({"max_calls": 1} if slots.gpus else {})


def run_streamed(spec: JobSpec, slots: Slots, held: Held) -> Generator[dict[str, float], None, None]:
    """Run one job in a warm process, and yield the rows of its epochs; each epoch begins when the caller asks for its row.

    The job is cancelled when the iterator is closed. Raises what the job raises, as Ray gives it.
    """
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    stream = (
        ray.remote(**ask("process", slots))(_stream_rows)
        .options(
            num_returns="streaming",
            _generator_backpressure_num_objects=1,  # see `_stream_rows`
            scheduling_strategy=PlacementGroupSchedulingStrategy(None),  # not within what Tune reserved for the trial
        )
        .remote(spec, held)
    )
    try:
        for row in stream:
            yield ray.get(row)
            ray.get(next(stream))
    finally:
        ray.cancel(stream)


def _stream_rows(spec: JobSpec, held: Held) -> Iterator[dict[str, float] | None]:
    """Yield the row of each epoch, and None after it. Ray resumes this generator when what it yielded is taken, so that the next
    epoch begins once None is taken, after a decision on the row."""
    note_logs(spec.site.scratch, spec.note or spec.name.key, spec.name)
    rows: queue.SimpleQueue[dict[str, float] | BaseException | None] = queue.SimpleQueue()
    wanted: queue.SimpleQueue[bool] = queue.SimpleQueue()
    thread = threading.Thread(target=_feed, args=(spec, held, rows, wanted))
    thread.start()
    try:
        while isinstance(row := rows.get(), dict):
            yield row
            yield None
            wanted.put(True)
        if row is not None:
            raise row
    finally:
        wanted.put(False)
        thread.join()
        gc.collect()  # as in `run_warm`


def _feed(spec: JobSpec, held: Held, rows: queue.SimpleQueue[Any], wanted: queue.SimpleQueue[bool]) -> None:
    from l2g_ray.orchestrate.jobs import run_job
    from l2g_ray.orchestrate.memory import open_held

    def report(row: dict[str, float]) -> None:
        rows.put(row)
        if not wanted.get():
            raise _Stopped

    try:
        sources = open_held(held)
        run_job(spec, report, sources.get("train"), sources.get("valid"))
        rows.put(None)
    except _Stopped:
        pass
    except BaseException as error:
        rows.put(error)
