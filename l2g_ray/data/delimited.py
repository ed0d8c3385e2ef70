"""CSV, TSV and JSON lines as streams of tables. Cells of CSV and TSV stay text: what a column is, its task says."""

from __future__ import annotations

import codecs
import itertools
import re
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.json as pa_json

from l2g_ray.data.text import open_bytes
from l2g_ray.errors import UserError
from l2g_ray.storage import Location

_BLOCK_BYTES = 1 << 22  # a row must fit in a block


def iter_delimited(location: Location, delimiter: str, batch_rows: int) -> Iterator[pa.Table]:
    """Tables of at most `batch_rows` rows, all columns text. Raises UserError for no rows or a ragged row."""
    names = _read_names(location, delimiter)
    options: dict[str, Any] = {
        # One thread, so that a wrong row's number is known.
        "read_options": pa_csv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES),
        "parse_options": pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        "convert_options": pa_csv.ConvertOptions(column_types={name: pa.large_string() for name in names}),
    }
    try:
        with open_bytes(location) as source, pa_csv.open_csv(source, **options) as reader:
            trimmed = [name.strip() for name in reader.schema.names]
            yield reader.schema.empty_table().rename_columns(trimmed)
            first_row = 1
            for batch in reader:
                _refuse_null_bytes(batch, location, first_row)
                first_row += batch.num_rows
                yield from _cut(pa.Table.from_batches([batch]).rename_columns(trimmed), batch_rows)
    except pa.ArrowInvalid as error:
        raise _describe(error, location) from None


def iter_json(location: Location, batch_rows: int) -> Iterator[pa.Table]:
    """Tables of at most `batch_rows` rows; one JSON object a line.

    Types are guessed block by block: a column can be whole numbers first and floats later. A column that only earlier
    blocks have is null in later ones. Raises UserError for a line that is no object or does not fit the lines before.
    """
    known: dict[str, pa.DataType] = {}
    first_row = 1
    with open_bytes(location) as source:
        for block in _blocks_of_lines(source):
            options = pa_json.ReadOptions(use_threads=False, block_size=len(block) + 1)
            try:
                if not re.match(rb"\s*\{", block):  # pyarrow 25 dies of a block that begins with null
                    raise pa.ArrowInvalid("no object in row 0")
                table = pa_json.read_json(pa.py_buffer(block), read_options=options)
            except pa.ArrowInvalid as error:
                reason = " ".join(str(error).removeprefix("JSON parse error: ").split())
                if found := re.search(r"in row (\d+)", reason):  # counted from 0, within the block
                    reason = f"{reason[: found.start()]}in row {int(found[1]) + first_row}"
                raise UserError(
                    f"{location}: not one JSON object a line, each with the same types ({reason}); correct that row"
                ) from None
            for name in known.keys() - set(table.column_names):
                table = table.append_column(name, pa.nulls(table.num_rows, known[name]))
            known |= dict(zip(table.column_names, table.schema.types, strict=True))
            first_row += table.num_rows
            yield from _cut(table, batch_rows)


def _blocks_of_lines(source: pa.NativeFile) -> Iterator[bytes]:
    """Blocks of whole lines, checked to be UTF-8. Raises UnicodeDecodeError."""
    rest = b""
    n_before = 0
    for piece in itertools.chain(iter(lambda: source.read(_BLOCK_BYTES), b""), [None]):
        end = len(rest) if piece is None else piece.rfind(b"\n") + 1
        if piece is not None and end == 0:
            rest += piece
            continue
        block, rest = (rest, b"") if piece is None else (rest + piece[:end], piece[end:])
        try:
            block.decode()
        except UnicodeDecodeError as error:
            start = n_before + error.start
            raise UnicodeDecodeError("utf-8", b"", start, start + 1, error.reason) from None
        n_before += len(block)
        block = block.removeprefix(codecs.BOM_UTF8)
        if block.strip():
            yield block


def _read_names(location: Location, delimiter: str) -> list[str]:
    """The header's names as they stand there, blanks round them too; only the file's beginning is read."""
    with open_bytes(location) as source:
        if source.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise UserError(f"{location}: the file is UTF-16, not UTF-8 text; save it as UTF-8")
    try:
        with open_bytes(location) as source:
            options = pa_csv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES)
            parse = pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
            with pa_csv.open_csv(source, options, parse) as reader:
                return list(reader.schema.names)
    except pa.ArrowInvalid as error:
        raise _describe(error, location) from None


def _describe(error: pa.ArrowInvalid, location: Location) -> Exception:
    """What pyarrow says of a CSV, with the row counted as we do: the header is none. The error itself where unknown."""
    said = str(error)
    if "Empty CSV" in said:
        return UserError(f"{location}: the file is empty; give a header and at least one row")
    if found := re.search(r"Row #(\d+): Expected (\d+) columns, got (\d+)", said):
        row, expected, got = map(int, found.groups())
        columns = "1 column" if got == 1 else f"{got} columns"
        return UserError(
            f"{location}, row {row - 1}: {columns} where the header has {expected}; quote cells that hold the delimiter"
        )
    if "straddles two block boundaries" in said:
        return UserError(
            f"{location}: a row has more than {_BLOCK_BYTES / 1e6:.1f} million characters, or a quote is never closed; "
            "give sequences of such length as FASTA or Parquet"
        )
    if found := re.search(r"Row #(\d+): .*invalid UTF8", said, re.DOTALL):
        return UserError(f"{location}, row {int(found[1]) - 1}: the file is not UTF-8 text; save it as UTF-8")
    return error


def _refuse_null_bytes(batch: pa.RecordBatch, location: Location, first_row: int) -> None:
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        row = pc.index(pc.match_substring(column, "\0"), pa.scalar(True)).as_py()
        if row >= 0:
            raise UserError(
                f"{location}, row {row + first_row}: column '{name}' holds a NUL byte, so the file is damaged or no text; "
                "write it again as plain text"
            )


def _cut(table: pa.Table, batch_rows: int) -> Iterator[pa.Table]:
    for start in range(0, table.num_rows, batch_rows):
        yield table.slice(start, batch_rows)
