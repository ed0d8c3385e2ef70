"""Which texts in a cell mean that there is no value."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

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
    """Which of n texts, without blanks round them, are no value: booleans, false for null."""
    return pc.is_in(texts, value_set=pa.array(sorted(missing), texts.type))


def count_missing(column: pa.ChunkedArray, missing: frozenset[str] = MISSING) -> dict[str, int]:
    """How many rows of a column say each text that is read as missing; empty cells are left out."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return {}
    texts = pc.utf8_trim_whitespace(column)
    found = pc.value_counts(texts.filter(find_missing(texts, missing - {""})))
    return {entry["values"]: entry["counts"] for entry in found.to_pylist()}


def name_missing(counts: dict[str, int]) -> str:
    """The texts of `count_missing` for a message: 'NA' or 'null'."""
    return " or ".join(f"'{text}'" for text in counts)
