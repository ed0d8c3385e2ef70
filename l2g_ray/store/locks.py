"""File locks that die with their process: one suite at a time in its folder, one writer of prepared data.

`flock` is released by the kernel when a process ends, however it ends, so a killed owner holds nothing up. The file is
removed on release; whoever waited for it meanwhile looks again whether it still stands at its path.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from l2g_ray.errors import UserError

# Long enough for a driver to write its last events after a signal.
SUITE_WAIT_S = 15.0
POLL_S = 0.2
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


@contextlib.contextmanager
def hold_suite(out: Path, name: str, say: Callable[[str], None], wait_s: float = SUITE_WAIT_S) -> Iterator[None]:
    """Be the only process that runs suite `name` of `out`, its folder and its journal for MLflow included.

    A running suite gets `wait_s` seconds to end; `say` reports the wait.

    Raises
    ------
    UserError : it is still under way then, the message says where; or `out` has no locks.
    """
    path = out / f".{name}.lock"
    with _without_empty_folders(out):
        held = _take(path)
        if held is None:
            say(f"{out / name}: {_describe(path)}; waiting up to {wait_s:.0f} s for it to end")
            held = _take_within(path, wait_s)
        if held is None:
            raise UserError(
                f"{out / name}: {_describe(path)}; wait until it has ended, or choose another --name or --out"
            )
        try:
            owner = {"process": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
            # Only a help for people: a full disk must not keep a suite from saying so itself.
            with contextlib.suppress(OSError):
                held.write(json.dumps(owner))
                held.flush()
            yield
        finally:
            _release(path, held)


@contextlib.contextmanager
def hold_file(path: Path) -> Iterator[None]:
    """Be the only process that holds `path`; others wait. Folders are made as needed, the file is removed afterwards.

    Raises UserError where the folder cannot be written, or has no locks.
    """
    with _without_empty_folders(path.parent):
        held = _take(path, blocking=True)
        assert held is not None
        try:
            yield
        finally:
            _release(path, held)


@contextlib.contextmanager
def try_file(path: Path, wait_s: float) -> Iterator[bool]:
    """As `hold_file`, but gives up after `wait_s` seconds; whether it is held."""
    held = _take_within(path, wait_s)
    try:
        yield held is not None
    finally:
        if held is not None:
            _release(path, held)


@contextlib.contextmanager
def _without_empty_folders(folder: Path) -> Iterator[None]:
    """Leave nothing behind after a user's mistake: folders that were made for the lock alone go again."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            for path in made:
                path.rmdir()


def _take_within(path: Path, wait_s: float) -> IO[str] | None:
    limit = time.monotonic() + wait_s
    while (held := _take(path)) is None and time.monotonic() < limit:
        time.sleep(POLL_S)
    return held


def _take(path: Path, blocking: bool = False) -> IO[str] | None:
    for attempt in itertools.count():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+")
        except OSError as error:
            # Another's empty folder went just now; what keeps standing in the way is an error.
            if isinstance(error, FileNotFoundError | FileExistsError) and attempt < 100:
                continue
            raise UserError(
                f"{path.parent}: cannot be written ({error.strerror}); name another output folder (--out)"
            ) from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if blocking else fcntl.LOCK_NB))
            if _is_at(path, file):
                file.truncate(0)
                return file
        except BlockingIOError:
            file.close()
            return None
        except OSError as error:
            file.close()
            if error.errno in NO_LOCKS:
                raise UserError(
                    f"{path.parent}: its file system has no file locks ({error.strerror}); mount it with them, or "
                    "name another output folder (--out)"
                ) from None
            raise
        file.close()  # removed by the one who held it
    raise AssertionError("not reached")


def _is_at(path: Path, file: IO[str]) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def _release(path: Path, file: IO[str]) -> None:
    with contextlib.suppress(OSError):
        path.unlink()  # first, while it is held: nobody may lock a file that is about to go
    file.close()


def _describe(path: Path) -> str:
    try:
        owner = json.loads(path.read_text())
        return f"runs already (process {owner['process']} on {owner['host']}, since {owner['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "runs already in another process"
