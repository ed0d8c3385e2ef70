"""FASTA as a stream of tables: ids and labels from headers, sequences joined over lines."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

import pyarrow as pa

from l2g_ray.data.text import open_lines
from l2g_ray.errors import UserError
from l2g_ray.storage import Location

# A header without '>' to its id and its label or None.
Header = Callable[[str], tuple[str, str | None]]


def whole_header(header: str) -> tuple[str, str | None]:
    """The id is all up to the first blank, bars included (`TR20|c0_g1_i1 len=2936`); there is no label."""
    return (header.split() or [""])[0], None


def split_header(header: str) -> tuple[str, str | None]:
    """`name|label` has a label (after the last bar), `name some text` has none. For training data only."""
    name, bar, label = header.rpartition("|")
    if bar and label.strip():
        return name.strip(), label.strip()
    return whole_header(header)


def make_header(pattern: str) -> Header:
    """Reads headers by a regular expression with a group `label` and, where it has one, a group `id`.

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
