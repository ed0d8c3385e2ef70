"""Where a task's jobs run, and lists of them side by side.

Stages that choose or pre-train (select, DASH, warm-up, alignment) are Ray Tune trials, and so is the search
over hyper-parameters (`tuning`). What only has to be done, the control arm, refits, baselines, the evaluation, are Ray tasks
in processes that stay warm (`warm`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from l2g_ray.counts import describe_end
from l2g_ray.errors import UserError
from l2g_ray.monitor.events import Emit, make_end_event, make_trial_event
from l2g_ray.monitor.trial_logs import fetch_last_lines, read_note
from l2g_ray.orchestrate.cluster import MAX_FAILURES, Slots
from l2g_ray.orchestrate.memory import memory_key
from l2g_ray.orchestrate.warm import find_cause, run_jobs_warm
from l2g_ray.redaction import redact
from l2g_ray.stages.registry import find_stage
from l2g_ray.store.guard import read_stall
from l2g_ray.store.results import Job, StageResult, Store


class StageFailed(Exception):
    """A trial ended with an error that is no user's mistake."""


@dataclass(frozen=True)
class Place:
    """Where a task's jobs run: the common part of every spec, the slots, the event board and the way to it, a scratch
    folder, and references to the task's rows where they are in the object store."""

    task: str
    store: Store
    common: dict[str, Any]
    slots: Slots
    board: Any
    emit: Emit
    scratch: Path
    held: dict[str, Any] = field(default_factory=dict)

    def spec(self, job: Job) -> dict[str, Any]:
        """What travels to a worker."""
        return job.spec(self.common) | {
            "task": self.task,
            "label": job.label,
            "params": job.args,
            "kind": memory_key(job),
        }

    def find_stall(self, stage: str, key: str) -> str | None:
        """Where a job hung, in words; None if it did not."""
        stood = read_stall(self.store.work_folder(stage, key))
        limit_s = self.common["settings"]["cluster"]["stall_limit_s"]
        return f"no epoch ended within {limit_s:g} s (cluster.stall_limit_s), it stood in {stood}" if stood else None


def find_runner(place: Place, stage: str) -> str:
    """What a job of a stage runs in: a process, or a Ray Train run where several workers train one model."""
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
    event = {"type": "stage", "task": place.task, "stage": name, "beside": stage.beside}
    missing = [job for job in jobs if place.store.find(job.stage, job.key) is None]
    for job in jobs:
        if job not in missing and (stored := place.store.find(job.stage, job.key)):
            emit_history(place, place.spec(job), stored.values)
    if missing:
        place.emit(event | {"state": "running", "trials": len(missing)})

        def tell(index: int, error: Exception, again: bool) -> None:
            _note_failure(place, missing[index], error, again)

        errors: Iterable[BaseException | None]
        if stage.tuned and "fold" not in missing[0].args:
            # Here: a second of imports that a finished stage can do without.
            from l2g_ray.orchestrate.tune import run_trials

            errors = run_trials(place, name, missing, runner)
        else:
            errors = run_jobs_warm(
                [place.spec(job) for job in missing],
                runner,
                place.slots,
                place.held,
                place.board,
                tell,
                lambda index: emit_end(place, missing[index]),
            )
        done = [result for job in missing if (result := place.store.find(job.stage, job.key))]
        emit_slots(place, {r.key: (r.values["began_at"], r.values["ended_at"]) for r in done})
        raise_first_error(errors, place.task, name, lambda error: _blame(place, missing, error))
    found = [place.store.find(job.stage, job.key) for job in jobs]
    if lost := [job.label for job, result in zip(jobs, found, strict=True) if result is None]:
        raise StageFailed(f"stage {name}: no result of {', '.join(lost)} in {place.store.root}")
    place.emit(event | {"state": "done", "cached": not missing})
    return [result for result in found if result is not None]


def emit_slots(place: Place, intervals: dict[str, tuple[float, float]]) -> None:
    """Tell when trials began and ended; of those that ASHA stopped, the end is their last report."""
    place.emit({"type": "slots", "task": place.task, "intervals": intervals})


def emit_history(place: Place, spec: dict[str, Any], values: dict[str, Any], stopped: str = "finished") -> None:
    """Tell the epochs of a trial that the store has, with the times at which it ran.

    Parameters
    ----------
    spec : names the trial, as in `make_trial_event`.
    values : its result: `history`, and `began_at` and `ended_at`, which those of an earlier version may lack.
    stopped : why it ended.
    """
    history = values.get("history") or []
    if not history:
        return
    took_s = [float(row.get("wall_s", 0.0)) for row in history]
    ended_at = values.get("ended_at") or time.time()
    began_at = values.get("began_at") or ended_at - sum(took_s)
    for number, row in enumerate(history, 1):
        at = max(began_at, ended_at - sum(took_s[number:]))
        place.emit(make_trial_event(spec, row | {"began_at": began_at, "at": at}))
    place.emit(make_end_event(spec, began_at, ended_at, stopped))


def emit_end(place: Place, job: Job) -> None:
    """Tell that a job is done, from its result."""
    found = place.store.find(job.stage, job.key)
    if found is None or "history" not in found.values:
        return
    history = found.values["history"]
    last_loss = float(history[-1]["train_loss"]) if history else 0.0
    stopped = describe_end(len(history), last_loss, len(history), [])
    place.emit(make_end_event(place.spec(job), found.values["began_at"], found.values["ended_at"], stopped))


def _note_failure(place: Place, job: Job, error: Exception, again: bool) -> None:
    cause = find_cause(error)
    if isinstance(cause, UserError):  # the task ends with it, and says so
        return
    first = (str(cause).strip().splitlines() or ["without a message"])[0]
    emit_failure(place, job.stage, job.key, f"{type(cause).__name__}: {first}", str(error), again)


def emit_failure(
    place: Place, stage: str, note: str, reason: str, error: str, again: bool, label: str | None = None
) -> None:
    """Tell that a trial failed: the reason as one line, the whole error, and the last lines that its process wrote.

    `note` is the name under which the trial noted where it writes; `stage` stands in for a trial that never began, and
    `label` is its name, where that is not the one that it noted.
    """
    noted = read_note(place.scratch, note)
    stall = place.find_stall(noted.get("stage", stage), noted.get("key", note))
    reason = stall or reason
    where = f"node {noted['node']}, process {noted['pid']}\n" if noted else ""
    place.emit(
        {
            "type": "failure",
            "task": place.task,
            "stage": noted.get("stage", stage),
            "trial": label or noted.get("label", note),
            "key": noted.get("key", note),
            "params": noted.get("params"),
            "again": again,
            "stopped": "stall limit" if stall else "failed",
            "reason": redact(reason[:300]),
            "text": redact(f"{where}--- error\n{error.rstrip()}\n{fetch_last_lines(noted)}"),
        }
    )


def _blame(place: Place, jobs: list[Job], error: BaseException) -> str:
    # Tune does not say which of its trials an error belongs to; the first without a result is one of them.
    job = next((job for job in jobs if place.store.find(job.stage, job.key) is None), jobs[0])
    cause = find_cause(error)
    reason = place.find_stall(job.stage, job.key) or f"{type(cause).__name__}: {redact(str(cause))}"
    return f"{job.label} failed: {reason}; tried {MAX_FAILURES + 1} times"


def raise_first_error(
    errors: Iterable[BaseException | None],
    task: str,
    stage: str,
    blame: Callable[[BaseException], str] | None = None,
) -> None:
    """Raise the UserError behind the first error, else StageFailed with what `blame` says; nothing where all are None."""
    for error in errors:
        if error is None:
            continue
        cause = find_cause(error)
        if isinstance(cause, UserError):
            raise cause
        what = blame(error) if blame else f"{type(cause).__name__}: {redact(str(cause))}"
        raise StageFailed(f"{task}, stage {stage}: {what}") from error
