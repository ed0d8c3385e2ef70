"""Files to Arrow tables: Parquet, CSV, TSV, JSON lines and FASTA, plain or compressed, whole or as a stream.

Every table has the columns `id` (string) and `sequence` (large_string), then whatever else the file holds; the cells
of CSV and TSV are text. Rows are counted from 1 in messages and in made-up ids; a CSV's header and blank lines are not
counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from l2g_ray.data.delimited import iter_delimited, iter_json
from l2g_ray.data.fasta import Header, iter_fasta, whole_header
from l2g_ray.data.text import COMPRESSIONS, readable, split_suffix
from l2g_ray.errors import UserError, nearest
from l2g_ray.storage import Location, as_location

_FORMATS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".txt": "tsv",
    ".jsonl": "json",
    ".ndjson": "json",
    ".fa": "fasta",
    ".fasta": "fasta",
    ".fna": "fasta",
    ".fas": "fasta",
}
FASTA_SUFFIXES = tuple(suffix for suffix, name in _FORMATS.items() if name == "fasta")


def recognise(name: str) -> str | None:
    """The kind of a file by its name: parquet, csv, tsv, json or fasta; None for any other."""
    stem, compression = split_suffix(name)
    kind = next((kind for suffix, kind in _FORMATS.items() if stem.endswith(suffix)), None)
    return None if kind == "parquet" and compression else kind


def strip_suffixes(name: str) -> str:
    """A file's name without the suffixes of its kind and compression."""
    stem, compression = split_suffix(name)
    suffix = next((suffix for suffix in _FORMATS if stem.endswith(suffix)), "")
    return name[: len(name) - len(compression) - len(suffix)]


def read_table(
    path: str | Path | Location, sequence_column: str = "sequence", sequence_flag: str = "--sequence-column"
) -> pa.Table:
    """All rows of a file. `sequence_flag` is what a message tells to name the column by.

    Returns
    -------
    Table with `id`, `sequence` and the file's other columns. A FASTA id is all of the header up to the first blank.

    Raises
    ------
    UserError : a missing, empty, damaged or unknown kind of file, or no column of that name (the nearest is named).
    """
    tables = list(iter_tables(path, batch_rows=100_000, sequence_column=sequence_column, sequence_flag=sequence_flag))
    # Blocks of JSON lines can differ in the type that was guessed (int64, then double).
    return pa.concat_tables(tables, promote_options="permissive")


def iter_tables(
    path: str | Path | Location,
    batch_rows: int = 10_000,
    sequence_column: str = "sequence",
    header: Header = whole_header,
    sequence_flag: str = "--sequence-column",
    keep_names: bool = False,
) -> Iterator[pa.Table]:
    """The rows of a file in order, in tables of at most `batch_rows`, without reading the file whole.

    `keep_names`: columns in the order and under the names of the file, after `id` where it has none. `header` takes a FASTA header apart, into id and label or None. Returns and raises as `read_table`; a fault further
    down is raised when the stream reaches it.
    """
    location = as_location(path)
    where = str(location)
    kind = _check_file(location)
    streams: dict[str, Callable[[], Iterator[pa.Table]]] = {
        "parquet": lambda: _iter_parquet(location, batch_rows),
        "csv": lambda: iter_delimited(location, ",", batch_rows),
        "tsv": lambda: iter_delimited(location, "\t", batch_rows),
        "json": lambda: iter_json(location, batch_rows),
        "fasta": lambda: iter_fasta(location, batch_rows, sequence_column, header),
    }
    first_row = 1
    with readable(where):
        for table in streams[kind]():
            _check_columns(table.column_names, where, sequence_column, sequence_flag)
            if table.num_rows:
                yield _arrange(table, where, sequence_column, first_row, keep_names)
                first_row += table.num_rows
    if first_row == 1:
        raise UserError(f"{where}: the file has no rows; give at least one sequence")


def _check_file(location: Location) -> str:
    with readable(str(location)):
        info = location.info()
    if info.type == info.type.NotFound:
        raise UserError(f"{location}: no such file; check the path")
    if info.type == info.type.Directory:
        raise UserError(f"{location}: is a folder; give one file ({', '.join(sorted(_FORMATS))})")
    kind = recognise(location.name)
    if kind is None:
        kinds = f"{', '.join(sorted(_FORMATS))}; compressed text with {', '.join(COMPRESSIONS)}"
        raise UserError(f"{location}: unknown kind of file; name it by its kind ({kinds})")
    if info.size == 0:
        raise UserError(f"{location}: the file is empty; give at least one sequence")
    return kind


def _iter_parquet(location: Location, batch_rows: int) -> Iterator[pa.Table]:
    with location.open_input() as source, pq.ParquetFile(source) as file:
        if file.metadata.num_rows == 0:
            yield file.schema_arrow.empty_table()
        for batch in file.iter_batches(batch_size=batch_rows):
            batch.validate(full=True)  # text that is no UTF-8 is found here
            yield pa.Table.from_batches([batch])


def _check_columns(names: list[str], where: str, sequence_column: str, flag: str) -> None:
    if sequence_column not in names:
        raise UserError(
            f"{where}: no column '{sequence_column}' ({nearest(sequence_column, names)}); "
            f"rename the column, or name it with {flag}"
        )
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{where}: two columns are named '{name}'; rename one of them")


def _arrange(table: pa.Table, where: str, sequence_column: str, first_row: int, keep_names: bool) -> pa.Table:
    """`id` and `sequence` first, ids made up from row numbers where the file has none."""
    sequences = table[sequence_column]
    kind = sequences.type.value_type if pa.types.is_dictionary(sequences.type) else sequences.type
    # A column of nothing but missing values has no type: each row is named for what it lacks further on.
    is_text = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    if not any(check(kind) for check in is_text):
        raise UserError(
            f"{where}: column '{sequence_column}' holds {kind}, not text; name the column that holds the sequences"
        )
    numbers = pa.array(range(first_row, first_row + table.num_rows), pa.int64())
    ids = table["id"] if "id" in table.column_names else numbers
    if keep_names:
        return table if "id" in table.column_names else table.add_column(0, "id", ids.cast(pa.string()))
    columns = {"id": ids.cast(pa.string()), "sequence": sequences.cast(pa.large_string())}
    columns |= {name: table[name] for name in table.column_names if name not in ("id", "sequence", sequence_column)}
    return pa.table(columns)
