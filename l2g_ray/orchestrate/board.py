"""Where all processes of a suite put what happened, and the driver picks it up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Emit = Callable[[dict[str, Any]], None]


class Board:
    """A Ray actor's class: a queue of events, in the order of arrival.

    Events are mappings with `type` ('stage', 'trial', 'note') and `task`; the driver turns them into the progress
    table and into MLflow, so that exactly one process writes to either.
    """

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def put(self, event: dict[str, Any]) -> None:
        """Add one event."""
        self.events.append(event)

    def drain(self) -> list[dict[str, Any]]:
        """All events since the last call."""
        taken, self.events = self.events, []
        return taken
