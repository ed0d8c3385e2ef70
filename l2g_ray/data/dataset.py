"""A prepared task: a folder of Parquet shards and its manifest `task.json`, as `prepare` leaves it.

    train/part-00000.parquet ...   columns id (string), sequence (string), label
    valid/ , test/                 the same
    splits/valid_indices.parquet   where the validation split was cut from train
    task.json                      the task, counts, fingerprints, how splits were made, leakage, warnings

`label` is int64 for classification, else a fixed-size list of float32 with NaN for a missing value.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from l2g_ray.errors import UserError
from l2g_ray.tasks.schema import Task

MANIFEST_SCHEMA = 1


@dataclass(frozen=True)
class PreparedTask:
    """A prepared task. Train and valid are open to all; the test split only through `open_test`."""

    folder: Path
    task: Task
    manifest: dict[str, Any]

    def fingerprint(self, split: str) -> str:
        """sha256 of a split's sequences and labels in order; the shards' cut does not matter."""
        return self.manifest["splits"][split]["fingerprint"]

    def n_rows(self, split: str) -> int:
        """Rows of a split, from the manifest."""
        return self.manifest["splits"][split]["rows"]

    def length_range(self) -> tuple[int, int]:
        """Shortest and longest sequence of train and valid in bp; the test split's lengths are not looked at."""
        ranges = [self.manifest["splits"][split]["length_bp"] for split in ("train", "valid")]
        return min(r["min"] for r in ranges), max(r["max"] for r in ranges)

    def shard_paths(self, split: str) -> list[Path]:
        """The shards of train or valid, in order. Raises ValueError for test."""
        self._refuse_test(split)
        return self._shards(split)

    def table(self, split: str, columns: list[str] | None = None) -> pa.Table:
        """All rows of train or valid (columns id, sequence, label). Raises ValueError for test."""
        self._refuse_test(split)
        return self._read(split, columns)

    def open_test(self, columns: list[str] | None = None) -> pa.Table:
        """All rows of the test split. For stages/evaluate.py only, once everything is chosen."""
        return self._read("test", columns)

    def _refuse_test(self, split: str) -> None:
        if split == "test":
            raise ValueError("the test split is read by stages/evaluate.py only, through open_test()")

    def _shards(self, split: str) -> list[Path]:
        return sorted((self.folder / split).glob("part-*.parquet"))

    def _read(self, split: str, columns: list[str] | None) -> pa.Table:
        return pa.concat_tables(
            [pq.read_table(shard, columns=columns, partitioning=None) for shard in self._shards(split)]
        )


def open_prepared(folder: str | Path) -> PreparedTask:
    """The prepared task in a folder.

    Raises
    ------
    UserError : no readable manifest there, or one of another schema.
    """
    folder = Path(folder)
    path = folder / "task.json"
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give a folder that l2g-ray has prepared") from None
    except ValueError:
        raise UserError(f"{path}: the file is no JSON; prepare the task again") from None
    if manifest.get("schema") != MANIFEST_SCHEMA:
        raise UserError(f"{path}: schema {manifest.get('schema')} is not {MANIFEST_SCHEMA}; prepare the task again")
    return PreparedTask(folder, Task.model_validate(manifest["task"]), manifest)
