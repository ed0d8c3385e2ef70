"""A prepared task: a folder of Parquet shards and its manifest `task.json`, written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from l2g_ray.data.spool import Selection
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
        """Return rows of a split, from the manifest."""
        return self.manifest["splits"][split]["rows"]

    def length_range(self) -> tuple[int, int]:
        """Shortest and longest sequence of train and valid in bp; the test split's lengths are not looked at."""
        ranges = [self.manifest["splits"][split]["length_bp"] for split in ("train", "valid")]
        return min(r["min"] for r in ranges), max(r["max"] for r in ranges)

    def shard_paths(self, split: str) -> list[Location]:
        """Return the shards of train or valid, in order. Raises ValueError for test."""
        self._refuse_test(split)
        return self._shards(split)

    def table(self, split: str, columns: list[str] | None = None) -> pa.Table:
        """Return all rows of train or valid (columns id, sequence, label). Raises ValueError for test."""
        self._refuse_test(split)
        return self._read(split, columns)

    def open_test(self, columns: list[str] | None = None) -> pa.Table:
        """Return all rows of the test split. For stages/evaluate.py only, once everything is chosen."""
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
    """Return all rows of one shard."""
    with _whole(shard), shard.open_input() as source:
        table = pq.read_table(source, columns=columns)
        return table.rename_columns(table.column_names)  # names are decoded on use only: damaged ones are found here


@contextlib.contextmanager
def _whole(shard: Location) -> Iterator[None]:
    """Name a damaged shard of this machine; what a store answers is for its caller to judge."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last for names of columns
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
        """Yield one pass over the rows, in order: columns sequence and label."""
        for shard in self.shards:
            with _whole(shard), shard.open_input() as source, pq.ParquetFile(source) as file:
                for batch in file.iter_batches(self.rows_per_table, columns=["sequence", "label"]):
                    yield pa.Table.from_batches([batch])


def open_prepared(folder: str | Path | Location) -> PreparedTask:
    """Return the prepared task in a folder.

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


MANIFEST = "task.json"
NEAR_ROWS = "near_train.parquet"
GROUPS = "groups.parquet"


@contextlib.contextmanager
def scratch_folder(out: Location) -> Iterator[Path]:
    """Yield a folder beside `out` (on this machine for a remote one) that is gone afterwards.

    Raises UserError for a place that cannot be written, a full disk among them.
    """
    scratch: Path | None = None
    made: list[Path] = []
    try:
        if out.is_remote:
            scratch = Path(tempfile.mkdtemp(prefix="l2g-ray-"))
        else:
            made = [path for path in out.local.absolute().parents if not path.exists()]
            out.local.parent.mkdir(parents=True, exist_ok=True)
            scratch = Path(tempfile.mkdtemp(prefix=f".{out.local.name}-", dir=out.local.parent))
        yield scratch
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else " ".join(str(error).split())
        room = (
            "make room there" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "check its permissions"
        )
        raise UserError(f"{out}: cannot be written ({reason}); {room}, or choose another folder") from None
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
        # Folders that were made for an output that never came; `rmdir` leaves those that hold something.
        with contextlib.suppress(OSError):
            for path in made:
                path.rmdir()


def write_prepared(
    out: Location,
    scratch: Path,
    splits: dict[str, Selection],
    indices: dict[str, np.ndarray],
    near_rows: np.ndarray,
    groups: np.ndarray,
    manifest: dict[str, Any],
    rows_per_shard: int,
) -> None:
    """Write shards, index files, the numbers of test rows near to train rows, the group of every train and valid row (in
    this order), and manifest. `manifest` gets the keys 'shards' and each split's 'fingerprint'.

    A local folder is swapped in by one rename; in a store, shards have names of their own and the manifest comes last.
    """
    ready = scratch / "ready"
    prefix = f"part-{manifest['key'][:8]}-" if out.is_remote else "part-"
    manifest["shards"] = {}
    for split, selection in splits.items():
        names, fingerprint = _write_shards(ready / split, selection, rows_per_shard, prefix)
        manifest["shards"][split] = [f"{split}/{name}" for name in names]
        manifest["splits"][split]["fingerprint"] = fingerprint
    for name, rows in indices.items():
        (ready / "splits").mkdir(exist_ok=True)
        pq.write_table(pa.table({"row": rows}), ready / "splits" / f"{name}_indices.parquet", compression="zstd")
    pq.write_table(pa.table({"row": near_rows}), ready / NEAR_ROWS, compression="zstd")
    pq.write_table(pa.table({"group": groups}), ready / GROUPS, compression="zstd")
    (ready / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    if out.is_remote:
        _upload(ready, out)
    else:
        ready.chmod(0o755)
        _swap(ready, out.local, scratch)


def _write_shards(folder: Path, selection: Selection, rows_per_shard: int, prefix: str) -> tuple[list[str], str]:
    """Shards of equal size (they differ by one row at most); returns their names and the fingerprint of the rows."""
    folder.mkdir(parents=True)
    n_shards = -(-len(selection) // rows_per_shard)
    edges = cut_shards(len(selection), n_shards)
    names = [f"{prefix}{shard:05d}.parquet" for shard in range(n_shards)]
    sequences, labels = hashlib.sha256(), hashlib.sha256()
    shard, row, writer = 0, 0, None
    for batch in selection.batches():
        _digest(batch, sequences, labels)
        while batch.num_rows:
            if writer is None:
                writer = pq.ParquetWriter(folder / names[shard], batch.schema, compression="zstd")
            part = batch.slice(0, int(edges[shard + 1]) - row)
            writer.write_batch(part)
            row += part.num_rows
            batch = batch.slice(part.num_rows)
            if row == edges[shard + 1]:
                writer.close()
                writer, shard = None, shard + 1
    return names, hashlib.sha256(sequences.digest() + labels.digest()).hexdigest()


def cut_shards(n_rows: int, n_shards: int) -> np.ndarray:
    """Return number (n_shards + 1,) int64 of the first row of each shard, and of the row after the last."""
    return np.linspace(0, n_rows, n_shards + 1).round().astype(np.int64)


def _digest(batch: pa.RecordBatch, sequences: Any, labels: Any) -> None:
    sequences.update("\n".join([*batch["sequence"].to_pylist(), ""]).encode())
    column = batch["label"]
    values = column.flatten() if pa.types.is_fixed_size_list(column.type) else column
    labels.update(np.ascontiguousarray(values.to_numpy(zero_copy_only=False)).tobytes())


def _swap(ready: Path, out: Path, scratch: Path) -> None:
    """Put the new folder in place; the old one, if any, goes only after."""
    if out.exists():
        if not (out / MANIFEST).exists() and any(out.iterdir()):
            raise UserError(f"{out}: holds other files; choose an empty or a new folder")
        os.replace(out, scratch / "old")
    try:
        ready.rename(out)
    except OSError:
        if (scratch / "old").exists():
            os.replace(scratch / "old", out)
        raise


def _upload(ready: Path, out: Location) -> None:
    old = _old_files(out)
    files = sorted(path for path in ready.rglob("*") if path.is_file())
    files.sort(key=lambda path: path.name == MANIFEST)  # what makes the rest count
    for path in files:
        with path.open("rb") as source, (out / path.relative_to(ready).as_posix()).open_output() as target:
            shutil.copyfileobj(source, target, 1 << 22)  # type: ignore[misc]
    written = {str(out / path.relative_to(ready).as_posix()) for path in files}
    for location in old:
        if str(location) not in written:
            system, path_in_store = location.filesystem
            system.delete_file(path_in_store)


def _old_files(out: Location) -> list[Location]:
    manifest = out / MANIFEST
    if not manifest.is_file():
        if out.children():
            raise UserError(f"{out}: holds other files; choose an empty or a new folder")
        return []
    shards = json.loads(manifest.read_text()).get("shards", {})
    return [out / name for names in shards.values() for name in names]
