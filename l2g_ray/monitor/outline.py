"""The stages that a task goes through, and how much of the planned work is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_TITLES = {"embedder": "embedder only"}


def name_stage(stage: str) -> str:
    """Return the name of a stage for people: that of its arm, where it has another in events."""
    return _TITLES.get(stage, stage)


@dataclass(frozen=True)
class Step:
    """A stage as the progress table names it.

    Parameters
    ----------
    name : in events of the board.
    epochs : the most that one of its trials trains; None where it has none, or where the plan does not know.
    parts : the planned seconds of each of its runs: some stages run once for a choice and again for the folds.
    """

    name: str
    epochs: int | None = None
    parts: tuple[float, ...] = (0.0,)


class Outline:
    """The steps of one task while it runs. Without steps, everything is unknown."""

    def __init__(self, steps: Sequence[Step] = ()) -> None:
        self.names = [step.name for step in steps]
        self.epochs = {step.name: step.epochs for step in steps}
        self.left = {step.name: list(step.parts) for step in steps}
        self.done_s = 0.0

    def place(self, stage: str) -> str:
        """Return 'stage 4 of 9', or an empty string for a stage that is not in the outline."""
        return f"stage {self.names.index(stage) + 1} of {len(self.names)}" if stage in self.names else ""

    def finish(self, stage: str, cached: bool) -> None:
        """Count one run of a stage as done; a cached one took no time."""
        if parts := self.left.get(stage):
            seconds = parts.pop(0)
            self.done_s += 0.0 if cached else seconds

    def close(self) -> None:
        """Drop what is left: the task has ended."""
        self.left.clear()

    def measure(self, stage: str, share: float) -> tuple[float, float]:
        """Return the planned seconds done and left, with a `share` of the run of `stage` that is under way."""
        partial = share * next(iter(self.left.get(stage, [])), 0.0)
        return self.done_s + partial, sum(map(sum, self.left.values())) - partial
