"""Sequences as a person gives them: a list, a table in memory, or a file; read as one thing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias, Union

import numpy as np
import pandas as pd
import pyarrow as pa

from l2g_ray.data.readers import recognise
from l2g_ray.errors import UserError
from l2g_ray.sequence import ALPHABET
from l2g_ray.storage import Location

# Sequences (a list, Series or array of strings), a table (DataFrame, Arrow table, or mapping of columns), or a file.
Sequences: TypeAlias = Union[
    str, Path, Iterable[str], "pd.Series[str]", np.ndarray, pd.DataFrame, pa.Table, Mapping[str, Any]
]
_LETTERS = frozenset(f"{ALPHABET}UNRYSWKMBDHV{ALPHABET.lower()}unryswkmbdhv")
_SHOWN = 12


def as_input(source: Any, sequence_column: str) -> Path | Location | pa.Table:
    """Return a file as a path, and anything else as an Arrow table; plain sequences are its `sequence_column`.

    Raises
    ------
    UserError
        If `source` is one string that is no file, neither a table nor a list of strings, or holds an element that is
        no string.
    """
    if isinstance(source, str):
        return _find_file(source)
    if isinstance(source, Path | Location | pa.Table):
        return source
    if isinstance(source, pd.DataFrame | Mapping):
        return _as_table(source)
    if isinstance(source, pa.Array | pa.ChunkedArray):
        return pa.table({sequence_column: source})
    if isinstance(source, bytes) or not isinstance(source, Iterable):
        raise UserError(
            f"sequences: {type(source).__name__} holds none; give a list of strings, a table, or the path of a file"
        )
    texts = list(source)
    for row, text in enumerate(texts, 1):
        if not isinstance(text, str) and not _is_missing(text):
            raise UserError(f"sequences, row {row}: {text!r} is no string; give each sequence as one string")
    return pa.table({sequence_column: pa.array([t if isinstance(t, str) else None for t in texts], pa.large_string())})


def _find_file(text: str) -> Path | Location:
    location = Location(text)
    if location.is_remote:
        return location
    if recognise(location.name) is not None or location.exists():
        return location.local
    if text and set(text) <= _LETTERS:
        shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
        raise UserError(f"'{shown}' is one string; give a list of sequences, [{shown!r}], or the path of a file")
    return location.local


def _as_table(table: pd.DataFrame | Mapping[str, Any]) -> pa.Table:
    try:
        frame = pd.DataFrame(table)
        frame.columns = frame.columns.map(str)
        return pa.Table.from_pandas(frame, preserve_index=False)
    except (pa.ArrowException, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the table cannot be read ({reason}); give each column values of one kind") from None


def _is_missing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and value != value)
