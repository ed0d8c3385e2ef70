"""Checks of one file's rows: sequences and labels come out clean, or a UserError names file, row and fix."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from l2g_ray.errors import UserError, nearest
from l2g_ray.sequence import CODE_TABLE
from l2g_ray.tasks.schema import Task

# As pandas, R, spreadsheets and databases write it; by the exact text, because 'na' and 'NAN' are letters of sequences.
NA_VALUES = (
    *("NA", "na", "N/A", "n/a", "#N/A", "#NA", "<NA>", "NaN", "nan", "NAN", "-NaN", "-nan", "NULL", "null", "Null"),
    "None",
)


def missing_texts(na_values: Iterable[str] = NA_VALUES) -> frozenset[str]:
    """`na_values`, and the empty cell, which is missing always."""
    return frozenset(na_values) | {""}


MISSING = missing_texts()


def find_missing(texts: pa.ChunkedArray, missing: frozenset[str] = MISSING) -> pa.ChunkedArray:
    """Return which of n texts, without blanks round them, are no value: booleans, false for null."""
    return pc.is_in(texts, value_set=pa.array(sorted(missing), texts.type))


def count_missing(column: pa.ChunkedArray, missing: frozenset[str] = MISSING) -> dict[str, int]:
    """Return how many rows of a column say each text that is read as missing; empty cells are left out."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return {}
    texts = pc.utf8_trim_whitespace(column)
    found = pc.value_counts(texts.filter(find_missing(texts, missing - {""})))
    return {entry["values"]: entry["counts"] for entry in found.to_pylist()}


def name_missing(counts: dict[str, int]) -> str:
    """Return the texts of `count_missing` for a message: 'NA' or 'null'."""
    return " or ".join(f"'{text}'" for text in counts)


_LETTERS = "".join(chr(code) for code in range(ord("A"), ord("Z") + 1) if CODE_TABLE[code] <= 4 and chr(code) != "U")
_INTEGER = re.compile(r"[+-]?\d+")
_FLOAT = re.compile(r"[+-]?\d+\.\d*")
_COMMA = re.compile(r"[+-]?\d+,\d+")


def show(value: object, width: int = 40) -> str:
    """Return a cell's text for a message: one line, cut where it is long, so that a message stays one sentence."""
    text = str(value)
    line = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text[:width])
    return line if len(text) <= width else f"{line}..."


def clean_sequences(
    sequences: pa.ChunkedArray,
    where: str | Path,
    max_length_bp: int,
    first_row: int = 1,
    missing: frozenset[str] = MISSING,
) -> pa.ChunkedArray:
    """Upper-case DNA of n rows: blanks trimmed, U read as T, IUPAC letters kept.

    Parameters
    ----------
    where, first_row : where the rows come from, and the number of the first one, for messages.
    missing : texts that mean that there is no sequence, 'NA' among them, although N and A are letters.

    Raises
    ------
    UserError : an empty or missing sequence, one over `max_length_bp`, or a letter that is no nucleotide.
    """
    texts = pc.ascii_trim_whitespace(sequences.cast(pa.large_string()))
    clean = pc.replace_substring(pc.ascii_upper(texts), "U", "T")
    lengths = pc.fill_null(pc.binary_length(clean), 0)
    row = _first_true(pc.or_(pc.equal(lengths, 0), find_missing(texts, missing)))
    if row is not None:
        what = f"is missing: '{texts[row].as_py()}' means no value" if lengths[row].as_py() else "is empty"
        raise UserError(f"{where}, row {row + first_row}: the sequence {what}; fill it in or remove the row")
    row = _first_true(pc.greater(lengths, max_length_bp))
    if row is not None:
        raise UserError(
            f"{where}, row {row + first_row}: the sequence is {lengths[row].as_py():,} bp long, "
            f"over the limit of {max_length_bp:,} bp; cut it, or raise data.max_length_bp"
        )
    row = _first_true(pc.match_substring_regex(clean, f"[^{_LETTERS}]"))
    if row is not None:
        text = clean[row].as_py()
        position = next(i for i, letter in enumerate(text) if letter not in _LETTERS)
        raise UserError(
            f"{where}, row {row + first_row}: '{show(text[position])}' at base {position + 1} is no nucleotide letter; "
            "use A C G T (or U), N, or the IUPAC letters RYSWKMBDHV"
        )
    return clean


def count_letters(sequences: pa.ChunkedArray) -> dict[str, int]:
    """Count each letter of n clean sequences; letters without an occurrence are left out."""
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


def parse_labels(
    table: pa.Table, task: Task, where: str | Path, first_row: int = 1, missing: frozenset[str] = MISSING
) -> pa.Array:
    """Return the labels of n rows: int64 codes for classification, else fixed-size lists of n_outputs float32 (NaN =
    missing).

    Classification takes label names, or codes counted from 0 where no label's own name is a whole number. Several
    outputs have one column each, or one column of lists. Texts of `missing` are no label, unless the task has a class of
    that name.

    Raises
    ------
    UserError : a missing column, a missing label, a label outside the declared set, or a value that is no number.
    """
    for column in task.label_columns:
        if column not in table.column_names:
            others = [name for name in table.column_names if name not in ("id", "sequence")]
            known = nearest(column, others) if others else "it has only sequences"
            raise UserError(
                f"{where}: no column '{column}' ({known}); rename the column, "
                "or name it with --label-column or the task's label_columns"
            )
    if task.is_classification:
        return _parse_classes(table[task.label_columns[0]], task, where, first_row, missing)
    first = table[task.label_columns[0]]
    if len(task.label_columns) == 1 and _is_list(first.type):
        values = _parse_lists(first, task, where, first_row)
    else:
        outputs = [_parse_numbers(table[column], column, where, first_row, missing) for column in task.label_columns]
        values = np.stack(outputs, axis=1)
    if values.shape[1] != task.n_outputs:
        raise UserError(
            f"{where}: column '{task.label_columns[0]}' holds no lists, but the task has {task.n_outputs} labels; "
            "name one column a label with --label-column"
        )
    _check_outputs(values, task, where, first_row)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.astype(np.float32).reshape(-1)), task.n_outputs)


def label_texts(column: pa.ChunkedArray, missing: frozenset[str] = MISSING) -> tuple[list[str | None], np.ndarray]:
    """Return the distinct labels of n rows as text, None where missing, and which of them each row has: codes (n,)
    int64.

    A whole number written as a float (1.0) reads as that number (1). The column may not be nested.
    """
    column = _decode(column)
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    encoded = (column if isinstance(column, pa.Array) else _join(column)).dictionary_encode(null_encoding="encode")
    texts = [_label_text(value, missing) for value in encoded.dictionary.to_pylist()]
    return texts, encoded.indices.to_numpy().astype(np.int64)


def _label_text(value: Any, missing: frozenset[str]) -> str | None:
    text = "" if value is None else str(value).strip()
    if text in missing or value != value:
        return None
    if isinstance(value, float) or _FLOAT.fullmatch(text):
        number = float(text)
        return f"{number:.0f}" if number.is_integer() else text
    return text


def _parse_classes(
    column: pa.ChunkedArray, task: Task, where: str | Path, first_row: int, missing: frozenset[str]
) -> pa.Array:
    known = {label: code for code, label in enumerate(task.labels)}
    if not any(_INTEGER.fullmatch(label) for label in task.labels):
        known |= {str(code): code for code in range(task.n_outputs)}
    if pa.types.is_nested(column.type):
        raise UserError(
            f"{where}: column '{task.label_columns[0]}' holds {show(column.type)}, not one label a row; "
            "name the column of the labels with --label-column"
        )
    texts, found = label_texts(column, missing - set(task.labels))
    codes = np.array([-1 if text is None else known.get(text, -2) for text in texts], np.int64)[found]
    if (codes < 0).any():
        row = int(np.argmax(codes < 0))
        text = texts[found[row]]
        if text is None:
            raise UserError(
                f"{where}, row {row + first_row}: the label is missing{_explain_missing(column[row].as_py())}; "
                "fill it in or remove the row"
            )
        raise UserError(
            f"{where}, row {row + first_row}: label '{show(text)}' is not among the declared labels "
            f"({nearest(show(text), task.labels)}); correct it, or declare it in the task's labels"
        )
    return pa.array(codes, pa.int64())


def _explain_missing(value: Any) -> str:
    """Return why a cell that is not empty has no label, for a message."""
    if not isinstance(value, str) or not value.strip():
        return ""
    return f" ('{value.strip()}' means no value, unless --na-values names other texts)"


def _parse_numbers(
    column: pa.ChunkedArray, name: str, where: str | Path, first_row: int, missing: frozenset[str]
) -> np.ndarray:
    values = as_numbers(column, missing)
    if values is None:
        rows = (
            _parse_number(text, row, name, where, missing)
            for row, text in enumerate(column.to_pylist(), start=first_row)
        )
        values = np.fromiter(rows, np.float64, len(column))
    return values


def as_numbers(column: pa.ChunkedArray, missing: frozenset[str] = MISSING) -> np.ndarray | None:
    """Return a column of numbers, or of texts that are numbers, as float64 (n,), NaN where missing; None for anything
    else.

    True and false of a boolean column are 1 and 0.
    """
    column = _decode(column)
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        trimmed = pc.utf8_trim_whitespace(column)
        column = pc.if_else(find_missing(trimmed, missing), pa.scalar(None, column.type), trimmed)
    elif not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type) or pa.types.is_null(column.type)):
        return None
    try:
        return column.cast(pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None


def _parse_number(value: Any, row: int, name: str, where: str | Path, missing: frozenset[str]) -> float:
    text = "" if value is None else str(value).strip()
    try:
        return math.nan if text in missing else float(text)
    except ValueError:
        hint = "write the decimal point as '.'" if _COMMA.fullmatch(text) else "correct it or leave the cell empty"
        raise UserError(
            f"{where}, row {row}: column '{name}' holds '{show(text)}', which is no number; {hint}"
        ) from None


def _parse_lists(column: pa.ChunkedArray, task: Task, where: str | Path, first_row: int) -> np.ndarray:
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    wrong = np.flatnonzero(lengths != task.n_outputs)
    if len(wrong):
        raise UserError(
            f"{where}, row {wrong[0] + first_row}: {lengths[wrong[0]]} values in column '{task.label_columns[0]}' "
            f"where the task has {task.n_outputs} labels; correct the row or the labels"
        )
    try:
        flat = pc.list_flatten(column).cast(pa.float64())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise UserError(
            f"{where}: column '{task.label_columns[0]}' holds {show(column.type)}, not lists of numbers; "
            "write numbers, or null where one is missing"
        ) from None
    return flat.to_numpy(zero_copy_only=False).astype(np.float64).reshape(-1, task.n_outputs)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _decode(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a dictionary-encoded column (pandas: categorical) as what it stands for; half floats, which Arrow hardly
    reads.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.cast(pa.float32()) if pa.types.is_float16(column.type) else column


def _join(column: pa.ChunkedArray) -> pa.Array:
    joined = column.combine_chunks()
    return pa.concat_arrays(joined.chunks) if isinstance(joined, pa.ChunkedArray) else joined


def _check_outputs(values: np.ndarray, task: Task, where: str | Path, first_row: int) -> None:
    empty = np.flatnonzero(np.isnan(values).all(axis=1))
    if len(empty):
        raise UserError(f"{where}, row {empty[0] + first_row}: all labels are missing; fill one in or remove the row")
    rows, columns = np.nonzero(np.abs(values) > np.finfo(np.float32).max)
    if len(rows):
        names = task.label_columns if len(task.label_columns) == values.shape[1] else task.labels
        raise UserError(
            f"{where}, row {rows[0] + first_row}: column '{names[columns[0]]}' is infinite, or too great for 32 bits; "
            "correct it or leave the cell empty"
        )
    if task.kind == "multilabel":
        rows, columns = np.nonzero(~np.isnan(values) & (values != 0) & (values != 1))
        if len(rows):
            name, value = task.labels[columns[0]], values[rows[0], columns[0]]
            raise UserError(
                f"{where}, row {rows[0] + first_row}: column '{name}' holds {value:g}; a multilabel column holds 0, 1 or nothing"
            )


def _first_true(mask: pa.ChunkedArray) -> int | None:
    row = pc.index(mask, pa.scalar(True)).as_py()
    return None if row < 0 else row
