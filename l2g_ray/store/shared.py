"""A run in an object store: finished stages shared between machines, and what of the suite's folder goes up and comes down."""

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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from l2g_ray.atomic import replacing
from l2g_ray.errors import UserError
from l2g_ray.redaction import redact
from l2g_ray.storage import Location, StorageUnavailable
from l2g_ray.store.guard import Say, persist
from l2g_ray.store.locks import hold_file
from l2g_ray.store.results import StageResult, Store

T = TypeVar("T")
MANIFEST = "manifest.json"
SHARED = ".shared"  # in a local folder: what it holds is what the store holds
STATE = "state.pt"
# Training states are large: more often would cost more than the epochs that it saves.
STATE_EVERY_S = 60.0


@dataclass(frozen=True)
class Manifest:
    """The files of a shared result, and the folder below it in which they are; `manifest.json` is its form."""

    upload: str
    files: list[str]


class SharedStore(Store):
    """Stage results of `remote`, with `root` as this machine's working copy.

    `wait_s`: how long it waits for a store that does not answer. Raises StorageUnavailable afterwards.
    """

    def __init__(self, root: Path, remote: Location, wait_s: float = 600.0) -> None:
        super().__init__(root)
        self.remote, self.wait_s = remote, wait_s
        self._state_saved: dict[str, float] = {}

    def find(self, stage: str, key: str) -> StageResult | None:
        """Return the finished result, fetched if another machine made it; None for none, or one that was not shared
        yet.
        """
        if not (self.folder(stage, key) / SHARED).exists():
            manifest = self._patiently(lambda: self._manifest(stage, key))
            if manifest is None:
                return None
            self._patiently(lambda: self._fetch(stage, key, manifest))
        return self._read(stage, key)

    def open_work(self, stage: str, key: str) -> Path:
        """As `Store.open_work`; the training state is that of the machine that worked on it before."""
        work = super().open_work(stage, key)
        state = self._place(stage, f"{key}.work") / STATE
        if not (work / STATE).exists() and self._patiently(state.exists):
            with replacing(work / STATE) as temporary:
                self._patiently(lambda: state.download(temporary))
        return work

    def save_state(self, stage: str, key: str) -> None:
        """Upload the training state, now and then; a store that does not answer holds up no training."""
        state = self.work_folder(stage, key) / STATE
        now = time.monotonic()
        if state.exists() and now - self._state_saved.get(key, now - STATE_EVERY_S) >= STATE_EVERY_S:
            self._state_saved[key] = now
            try:
                (self._place(stage, f"{key}.work") / STATE).upload(state)
            except StorageUnavailable:
                return

    def need(self, folder: Path) -> None:
        """See `Store.need`. Raises UserError for a result that is not there any more."""
        if self.find(folder.parent.name, folder.name) is None:
            raise UserError(
                f"{self._place(folder.parent.name, folder.name)}: no finished result; run the command again"
            )

    def commit(self, stage: str, key: str, values: dict[str, Any]) -> StageResult:
        """Make the work folder final and share it; where another machine was faster, its result is taken."""
        super().commit(stage, key, values)
        return self.share(stage, key)

    def share(self, stage: str, key: str) -> StageResult:
        """Upload a result of this machine."""
        self._patiently(lambda: self._share(stage, key))
        found = self._read(stage, key)
        assert found is not None
        return found

    def find_unshared(self, stage: str, key: str) -> StageResult | None:
        """Return a result that this machine finished and could not share then; shared now."""
        if not (self.folder(stage, key) / "result.json").exists():
            return None
        return self.share(stage, key)

    def discard_work(self, stage: str, keys: list[str]) -> None:
        """As `Store.discard_work`, here and in the store."""
        super().discard_work(stage, keys)
        for key in keys:
            self._patiently(self._place(stage, f"{key}.work").delete)

    def _place(self, stage: str, name: str) -> Location:
        return self.remote / stage / name

    def _patiently(self, call: Callable[[], T]) -> T:
        return persist(self.remote, call, self.wait_s)

    def _manifest(self, stage: str, key: str) -> Manifest | None:
        path = self._place(stage, key) / MANIFEST
        text = path.read_if_there()
        if text is None:
            return None
        try:
            found = json.loads(text)
            return Manifest(_plain_name(found["upload"]), [_plain_name(name) for name in found["files"]])
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path}: not readable as a manifest; delete its folder and run again") from None

    def _fetch(self, stage: str, key: str, manifest: Manifest) -> None:
        folder = self.folder(stage, key)
        with hold_file(self.root / stage / f"{key}.fetch.lock"):
            if (folder / SHARED).exists():  # another process of this machine was faster
                return
            staging = self.root / stage / f"{key}.{uuid.uuid4().hex[:8]}.tmp"
            staging.mkdir(parents=True)
            try:
                for name in manifest.files:
                    (self._place(stage, key) / manifest.upload / name).download(staging / name)
                (staging / SHARED).touch()
                shutil.rmtree(folder, ignore_errors=True)
                os.replace(staging, folder)
            finally:
                shutil.rmtree(staging, ignore_errors=True)

    def _share(self, stage: str, key: str) -> None:
        folder, there = self.folder(stage, key), self._place(stage, key)
        if (folder / SHARED).exists():
            return
        first = self._manifest(stage, key)
        if first is None:
            own = Manifest(uuid.uuid4().hex[:8], sorted(path.name for path in folder.iterdir() if path.is_file()))
            for name in own.files:
                (there / own.upload / name).upload(folder / name)
            first = self._manifest(stage, key)
            if first is None:
                (there / MANIFEST).replace_text(json.dumps(asdict(own)))
                (folder / SHARED).touch()
                self._place(stage, f"{key}.work").delete()
                return
            (there / own.upload).delete()
        self._fetch(stage, key, first)


def _plain_name(name: str) -> str:
    """Resolve a name of a manifest, which is data from outside: no file of it may leave its folder."""
    if Path(name).name != name or name in (".", ".."):
        raise ValueError(name)
    return name


def open_store(root: Path, remote: str | None, wait_s: float) -> Store:
    """Return the store of a run: in a folder, or in an object store with `root` as working copy."""
    return Store(root) if remote is None else SharedStore(root, Location(remote), wait_s)


WORK_VARIABLE = "L2G_RAY_WORK_DIR"
SUITE_FILE = "suite.json"
LAST = (SUITE_FILE, "task.json")  # what says that the rest is there
# A lease that its owner has not renewed for so long is nobody's.
LEASE_S = 60.0
RENEW_S = 10.0
SETTLE_S = 1.0


def work_folder(remote: Location) -> Path:
    """Return where this machine works on what belongs to an object store: L2G_RAY_WORK_DIR, else
    ~/.cache/l2g_ray/work.
    """
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


@dataclass(frozen=True)
class Owner:
    """The driver that holds a lease, as the lease's object names it."""

    id: str
    process: int
    host: str


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
    path, mine = out / f".{name}.lease", Owner(uuid.uuid4().hex, os.getpid(), socket.gethostname())

    def write() -> None:
        path.replace_text(json.dumps(asdict(mine)))

    def wait_for_others() -> None:
        seen, limit, printed = path.info().mtime_ns, time.monotonic() + LEASE_S, False
        while (owner := _read_owner(path)) and owner != mine and time.monotonic() < limit:
            where = f"{redact(str(out / name))}: runs already (process {owner.process} on {owner.host})"
            if path.info().mtime_ns != seen:
                raise UserError(f"{where}; wait until it has ended, or choose another --name or --out")
            if not printed:
                say(f"{where}, or was killed there; waiting up to {LEASE_S:.0f} s for a sign of life")
                printed = True
            time.sleep(SETTLE_S)

    wait_for_others()
    write()
    time.sleep(SETTLE_S)
    wait_for_others()
    over = threading.Event()

    def renew() -> None:
        while not over.wait(RENEW_S):
            with contextlib.suppress(StorageUnavailable):
                if _read_owner(path) not in (None, mine):
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
            if _read_owner(path) == mine:
                path.delete()


def _read_owner(path: Location) -> Owner | None:
    """Return the owner that a lease names; None where there is no lease, or one that is not readable."""
    try:
        found = json.loads(path.read_if_there() or "{}")
        return Owner(found["id"], found["process"], found["host"])
    except (ValueError, KeyError, TypeError):
        return None
