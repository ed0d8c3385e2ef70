"""Where a task's jobs run, and the events that they emit: epochs, ends and failures."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from l2g_ray.counts import describe_end
from l2g_ray.errors import UserError
from l2g_ray.monitor.events import Emit, End, Epoch, Failure, Interval, SlotTimes, TrialName
from l2g_ray.monitor.trial_logs import fetch_last_lines, read_note
from l2g_ray.orchestrate.cluster import Slots
from l2g_ray.orchestrate.memory import Held
from l2g_ray.orchestrate.spec import JobSpec, Site
from l2g_ray.redaction import redact
from l2g_ray.store.guard import read_stall
from l2g_ray.store.results import Job, Store


class StageFailed(Exception):
    """A trial ended with an error that is no user's mistake."""


@dataclass(frozen=True)
class Place:
    """Where a task's jobs run: what they have in common, the slots, the event board and the way to it, and references to
    the task's rows where they are in the object store."""

    site: Site
    store: Store
    slots: Slots
    board: Any
    emit: Emit
    held: Held = field(default_factory=dict)

    @property
    def task(self) -> str:
        """The task's name."""
        return self.site.task

    @property
    def scratch(self) -> Path:
        """The folder for Tune's own files and for notes of trials."""
        return self.site.scratch

    def name(self, job: Job) -> TrialName:
        """Return the readable name of a job and the key that identifies it."""
        return JobSpec(self.site, job).name

    def find_stall(self, stage: str, key: str) -> str | None:
        """Return where a job hung, in words; None if it did not."""
        stood = read_stall(self.store.work_folder(stage, key))
        limit_s = self.site.settings.cluster.stall_limit_s
        return f"no epoch ended within {limit_s:g} s (cluster.stall_limit_s), it stood in {stood}" if stood else None


def emit_slots(place: Place, intervals: dict[str, Interval]) -> None:
    """Tell when trials began and ended; of those that ASHA stopped, the end is their last report."""
    place.emit(SlotTimes(place.task, intervals))


def emit_history(
    place: Place,
    name: TrialName,
    history: list[dict[str, float]],
    began_at: float | None = None,
    ended_at: float | None = None,
    stopped: str = "finished",
) -> None:
    """Tell the epochs of a trial that the store has, with the times at which it ran, which those of an earlier version may
    lack, and why it ended."""
    if not history:
        return
    took_s = [float(row.get("wall_s", 0.0)) for row in history]
    ended_at = ended_at or time.time()
    began_at = began_at or ended_at - sum(took_s)
    for number, row in enumerate(history, 1):
        at = max(began_at, ended_at - sum(took_s[number:]))
        place.emit(Epoch(name, row, began_at, at))
    place.emit(End(name, began_at, ended_at, stopped))


def emit_end(place: Place, job: Job) -> None:
    """Tell that a job is done, from its result."""
    found = place.store.find(job.stage, job.key)
    if found is None or "history" not in found.values:
        return
    history = found.values["history"]
    last_loss = float(history[-1]["train_loss"]) if history else 0.0
    stopped = describe_end(len(history), last_loss, len(history), [])
    place.emit(End(place.name(job), found.values["began_at"], found.values["ended_at"], stopped))


def emit_failure(
    place: Place, stage: str, note: str, reason: str, error: str, again: bool, label: str | None = None
) -> None:
    """Emit the failure of a trial: the reason as one line, the whole error, and the last lines that its process wrote.

    `note` is the name under which the trial noted where it writes. `stage` is used for a trial that never began. `label` is
    the trial's name, if it differs from the noted one.
    """
    noted = read_note(place.scratch, note)
    name = noted.name if noted else TrialName(place.task, stage, note, note, {})
    name = replace(name, trial=label or name.trial)
    stall = place.find_stall(name.stage, name.key)
    reason = stall or reason
    where = f"node {noted.node}, process {noted.pid}\n" if noted else ""
    text = redact(f"{where}--- error\n{error.rstrip()}\n{fetch_last_lines(noted)}")
    place.emit(Failure(name, again, redact(reason[:300]), text, "stall limit" if stall else "failed"))


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


def find_cause(error: BaseException) -> Exception:
    """Return the error at the bottom of what Ray wraps around it; a UserError wherever it stands."""
    while True:
        # Of a Train run's workers any will do: they fail together. What Ray wraps around a UserError is one by type, too.
        failures = list(getattr(error, "worker_failures", {}).values())
        inner = failures[0] if failures else getattr(error, "cause", None)
        if inner is None and not isinstance(error, UserError):
            inner = error.__cause__
        if inner is None or inner is error:
            return error if isinstance(error, Exception) else RuntimeError(str(error))
        error = inner
