"""Stage results under content keys: finished results are reused, and interrupted ones resume.

A result is a folder `<root>/<stage>/<key>/` with `result.json` and its files. While it is made, it is
`<root>/<stage>/<key>.work/`, which holds the training state of a run that may be interrupted at any moment; a rename
makes it final.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l2g_ray.errors import UserError
from l2g_ray.stages.registry import find_stage
from l2g_ray.store.locks import hold_file, try_file

# A stopped trial releases its lock within moments.
DISCARD_WAIT_S = 5.0


@dataclass(frozen=True)
class StageResult:
    """A finished stage: its folder and what `result.json` says."""

    stage: str
    key: str
    folder: Path
    values: dict[str, Any]


def make_key(stage: str, parts: dict[str, Any]) -> str:
    """Key of a stage's result: hash of its settings, data fingerprints, inputs' keys and code version."""
    content = json.dumps({"stage": stage, "version": find_stage(stage).version, **parts}, sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:20]


class Store:
    """Stage results in a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, stage: str, key: str) -> Path:
        """Return the folder of a finished result."""
        return self.root / stage / key

    def find(self, stage: str, key: str) -> StageResult | None:
        """Return the finished result, or None."""
        return self._read(stage, key)

    def _read(self, stage: str, key: str) -> StageResult | None:
        folder = self.folder(stage, key)
        try:
            return StageResult(stage, key, folder, json.loads((folder / "result.json").read_text()))
        except OSError:
            return None
        except ValueError:
            raise UserError(
                f"{folder / 'result.json'}: not readable as JSON; delete the folder and run again"
            ) from None

    def work_folder(self, stage: str, key: str) -> Path:
        """Return the folder of an unfinished result."""
        return self.root / stage / f"{key}.work"

    def open_work(self, stage: str, key: str) -> Path:
        """Return the folder where an unfinished result is made; it may hold the state of an interrupted run."""
        folder = self.work_folder(stage, key)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @contextlib.contextmanager
    def locked(self, stage: str, key: str) -> Iterator[None]:
        """Only one process at a time makes a result; others wait and then find it. The lock dies with its process."""
        with hold_file(self.root / stage / f"{key}.lock"):
            yield

    def find_unshared(self, stage: str, key: str) -> StageResult | None:
        """Return a finished result that `find` does not show, since only this machine knows it. There is none here."""
        return None

    def save_state(self, stage: str, key: str) -> None:
        """Keep the training state after an epoch where another machine finds it. Here it is there already."""

    def need(self, folder: Path) -> None:
        """Make sure that the files of a result that another machine made are in `folder` on this one."""

    def commit(self, stage: str, key: str, values: dict[str, Any]) -> StageResult:
        """Make the work folder final, with `values` as its `result.json`. Training states are dropped."""
        work, folder = self.work_folder(stage, key), self.folder(stage, key)
        for left in work.glob("*.tmp"):  # of a process that was killed while it wrote
            left.unlink()
        (work / "result.json").write_text(json.dumps(values, indent=1))
        if folder.exists():  # another run finished it meanwhile
            shutil.rmtree(work)
        else:
            os.replace(work, folder)
        # Only now: a run that is killed before the rename resumes from its state.
        (folder / "state.pt").unlink(missing_ok=True)
        found = self._read(stage, key)
        assert found is not None
        return found

    def discard_work(self, stage: str, keys: list[str]) -> None:
        """Remove the work folders of trials that are not needed any more, but those that another suite works in."""
        for key in keys:
            work = self.work_folder(stage, key)
            if work.exists():
                with try_file(self.root / stage / f"{key}.lock", DISCARD_WAIT_S) as ours:
                    if ours:
                        shutil.rmtree(work, ignore_errors=True)


@dataclass(frozen=True)
class Job:
    """One trial of a stage. `args` go to the stage's function below; `inputs` name results of earlier stages.

    `parts` are what the result depends on; the key is their hash.
    """

    stage: str
    label: str
    args: dict[str, Any]
    inputs: dict[str, str]
    parts: dict[str, Any]

    @property
    def key(self) -> str:
        """Content key of the result."""
        return make_key(self.stage, self.parts | {"args": self.args})
