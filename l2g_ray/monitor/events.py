"""What happened in a suite's processes: events, the board that the driver empties, and how busy the slots were."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Self

# A trial's begin and end, in seconds since 1970 by the clock of its node.
Interval = tuple[float, float]


@dataclass(frozen=True)
class TrialName:
    """Which trial: `trial` is what people call it, `key` that of its result, `params` what is shown of its arguments."""

    task: str
    stage: str
    trial: str
    key: str
    params: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.task}: {self.stage} {self.trial}"


@dataclass(frozen=True)
class Note:
    """A sentence for people."""

    task: str
    text: str


@dataclass(frozen=True)
class StageBegan:
    """A stage runs this number of trials; with `beside`, next to other stages of its task."""

    task: str
    stage: str
    trials: int
    beside: bool = False


@dataclass(frozen=True)
class StageDone:
    """All trials of a stage have a result; `cached`: they had it before."""

    task: str
    stage: str
    cached: bool


@dataclass(frozen=True)
class SlotTimes:
    """When trials that ran occupied their slots, by the key of their result."""

    task: str
    intervals: dict[str, Interval]


@dataclass(frozen=True)
class _OfTrial:
    kind: ClassVar[str]

    name: TrialName

    @property
    def task(self) -> str:
        """The trial's task."""
        return self.name.task


@dataclass(frozen=True)
class Epoch(_OfTrial):
    """One epoch of a trial: its numbers, when its trial began and when it was reported, in seconds since 1970.

    Results of early versions have no times.
    """

    kind = "trial"

    row: dict[str, float]
    began_at: float | None = None
    at: float | None = None

    @classmethod
    def from_row(cls, name: TrialName, row: Mapping[str, float]) -> Self:
        """Return an epoch from a row that may have times (`stamp_row`)."""
        numbers = {key: value for key, value in row.items() if key not in TIMES}
        return cls(name, numbers, **{key: row[key] for key in TIMES if key in row})


@dataclass(frozen=True)
class End(_OfTrial):
    """A trial ended well: when it ran, in seconds since 1970, and why it ended."""

    kind = "end"

    began_at: float
    ended_at: float
    stopped: str


@dataclass(frozen=True)
class Winner(_OfTrial):
    """A trial won its search."""

    kind = "winner"


@dataclass(frozen=True)
class Failure(_OfTrial):
    """A trial failed: whether it starts `again`, the reason as one line, and `text`, the whole error with last lines."""

    kind = "failure"

    again: bool
    reason: str
    text: str
    stopped: str = "failed"


# `Recorded` reaches MLflow and `events.jsonl`, `News` the progress table and the status, `Event` the board.
Recorded = Epoch | End | Winner | Failure
News = Note | StageBegan | StageDone | Recorded
Event = News | SlotTimes
Emit = Callable[[Event], None]
_KINDS: dict[str, type[Recorded]] = {one.kind: one for one in (Epoch, End, Winner, Failure)}
# What is added to the row of an epoch on its way: when its trial began and when it was reported, in seconds since 1970.
TIMES = ("began_at", "at")


def event_to_json(event: Recorded) -> dict[str, Any]:
    """Return a line of `events.jsonl`: `type`, the fields of the trial's name and those of the
    event.
    """
    own = {key: value for key, value in asdict(event).items() if value is not None}
    return {"type": event.kind, **own.pop("name"), **own}


def event_from_json(found: dict[str, Any]) -> Recorded:
    """Return the event of a line of `events.jsonl`, also of an earlier version."""
    kind = _KINDS[found["type"]]
    name = {one.name: found[one.name] for one in fields(TrialName)}
    own = {one.name: found[one.name] for one in fields(kind) if one.name in found}
    return kind(TrialName(**name | {"params": name["params"] or {}}), **own)


def stamp_row(row: Mapping[str, float], began_at: float) -> dict[str, float]:
    """Return a row that a stage reports, with its times. All of its numbers travel to the events and to MLflow.

    Raises ValueError for a value that is no number, and for a name in `TIMES`.
    """
    for name, value in row.items():
        if name in TIMES or not isinstance(value, int | float):
            raise ValueError(f"a stage reports {name!r}: {value!r}; give a number under a name other than {TIMES}")
    return {**row, **dict(zip(TIMES, (began_at, time.time()), strict=True))}


def describe_cut(name: TrialName, row: Mapping[str, float]) -> str:
    """Return the sentence on a trial that began to cut its batches."""
    return (
        f"{name}: memory did not suffice in epoch {int(row['epoch']) + 1}; each batch now goes through in "
        f"{int(row['micro_batches'])} micro-batches. The effective batch stays; batch norm takes each micro-batch's statistics"
    )


def warn_of_cuts(histories: Mapping[str, Sequence[Mapping[str, float]]]) -> list[str]:
    """Return the stages, for the leaderboard, whose batches were cut, from histories named 'stage/trial'."""
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


def _most_cut(rows: Iterable[Mapping[str, float]]) -> int:
    return max((int(row.get("micro_batches", 1)) for row in rows if row.get("micro_batches", 1) > 1), default=0)


class Board:
    """A Ray actor's class: a queue of events, in the order of arrival, each epoch of a trial once.

    The driver turns them into the progress table and into MLflow, so that exactly one process writes to either.
    """

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.reported: dict[tuple[str, str, str], int] = {}
        self.cuts: dict[tuple[str, str, str], int] = {}

    def put(self, event: Event) -> None:
        """Add one event. A restarted trial reports its first epochs again; these are left out."""
        if isinstance(event, Epoch):
            trial, epoch = (event.task, event.name.stage, event.name.key), int(event.row["epoch"])
            if epoch <= self.reported.get(trial, -1):
                return
            self.reported[trial] = epoch
            self._note_cut(trial, event)
        self.events.append(event)

    def _note_cut(self, trial: tuple[str, str, str], event: Epoch) -> None:
        micro_batches = int(event.row.get("micro_batches", 1))
        if micro_batches > self.cuts.get(trial, 1):
            self.cuts[trial] = micro_batches
            self.events.append(Note(event.task, describe_cut(event.name, event.row)))

    def drain(self) -> list[Event]:
        """Return all events since the last call."""
        taken, self.events = self.events, []
        return taken


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

    def to_dict(self) -> dict[str, float]:
        """Return a JSON-ready mapping, `busy` included."""
        return {key: round(value, 4) for key, value in (asdict(self) | {"busy": self.busy}).items()}


def measure_use(intervals: Iterable[Interval], slots: int) -> SlotUse | None:
    """Measure the use of `slots` slots; None without trials.

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

    def take(self, event: SlotTimes) -> None:
        """Take the times of some trials."""
        self.intervals |= event.intervals

    def measure(self, slots: int) -> SlotUse | None:
        """See `measure_use`."""
        return measure_use(self.intervals.values(), slots)
