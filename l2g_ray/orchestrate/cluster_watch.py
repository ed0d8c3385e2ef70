"""Notices that the head of the Ray cluster is gone, which Ray itself tells a driver late, and then by ending it."""

from __future__ import annotations

import _thread
import socket
import threading
import time

from l2g_ray.errors import ClusterLost

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
