"""What happened in a suite's processes: events, the board that the driver empties, and how busy the slots were."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


def describe_cut(name: str, row: Mapping[str, Any]) -> str:
    """What to tell when a trial began to cut its batches."""
    return (
        f"{name}: memory did not suffice in epoch {int(row['epoch']) + 1}; each batch now goes through in "
        f"{row['micro_batches']} micro-batches. The effective batch stays; batch norm takes each micro-batch's statistics"
    )


def warn_of_cuts(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """For the leaderboard: stages whose batches were cut, from histories named 'stage/trial'."""
    cut: dict[str, int] = {}
    for name, rows in histories.items():
        if most := _most_cut(rows):
            stage = name.split("/")[0]
            cut[stage] = max(cut.get(stage, 1), most)
    if not cut:
        return []
    stages = ", ".join(f"{stage} (up to {n})" for stage, n in cut.items())
    return [
        f"memory did not suffice: batches went through in micro-batches in {stages}. Gradients accumulate, so the effective "
        "batch is the same, but batch norm took the statistics of each micro-batch"
    ]


def _most_cut(rows: Iterable[Mapping[str, Any]]) -> int:
    return max((int(row.get("micro_batches", 1)) for row in rows if row.get("micro_batches", 1) > 1), default=0)


@dataclass(frozen=True)
class TrialName:
    """Which trial: `trial` is what people call it, `key` that of its result, `params` what is shown of its arguments."""

    task: str
    stage: str
    trial: str
    key: str
    params: dict[str, Any]


Emit = Callable[[dict[str, Any]], None]
# What is added to the row of an epoch on its way: when its trial began and when it was reported, in seconds since 1970.
TIMES = ("began_at", "at")


def stamp_row(row: dict[str, float], began_at: float) -> dict[str, float]:
    """A row that a stage reports, with its times. All of its numbers travel to the events and to MLflow.

    Raises ValueError for a value that is no number, and for a name in `TIMES`.
    """
    for name, value in row.items():
        if name in TIMES or not isinstance(value, int | float):
            raise ValueError(f"a stage reports {name!r}: {value!r}; give a number under a name other than {TIMES}")
    return row | dict(zip(TIMES, (began_at, time.time()), strict=True))


def make_trial_event(name: TrialName, row: dict[str, float]) -> dict[str, Any]:
    """The event of one epoch of a trial. The row may have times (`stamp_row`)."""
    numbers = {key: value for key, value in row.items() if key not in TIMES}
    times = {key: row[key] for key in TIMES if key in row}
    return {"type": "trial", **asdict(name), **times, "row": numbers}


def make_end_event(name: TrialName, began_at: float, ended_at: float, stopped: str) -> dict[str, Any]:
    """The event of a trial's end, named as in `make_trial_event`: when it ran, in seconds since 1970, and why it ended."""
    return {"type": "end", **asdict(name), "began_at": began_at, "ended_at": ended_at, "stopped": stopped}


def make_winner_event(name: TrialName) -> dict[str, Any]:
    """The event that says which trial of a search won."""
    return {"type": "winner", **asdict(name)}


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


# A trial's begin and end, in seconds since 1970 by the clock of its node.
Interval = tuple[float, float]


@dataclass(frozen=True)
class SlotUse:
    """`busy_s`: seconds of all trials together. `span_s`: from the first begin to the last end."""

    slots: int
    trials: int
    busy_s: float
    span_s: float

    @property
    def busy(self) -> float:
        """Share of the slots' time in which a trial ran, 0 to 1."""
        return self.busy_s / (self.slots * self.span_s) if self.span_s > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping, `busy` included."""
        return {key: round(value, 4) for key, value in (asdict(self) | {"busy": self.busy}).items()}


def measure_use(intervals: Iterable[Interval], slots: int) -> SlotUse | None:
    """The use of so many slots; None without trials.

    A trial's interval is that of its stage function: starting its process counts as idle. So does a trial that failed
    and was run again, up to its last start.
    """
    found = [(begin, max(begin, end)) for begin, end in intervals]
    if not found:
        return None
    span_s = max(end for _, end in found) - min(begin for begin, _ in found)
    return SlotUse(slots, len(found), sum(end - begin for begin, end in found), span_s)


class SlotLog:
    """Collects the intervals of a suite's trials from the events of the board; a trial counts once."""

    def __init__(self) -> None:
        self.intervals: dict[str, Interval] = {}

    def take(self, event: Mapping[str, Any]) -> None:
        """Take one event; all but those of type 'slots' are passed over."""
        if event["type"] == "slots":
            self.intervals |= {key: (begin, end) for key, (begin, end) in event["intervals"].items()}

    def measure(self, slots: int) -> SlotUse | None:
        """See `measure_use`."""
        return measure_use(self.intervals.values(), slots)
