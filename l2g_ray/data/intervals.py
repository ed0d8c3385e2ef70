"""Intervals of BED3 to BED12 and narrowPeak files, plain or compressed."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from l2g_ray.data.text import open_lines, readable
from l2g_ray.errors import UserError
from l2g_ray.storage import Location

_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,15}")
_NARROW_PEAK_COLUMNS = 10  # the BED standard has no BED10
_STRANDS = ("+", "-", ".")


@dataclass(frozen=True)
class Intervals:
    """The n intervals of a file, in order. Places are 0-based, the end excluded.

    chrom, name, strand : object arrays (n,) of text; name is '' and strand '.' where the file gives none.
    start, end, summit : int64 arrays (n,), in bp from the chromosome's beginning; summit is -1 where there is none.
    line : int64 array (n,), counted from 1.
    """

    path: Path
    chrom: np.ndarray
    start: np.ndarray
    end: np.ndarray
    name: np.ndarray
    strand: np.ndarray
    summit: np.ndarray
    line: np.ndarray

    def __len__(self) -> int:
        return len(self.start)

    def take(self, rows: np.ndarray) -> Intervals:
        """Some of them, by a mask (n,) or row numbers."""
        columns = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name != "path"}
        return Intervals(self.path, **columns)


def read_intervals(path: str | Path) -> Intervals:
    """All intervals of a file; `track`, `browser`, '#' and blank lines are passed over.

    Ten columns are a narrowPeak: the summit is the start plus the tenth column, unless that is negative.

    Raises
    ------
    UserError : a missing, damaged or empty file; a line with too few columns, no whole numbers, a negative start,
        start >= end, an unknown strand or a summit outside its interval. The message names file, line and fix.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file; check the path")
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give one BED or narrowPeak file")
    rows = []
    with readable(str(path)), open_lines(Location(str(path))) as lines:
        for number, text in enumerate(lines, start=1):
            cells = _split_cells(text)
            if cells:
                rows.append((*_parse_cells(cells, path, number), number))
    if not rows:
        raise UserError(f"{path}: the file has no intervals; give lines of chromosome, start and end")
    chrom, start, end, name, strand, summit, line = zip(*rows, strict=True)
    texts = [np.array(column, dtype=object) for column in (chrom, name, strand)]
    numbers = [np.array(column, dtype=np.int64) for column in (start, end, summit, line)]
    return Intervals(path, texts[0], numbers[0], numbers[1], texts[1], texts[2], numbers[2], numbers[3])


def _split_cells(text: str) -> list[str]:
    """The cells of a line, none for one that holds no interval."""
    text = text.rstrip("\r\n")
    if not text.strip() or text.lstrip().startswith("#"):
        return []
    # Tabs, because a name may hold blanks; any blanks where there is no tab.
    cells = [cell.strip() for cell in text.split("\t")] if "\t" in text else text.split()
    # A chromosome may be named like that, but is then followed by a number.
    if cells[0].split(" ")[0] in ("track", "browser") and not (len(cells) > 2 and _WHOLE_NUMBER.fullmatch(cells[1])):
        return []
    return cells


def _parse_cells(cells: list[str], path: Path, number: int) -> tuple[str, int, int, str, str, int]:
    where = f"{path}, line {number}"
    if len(cells) < 3 or not cells[0]:
        raise UserError(f"{where}: fewer than 3 columns; give chromosome, start and end, separated by tabs")
    start, end = (_parse_place(cells[i], where, name) for i, name in ((1, "start"), (2, "end")))
    if start < 0:
        raise UserError(f"{where}: the start {start} is negative; count bases from 0")
    if start >= end:
        raise UserError(
            f"{where}: the start {start} is not before the end {end}; BED counts from 0 and excludes the end"
        )
    strand = cells[5] if len(cells) > 5 else "."
    if strand not in _STRANDS:
        raise UserError(f"{where}: the strand (column 6) is '{strand}'; write '+', '-', or '.' for none")
    summit = -1
    if len(cells) == _NARROW_PEAK_COLUMNS:
        offset = _parse_place(cells[9], where, "peak (column 10)")
        if offset >= end - start:
            raise UserError(
                f"{where}: the peak (column 10) is {offset} bp from the start, outside the interval of "
                f"{end - start} bp; count it from the start, or write -1 for none"
            )
        summit = start + offset if offset >= 0 else -1
    elif ".narrowpeak" in path.name.lower():
        raise UserError(f"{where}: {len(cells)} columns where narrowPeak has 10; name the file .bed if it has no peaks")
    return cells[0], start, end, cells[3] if len(cells) > 3 else "", strand, summit


def _parse_place(cell: str, where: str, column: str) -> int:
    if not _WHOLE_NUMBER.fullmatch(cell):
        raise UserError(f"{where}: the {column} is '{cell}', not a whole number; give a place in bp, without commas")
    return int(cell)
