"""Files as tables or streams: Parquet, CSV, TSV, JSON lines, FASTA and VCF, plain or compressed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from l2g_ray.data.checks import show
from l2g_ray.data.text import COMPRESSIONS, iter_delimited, iter_json, open_lines, readable, split_suffix
from l2g_ray.errors import UserError, nearest
from l2g_ray.storage import Location, as_location

# A header without '>' to its id and its label or None.
Header = Callable[[str], tuple[str, str | None]]


def whole_header(header: str) -> tuple[str, str | None]:
    """Split a header: the id is all up to the first blank, bars included (`TR20|c0_g1_i1 len=2936`); there is no label."""
    return (header.split() or [""])[0], None


def split_header(header: str) -> tuple[str, str | None]:
    """`name|label` has a label (after the last bar), `name some text` has none. For training data only."""
    name, bar, label = header.rpartition("|")
    if bar and label.strip():
        return name.strip(), label.strip()
    return whole_header(header)


def make_header(pattern: str) -> Header:
    """Read headers by a regular expression with a group `label` and, where it has one, a group `id`.

    A header that does not match has no label; `prepare` then names its row.
    """
    compiled = re.compile(pattern)

    def read(header: str) -> tuple[str, str | None]:
        match = compiled.search(header)
        if match is None:
            return whole_header(header)
        groups = match.groupdict()
        return (groups.get("id") or whole_header(header)[0]).strip(), (groups["label"] or "").strip() or None

    return read


def iter_fasta(location: Location, batch_rows: int, sequence_column: str, header: Header) -> Iterator[pa.Table]:
    """Tables of at most `batch_rows` records: id, the sequence column, and label where the first header has one.

    Raises UserError for a file that does not begin with a header.
    """
    records: list[tuple[str, str | None, str]] = []
    labelled: bool | None = None
    with open_lines(location) as lines:
        for name, text in _parse(lines, location):
            identity, label = header(name)
            if labelled is None:
                labelled = label is not None
            records.append((identity, label, text))
            if len(records) == batch_rows:
                yield _make_table(records, labelled, sequence_column)
                records = []
    if records:
        yield _make_table(records, bool(labelled), sequence_column)


def _parse(lines: Iterable[str], location: Location) -> Iterator[tuple[str, str]]:
    """Headers without '>' and their sequences. Blank lines are nothing; blanks inside a sequence are left out."""
    header: str | None = None
    pieces: list[str] = []
    for number, line in enumerate(lines, start=1):
        line = line.strip()
        if line.startswith(">"):
            if header is not None:
                yield header, "".join(pieces)
            header, pieces = line[1:].strip(), []
        elif line and header is None:
            raise UserError(
                f"{location}, line {number}: a FASTA file starts with a '>' header; add one before the sequence"
            )
        elif line:
            pieces.append("".join(line.split()))
    if header is not None:
        yield header, "".join(pieces)


def _make_table(records: list[tuple[str, str | None, str]], labelled: bool, sequence_column: str) -> pa.Table:
    ids, labels, sequences = zip(*records, strict=True)
    columns = {"id": pa.array(ids, pa.string()), sequence_column: pa.array(sequences, pa.large_string())}
    if labelled:
        columns["label"] = pa.array(labels, pa.string())
    return pa.table(columns)


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
    """Return the kind of a file by its name: parquet, csv, tsv, json or fasta; None for any other."""
    stem, compression = split_suffix(name)
    kind = next((kind for suffix, kind in _FORMATS.items() if stem.endswith(suffix)), None)
    return None if kind == "parquet" and compression else kind


def strip_suffixes(name: str) -> str:
    """Return a file's name without the suffixes of its kind and compression."""
    stem, compression = split_suffix(name)
    suffix = next((suffix for suffix in _FORMATS if stem.endswith(suffix)), "")
    return name[: len(name) - len(compression) - len(suffix)]


def read_table(
    path: str | Path | Location | pa.Table,
    sequence_column: str = "sequence",
    sequence_flag: str = "--sequence-column",
) -> pa.Table:
    """Return all rows of a file, or of a table in memory. Messages name `sequence_flag` as the option for the column.

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
    path: str | Path | Location | pa.Table,
    batch_rows: int = 10_000,
    sequence_column: str = "sequence",
    header: Header = whole_header,
    sequence_flag: str = "--sequence-column",
    keep_names: bool = False,
) -> Iterator[pa.Table]:
    """Yield the rows of a file in order, in tables of at most `batch_rows`, without reading the whole file.

    A table in memory is read like a file with the same columns. `keep_names`: columns keep the order and the names of the
    file, after `id` where it has none. `header` splits a FASTA header into id and label or None. Returns and raises as
    `read_table`; a fault further down is raised when the stream reaches it.
    """
    if isinstance(path, pa.Table):
        where, kind = name_input(path), "memory"
    else:
        location = as_location(path)
        where, kind = str(location), _check_file(location)
    streams: dict[str, Callable[[], Iterator[pa.Table]]] = {
        "memory": lambda: _slice(path, batch_rows),
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
        what = "it has" if kind == "memory" else "the file has"
        raise UserError(f"{where}: {what} no rows; give at least one sequence")


def name_input(source: str | Path | Location | pa.Table) -> str:
    """Return what messages call an input: a file's path, or "the input" for a table in memory."""
    return "the input" if isinstance(source, pa.Table) else str(source)


def _slice(table: pa.Table, batch_rows: int) -> Iterator[pa.Table]:
    yield from (table.slice(start, batch_rows) for start in range(0, max(len(table), 1), batch_rows))


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


COLUMNS = ("#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO")
MIN_COLUMNS = 5
_BASES = re.compile(r"[ACGTNRYSWKMBDHV]+")
# Symbolic alleles, breakends, "overlapping deletion", "no alternative".
_UNREADABLE = re.compile(r"<.+>|.*[\[\]].*|\*|\.|\.[ACGTN]+|[ACGTN]+\.")


@dataclass(frozen=True)
class VcfRow:
    """One line. `pos` counts from 1; `ref` and `alts` are upper case; an allele that is no sequence (`<DEL>`, `*`, `.`,
    a breakend) is None in `alts`. `fields` are all columns as text, unchanged."""

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
    """Return the header, and the rows as a stream.

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
    """Yield the header, then the rows."""
    with readable(where), open_lines(location) as lines:
        yield from _parse_variant(lines, where)


def _parse_variant(lines: Iterable[str], where: str) -> Iterator[VcfHeader | VcfRow]:
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
