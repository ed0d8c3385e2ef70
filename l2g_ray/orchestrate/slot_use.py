"""How busy the slots were, from the first trial's begin to the last one's end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

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
