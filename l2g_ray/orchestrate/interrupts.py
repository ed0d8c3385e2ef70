"""What ends a suite from outside: Ctrl-C, SIGTERM, `ray job stop`, and a head of the cluster that is gone."""

from __future__ import annotations

import _thread
import contextlib
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from l2g_ray.errors import ClusterLost


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


EVERY_S = 2.0
# Shorter than Ray's own patience with its control service (60 s), after which it ends the process without a word.
LIMIT_S = 20.0
GRACE_S = 10.0


class ClusterWatch:
    """Connects to the head's control service now and then; interrupts the main thread when it is away for `LIMIT_S`.

    A context manager. What the interrupt raises is turned into ClusterLost on the way out.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._lost = False
        self._changed = threading.Event()
        self._thread = threading.Thread(target=self._look, name="cluster-watch", daemon=True)

    def __enter__(self) -> ClusterWatch:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: object) -> None:
        self._changed.set()
        self._thread.join(timeout=EVERY_S + 1.0)
        if error is not None and (self._lost or self._is_going(error)):
            raise ClusterLost(
                f"the Ray cluster at {self.address} does not answer any more; when it is back, run the same command "
                "again: finished stages are kept"
            ) from error

    def _is_going(self, error: BaseException) -> bool:
        """Whether an error is the first sign of a lost head: Ray may have noticed first, by an error of its own."""
        from ray.exceptions import RayError

        if isinstance(error, KeyboardInterrupt):
            return False
        # The actors of a head that goes down end some seconds before its control service does.
        limit = time.monotonic() + (GRACE_S if isinstance(error, RayError) else 0.0)
        while self._answers():
            if time.monotonic() >= limit:
                return False
            time.sleep(0.2)
        return True

    def _look(self) -> None:
        answered = time.monotonic()
        while not self._changed.wait(EVERY_S):
            if self._answers():
                answered = time.monotonic()
            elif time.monotonic() - answered > LIMIT_S:
                self._lost = True
                _thread.interrupt_main()
                return

    def _answers(self) -> bool:
        host, _, port = self.address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=EVERY_S).close()
        except OSError:
            return False
        return True
