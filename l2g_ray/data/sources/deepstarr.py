"""DeepSTARR as published: one table of all sequences with a column `set`, or a FASTA file and a table a split."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from l2g_ray.data.raw import Piece, RawTask
from l2g_ray.data.readers import iter_tables
from l2g_ray.data.text import COMPRESSIONS, iter_delimited, readable
from l2g_ray.errors import UserError, nearest
from l2g_ray.storage import as_location
from l2g_ray.tasks.schema import Task

SETS = {"train": "Train", "valid": "Val", "test": "Test"}
BLOCK_ROWS = 10_000
_WHOLE = "Sequences_activity_all.txt"
_COMPRESSED = ("", *COMPRESSIONS)


def is_one_table(folder: Path) -> bool:
    """Whether a folder holds `Sequences_activity_all.txt`."""
    return _find(folder, _WHOLE) is not None


def is_split_files(folder: Path) -> bool:
    """Whether a folder holds `Sequences_Train.fa`."""
    return _find(folder, "Sequences_Train.fa") is not None


def open_one_table(task: Task, folder: Path) -> RawTask:
    """The table of all sequences (tab-separated; columns set, Sequence and the task's label columns).

    Each split's piece reads the file once. Raises UserError (from the pieces) for a missing column, a value of `set`
    other than Train, Val and Test, by row, and a split without rows.
    """
    path = _find(folder, _WHOLE)
    assert path is not None
    splits = {
        split: [Piece(f"{path} (set {name})", partial(_read_set, path, name, task.label_columns))]
        for split, name in SETS.items()
    }
    return RawTask(task, splits, {"all": path})


def open_split_files(task: Task, folder: Path) -> RawTask:
    """`Sequences_Train.fa` with `Sequences_activity_Train.txt`, and so for Val and Test: row i belongs to record i.

    Raises
    ------
    UserError : a file of the six that is not there; from the pieces: a missing column, or a table with more or fewer
        rows than its FASTA file has records.
    """
    splits: dict[str, list[Piece]] = {}
    files: dict[str, Path] = {}
    for split, name in SETS.items():
        found = [_find(folder, wanted) for wanted in (f"Sequences_{name}.fa", f"Sequences_activity_{name}.txt")]
        fasta, table = found
        if fasta is None or table is None:
            missing = f"Sequences_{name}.fa" if fasta is None else f"Sequences_activity_{name}.txt"
            where = f" from {task.url}" if task.url else ""
            raise UserError(f"{folder}: no {missing}; download it, or {_WHOLE}{where}")
        splits[split] = [Piece(str(fasta), partial(_read_pair, fasta, table, task.label_columns))]
        files |= {f"{split}_sequences": fasta, f"{split}_labels": table}
    return RawTask(task, splits, files)


def _find(folder: Path, name: str) -> Path | None:
    return next((folder / f"{name}{suffix}" for suffix in _COMPRESSED if (folder / f"{name}{suffix}").is_file()), None)


def _read_set(path: Path, name: str, label_columns: tuple[str, ...]) -> Iterator[pa.Table]:
    known = pa.array(list(SETS.values()), pa.large_string())
    row, found = 0, False
    for table in iter_tables(path, BLOCK_ROWS, sequence_column="Sequence"):
        _check_columns(table, ("set", *label_columns), path)
        sets = table["set"].cast(pa.large_string())
        unknown = pc.index(pc.is_in(sets, value_set=known), pa.scalar(False)).as_py()
        if unknown >= 0:
            raise UserError(
                f"{path}, row {row + unknown + 1}: set is '{sets[unknown]}'; it must be one of {', '.join(SETS.values())}"
            )
        row += table.num_rows
        rows = table.filter(pc.equal(sets, name)).select(["id", "sequence", *label_columns])
        if rows.num_rows:
            found = True
            yield rows
    if not found:
        raise UserError(f"{path}: no rows of set {name}; download the file again")


def _read_pair(fasta: Path, path: Path, label_columns: tuple[str, ...]) -> Iterator[pa.Table]:
    labels = _Rows(path, label_columns)
    rows = 0
    for table in iter_tables(fasta, BLOCK_ROWS):
        block = labels.take(table.num_rows)
        rows += table.num_rows
        if block.num_rows < table.num_rows:
            rows_there = rows - table.num_rows + block.num_rows
            raise UserError(
                f"{path}: {rows_there:,} rows, but {fasta.name} has more records; download both files again"
            )
        columns = {name: block[name] for name in label_columns}
        yield pa.table({"id": table["id"], "sequence": table["sequence"], **columns})
    if labels.take(1).num_rows:
        raise UserError(f"{path}: more rows than {fasta.name} has records ({rows:,}); download both files again")


class _Rows:
    """The rows of a table, taken as many at a time as are wanted."""

    def __init__(self, path: Path, columns: tuple[str, ...]) -> None:
        self._tables = _read_labels(path, columns)
        self._rest = next(self._tables)  # a table without rows, at least

    def take(self, n: int) -> pa.Table:
        """The next n rows, fewer where the table ends."""
        while self._rest.num_rows < n:
            more = next(self._tables, None)
            if more is None:
                break
            self._rest = pa.concat_tables([self._rest, more])
        taken = self._rest.slice(0, n)
        self._rest = self._rest.slice(n)
        return taken


def _read_labels(path: Path, columns: tuple[str, ...]) -> Iterator[pa.Table]:
    with readable(str(path)):
        for table in iter_delimited(as_location(path), "\t", BLOCK_ROWS):
            _check_columns(table, columns, path)
            yield table.select(list(columns))


def _check_columns(table: pa.Table, columns: tuple[str, ...], path: Path) -> None:
    for column in columns:
        if column not in table.column_names:
            hint = nearest(column, table.column_names)
            raise UserError(f"{path}: no column '{column}' ({hint}); rename the column or download the file again")
