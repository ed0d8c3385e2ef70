"""Text files, plain or compressed (gzip, bgzip, zstd), and CSV, TSV and JSON lines as streams of tables of text cells."""

from __future__ import annotations

import codecs
import io
import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.json as pa_json

from l2g_ray.errors import UserError
from l2g_ray.storage import Location

# bgzip is a series of gzip members: any gzip reader reads it.
COMPRESSIONS = {".gz": "gzip", ".bgz": "gzip", ".zst": "zstd"}


def split_suffix(name: str) -> tuple[str, str]:
    """Return a lower-case file name without its compression's suffix, and that suffix ('' for none)."""
    name = name.lower()
    suffix = next((suffix for suffix in COMPRESSIONS if name.endswith(suffix)), "")
    return name[: len(name) - len(suffix)], suffix


def open_bytes(location: Location) -> pa.NativeFile:
    """Return a stream of the uncompressed bytes, read in order. Raises OSError and ArrowInvalid as pyarrow does."""
    compression = COMPRESSIONS.get(split_suffix(location.name)[1])
    file = location.open_input()
    return pa.CompressedInputStream(file, compression) if compression else file


@contextmanager
def open_lines(location: Location) -> Iterator[Iterator[str]]:
    """Yield lines of UTF-8 text; a byte-order mark is no part of them, CR LF ends a line as LF does.

    Raises UserError at a line that is no UTF-8.
    """
    with (
        open_bytes(location) as stream,
        # A decoder of blocks would not know the line.
        io.TextIOWrapper(io.BufferedReader(stream), encoding="utf-8-sig", errors="surrogateescape") as lines,
    ):
        yield _check_lines(lines, location)


def _check_lines(lines: IO[str], location: Location) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if not line.isascii():
            try:
                line.encode()
            except UnicodeEncodeError:
                raise UserError(f"{location}, line {number}: the file is not UTF-8 text; save it as UTF-8") from None
        yield line


@contextmanager
def readable(where: str) -> Iterator[None]:
    """Turn what a damaged or forbidden file raises into a UserError naming `where`."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: the file is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except PermissionError:
        raise UserError(f"{where}: no permission to read the file; change its permissions") from None
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        if "UTF8" in reason or "UTF-8" in reason:
            raise UserError(f"{where}: the file is not UTF-8 text ({reason}); save it as UTF-8") from None
        if any(word in reason for word in ("Truncated compressed", "zlib", "ZSTD")):
            raise UserError(f"{where}: the compressed file is cut short or damaged ({reason}); copy it again") from None
        raise UserError(
            f"{where}: the file cannot be read ({reason}); check that it is whole and what its name says"
        ) from None


_BLOCK_BYTES = 1 << 22  # a row may have as many
_READ_BYTES = 1 << 20  # at once, so that memory does not depend on how many rows follow
# A row that is not blank; line ends in quotes are part of it.
_ROW = {False: re.compile(rb"[^\r\n]+"), True: re.compile(rb'(?:[^"\r\n]++|"[^"]*+(?:"|\Z))++')}


def iter_delimited(location: Location, delimiter: str, batch_rows: int) -> Iterator[pa.Table]:
    """Tables of at most `batch_rows` rows, all columns text; the first one has no rows.

    Raises UserError for an empty file, a row with another number of columns than the header, and a quote that does not
    enclose a whole cell.
    """
    with open_bytes(location) as source:
        head = _read_some(source)
        if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise UserError(f"{location}: the file is UTF-16, not UTF-8 text; save it as UTF-8")
        head = head.removeprefix(codecs.BOM_UTF8).lstrip(b"\r\n")
        if not head:
            raise UserError(f"{location}: the file is empty; give a header and at least one row")
        quoted = delimiter != "\t" or _has_quoted_name(head)
        parser = _Parser(location, delimiter, quoted)
        for block, whole in _blocks_of_rows(head, source, quoted):
            if not whole:
                raise UserError(
                    f"{location}, row {parser.first_row}: the row has more than {_BLOCK_BYTES / 1e6:.1f} million "
                    "characters, or a quote is never closed; give sequences of such length as FASTA or Parquet"
                )
            for table in parser.parse(block):
                yield from _cut(table, batch_rows) if table.num_rows else [table]


def _has_quoted_name(head: bytes) -> bool:
    return any(name.startswith(b'"') for name in re.split(rb"[\r\n]", head, maxsplit=1)[0].split(b"\t"))


def _read_some(source: pa.NativeFile) -> bytes:
    return source.read(min(_READ_BYTES, _BLOCK_BYTES))


def _blocks_of_rows(head: bytes, source: pa.NativeFile, quoted: bool) -> Iterator[tuple[bytes, bool]]:
    """Blocks of whole rows; a row that is longer than a block comes as far as it was read, with False."""
    rest = b""
    for piece in itertools.chain([head], iter(lambda: _read_some(source), b"")):
        rest += piece
        end = _find_end(rest, quoted)
        if end:
            yield rest[:end], True
            rest = rest[end:]
        elif len(rest) > _BLOCK_BYTES:
            yield rest, False
    if rest:
        yield rest, True


def _find_end(block: bytes, quoted: bool) -> int:
    """Return where the last whole row of a block ends: behind a line end that is not in quotes; 0 for nowhere."""

    def last_line_end(stop: int) -> int:
        return max(block.rfind(b"\n", 0, stop), block.rfind(b"\r", 0, stop)) + 1

    end = last_line_end(len(block))
    while quoted and block.count(b'"', 0, end) % 2:
        end = last_line_end(block.rfind(b'"', 0, end))
    return end


class _Parser:
    """Blocks of rows to tables; the first block begins with the header. `first_row` is the number of the next row."""

    def __init__(self, location: Location, delimiter: str, quoted: bool) -> None:
        self.first_row = 1
        self._location = location
        self._delimiter = delimiter
        self._quoted = quoted
        self._names: list[str] = []
        mark = re.escape(delimiter.encode())
        cell = rb'(?:"(?:[^"]++|"")*+"|[^"\r\n' + mark + rb"]*+)"
        self._sound = re.compile(cell + rb"(?:" + mark + cell + rb")*+")

    def parse(self, block: bytes) -> Iterator[pa.Table]:
        """Yield the block's rows, and before those of the first block a table without rows."""
        if not self._names:
            header = _ROW[self._quoted].match(block)
            assert header is not None
            self._refuse_stray_quote(header[0], "the header")
            options = pa_csv.ParseOptions(
                delimiter=self._delimiter, quote_char=self._quoted and '"', newlines_in_values=True
            )
            header[0].decode()  # raises, where pyarrow would take bytes for a name
            twice = b"\n".join([header[0]] * 2)  # names alone are not read
            names = pa_csv.read_csv(pa.py_buffer(twice), parse_options=options).column_names
            self._names = [name.strip() for name in names]
            block = block[header.end() :]
            yield pa.table([pa.array([], pa.large_string()) for _ in names], names=self._names)
        if not block.strip(b"\r\n"):
            return
        table = self._read(block)
        _refuse_null_bytes(table, self._location, self.first_row)
        self.first_row += table.num_rows
        yield table

    def _read(self, block: bytes) -> pa.Table:
        has_quotes = self._quoted and b'"' in block
        if has_quotes:
            for row, found in enumerate(_ROW[True].finditer(block), start=self.first_row):
                if b'"' in found[0]:
                    self._refuse_stray_quote(found[0], f"row {row}")
                    self._refuse_swallowed_rows(found[0], row)
        # Names that are given cannot be doubled in `column_types`.
        numbers = [str(i) for i in range(len(self._names))]
        try:
            table = pa_csv.read_csv(
                pa.py_buffer(block),
                # One thread, so that a wrong row's number is known.
                pa_csv.ReadOptions(use_threads=False, block_size=len(block) + 1, column_names=numbers),
                pa_csv.ParseOptions(
                    delimiter=self._delimiter, quote_char=has_quotes and '"', newlines_in_values=has_quotes
                ),
                pa_csv.ConvertOptions(column_types=dict.fromkeys(numbers, pa.large_string())),
            )
        except pa.ArrowInvalid as error:
            raise self._describe(error) from None
        return table.rename_columns(self._names)

    def _refuse_stray_quote(self, text: bytes, where: str) -> None:
        if self._quoted and not self._sound.fullmatch(text):
            fix = 'put the whole cell in quotes and double those in it ("12"" probe"), or write the table as TSV'
            if self._delimiter == "\t":
                fix = "take the quotes out of the header too, so that none has a meaning"
            raise UserError(
                f"{self._location}, {where}: a quote does not enclose a whole cell, or is never closed; {fix}"
            )

    def _refuse_swallowed_rows(self, text: bytes, row: int) -> None:
        """Line ends in quotes may be meant; but not where each line has all columns, so that it is a row as well."""
        lines = [line for line in re.split(rb"[\r\n]+", text) if line]
        marks = len(self._names) - 1
        if len(lines) > 1 and all(line.count(self._delimiter.encode()) == marks for line in lines):
            raise UserError(
                f"{self._location}, row {row}: a quote there makes one row of {len(lines)} lines, each of which has all "
                f"{marks + 1} columns; remove the quote, or write cells with line ends as Parquet"
            )

    def _describe(self, error: pa.ArrowInvalid) -> Exception:
        """Return what pyarrow says of a block, with the row counted in the file; the error itself where unknown."""
        said = str(error)
        found = re.search(r"Row #(\d+): (?:Expected (\d+) columns, got (\d+))?", said)
        if not found:
            return error
        where = f"{self._location}, row {int(found[1]) + self.first_row - 1}"
        if found[2]:
            columns = "1 column" if found[3] == "1" else f"{found[3]} columns"
            fix = "quote cells that hold the delimiter"
            if not self._quoted:
                fix = "take tabs and line ends out of its cells, or write the table as CSV, since quotes mean nothing here"
            return UserError(f"{where}: {columns} where the header has {found[2]}; {fix}")
        if "invalid UTF8" in said:
            return UserError(f"{where}: the file is not UTF-8 text; save it as UTF-8")
        return error


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
    for piece in itertools.chain(iter(lambda: _read_some(source), b""), [None]):
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


def _refuse_null_bytes(table: pa.Table, location: Location, first_row: int) -> None:
    for name, column in zip(table.column_names, table.columns, strict=True):
        row = pc.index(pc.match_substring(column, "\0"), pa.scalar(True)).as_py()
        if row >= 0:
            raise UserError(
                f"{location}, row {row + first_row}: column '{name}' holds a NUL byte, so the file is damaged or no text; "
                "write it again as plain text"
            )


def _cut(table: pa.Table, batch_rows: int) -> Iterator[pa.Table]:
    for start in range(0, table.num_rows, batch_rows):
        yield table.slice(start, batch_rows)
