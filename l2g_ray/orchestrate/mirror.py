"""A run whose --out is in an object store: its working folder on the driver's machine, and what goes up and comes down.

Files are written and renamed here, where that is possible, and uploaded when they are whole; `suite.json` goes last.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from l2g_ray.errors import UserError
from l2g_ray.orchestrate.guard import Say, persist
from l2g_ray.redaction import redact
from l2g_ray.storage import Location, StorageUnavailable

WORK_VARIABLE = "L2G_RAY_WORK_DIR"
SUITE_FILE = "suite.json"
LAST = (SUITE_FILE, "task.json")  # what says that the rest is there
# A lease that its owner has not renewed for so long is nobody's.
LEASE_S = 60.0
RENEW_S = 10.0
SETTLE_S = 1.0


def work_folder(remote: Location) -> Path:
    """Where this machine works on what belongs to an object store: L2G_RAY_WORK_DIR, else ~/.cache/l2g_ray/work."""
    home = Path(os.environ.get(WORK_VARIABLE) or Path.home() / ".cache" / "l2g_ray" / "work").absolute()
    mark = hashlib.sha256(remote.text.rstrip("/").encode()).hexdigest()[:12]
    return home / f"{remote.name or 'bucket'}-{mark}"


def push(folder: Path, remote: Location, wait_s: float, say: Say = lambda text: None) -> None:
    """Upload a folder's files, those that say that it is whole last. Raises StorageUnavailable or UserError."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    files.sort(key=lambda path: (path.name in LAST, path.name == SUITE_FILE))
    for path in files:
        target = remote / path.relative_to(folder).as_posix()
        persist(remote, lambda target=target, path=path: target.upload(path), wait_s, say)  # type: ignore[misc]


def pull(remote: Location, folder: Path) -> None:
    """Replace a folder by the files of a remote one; it appears whole. Raises StorageUnavailable."""
    staging = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        for name in remote.files():
            target = staging / name
            if not target.resolve().is_relative_to(staging.resolve()):
                raise UserError(f"{remote}: holds a file outside of itself ({name}); remove it")
            target.parent.mkdir(parents=True, exist_ok=True)
            (remote / name).download(target)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def pull_finished(remote: Location, folder: Path) -> None:
    """Fetch a suite's folder where the store has a finished one and this machine has another, or none."""
    text = (remote / SUITE_FILE).read_if_there()
    try:
        there = json.loads(text) if text else {}
        local = json.loads((folder / SUITE_FILE).read_text()) if (folder / SUITE_FILE).exists() else {}
    except ValueError:
        return
    if there.get("state") == "finished" and local.get("key") != there.get("key"):
        pull(remote, folder)


@contextlib.contextmanager
def lease(out: Location, name: str, say: Say, lost: Callable[[], None]) -> Iterator[None]:
    """Be the only driver of suite `name` in an object store, which has no locks: an object that its owner renews.

    One that is not renewed any more is taken over after a minute. Two that begin within the same second both write,
    wait, and look whose object stands. `lost` is called when another has taken the lease over, which happens only when
    this one could not renew it for a minute.

    Raises
    ------
    UserError : another driver renews it; the message says where.
    """
    path, mine = out / f".{name}.lease", uuid.uuid4().hex

    def write() -> None:
        owner = {"id": mine, "process": os.getpid(), "host": socket.gethostname()}
        path.replace_text(json.dumps(owner))

    def wait_for_others() -> None:
        seen, limit, told = path.info().mtime_ns, time.monotonic() + LEASE_S, False
        while (owner := _read_owner(path)) and owner.get("id") != mine and time.monotonic() < limit:
            where = f"{redact(str(out / name))}: runs already (process {owner.get('process')} on {owner.get('host')})"
            if path.info().mtime_ns != seen:
                raise UserError(f"{where}; wait until it has ended, or choose another --name or --out")
            if not told:
                say(f"{where}, or was killed there; waiting up to {LEASE_S:.0f} s for a sign of life")
                told = True
            time.sleep(SETTLE_S)

    wait_for_others()
    write()
    time.sleep(SETTLE_S)
    wait_for_others()
    over = threading.Event()

    def renew() -> None:
        while not over.wait(RENEW_S):
            with contextlib.suppress(StorageUnavailable):
                if _read_owner(path).get("id", mine) != mine:
                    lost()
                    return
                write()

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=RENEW_S)
        with contextlib.suppress(StorageUnavailable):
            if _read_owner(path).get("id") == mine:
                path.delete()


def _read_owner(path: Location) -> dict[str, Any]:
    try:
        found = json.loads(path.read_if_there() or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
