"""A queue before the `Tracker`: the driver never waits for MLflow, and loses nothing while it does not answer.

Every event is first appended to a journal (JSON lines), then sent in order by one thread. The journal is emptied
when all of it has been sent, so what a killed driver leaves there is what the next start has to send. Sending an
event twice does no harm: the Tracker skips what the store has.
"""

from __future__ import annotations

import json
import os
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from l2g_ray.errors import UserError
from l2g_ray.redaction import clean, redact
from l2g_ray.tracking.runs import Tracker
from l2g_ray.tracking.store import StoreUnavailable

JOURNAL = "mlflow-events.jsonl"
METHODS = (
    "start",
    "mark",
    "log_metrics",
    "log_data",
    "log_text",
    "log_dict",
    "log_artifacts",
    "log_model",
    "end",
    "close_open_runs",
)
# Arguments that are files of the suite.
PATHS = {"path", "model_folder"}
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 15.0


@dataclass(frozen=True)
class Call:
    """A call of the Tracker that waits: `method(key, **arguments)`. `replayed`: an earlier process queued it."""

    method: str
    key: str | None
    arguments: dict[str, Any]
    replayed: bool = False

    def to_json(self) -> str:
        """Return its line in the journal."""
        line = {"method": self.method, "key": self.key, "arguments": self.arguments}
        return json.dumps(line, default=_plain)

    @classmethod
    def from_json(cls, line: str) -> Self | None:
        """Return the call of a line that an earlier process wrote; None where that process was killed while it wrote
        it.
        """
        try:
            found = json.loads(line)
        except ValueError:
            return None
        return cls(found["method"], found["key"], found["arguments"], replayed=True)


class TrackingWriter:
    """Send the calls of a Tracker from a separate thread, in order, until each has arrived.

    `refused` holds the reasons of events that the store did answer, and did not want; they are not sent again.
    """

    def __init__(self, tracker: Tracker, journal: Path, say: Callable[[str], None]) -> None:
        """Begin with what an earlier process left in `journal`.

        Parameters
        ----------
        tracker : the open store; used by this writer alone from now on.
        journal : file of the events that have not been sent; made if missing.
        say : takes one sentence for the person: when the store stops answering, and when it is back.
        """
        self.journal, self.refused = journal, list[str]()
        self._tracker, self._say = tracker, say
        self._models: dict[str, str] = {}
        self._events: deque[Call] = deque(_read_journal(journal))
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._away = self._unwritable = False
        journal.parent.mkdir(parents=True, exist_ok=True)
        self._file = journal.open("a", encoding="utf-8")
        self._thread = threading.Thread(target=self._work, name="mlflow-writer", daemon=True)
        self._thread.start()

    def put(self, method: str, key: str | None = None, **arguments: Any) -> None:
        """Queue `Tracker.method(key, **arguments)`; returns at once. Arguments are what JSON can hold."""
        if method not in METHODS:
            raise ValueError(f"{method!r} is not a call that can be queued")
        # The journal must not contain what the Tracker would not log, such as secrets.
        cleaned = {
            name: clean(value) if isinstance(value, Mapping | list) and name != "metrics" else value
            for name, value in arguments.items()
        }
        if "text" in cleaned:
            cleaned["text"] = redact(cleaned["text"])
        for name in PATHS & cleaned.keys():  # from the journal's folder, which may be moved before it is sent
            cleaned[name] = os.path.relpath(cleaned[name], self.journal.parent)
        event = Call(method, key, cleaned)
        with self._changed:
            self._events.append(event)
            self._keep(event)
            self._changed.notify_all()

    def model_uri(self, key: str) -> str | None:
        """`models:/<id>` of the run's model; None before `log_model` has been sent."""
        return self._models.get(key)

    def wait(self, limit_s: float) -> int:
        """Wait until all events have been sent, at most `limit_s` seconds; the number that still wait."""
        with self._changed:
            self._changed.wait_for(lambda: not self._events, timeout=limit_s)
            return len(self._events)

    def is_away(self) -> bool:
        """Return whether the last attempt got no answer."""
        return self._away

    def close(self) -> int:
        """End the thread; the number of events that stay in the journal, which is removed when there are none."""
        self._closing.set()
        with self._changed:
            self._changed.notify_all()
        self._thread.join(timeout=1.0)  # it may hang in a request; it is a daemon, and the event is in the journal
        with self._changed:
            self._file.close()
            if not self._events:
                self.journal.unlink(missing_ok=True)
            return len(self._events)

    def _work(self) -> None:
        pause = FIRST_PAUSE_S
        while not self._closing.is_set():
            with self._changed:
                self._changed.wait_for(lambda: self._events or self._closing.is_set())
                if self._closing.is_set():
                    return
                event = self._events[0]
            try:
                self._send(event)
            except StoreUnavailable as error:
                self._note_outage(error)
                self._closing.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)
                continue
            # Whatever else goes wrong belongs to this event: a thread that died would hold up all the others.
            except Exception as error:
                reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
                self.refused.append(redact(reason))
            if self._away:
                self._away, pause = False, FIRST_PAUSE_S
                self._say("MLflow answers again; what waited is being sent")
            with self._changed:
                self._events.popleft()
                if not self._events:
                    self._empty_journal()
                self._changed.notify_all()

    def _send(self, event: Call) -> None:
        key, arguments = event.key, event.arguments
        if event.replayed:
            # An earlier process opened these runs. One that the store does not have (another store now) is no loss.
            needed = arguments.get("parent_key") if event.method == "start" else key
            if needed is not None and not self._tracker.resume(needed):
                return
        arguments = arguments | {n: str(self.journal.parent / arguments[n]) for n in PATHS & arguments.keys()}
        call = getattr(self._tracker, event.method)
        result = call(**arguments) if key is None else call(key, **arguments)
        if event.method == "log_model" and key is not None:
            self._models[key] = result

    def _note_outage(self, error: StoreUnavailable) -> None:
        if self._away:
            return
        self._away = True
        with self._changed:
            waiting = len(self._events)
        self._say(
            f"{error}; {waiting} event{'s' if waiting > 1 else ''} wait{'' if waiting > 1 else 's'} in {self.journal}, "
            "the run continues"
        )

    def _keep(self, event: Call) -> None:
        try:
            self._file.write(event.to_json() + "\n")
            self._file.flush()
        except OSError as error:
            if not self._unwritable:
                self._unwritable = True
                self._say(f"{self.journal}: cannot be written ({error.strerror}); events for MLflow are in memory only")

    def _empty_journal(self) -> None:
        try:
            self._file.truncate(0)
        except (OSError, ValueError):  # full, or closed: what is sent twice does no harm
            return


def _read_journal(path: Path) -> list[Call]:
    if not path.exists():
        return []
    found = map(Call.from_json, path.read_text(encoding="utf-8").splitlines())
    return [call for call in found if call is not None and call.method in METHODS]


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)
