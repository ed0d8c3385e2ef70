"""VCF as a stream of rows, plain or compressed, with or without a header; what is wrong is told by line.

Own code, not pysam or cyvcf2: only the first five columns are read, all others pass through unchanged to the copy with
scores. htslib refuses files without a header, rewrites what it passes on, and tells a bad line on stderr, not by number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from l2g_ray.data.checks import show
from l2g_ray.data.text import open_lines, readable
from l2g_ray.errors import UserError
from l2g_ray.storage import Location, as_location

COLUMNS = ("#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO")
MIN_COLUMNS = 5
_BASES = re.compile(r"[ACGTNRYSWKMBDHV]+")
# Symbolic alleles, breakends, "overlapping deletion", "no alternative".
_UNREADABLE = re.compile(r"<.+>|.*[\[\]].*|\*|\.|\.[ACGTN]+|[ACGTN]+\.")


@dataclass(frozen=True)
class VcfRow:
    """One line. `pos` counts from 1; `ref` and `alts` are upper case; an allele that is no sequence (`<DEL>`, `*`, `.`,
    a breakend) is None in `alts`. `fields` are all columns as they stand in the file."""

    line: int
    chrom: str
    pos: int
    ref: str
    alts: tuple[str | None, ...]
    fields: tuple[str, ...]

    @property
    def name(self) -> str:
        """The row's ID, '.' where it has none."""
        return self.fields[2]


@dataclass(frozen=True)
class VcfHeader:
    """`meta` are the '##' lines, `columns` the names of the '#CHROM' line; both are empty where the file has none."""

    meta: tuple[str, ...]
    columns: tuple[str, ...]


def open_vcf(path: str | Path) -> tuple[VcfHeader, Iterator[VcfRow]]:
    """The header, and the rows as a stream.

    Raises
    ------
    UserError : no such file, BCF, a damaged or empty file, a line with too few columns or another number of them than
        the first, a POS that is no number, a REF or ALT that is no allele. Faults further down are raised when the
        stream reaches them.
    """
    location = as_location(path)
    where = str(location)
    with readable(where):
        info = location.info()
    if info.type == info.type.NotFound:
        raise UserError(f"{where}: no such file; check the path")
    if info.type == info.type.Directory:
        raise UserError(f"{where}: is a folder; give a VCF file")
    if location.name.lower().endswith(".bcf"):
        raise UserError(f"{where}: BCF is not read; convert it with `bcftools view -Oz -o FILE.vcf.gz`")
    rows = _iter_items(location, where)
    header = next(rows, None)
    if not isinstance(header, VcfHeader):
        raise UserError(f"{where}: the file is empty; give a VCF file")
    return header, rows  # type: ignore[return-value]


def _iter_items(location: Location, where: str) -> Iterator[VcfHeader | VcfRow]:
    """The header, then the rows."""
    with readable(where), open_lines(location) as lines:
        yield from _parse(lines, where)


def _parse(lines: Iterable[str], where: str) -> Iterator[VcfHeader | VcfRow]:
    meta: list[str] = []
    columns: tuple[str, ...] = ()
    width = 0
    begun = False
    for number, text in enumerate(lines, start=1):
        text = text.rstrip("\n")
        if not text.strip():
            continue
        if text.startswith("#"):
            if begun:
                raise UserError(f"{where}, line {number}: a header line after the first variant; remove it")
            if text.startswith("##"):
                meta.append(text)
            else:
                columns = _read_columns(text, where, number)
                width = len(columns)
            continue
        if not begun:
            yield VcfHeader(tuple(meta), columns)
            begun = True
        fields = tuple(text.split("\t"))
        if len(fields) < MIN_COLUMNS:
            remedy = "separate the columns by tabs" if len(text.split()) >= MIN_COLUMNS else "CHROM POS ID REF ALT ..."
            raise UserError(f"{where}, line {number}: fewer than {MIN_COLUMNS} columns; {remedy}")
        width = width or len(fields)
        if len(fields) != width:
            raise UserError(
                f"{where}, line {number}: {len(fields)} columns where the {'header' if columns else 'first row'} has "
                f"{width}; give every line the same columns"
            )
        yield _read_row(fields, where, number)
    if not begun and (meta or columns):
        yield VcfHeader(tuple(meta), columns)


def _read_columns(text: str, where: str, number: int) -> tuple[str, ...]:
    columns = tuple(text.split("\t"))
    if columns[:MIN_COLUMNS] != COLUMNS[:MIN_COLUMNS]:
        raise UserError(
            f"{where}, line {number}: '{show(text)}' is no header of a VCF; it must begin with "
            f"{' '.join(COLUMNS[:MIN_COLUMNS])}, separated by tabs"
        )
    return columns


def _read_row(fields: tuple[str, ...], where: str, number: int) -> VcfRow:
    chrom, pos, _, ref, alt = fields[:MIN_COLUMNS]
    if not chrom.strip():
        raise UserError(f"{where}, line {number}: CHROM is empty; name the contig")
    # int() would also take '1_000', ' 7' and digits of other alphabets.
    if not (pos.isascii() and pos.isdigit()):
        raise UserError(f"{where}, line {number}: POS '{show(pos)}' is no whole number; give the position, from 1")
    bases = ref.upper()
    if not _BASES.fullmatch(bases):
        raise UserError(
            f"{where}, line {number}: REF '{show(ref)}' is no sequence; write A C G T or N, and for an insertion or "
            "deletion the base before it too"
        )
    return VcfRow(number, chrom, int(pos), bases, tuple(_read_allele(a, where, number) for a in alt.split(",")), fields)


def _read_allele(alt: str, where: str, number: int) -> str | None:
    bases = alt.upper()
    if _BASES.fullmatch(bases):
        return bases
    if _UNREADABLE.fullmatch(bases):
        return None
    raise UserError(
        f"{where}, line {number}: ALT '{show(alt)}' is no allele; write A C G T or N, several alleles separated by commas"
    )
