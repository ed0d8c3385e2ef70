"""Benchmarks in the forms in which they are published, recognised by the files that a folder holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from l2g_ray.data.options import SourceOptions
from l2g_ray.data.raw import Piece, RawTask
from l2g_ray.data.readers import iter_tables
from l2g_ray.data.sources import deepsea, deepstarr
from l2g_ray.data.sources import genomic_benchmarks as genomic
from l2g_ray.data.text import readable
from l2g_ray.errors import UserError, nearest
from l2g_ray.tasks.schema import Task

BLOCK_ROWS = 10_000
_SPLIT_NAMES = {"train": ("train",), "valid": ("valid", "validation", "dev"), "test": ("test",)}
# What the sequence column is named where it is not the task's own name for it.
_SEQUENCE_COLUMN = "seq"

_SHARED = "rows of several tasks are told apart by it: give the folder of this task alone"

_Opener = Callable[[Task, Path, SourceOptions], RawTask]


def open_official(task: Task, folder: Path, options: SourceOptions) -> RawTask | None:
    """A task from the published form that `folder` holds; None where it holds none of them.

    Genomic Benchmarks (intervals with references, or a text file a sequence), DeepSTARR (one table, or a FASTA file and
    a table a split), DeepSEA (MATLAB files, or npz), and the hub's Parquet shards (`data/train-00000-of-00001.parquet`,
    or without the `data`). Plain split files, as those of GUE and of the Nucleotide Transformer, are none of these.

    Raises
    ------
    UserError : files that are not whole or do not fit the task. What can only be seen by reading the rows is raised by
        the pieces.
    """
    opener = _recognise(folder)
    return None if opener is None else opener(task, folder, options)


def is_official(folder: Path) -> bool:
    """Whether `open_official` knows the form that a folder holds; nothing is read."""
    return _recognise(folder) is not None


def _recognise(folder: Path) -> _Opener | None:
    forms: tuple[tuple[Callable[[Path], bool], _Opener], ...] = (
        (genomic.is_intervals, genomic.open_intervals),
        (genomic.is_text_files, lambda task, folder, options: genomic.open_text_files(task, folder)),
        (deepstarr.is_one_table, lambda task, folder, options: deepstarr.open_one_table(task, folder)),
        (deepstarr.is_split_files, lambda task, folder, options: deepstarr.open_split_files(task, folder)),
        (deepsea.is_deepsea, lambda task, folder, options: deepsea.open_deepsea(task, folder)),
        (_is_shards, lambda task, folder, options: _open_shards(task, folder)),
    )
    return next((opener for recognises, opener in forms if recognises(folder)), None)


def _is_shards(folder: Path) -> bool:
    return "train" in _find_shards(folder)


def _find_shards(folder: Path) -> dict[str, list[Path]]:
    for place in (folder / "data", folder):
        found = {
            split: sorted(path for name in names for path in place.glob(f"{name}-*.parquet"))
            for split, names in _SPLIT_NAMES.items()
        }
        if found["train"]:
            return {split: paths for split, paths in found.items() if paths}
    return {}


def _open_shards(task: Task, folder: Path) -> RawTask:
    shards = _find_shards(folder)
    if "test" not in shards:
        raise UserError(f"{folder}: train shards, but no test-*.parquet; download the data set again")
    for paths in shards.values():
        _check_complete(paths)
    files = {f"{split}/{path.name}": path for split, paths in shards.items() for path in paths}
    if not task.hub_filter:
        splits = {
            split: [Piece(str(path), partial(_read_shards, task, [path])) for path in paths]
            for split, paths in shards.items()
        }
        return RawTask(task, splits, files)
    chosen = ", ".join(f"{column} {value}" for column, value in task.hub_filter.items())
    splits = {
        # One piece, because a shard may hold no row of the task.
        split: [Piece(f"{paths[0]} ({chosen})", partial(_read_shards, task, paths))]
        for split, paths in shards.items()
    }
    return RawTask(task, splits, files)


def _check_complete(paths: list[Path]) -> None:
    """`train-00000-of-00002.parquet` says how many shards there are."""
    counted = [path for path in paths if "-of-" in path.stem]
    for path in counted:
        total = path.stem.rpartition("-of-")[2]
        if total.isdigit() and int(total) != len(counted):
            raise UserError(f"{path}: {len(counted)} of {int(total)} shards are there; download the others too")


def _read_shards(task: Task, paths: list[Path]) -> Iterator[pa.Table]:
    found = False
    others: dict[str, set[str]] = {column: set() for column in task.hub_filter}
    for path in paths:
        for table in iter_tables(path, BLOCK_ROWS, _sequence_column(task, path)):
            kept = table
            for column, value in task.hub_filter.items():
                _check_column(column, table, path, _SHARED)
                texts = kept[column].cast(pa.string())
                others[column] |= {text for text in pc.unique(texts).to_pylist() if text}
                kept = kept.filter(pc.equal(texts, value))
            if kept.num_rows:
                found = True
                yield _arrange(kept, task, path)
    if not found:
        column, value = next(iter(task.hub_filter.items()))
        raise UserError(
            f"{paths[0]}: no rows with {column} '{value}' ({nearest(value, others[column])}); "
            f"give the data set {task.hub or 'that the task belongs to'}"
        )


def _sequence_column(task: Task, path: Path) -> str:
    with readable(str(path)):
        names = pq.read_schema(path).names
    own = task.sequence_column
    return _SEQUENCE_COLUMN if own not in names and _SEQUENCE_COLUMN in names else own


def _check_column(column: str, table: pa.Table, path: Path, fix: str) -> None:
    if column not in table.column_names:
        raise UserError(f"{path}: no column '{column}' ({nearest(column, table.column_names)}); {fix}")


def _arrange(table: pa.Table, task: Task, path: Path) -> pa.Table:
    for column in task.label_columns:
        _check_column(column, table, path, "rename the column")
    # Ids that readers made up are row numbers; a name says more.
    ids = table["name"].cast(pa.string()) if "name" in table.column_names else table["id"]
    columns = {name: table[name] for name in task.label_columns}
    return pa.table({"id": ids, "sequence": table["sequence"], **columns})
