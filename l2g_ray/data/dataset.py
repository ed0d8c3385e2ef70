"""A prepared task: a folder of Parquet shards and its manifest `task.json`, as `prepare` leaves it.

    train/part-00000.parquet ...   columns id (string), sequence (string), label and, where known, chrom start end strand
    valid/ , test/                 the same
    splits/*_indices.parquet       which rows of the source a split that was cut holds (rows counted from 0)
    near_train.parquet             which rows of test are near-duplicates of train rows, or equal to one (from 0)
    task.json                      the task, counts, fingerprints, how splits were made, what the check found, warnings

`label` is int64 for classification, else a fixed-size list of float32 with NaN for a missing value. The folder may be in
an object store (s3://, gs://).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from l2g_ray.data.shards import GROUPS, NEAR_ROWS
from l2g_ray.errors import UserError
from l2g_ray.storage import Location, as_location
from l2g_ray.tasks.schema import Task

MANIFEST_SCHEMA = 2


@dataclass(frozen=True)
class PreparedTask:
    """A prepared task. Train and valid are open to all; the test split only through `open_test`."""

    folder: Location
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

    def shard_paths(self, split: str) -> list[Location]:
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

    def near_train_rows(self) -> np.ndarray | None:
        """Numbers (from 0) of the test rows that are near-duplicates of train rows of the source, or equal to one.

        None where an earlier version prepared the task. Nothing may be chosen by it.
        """
        path = self.folder / NEAR_ROWS
        if not path.is_file():
            return None
        return read_shard(path)["row"].to_numpy()

    def row_groups(self) -> np.ndarray:
        """Group (n,) int64 of every row of train, then of valid: rows of one group belong on one side of a split.

        Raises UserError where an earlier version prepared the task.
        """
        path = self.folder / GROUPS
        if not path.is_file():
            raise UserError(f"{path}: missing; prepare the task again, or set folds to 0")
        return read_shard(path)["group"].to_numpy()

    def _refuse_test(self, split: str) -> None:
        if split == "test":
            raise ValueError("the test split is read by stages/evaluate.py only, through open_test()")

    def _shards(self, split: str) -> list[Location]:
        return [self.folder / name for name in self.manifest["shards"][split]]

    def _read(self, split: str, columns: list[str] | None) -> pa.Table:
        return pa.concat_tables([read_shard(shard, columns) for shard in self._shards(split)])


def read_shard(shard: Location, columns: list[str] | None = None) -> pa.Table:
    """All rows of one shard."""
    with _whole(shard), shard.open_input() as source:
        return pq.read_table(source, columns=columns)


@contextlib.contextmanager
def _whole(shard: Location) -> Iterator[None]:
    """Name a damaged shard of this machine; what a store answers is for its caller to judge."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if shard.is_remote:
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{shard}: the prepared rows cannot be read ({reason}); prepare the task again") from None


@dataclass(frozen=True)
class ShardSource:
    """Rows of some shards as a stream (see `batches.Source`): memory holds one row group, however many rows there are."""

    shards: tuple[Location, ...]
    n_rows: int
    rows_per_table: int = 4096

    def tables(self) -> Iterator[pa.Table]:
        """One pass over the rows, in order: columns sequence and label."""
        for shard in self.shards:
            with _whole(shard), shard.open_input() as source, pq.ParquetFile(source) as file:
                for batch in file.iter_batches(self.rows_per_table, columns=["sequence", "label"]):
                    yield pa.Table.from_batches([batch])


def open_prepared(folder: str | Path | Location) -> PreparedTask:
    """The prepared task in a folder.

    Raises
    ------
    UserError : no readable manifest there, or one of another schema.
    """
    folder = as_location(folder)
    path = folder / "task.json"
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give a folder that l2g-ray has prepared") from None
    except ValueError:
        raise UserError(f"{path}: the file is no JSON; prepare the task again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())[:200]}); check the address") from None
    if not isinstance(manifest, dict):
        raise UserError(f"{path}: holds no mapping; prepare the task again")
    if manifest.get("schema") != MANIFEST_SCHEMA:
        raise UserError(f"{path}: schema {manifest.get('schema')} is not {MANIFEST_SCHEMA}; prepare the task again")
    try:
        return PreparedTask(folder, Task.model_validate(manifest.get("task")), manifest)
    except ValueError:
        raise UserError(f"{path}: holds no task that this version reads; prepare the task again") from None
