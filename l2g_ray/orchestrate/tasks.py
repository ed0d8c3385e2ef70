"""Lists of jobs side by side: as Ray tasks in processes that stay warm, or, where a stage chooses, as trials of Ray Tune."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from l2g_ray.errors import UserError
from l2g_ray.monitor.events import StageBegan, StageDone
from l2g_ray.orchestrate.cluster import MAX_FAILURES, Slots
from l2g_ray.orchestrate.memory import Held
from l2g_ray.orchestrate.place import (
    Place,
    StageFailed,
    emit_end,
    emit_failure,
    emit_history,
    emit_slots,
    find_cause,
    raise_first_error,
)
from l2g_ray.orchestrate.spec import JobSpec
from l2g_ray.orchestrate.streamed import ask
from l2g_ray.orchestrate.warm import run_warm
from l2g_ray.redaction import redact
from l2g_ray.stages.registry import find_stage
from l2g_ray.store.results import Job, StageResult


def run_jobs_warm(
    specs: list[JobSpec],
    runner: str,
    slots: Slots,
    held: Held,
    board: Any,
    on_failure: Callable[[int, Exception, bool], None] = lambda index, error, again: None,
    on_end: Callable[[int], None] = lambda index: None,
) -> list[Exception | None]:
    """Run jobs as Ray tasks, as many at once as there are slots; the error of each, None for those that are done.

    A job whose process dies, or that raises, is restarted at most `MAX_FAILURES` times and resumes from its last epoch; a
    user's mistake is not retried. `on_failure` receives each failure: the job's number, Ray's error, and whether the job is
    restarted. `on_end` receives the number of each job that is done. With `runner` 'train' a task starts a Ray Train run and waits for it.
    """
    import ray

    remote = ray.remote(**ask(runner, slots))(run_warm)
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


def find_runner(place: Place, stage: str) -> str:
    """Return what a job of a stage runs in: a process, or a Ray Train run where several workers train one model."""
    return "train" if find_stage(stage).teamed and place.slots.workers > 1 else "process"


def run_jobs(place: Place, name: str, jobs: list[Job], runner: str | None = None) -> list[StageResult]:
    """Results of all jobs of one stage, in order; those that the store has are not run again, the others run as parallel
    trials.

    `name`: what people call these jobs. `runner` 'train' runs each job as a Ray Train run fed by Ray Data, 'process' in a
    worker process; None: see `find_runner`.

    Raises UserError or StageFailed when a job fails for good.
    """
    stage = find_stage(jobs[0].stage)
    runner = runner or find_runner(place, stage.name)
    missing = [job for job in jobs if place.store.find(job.stage, job.key) is None]
    for job in jobs:
        if job not in missing and (stored := place.store.find(job.stage, job.key)):
            values = stored.values
            emit_history(
                place, place.name(job), values.get("history", []), values.get("began_at"), values.get("ended_at")
            )
    if missing:
        place.emit(StageBegan(place.task, name, len(missing), stage.beside))

        def report_failure(index: int, error: Exception, again: bool) -> None:
            _note_failure(place, missing[index], error, again)

        errors: Iterable[BaseException | None]
        if stage.tuned and "fold" not in missing[0].args:
            # Here: a second of imports that a finished stage can do without.
            from l2g_ray.orchestrate.tune import run_trials

            errors = run_trials(place, name, missing, runner)
        else:
            errors = run_jobs_warm(
                [JobSpec(place.site, job) for job in missing],
                runner,
                place.slots,
                place.held,
                place.board,
                report_failure,
                lambda index: emit_end(place, missing[index]),
            )
        done = [result for job in missing if (result := place.store.find(job.stage, job.key))]
        emit_slots(place, {r.key: (r.values["began_at"], r.values["ended_at"]) for r in done})
        raise_first_error(errors, place.task, name, lambda error: _blame(place, missing, error))
    found = [place.store.find(job.stage, job.key) for job in jobs]
    if lost := [job.label for job, result in zip(jobs, found, strict=True) if result is None]:
        raise StageFailed(f"stage {name}: no result of {', '.join(lost)} in {place.store.root}")
    place.emit(StageDone(place.task, name, cached=not missing))
    return [result for result in found if result is not None]


def _note_failure(place: Place, job: Job, error: Exception, again: bool) -> None:
    cause = find_cause(error)
    if isinstance(cause, UserError):  # the task ends with it, and says so
        return
    first = (str(cause).strip().splitlines() or ["without a message"])[0]
    emit_failure(place, job.stage, job.key, f"{type(cause).__name__}: {first}", str(error), again)


def _blame(place: Place, jobs: list[Job], error: BaseException) -> str:
    # Tune does not say which of its trials an error belongs to; the first without a result is one of them.
    job = next((job for job in jobs if place.store.find(job.stage, job.key) is None), jobs[0])
    cause = find_cause(error)
    reason = place.find_stall(job.stage, job.key) or f"{type(cause).__name__}: {redact(str(cause))}"
    return f"{job.label} failed: {reason}; tried {MAX_FAILURES + 1} times"
