"""Text files, plain or compressed (gzip, bgzip, zstd), as streams of bytes; what a damaged one raises, as a sentence."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import pyarrow as pa

from l2g_ray.errors import UserError
from l2g_ray.storage import Location

# bgzip is a series of gzip members: any gzip reader reads it.
COMPRESSIONS = {".gz": "gzip", ".bgz": "gzip", ".zst": "zstd"}


def split_suffix(name: str) -> tuple[str, str]:
    """A lower-case file name without its compression's suffix, and that suffix ('' for none)."""
    name = name.lower()
    suffix = next((suffix for suffix in COMPRESSIONS if name.endswith(suffix)), "")
    return name[: len(name) - len(suffix)], suffix


def open_bytes(location: Location) -> pa.NativeFile:
    """A stream of the uncompressed bytes, read in order. Raises OSError and ArrowInvalid as pyarrow does."""
    compression = COMPRESSIONS.get(split_suffix(location.name)[1])
    file = location.open_input()
    return pa.CompressedInputStream(file, compression) if compression else file


@contextmanager
def open_lines(location: Location) -> Iterator[Iterator[str]]:
    """Lines of UTF-8 text; a byte-order mark is no part of them, CR LF ends a line as LF does.

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
