"""Stage results in an object store: made in a folder of each machine, and shared when they are finished.

    <remote>/<stage>/<key>/manifest.json       which upload counts, and its files; written last
    <remote>/<stage>/<key>/<upload>/...        the files of a result
    <remote>/<stage>/<key>.work/state.pt       the training state after some epoch of an unfinished one

An object store has no locks that die with their process. Two machines may therefore make the same result; the one whose
manifest is there first wins, and the other takes it. On one machine the file lock of `Store` holds as ever.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from l2g_ray.atomic import replacing
from l2g_ray.errors import UserError
from l2g_ray.orchestrate.guard import persist
from l2g_ray.orchestrate.locks import hold_file
from l2g_ray.orchestrate.store import StageResult, Store
from l2g_ray.storage import Location, StorageUnavailable

T = TypeVar("T")
MANIFEST = "manifest.json"
SHARED = ".shared"  # in a local folder: what it holds is what the store holds
STATE = "state.pt"
# Training states are large: more often would cost more than the epochs that it saves.
STATE_EVERY_S = 60.0


class SharedStore(Store):
    """Stage results of `remote`, with `root` as this machine's working copy.

    `wait_s`: how long it waits for a store that does not answer. Raises StorageUnavailable afterwards.
    """

    def __init__(self, root: Path, remote: Location, wait_s: float = 600.0) -> None:
        super().__init__(root)
        self.remote, self.wait_s = remote, wait_s
        self._state_saved: dict[str, float] = {}

    def find(self, stage: str, key: str) -> StageResult | None:
        """The finished result, fetched if another machine made it; None for none, or one that was not shared yet."""
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
        """A result that this machine finished and could not share then; shared now."""
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

    def _manifest(self, stage: str, key: str) -> dict[str, Any] | None:
        path = self._place(stage, key) / MANIFEST
        text = path.read_if_there()
        if text is None:
            return None
        try:
            manifest = json.loads(text)
            return {
                "upload": _plain_name(manifest["upload"]),
                "files": [_plain_name(name) for name in manifest["files"]],
            }
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path}: not readable as a manifest; delete its folder and run again") from None

    def _fetch(self, stage: str, key: str, manifest: dict[str, Any]) -> None:
        folder = self.folder(stage, key)
        with hold_file(self.root / stage / f"{key}.fetch.lock"):
            if (folder / SHARED).exists():  # another process of this machine was faster
                return
            staging = self.root / stage / f"{key}.{uuid.uuid4().hex[:8]}.tmp"
            staging.mkdir(parents=True)
            try:
                for name in manifest["files"]:
                    (self._place(stage, key) / manifest["upload"] / name).download(staging / name)
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
            upload = uuid.uuid4().hex[:8]
            names = sorted(path.name for path in folder.iterdir() if path.is_file())
            for name in names:
                (there / upload / name).upload(folder / name)
            first = self._manifest(stage, key)
            if first is None:
                (there / MANIFEST).replace_text(json.dumps({"upload": upload, "files": names}))
                (folder / SHARED).touch()
                self._place(stage, f"{key}.work").delete()
                return
            (there / upload).delete()
        self._fetch(stage, key, first)


def _plain_name(name: str) -> str:
    """A manifest is data from outside: no file of it may leave its folder."""
    if Path(name).name != name or name in (".", ".."):
        raise ValueError(name)
    return name


def open_store(root: Path, remote: str | None, wait_s: float) -> Store:
    """The store of a run: in a folder, or in an object store with `root` as working copy."""
    return Store(root) if remote is None else SharedStore(root, Location(remote), wait_s)
