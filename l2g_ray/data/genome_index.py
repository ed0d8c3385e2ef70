"""Where the bases of a genome lie in its file: samtools' `.fai`, and `.gzi` for bgzip, checked against the file itself.

Own code, not pyfaidx: it trusts an index by its time stamp, which copying keeps, and names no line where a file is faulty.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import re
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from Bio import bgzf

from l2g_ray.atomic import write_bytes, write_text
from l2g_ray.data.text import split_suffix
from l2g_ray.errors import UserError
from l2g_ray.places import cache_folder

DAMAGE = (ValueError, RuntimeError, OSError, EOFError, zlib.error, struct.error)
_PROBED_LINES = 4  # of a record, beside its last two
_PROBED_BLOCKS = 256  # of a bgzip file
_PROBED_BYTES = 4096  # at either end of a line
_LONGEST_HEADER = 1 << 20
_READ_BYTES = 1 << 16
_HEADER = ord(">")


@dataclass(frozen=True)
class Record:
    """A sequence of `length_bp`; its first base is byte `offset`, and each line has `line_bp` bases in `line_bytes`."""

    length_bp: int
    offset: int
    line_bp: int
    line_bytes: int

    def place(self, base: int) -> int:
        """Return the byte at which a base stands."""
        lines, rest = divmod(base, self.line_bp)
        return self.offset + lines * self.line_bytes + rest

    @property
    def end(self) -> int:
        """The byte after the last base."""
        return self.place(self.length_bp - 1) + 1 if self.length_bp else self.offset


@dataclass(frozen=True)
class Block:
    """Where a block of a bgzip file begins, in the file and in its text."""

    start: int
    text_start: int


class GenomeText:
    """The uncompressed bytes of a FASTA file by place; `blocks` are those of a bgzip file. Holds an open file."""

    def __init__(self, path: Path, blocks: list[Block] | None, size: int) -> None:
        self.size = size
        self._blocks = blocks
        self._starts = [block.text_start for block in blocks or []]
        self._file = path.open("rb")
        try:
            self._reader = None if blocks is None else bgzf.BgzfReader(fileobj=self._file, mode="rb")
        except DAMAGE:
            self._file.close()
            raise

    def read(self, place: int, n_bytes: int) -> bytes:
        """`n_bytes` from `place`; fewer at the file's end."""
        n_bytes = min(n_bytes, self.size - place)
        if n_bytes <= 0:
            return b""
        if self._blocks is None or self._reader is None:
            self._file.seek(place)
            return self._file.read(n_bytes)
        block = self._blocks[bisect_right(self._starts, place) - 1]
        self._reader.seek(bgzf.make_virtual_offset(block.start, place - block.text_start))
        # Piece by piece: the reader's own joining takes time with the square of the length.
        return b"".join(self._reader.read(min(_READ_BYTES, n_bytes - i)) for i in range(0, n_bytes, _READ_BYTES))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def open_indexed(path: Path) -> tuple[GenomeText, dict[str, Record]]:
    """Return the text of a FASTA file and its records by name, in the order of the file.

    An index beside the file, or in the cache folder, is taken if it fits the file, whatever its age. Otherwise it is made
    and written beside the file, or into the cache folder where that cannot be; where neither can, it is used all the same.

    Raises
    ------
    UserError : a file that cannot be indexed; the line is named.
    """
    folders = (path.parent, _own_folder(path))
    for folder in folders:
        with contextlib.suppress(*DAMAGE):
            blocks = _read_blocks(_indices(path, folder)[1]) if is_compressed(path) else None
            text = GenomeText(path, blocks, _measure(path, blocks))
            try:
                records = _read_records(_indices(path, folder)[0])
                if _fit(text, records):
                    return text, records
            except DAMAGE:
                pass
            text.close()
    blocks = _make_blocks(path) if is_compressed(path) else None
    with gzip.open(path) if is_compressed(path) else path.open("rb") as lines:
        records = _make_records(lines, path)
    for folder in folders:
        with contextlib.suppress(OSError):
            _write(path, folder, records, blocks)
            break
    return GenomeText(path, blocks, _measure(path, blocks)), records


def is_compressed(path: Path) -> bool:
    """Return whether a file is named as one of bgzip."""
    return split_suffix(path.name)[1] in (".gz", ".bgz")


def _own_folder(path: Path) -> Path:
    return cache_folder() / "genomes" / hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]


def _indices(path: Path, folder: Path) -> tuple[Path, Path]:
    return folder / f"{path.name}.fai", folder / f"{path.name}.gzi"


# ---- does an index belong to a file? ---------------------------------------------------------------------------------


def _fit(text: GenomeText, records: dict[str, Record]) -> bool:
    """Return whether the records are those of the text: every header is where it must be, and lines end where they
    must.

    Where lines have one length, as an index wants it, the place of each header, the first line and the end of a record
    leave no other reading of it. The bases themselves may be others.
    """
    end = 0
    for name, record in records.items():
        gap = record.offset - end
        if not 0 < gap <= _LONGEST_HEADER or not _is_header(text.read(end, gap), name, end == 0):
            return False
        if record.length_bp and not _lines_fit(text, record):
            return False
        end = record.end
    rest = text.size - end
    return bool(records) and 0 <= rest <= _LONGEST_HEADER and not text.read(end, rest).strip()


def _is_header(gap: bytes, name: str, first: bool) -> bool:
    """Return whether what is between two sequences is the end of a line, blank lines, and the header of `name`."""
    *before, header = gap.splitlines()
    blank = all(not line.strip() or (first and line.startswith(b";")) for line in before)
    begins = first or gap[:1].isspace() or gap.startswith(b">")
    return begins and blank and gap.endswith(b"\n") and header[:1] == b">" and _name(header) == name


def _name(header: bytes) -> str:
    return (header[1:].decode().split(maxsplit=1) or [""])[0]


def _lines_fit(text: GenomeText, record: Record) -> bool:
    last = (record.length_bp - 1) // record.line_bp
    probes = {*_spread(last + 1, _PROBED_LINES), *range(max(0, last - 1), last + 1)}
    return all(_line_fits(text, record, line, line == last) for line in probes)


def _line_fits(text: GenomeText, record: Record, line: int, is_last: bool) -> bool:
    start = record.offset + line * record.line_bytes
    bases = record.length_bp - line * record.line_bp if is_last else record.line_bp
    edge = min(bases, _PROBED_BYTES)
    ending = 0 if is_last else record.line_bytes - record.line_bp
    tail = text.read(start + bases - edge, edge + ending)
    found = (text.read(start, edge), tail[:edge])
    whole = all(len(part) == edge and re.search(rb"[\r\n>]", part) is None for part in found)
    return whole and len(tail) == edge + ending and not tail[edge:].strip()


def _spread(n: int, count: int) -> list[int]:
    """At most `count` of the numbers below n, the first and the last among them."""
    return sorted(set(np.linspace(0, n - 1, min(n, count), dtype=np.int64).tolist()))


def _measure(path: Path, blocks: list[Block] | None) -> int:
    """Return bytes of text. Raises one of `DAMAGE` where the blocks are not those of the file."""
    if blocks is None:
        return path.stat().st_size
    with path.open("rb") as file:
        for i in _spread(len(blocks) - 1, _PROBED_BLOCKS):
            file.seek(blocks[i].start)
            start, n_bytes, _, n_text = next(bgzf.BgzfBlocks(file), (0, 0, 0, 0))
            if Block(start + n_bytes, blocks[i].text_start + n_text) != blocks[i + 1]:
                raise ValueError("another block follows")
        file.seek(blocks[-1].start)
        size = blocks[-1].text_start
        for number, (_, _, _, n_text) in enumerate(bgzf.BgzfBlocks(file)):
            if number and n_text:
                raise ValueError("there are more blocks")
            size += n_text
    if n_text:
        raise ValueError("no end marker")
    return size


# ---- reading, making and writing -------------------------------------------------------------------------------------


def _read_records(path: Path) -> dict[str, Record]:
    records: dict[str, Record] = {}
    for line in path.read_text("utf-8").splitlines():
        name, *numbers = line.split("\t")
        length_bp, offset, line_bp, line_bytes = map(int, numbers)
        record = Record(length_bp, offset, line_bp, line_bytes)
        if record.length_bp < 0 or (record.length_bp and record.line_bp < 1) or name in records:
            raise ValueError("no line of an index")
        records[name] = record
    return records


def _read_blocks(path: Path) -> list[Block]:
    content = path.read_bytes()
    if len(content) < 8 or (len(content) - 8) % 16 or struct.unpack("<Q", content[:8])[0] != (len(content) - 8) // 16:
        raise ValueError("no index of blocks")
    pairs = np.frombuffer(content, "<u8", offset=8).reshape(-1, 2).tolist()
    return [Block(0, 0), *(Block(start, text_start) for start, text_start in pairs)]


def _make_blocks(path: Path) -> list[Block]:
    try:
        with path.open("rb") as file:
            found = [(Block(start, text), n) for start, _, text, n in bgzf.BgzfBlocks(file)]
    except DAMAGE as error:
        raise UserError(f"{path}: the file is cut short or damaged ({error}); copy it again") from None
    if found[-1][1]:
        raise UserError(f"{path}: the file is cut short, as bgzip's end marker is not there; copy it again")
    return [block for block, _ in found[:-1]] or [found[0][0]]


def _make_records(lines: Iterable[bytes], path: Path) -> dict[str, Record]:
    """Return the records of a FASTA file, as samtools' faidx has them. Raises UserError, naming the line."""
    records: dict[str, Record] = {}
    draft: _Draft | None = None
    place = number = 0
    try:
        for number, line in enumerate(lines, start=1):
            place += len(line)
            if line[0] == _HEADER:
                where = f"{path}, line {number}"
                if draft is not None:
                    records[draft.name] = draft.finish()
                draft = _Draft(path, _read_name(line, where), place)
                if draft.name in records:
                    raise UserError(f"{where}: two chromosomes are named '{draft.name}'; rename or remove one")
            elif draft is not None:
                draft.add(line, number)
            elif line.strip() and not line.startswith(b";"):
                raise UserError(f"{path}, line {number}: bases before the first '>' header; add one before them")
    except DAMAGE as error:
        raise UserError(
            f"{path}: the file is cut short or damaged after line {number:,} ({error}); copy it again"
        ) from None
    if draft is None:
        raise UserError(f"{path}: the file has no '>' header; give the genome's FASTA file")
    records[draft.name] = draft.finish()
    return records


def _read_name(line: bytes, where: str) -> str:
    try:
        name = _name(line)
    except UnicodeDecodeError:
        raise UserError(f"{where}: the header is not UTF-8 text; save the file as UTF-8") from None
    if not name:
        raise UserError(f"{where}: the header has no name; write one after '>'")
    return name


class _Draft:
    """A record whose lines are being counted."""

    def __init__(self, path: Path, name: str, offset: int) -> None:
        self.path, self.name, self.offset = path, name, offset
        self.length_bp = self.line_bp = self.line_bytes = 0
        self.short = self.blank = 0  # lines of that kind, which only the last may be

    def add(self, line: bytes, number: int) -> None:
        """Count a line. Raises UserError where lines before do not allow it."""
        bases = len(line.rstrip(b"\r\n"))
        if b" " in line or b"\t" in line:
            self._refuse(number, "a blank among the bases", "remove blanks")
        if bases == self.line_bp and len(line) == self.line_bytes and not self.short and not self.blank:
            self.length_bp += bases
            return
        if self.blank:
            self._refuse(self.blank, "a blank line in or after the sequence", "remove blank lines")
        if not bases:
            self.blank = number
            return
        if self.short:
            self._refuse(self.short, "a line that is shorter than those around it", "give all lines one length")
        if not self.line_bp:
            self.line_bp, self.line_bytes = bases, len(line)
        elif bases > self.line_bp:
            self._refuse(number, f"{bases:,} bases where earlier lines have {self.line_bp:,}", "give all one length")
        else:
            self.short = number
        self.length_bp += bases

    def finish(self) -> Record:
        """Return the record."""
        return Record(self.length_bp, self.offset, self.line_bp, self.line_bytes)

    def _refuse(self, number: int, what: str, remedy: str) -> None:
        raise UserError(f"{self.path}, line {number}: cannot be indexed: {what}, in '{self.name}'; {remedy}")


def _write(path: Path, folder: Path, records: dict[str, Record], blocks: list[Block] | None) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    names, offsets = _indices(path, folder)
    # Another process may look for the index at this moment.
    write_text(names, "".join(_format(name, record) for name, record in records.items()))
    if blocks is not None:
        pairs = np.array([[block.start, block.text_start] for block in blocks[1:]], "<u8")
        write_bytes(offsets, struct.pack("<Q", len(blocks) - 1) + pairs.tobytes())


def _format(name: str, record: Record) -> str:
    return f"{name}\t{record.length_bp}\t{record.offset}\t{record.line_bp}\t{record.line_bytes}\n"
