"""Virtual time for ordinary blocking code: threads of which one runs at a time, and waiting that takes no time.

A thread runs until it waits; then the thread with the earliest wake-up time runs. Equal times run in the order of their
requests, so that a simulation is deterministic.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections import deque
from collections.abc import Callable
from typing import Any


class _Wake:
    """A thread that waits; it is woken once, by whichever of its reasons comes first."""

    def __init__(self) -> None:
        self.baton = threading.Event()
        self.is_over = False


class Clock:
    """The time, in seconds, and the threads that wait for it. The thread that makes it is the first to run."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, _Wake]] = []
        self._order = itertools.count()

    def sleep(self, seconds: float) -> None:
        """Wait so long."""
        wake = _Wake()
        self.wake_at(self.now + seconds, wake)
        self.wait(wake)

    def wake_at(self, moment: float, wake: _Wake) -> None:
        """Have a thread woken then."""
        heapq.heappush(self._due, (moment, next(self._order), wake))

    def wait(self, wake: _Wake) -> None:
        """Let others run until `wake` is due. Raises RuntimeError where all wait for each other."""
        self._pass_on()
        wake.baton.wait()

    def _pass_on(self) -> None:
        while self._due:
            moment, _, wake = heapq.heappop(self._due)
            if not wake.is_over:
                self.now, wake.is_over = moment, True
                wake.baton.set()
                return
        raise RuntimeError("every thread of the simulation waits for another one")

    def spawn(self, call: Callable[[], Any]) -> Result:
        """Run `call` in a new thread, starting now."""
        result, wake = Result(self), _Wake()

        def run() -> None:
            wake.baton.wait()
            try:
                result.value = call()
            except BaseException as error:
                result.error = error
            result.set()
            self._pass_on()

        threading.Thread(target=run, daemon=True).start()
        self.wake_at(self.now, wake)
        return result


class Result:
    """What a thread will have found."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.is_set = False
        self.value: Any = None
        self.error: BaseException | None = None
        self._waiting: list[_Wake] = []

    def set(self) -> None:
        """Wake all that wait."""
        self.is_set = True
        for wake in self._waiting:
            self.clock.wake_at(self.clock.now, wake)

    def get(self) -> Any:
        """Wait for it; raises what the thread raised."""
        if not self.is_set:
            wait_any(self.clock, [self])
        if self.error is not None:
            raise self.error
        return self.value


def wait_any(clock: Clock, results: list[Result], timeout_s: float | None = None) -> list[Result]:
    """Return the first one that is there, as a list, or an empty list after `timeout_s`."""
    if not any(result.is_set for result in results):
        wake = _Wake()
        for result in results:
            result._waiting.append(wake)
        if timeout_s is not None:
            clock.wake_at(clock.now + timeout_s, wake)
        clock.wait(wake)
        for result in results:
            result._waiting.remove(wake)
    return [result for result in results if result.is_set][:1]


class Slots:
    """Slots that are given in the order of asking, as Ray gives a resource."""

    def __init__(self, clock: Clock, count: int) -> None:
        self.clock, self.free = clock, count
        self._queue: deque[_Wake] = deque()

    def __enter__(self) -> None:
        if self.free and not self._queue:
            self.free -= 1
            return
        wake = _Wake()
        self._queue.append(wake)
        self.clock.wait(wake)

    def __exit__(self, *exc: Any) -> None:
        if self._queue:
            self.clock.wake_at(self.clock.now, self._queue.popleft())
        else:
            self.free += 1
