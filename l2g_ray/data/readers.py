"""Local files to Arrow tables: Parquet, CSV, TSV and FASTA, plain or gzipped, whole or as a stream.

Every table has the columns `id` (string) and `sequence` (large_string), then whatever else the file holds. Rows are
counted from 1 in messages and in made-up ids; a CSV's header and blank lines are not counted.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from l2g_ray.errors import UserError, nearest

_FORMATS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".fa": "fasta",
    ".fasta": "fasta",
    ".fna": "fasta",
}
READABLE_SUFFIXES = tuple(_FORMATS) + tuple(f"{suffix}.gz" for suffix, name in _FORMATS.items() if name != "parquet")


def read_table(path: str | Path, sequence_column: str = "sequence") -> pa.Table:
    """All rows of a file.

    Returns
    -------
    Table with `id`, `sequence` and the file's other columns. A FASTA header `>name|label` gives `id` and `label`.

    Raises
    ------
    UserError : a missing, empty, damaged or unknown kind of file, or no column of that name (the nearest is named).
    """
    tables = list(iter_tables(path, batch_rows=100_000, sequence_column=sequence_column))
    # Blocks of a CSV can differ in the type that was guessed (int64, then double).
    return pa.concat_tables(tables, promote_options="permissive")


def iter_tables(path: str | Path, batch_rows: int = 10_000, sequence_column: str = "sequence") -> Iterator[pa.Table]:
    """The rows of a file in order, in tables of about `batch_rows`, without reading the file whole.

    Returns and raises as `read_table`; a fault further down is raised when the stream reaches it.
    """
    path = Path(path)
    kind = _recognise(path)
    stream = {"parquet": _iter_parquet, "csv": _iter_delimited, "tsv": _iter_delimited, "fasta": _iter_fasta}[kind]
    first_row = 1
    with _readable(path):
        for table in stream(path, batch_rows, sequence_column):
            if table.num_rows:
                yield _arrange(table, path, sequence_column, first_row)
                first_row += table.num_rows
    if first_row == 1:
        raise UserError(f"{path}: the file has no rows; give at least one sequence")


def _recognise(path: Path) -> str:
    if not path.exists():
        raise UserError(f"{path}: no such file; check the path")
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give one file ({', '.join(sorted(_FORMATS))})")
    name = path.name.lower()
    stem = name.removesuffix(".gz")
    for suffix, kind in _FORMATS.items():
        if stem.endswith(suffix) and not (kind == "parquet" and stem != name):
            if path.stat().st_size == 0:
                raise UserError(f"{path}: the file is empty; give at least one sequence")
            return kind
    raise UserError(f"{path}: unknown kind of file; name it by its kind ({', '.join(sorted(READABLE_SUFFIXES))})")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what a damaged file raises into a sentence."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: the compressed file is cut short or damaged ({error}); copy it again") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: the file is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except PermissionError:
        raise UserError(f"{path}: no permission to read the file; change its permissions") from None
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        reason = " ".join(str(error).split())
        hint = "copy it again" if "runcated" in reason or "zlib" in reason else "check that it is what its name says"
        raise UserError(f"{path}: the file cannot be read ({reason}); {hint}") from None


def _iter_parquet(path: Path, batch_rows: int, sequence_column: str) -> Iterator[pa.Table]:
    with pq.ParquetFile(path) as file:
        _check_columns(file.schema_arrow.names, path, sequence_column)
        for batch in file.iter_batches(batch_size=batch_rows):
            yield pa.Table.from_batches([batch])


def _iter_delimited(path: Path, batch_rows: int, sequence_column: str) -> Iterator[pa.Table]:
    wrong: list[Any] = []

    def note_wrong_row(row: Any) -> str:
        wrong.append(row)
        return "error"

    delimiter = "\t" if _recognise(path) == "tsv" else ","
    options: dict[str, Any] = {
        # One thread, so that a wrong row's number is known.
        "read_options": pa_csv.ReadOptions(use_threads=False, block_size=1 << 22),
        "parse_options": pa_csv.ParseOptions(delimiter=delimiter, invalid_row_handler=note_wrong_row),
        "convert_options": pa_csv.ConvertOptions(column_types={sequence_column: pa.large_string(), "id": pa.string()}),
    }
    try:
        with _open_delimited(path, options) as reader:
            _check_columns(reader.schema.names, path, sequence_column)
            for batch in reader:
                for start in range(0, batch.num_rows, batch_rows):
                    yield pa.Table.from_batches([batch.slice(start, batch_rows)])
    except pa.ArrowInvalid:
        if not wrong:
            raise
        row = wrong[0]
        raise UserError(
            f"{path}, row {(row.number or 2) - 1}: {row.actual_columns} columns "
            f"where the header has {row.expected_columns}; quote cells that hold the delimiter"
        ) from None


def _open_delimited(path: Path, options: dict[str, Any]) -> pa_csv.CSVStreamingReader:
    try:
        return pa_csv.open_csv(str(path), **options)
    except pa.ArrowInvalid as error:
        if "Empty CSV" in str(error):
            raise UserError(f"{path}: the file is empty; give a header and at least one row") from None
        raise


def _iter_fasta(path: Path, batch_rows: int, sequence_column: str) -> Iterator[pa.Table]:
    records: list[tuple[str, str | None, str]] = []
    labelled: bool | None = None
    with _open_text(path) as lines:
        for record in _parse_fasta(lines, path):
            if labelled is None:
                labelled = record[1] is not None
            records.append(record)
            if len(records) == batch_rows:
                yield _fasta_table(records, labelled, sequence_column)
                records = []
    if records:
        yield _fasta_table(records, bool(labelled), sequence_column)


def _parse_fasta(lines: IO[str], path: Path) -> Iterator[tuple[str, str | None, str]]:
    """Records (id, label or None, sequence). `>name|label` has a label, `>name some text` has none."""
    header: str | None = None
    pieces: list[str] = []
    for number, line in enumerate(lines, start=1):
        line = line.strip()
        if line.startswith(">"):
            if header is not None:
                yield (*_split_header(header), "".join(pieces))
            header, pieces = line[1:].strip(), []
        elif line and header is None:
            raise UserError(
                f"{path}, line {number}: a FASTA file starts with a '>' header; add one before the sequence"
            )
        elif line:
            pieces.append(line)
    if header is not None:
        yield (*_split_header(header), "".join(pieces))


def _split_header(header: str) -> tuple[str, str | None]:
    name, bar, label = header.rpartition("|")
    if bar and label.strip():
        return name.strip(), label.strip()
    return (header.split() or [""])[0], None


def _fasta_table(records: list[tuple[str, str | None, str]], labelled: bool, sequence_column: str) -> pa.Table:
    ids, labels, sequences = zip(*records, strict=True)
    columns = {"id": pa.array(ids, pa.string()), sequence_column: pa.array(sequences, pa.large_string())}
    if labelled:
        columns["label"] = pa.array(labels, pa.string())
    return pa.table(columns)


def _open_text(path: Path) -> IO[str]:
    # utf-8-sig: a byte-order mark before the first '>' is no part of it.
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8-sig")
    return path.open(encoding="utf-8-sig")


def _check_columns(names: list[str], path: Path, sequence_column: str) -> None:
    if sequence_column not in names:
        raise UserError(f"{path}: no column '{sequence_column}' ({nearest(sequence_column, names)}); rename the column")
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{path}: two columns are named '{name}'; rename one of them")


def _arrange(table: pa.Table, path: Path, sequence_column: str, first_row: int) -> pa.Table:
    """`id` and `sequence` first, ids made up from row numbers where the file has none."""
    sequences = table[sequence_column]
    kind = sequences.type.value_type if pa.types.is_dictionary(sequences.type) else sequences.type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise UserError(
            f"{path}: column '{sequence_column}' holds {kind}, not text; name the column that holds the sequences"
        )
    numbers = pa.array(range(first_row, first_row + table.num_rows), pa.int64())
    ids = table["id"] if "id" in table.column_names else numbers
    columns = {"id": ids.cast(pa.string()), "sequence": sequences.cast(pa.large_string())}
    columns |= {name: table[name] for name in table.column_names if name not in ("id", "sequence", sequence_column)}
    return pa.table(columns)
