"""Checks of one file's rows: sequences and labels come out clean, or a UserError names file, row and fix.

Rows are counted from 1.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from l2g_ray.errors import UserError, nearest
from l2g_ray.sequence import CODE_TABLE
from l2g_ray.tasks.schema import Task

_LETTERS = "".join(chr(code) for code in range(ord("A"), ord("Z") + 1) if CODE_TABLE[code] <= 4 and chr(code) != "U")
_INTEGER = re.compile(r"[+-]?\d+")


def clean_sequences(
    sequences: pa.ChunkedArray, path: str | Path, max_length_bp: int, first_row: int = 1
) -> pa.ChunkedArray:
    """Upper-case DNA of n rows: blanks trimmed, U read as T, IUPAC letters kept.

    Parameters
    ----------
    path, first_row : where the rows come from, and the number of the first one, for messages.

    Raises
    ------
    UserError : an empty or missing sequence, one over `max_length_bp`, or a letter that is no nucleotide.
    """
    clean = pc.ascii_upper(pc.ascii_trim_whitespace(sequences.cast(pa.large_string())))
    clean = pc.replace_substring(clean, "U", "T")
    lengths = pc.fill_null(pc.binary_length(clean), 0)
    row = _first_true(pc.equal(lengths, 0))
    if row is not None:
        raise UserError(f"{path}, row {row + first_row}: the sequence is empty; fill it in or remove the row")
    row = _first_true(pc.greater(lengths, max_length_bp))
    if row is not None:
        raise UserError(
            f"{path}, row {row + first_row}: the sequence is {lengths[row].as_py():,} bp long, "
            f"over the limit of {max_length_bp:,} bp; cut it, or raise data.max_length_bp"
        )
    row = _first_true(pc.match_substring_regex(clean, f"[^{_LETTERS}]"))
    if row is not None:
        text = clean[row].as_py()
        position = next(i for i, letter in enumerate(text) if letter not in _LETTERS)
        raise UserError(
            f"{path}, row {row + first_row}: '{text[position]}' at base {position + 1} is no nucleotide letter; "
            "use A C G T (or U), N, or the IUPAC letters RYSWKMBDHV"
        )
    return clean


def count_letters(sequences: pa.ChunkedArray) -> dict[str, int]:
    """How often each letter stands in n clean sequences, letters that are there only."""
    left = pc.sum(pc.binary_length(sequences)).as_py() or 0
    counts = {}
    for letter in "ACGT" + "".join(sorted(set(_LETTERS) - set("ACGT"))):
        if left == 0:
            break
        found = pc.sum(pc.count_substring(sequences, letter)).as_py()
        if found:
            counts[letter] = found
            left -= found
    return counts


def parse_labels(table: pa.Table, task: Task, path: str | Path) -> pa.Array:
    """The labels of n rows: int64 codes for classification, else fixed-size lists of n_outputs float32 (NaN = missing).

    Classification takes label names, or codes counted from 0 where no label's own name is a whole number.

    Raises
    ------
    UserError : a missing column, a missing label, a label outside the declared set, or a value that is no number.
    """
    for column in task.label_columns:
        if column not in table.column_names:
            others = [name for name in table.column_names if name not in ("id", "sequence")]
            known = nearest(column, others) if others else "it has only sequences"
            raise UserError(
                f"{path}: no column '{column}' ({known}); rename the column, or name it in the task's label_columns"
            )
    if task.is_classification:
        return _parse_classes(table[task.label_columns[0]], task, path)
    outputs = [_parse_numbers(table[column], column, path) for column in task.label_columns]
    values = np.stack(outputs, axis=1)
    _check_outputs(values, task, path)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1), pa.float32()), task.n_outputs)


def label_texts(column: pa.ChunkedArray) -> list[str | None]:
    """Labels as text, None where missing; a whole number written as a float (1.0) reads as that number (1)."""
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    texts: list[str | None] = []
    for value in column.to_pylist():
        if isinstance(value, float):
            texts.append(None if math.isnan(value) else f"{value:.0f}" if value.is_integer() else repr(value))
        else:
            texts.append(None if value is None or not str(value).strip() else str(value).strip())
    return texts


def _parse_classes(column: pa.ChunkedArray, task: Task, path: str | Path) -> pa.Array:
    codes = {label: code for code, label in enumerate(task.labels)}
    if not any(_INTEGER.fullmatch(label) for label in task.labels):
        codes |= {str(code): code for code in range(task.n_outputs)}
    parsed = []
    for row, text in enumerate(label_texts(column), start=1):
        if text is None:
            raise UserError(f"{path}, row {row}: the label is missing; fill it in or remove the row")
        if text not in codes:
            raise UserError(
                f"{path}, row {row}: label '{text}' is not among the declared labels ({nearest(text, task.labels)}); "
                "correct it, or declare it in the task's labels"
            )
        parsed.append(codes[text])
    return pa.array(parsed, pa.int64())


def _parse_numbers(column: pa.ChunkedArray, name: str, path: str | Path) -> np.ndarray:
    try:
        values = column.cast(pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        values = np.array(
            [_parse_number(text, row, name, path) for row, text in enumerate(label_texts(column), start=1)]
        )
    infinite = np.flatnonzero(np.isinf(values))
    if len(infinite):
        raise UserError(
            f"{path}, row {infinite[0] + 1}: column '{name}' is infinite; correct it or leave the cell empty"
        )
    return values


def _parse_number(text: str | None, row: int, name: str, path: str | Path) -> float:
    try:
        return float("nan") if text is None else float(text)
    except ValueError:
        raise UserError(
            f"{path}, row {row}: column '{name}' holds '{text}', which is no number; correct it or leave the cell empty"
        ) from None


def _check_outputs(values: np.ndarray, task: Task, path: str | Path) -> None:
    empty = np.flatnonzero(np.isnan(values).all(axis=1))
    if len(empty):
        raise UserError(f"{path}, row {empty[0] + 1}: all labels are missing; fill one in or remove the row")
    if task.kind == "multilabel":
        rows, columns = np.nonzero(~np.isnan(values) & (values != 0) & (values != 1))
        if len(rows):
            name, value = task.label_columns[columns[0]], values[rows[0], columns[0]]
            raise UserError(
                f"{path}, row {rows[0] + 1}: column '{name}' holds {value:g}; a multilabel column holds 0, 1 or nothing"
            )


def _first_true(mask: pa.ChunkedArray) -> int | None:
    row = pc.index(mask, pa.scalar(True)).as_py()
    return None if row < 0 else row
