"""What a trial and the driver do when storage refuses writes, and how a trial that hangs is ended."""

from __future__ import annotations

import errno
import faulthandler
import os
import re
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TextIO, TypeVar

from l2g_ray.errors import UserError
from l2g_ray.redaction import redact
from l2g_ray.storage import Location, StorageUnavailable

T = TypeVar("T")
Say = Callable[[str], None]

STALL_FILE = "stalled.txt"
WORK = "_run_locked"  # the function that runs a stage: its thread is the one that hung
PROBE_BYTES = 1 << 20  # what a disk with a few free blocks does not take
POLL_S = 1.0
# Full, over quota, read-only, failing, a stale handle of a network file system, a limit on files' size.
STORAGE_ERRORS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EIO,
    errno.ESTALE,
    errno.EFBIG,
}
TRIES = 5  # for errors of storage that took the probe written right after


class StallWatch:
    """Ends this process when no sign of life comes for `limit_s` seconds; the traceback is then in `stalled.txt`.

    The clock is faulthandler's own thread, which runs also while C code holds the interpreter: a trial that hangs in a
    kernel or in a lock is ended as one that sleeps. None: no limit. One at a time in a process.
    """

    def __init__(self, limit_s: float | None, folder: Path) -> None:
        self.limit_s, self.path = limit_s, folder / STALL_FILE
        self._file: TextIO | None = None

    def __enter__(self) -> StallWatch:
        if self.limit_s is not None:
            self._file = self.path.open("w")
            self.beat()
        return self

    def beat(self) -> None:
        """Restart the clock of the limit."""
        if self._file is not None and self.limit_s is not None:
            faulthandler.dump_traceback_later(self.limit_s, exit=True, file=self._file)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._file is not None:
            faulthandler.cancel_dump_traceback_later()
            self._file.close()
            self.path.unlink(missing_ok=True)


def read_stall(folder: Path) -> str | None:
    """Return where the last process that worked in `folder` hung, innermost call first; None if it did not."""
    try:
        text = (folder / STALL_FILE).read_text()
    except OSError:
        return None
    threads = re.split(r"^(?:Current thread|Thread) .*$", text, flags=re.MULTILINE)
    working = next((thread for thread in threads if WORK in thread), threads[-1])
    calls = [line.strip() for line in working.splitlines() if line.strip().startswith("File ")]
    return ", ".join(calls[:2]) or None


def forget_stall(folder: Path) -> None:
    """Remove the stall file of an earlier process: it may have had a limit, and the one that resumes may have none."""
    (folder / STALL_FILE).unlink(missing_ok=True)


def why_refused(folder: Path | Location) -> str | None:
    """Return why `folder` takes no writes at the moment; None if it does."""
    if isinstance(folder, Location):
        probe = folder / f".probe-{uuid.uuid4().hex}"
        try:
            probe.replace_text("")
            probe.delete()
        except StorageUnavailable as error:
            return redact(str(error)).removeprefix(f"{probe}: ").partition("; check")[0]
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:  # without a name: nothing is left, however this ends
            file.write(os.urandom(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.strerror or str(error)
    return None


def persist(folder: Path | Location, call: Callable[[], T], wait_s: float, say: Say = lambda text: None) -> T:
    """Return `call()`; while `folder` refuses writes, wait and call again.

    Whatever `call` does must be safe to repeat. Libraries report a failed write in exceptions of many kinds, so after
    any exception the folder itself is asked.

    Raises
    ------
    UserError : the folder has refused writes for `wait_s` seconds. Anything else that `call` raises is passed on.
    """
    tried = 0
    while True:
        try:
            return call()
        except Exception as error:
            if isinstance(error, UserError) and not isinstance(error, StorageUnavailable):
                raise
            refused = why_refused(folder)
            known = isinstance(error, StorageUnavailable) or (
                isinstance(error, OSError) and error.errno in STORAGE_ERRORS
            )
            tried += refused is None
            if refused is None and (not known or tried == TRIES):
                raise
            if refused is not None:
                say(f"{folder}: cannot be written ({refused}); waiting up to {wait_s:.0f} s, {_advice(folder)}")
                _wait_for(folder, refused, wait_s)
                say(f"{folder}: can be written again; going on")
            else:
                time.sleep(POLL_S)


def _advice(folder: Path | Location) -> str:
    return "check the store and its credentials" if isinstance(folder, Location) else "make room there"


def _wait_for(folder: Path | Location, refused: str, wait_s: float) -> None:
    limit = time.monotonic() + wait_s
    while why_refused(folder) is not None:
        if time.monotonic() > limit:
            raise UserError(
                f"{folder}: cannot be written for {wait_s:.0f} s ({refused}); {_advice(folder)} and run the same "
                "command again: finished stages are kept"
            )
        time.sleep(POLL_S)


class StorageWatch:
    """Check at intervals whether a folder accepts writes, and report each change: its trials wait silently."""

    def __init__(self, folder: Path | Location, say: Say, every_s: float = 5.0) -> None:
        self.folder, self.say, self.every_s = folder, say, every_s
        self._refused = False
        self._next = time.monotonic() + every_s

    def look(self) -> None:
        """Look, if it is time."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + self.every_s
        reason = why_refused(self.folder)
        if reason is not None and not self._refused:
            self.say(
                f"{self.folder}: cannot be written ({reason}); {_advice(self.folder)}: trials wait, and resume when it can be written"
            )
        elif reason is None and self._refused:
            self.say(f"{self.folder}: can be written again")
        self._refused = reason is not None
