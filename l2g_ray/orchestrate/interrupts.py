"""How a suite is stopped from outside: Ctrl-C, SIGTERM and `ray job stop` all end it in the same good order."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


class SuiteStopped(KeyboardInterrupt):
    """A suite was interrupted and has put its things in order; the text says how it stands and how to go on."""


@contextlib.contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt. Does nothing outside of the main thread.

    Schedulers, `kill` and `ray job stop` send SIGTERM. To be entered again after `ray.init`, which takes the signal for
    itself.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def name_interrupt() -> str:
    """What interrupted this process: SIGTERM, or Ctrl-C. Ray raises KeyboardInterrupts of its own, which do not say."""
    return _told[-1] if _told else "Ctrl-C"


_told: list[str] = []


def _interrupt(signum: int, frame: Any) -> None:
    _told.append(signal.Signals(signum).name)
    # Whoever is told once is putting things in order; a second telling must not break that.
    signal.signal(signum, signal.SIG_IGN)
    raise KeyboardInterrupt
