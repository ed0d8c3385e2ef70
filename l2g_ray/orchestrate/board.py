"""Where all processes of a suite put what happened, and the driver picks it up."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from l2g_ray.orchestrate.cuts import describe_cut

Emit = Callable[[dict[str, Any]], None]
# What is added to the row of an epoch on its way: when its trial began and when it was reported, in seconds since 1970.
TIMES = ("began_at", "at")


def stamp_row(row: dict[str, Any], began_at: float) -> dict[str, Any]:
    """A row that a stage reports, with its times. All of its numbers travel to the events and to MLflow.

    Raises ValueError for a value that is no number, and for a name in `TIMES`.
    """
    for name, value in row.items():
        if name in TIMES or not isinstance(value, int | float):
            raise ValueError(f"a stage reports {name!r}: {value!r}; give a number under a name other than {TIMES}")
    return row | dict(zip(TIMES, (began_at, time.time()), strict=True))


def make_tune_result(row: dict[str, Any], named: dict[str, Any], cpu_s_total: float) -> dict[str, Any]:
    """What Tune is given for an epoch: the row as it is, apart from Tune's own numbers, and what a search looks at."""
    read = {name: row[name] for name in ("epoch", "best_score")}
    return {**read, **named, "row": row, "cpu_s_total": cpu_s_total}


def make_trial_event(spec: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """The event of one epoch of a trial, whose 'task', 'stage', 'label', 'key' and 'params' `spec` names.

    The row may have times (`stamp_row`).
    """
    numbers = {name: value for name, value in row.items() if name not in TIMES}
    times = {name: row[name] for name in TIMES if name in row}
    return {"type": "trial", **_name_trial(spec), **times, "row": numbers}


def make_end_event(spec: dict[str, Any], began_at: float, ended_at: float, stopped: str) -> dict[str, Any]:
    """The event of a trial's end, named as in `make_trial_event`: when it ran, in seconds since 1970, and why it ended."""
    return {"type": "end", **_name_trial(spec), "began_at": began_at, "ended_at": ended_at, "stopped": stopped}


def make_winner_event(spec: dict[str, Any]) -> dict[str, Any]:
    """The event that says which trial of a search won."""
    return {"type": "winner", **_name_trial(spec)}


def _name_trial(spec: dict[str, Any]) -> dict[str, Any]:
    return {name: spec[name] for name in ("task", "stage", "key", "params")} | {"trial": spec["label"]}


class Board:
    """A Ray actor's class: a queue of events, in the order of arrival, each epoch of a trial once.

    Events are mappings with `type` ('stage', 'trial', 'end', 'winner', 'failure', 'slots', 'note') and `task`; the driver turns them into the progress
    table and into MLflow, so that exactly one process writes to either.
    """

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.told: dict[tuple[str, str, str], int] = {}
        self.cuts: dict[tuple[str, str, str], int] = {}

    def put(self, event: dict[str, Any]) -> None:
        """Add one event. A trial that was started again tells its first epochs anew: these are left out."""
        if event["type"] == "trial":
            trial, epoch = (event["task"], event["stage"], event["key"]), int(event["row"]["epoch"])
            if epoch <= self.told.get(trial, -1):
                return
            self.told[trial] = epoch
            self._note_cut(trial, event)
        self.events.append(event)

    def _note_cut(self, trial: tuple[str, str, str], event: dict[str, Any]) -> None:
        micro_batches = int(event["row"].get("micro_batches", 1))
        if micro_batches > self.cuts.get(trial, 1):
            self.cuts[trial] = micro_batches
            text = describe_cut(f"{event['task']}: {event['stage']} {event['trial']}", event["row"])
            self.events.append({"type": "note", "task": event["task"], "text": text})

    def drain(self) -> list[dict[str, Any]]:
        """All events since the last call."""
        taken, self.events = self.events, []
        return taken
