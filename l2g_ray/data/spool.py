"""Rows on their way from a source to shards: checked and set down on disk once, with what is needed of each in memory.

A split's text never stands in memory whole: a row costs about 30 bytes there, and its sequence and labels wait in a
compressed Arrow file until it is known which split the row belongs to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from l2g_ray.data.checks import MISSING, clean_sequences, count_letters, parse_labels, show
from l2g_ray.data.facts import Facts, join_facts, measure_facts
from l2g_ray.data.raw import Piece
from l2g_ray.errors import UserError, nearest
from l2g_ray.tasks.schema import Task

PLACE_COLUMNS = ("chrom", "start", "end", "strand")
BATCH_ROWS = 10_000


@dataclass(frozen=True)
class Spool:
    """The rows of one split (or of 'all') in order.

    labels : codes (n,) int64, or (n, n_outputs) float32 mapped from disk. keys : a text a row for each key column.
    pieces : where each run of rows comes from: (first row, name), for messages. rna : whether a U was read as T.
    """

    path: Path
    facts: Facts
    labels: np.ndarray
    keys: dict[str, list[str]]
    pieces: list[tuple[int, str]]
    rna: bool

    def __len__(self) -> int:
        return len(self.facts)

    def where(self) -> str:
        """The first file's name."""
        return self.pieces[0][1]

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows in order: id, sequence, label and, where the source has them, chrom, start, end and strand."""
        with pa.memory_map(str(self.path)) as source, pa.ipc.open_file(source) as reader:
            for index in range(reader.num_record_batches):
                yield reader.get_batch(index)


@dataclass(frozen=True)
class Selection:
    """Some rows of a spool, in its order: `rows` are sorted indices."""

    spool: Spool
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def facts(self) -> Facts:
        """The facts of the chosen rows."""
        return self.spool.facts.take(self.rows)

    @property
    def labels(self) -> np.ndarray:
        """The labels of the chosen rows."""
        return self.spool.labels[self.rows]

    def keep(self, mask: np.ndarray) -> Selection:
        """Those of the rows whose mask (len(self),) is true."""
        return Selection(self.spool, self.rows[mask])

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The chosen rows in order."""
        chosen = np.zeros(len(self.spool), bool)
        chosen[self.rows] = True
        start = 0
        for batch in self.spool.batches():
            part = batch.filter(pa.array(chosen[start : start + batch.num_rows]))
            start += batch.num_rows
            if part.num_rows:
                yield part

    def count_letters(self) -> dict[str, int]:
        """How often each letter stands in the chosen sequences."""
        counts: dict[str, int] = {}
        for batch in self.batches():
            for letter, n in count_letters(pa.chunked_array([batch["sequence"]])).items():
                counts[letter] = counts.get(letter, 0) + n
        return dict(sorted(counts.items(), key=lambda item: ("ACGT" + item[0]).index(item[0])))


def spool_pieces(
    pieces: list[Piece],
    task: Task,
    path: Path,
    max_length_bp: int,
    key_columns: tuple[str, ...] = (),
    progress: Callable[[int], None] = lambda rows: None,
    missing: frozenset[str] = MISSING,
) -> Spool:
    """Check all rows of some pieces and set them down at `path` (and labels at `path`.labels).

    Sequences come out upper-case DNA, labels parsed. `progress` is told the rows of each table. Texts of `missing` are no
    value.

    Raises
    ------
    UserError : whatever is wrong with a row, naming its file and number; a key column that is not there.
    """
    facts: list[Facts] = []
    keys: dict[str, list[str]] = {column: [] for column in key_columns}
    starts: list[tuple[int, str]] = []
    codes: list[np.ndarray] = []
    rna, n_rows, writer = False, 0, None
    label_path = path.with_name(f"{path.name}.labels")
    try:
        with label_path.open("wb") as label_file:
            for piece in pieces:
                starts.append((n_rows, piece.where))
                for table, found_rna in _clean(piece, task, max_length_bp, keys, missing):
                    rna |= found_rna
                    facts.append(measure_facts(table["sequence"]))
                    values = _label_values(table["label"], task)
                    if task.is_classification:
                        codes.append(values)
                    else:
                        label_file.write(np.ascontiguousarray(values, np.float32).tobytes())
                    if writer is None:
                        options = pa.ipc.IpcWriteOptions(compression="zstd")
                        writer = pa.ipc.new_file(str(path), table.schema, options=options)
                        schema = table.schema
                    elif table.schema != schema:
                        _refuse_other_columns(piece.where, table.schema, pieces[0].where, schema)
                    writer.write_table(table)
                    n_rows += table.num_rows
                    progress(table.num_rows)
    finally:
        if writer is not None:
            writer.close()
    if n_rows == 0:
        raise UserError(f"{pieces[0].where}: the file has no rows; give at least one sequence")
    if task.is_classification:
        labels = np.concatenate(codes)
    else:
        labels = np.memmap(label_path, np.float32, "r", shape=(n_rows, task.n_outputs))
    return Spool(path, join_facts(facts), labels, keys, starts, rna)


def _clean(
    piece: Piece, task: Task, max_length_bp: int, keys: dict[str, list[str]], missing: frozenset[str]
) -> Iterator[tuple[pa.Table, bool]]:
    first_row = 1
    for table in piece.tables():
        for start in range(0, table.num_rows, BATCH_ROWS):
            part = table.slice(start, BATCH_ROWS)
            sequences = clean_sequences(part["sequence"], piece.where, max_length_bp, first_row, missing)
            columns: dict[str, Any] = {
                "id": part["id"],
                "sequence": sequences,
                "label": parse_labels(part, task, piece.where, first_row, missing),
            }
            for name, texts in keys.items():
                texts += _read_keys(part, name, piece.where, first_row)
            for name in PLACE_COLUMNS:
                if name in part.column_names:
                    columns[name] = _place(part[name], name, piece.where, first_row)
            rna = pc.any(pc.match_substring(part["sequence"], "U", ignore_case=True)).as_py()
            first_row += part.num_rows
            yield pa.table(columns), bool(rna)


def _read_keys(table: pa.Table, column: str, where: str, first_row: int) -> list[str]:
    if column not in table.column_names:
        raise UserError(
            f"{where}: no column '{column}' to part the rows by ({nearest(column, table.column_names)}); "
            "name another, or choose another --split"
        )
    values = table[column].to_pylist()
    for row, value in enumerate(values, start=first_row):
        if value is None or not str(value).strip():
            raise UserError(f"{where}, row {row}: column '{column}' is empty; fill it in, the rows are parted by it")
    return [str(value).strip() for value in values]


def _place(column: pa.ChunkedArray, name: str, where: str, first_row: int) -> pa.ChunkedArray:
    """Text, or whole numbers for start and end; an empty cell is missing."""
    kind = pa.int64() if name in ("start", "end") else pa.string()
    try:
        if pa.types.is_large_string(column.type) and kind == pa.int64():
            column = pc.utf8_trim_whitespace(column)
            column = pc.if_else(pc.equal(column, ""), pa.scalar(None, column.type), column)
        return column.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        wanted = "whole number" if kind == pa.int64() else "text"
        row = next((row for row, value in enumerate(column.to_pylist()) if not _can_cast(value, column.type, kind)), 0)
        raise UserError(
            f"{where}, row {row + first_row}: column '{name}' holds '{show(column[row].as_py())}', which is no {wanted}; "
            "correct it, or rename the column if it is no place in a genome"
        ) from None


def _can_cast(value: Any, kind: pa.DataType, wanted: pa.DataType) -> bool:
    try:
        pa.array([value], kind).cast(wanted)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return False
    return True


def _refuse_other_columns(where: str, schema: pa.Schema, first: str, first_schema: pa.Schema) -> None:
    extra, lost = (set(a.names) - set(b.names) for a, b in ((schema, first_schema), (first_schema, schema)))
    before = "earlier rows have" if where == first else f"{first} has"
    told = [f"a column '{name}', which {before} not" for name in sorted(extra)]
    told += [f"no column '{name}', which {before}" for name in sorted(lost)]
    raise UserError(f"{where}: there is {' and '.join(told)}; give all rows of a split the same columns")


def _label_values(column: pa.ChunkedArray, task: Task) -> np.ndarray:
    if task.is_classification:
        return column.to_numpy()
    flat = pa.concat_arrays([chunk.flatten() for chunk in column.chunks])
    return flat.to_numpy(zero_copy_only=False).reshape(-1, task.n_outputs)
