"""Rows checked and set down on disk, what memory keeps of each (hashes, length, GC), and overlaps of splits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from l2g_ray.data.checks import MISSING, clean_sequences, count_letters, parse_labels, show
from l2g_ray.data.raw import Piece
from l2g_ray.errors import UserError, nearest
from l2g_ray.sequence import bytes_and_offsets
from l2g_ray.tasks.schema import Task

_LETTERS = "ACGTRYSWKMBDHVN"
_COMPLEMENTS = "TGCAYRSWMKVHDBN"
_LONGEST_BLOCK = 1 << 16  # bases hashed at once: what the cache holds


@dataclass(frozen=True)
class Facts:
    """Arrays (n,) over the rows of a split, in order.

    hash, flipped : uint64 of the sequence and of its reverse complement; equal sequences have equal hashes, others
        differ but for a chance of about n^2 / 2^63.
    length_bp : int64; gc : float32, the share of G and C among A C G T (NaN where there is none).
    """

    hash: np.ndarray
    flipped: np.ndarray
    length_bp: np.ndarray
    gc: np.ndarray

    @property
    def canonical(self) -> np.ndarray:
        """One hash for both strands (n,)."""
        return np.minimum(self.hash, self.flipped)

    def take(self, rows: np.ndarray) -> Facts:
        """Return the facts of some rows: indices, or a mask (n,)."""
        return Facts(self.hash[rows], self.flipped[rows], self.length_bp[rows], self.gc[rows])

    def __len__(self) -> int:
        return len(self.hash)


def measure_facts(sequences: pa.Array | pa.ChunkedArray) -> Facts:
    """Return the facts of n clean (upper-case DNA) sequences."""
    raw, offsets = bytes_and_offsets(sequences)
    lengths = np.diff(offsets)
    positions = _multipliers(int(lengths.max()) if len(lengths) else 0)
    parts = [_measure_block(raw, offsets[a : b + 1], positions) for a, b in _blocks(offsets)]
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)] if parts else [np.empty(0, np.uint64)] * 3
    return Facts(mix_bits(columns[0]), mix_bits(columns[1]), lengths, columns[2].astype(np.float32))


def join_facts(parts: Iterable[Facts]) -> Facts:
    """Return the facts of several tables, one after the other."""
    parts = list(parts) or [measure_facts(pa.array([], pa.large_string()))]
    return Facts(
        *(np.concatenate([getattr(p, name) for p in parts]) for name in ("hash", "flipped", "length_bp", "gc"))
    )


def _tables() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(20_240_229)
    values = {letter: generator.integers(1, 1 << 63, dtype=np.uint64) | np.uint64(1) for letter in _LETTERS}
    forward, flipped = np.zeros(256, np.uint64), np.zeros(256, np.uint64)
    strong, known = np.zeros(256, np.int64), np.zeros(256, np.int64)
    for letter, complement in zip(_LETTERS, _COMPLEMENTS, strict=True):
        forward[ord(letter)], flipped[ord(letter)] = values[letter], values[complement]
        strong[ord(letter)], known[ord(letter)] = letter in "GC", letter in "ACGT"
    return forward, flipped, strong, known


_FORWARD, _FLIPPED, _STRONG, _KNOWN = _tables()


def _multipliers(width: int) -> np.ndarray:
    """Return one random odd multiplier a position, the same for every call and any width."""
    generator = np.random.Generator(np.random.PCG64(7))
    return generator.integers(1, 1 << 63, size=width, dtype=np.uint64) * np.uint64(2) + np.uint64(1)


def _blocks(offsets: np.ndarray) -> list[tuple[int, int]]:
    edges, start = [], 0
    while start < len(offsets) - 1:
        end = int(np.searchsorted(offsets, offsets[start] + _LONGEST_BLOCK, side="right")) - 1
        end = min(max(end, start + 1), len(offsets) - 1)
        edges.append((start, end))
        start = end
    return edges


def _measure_block(raw: np.ndarray, offsets: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, ...]:
    letters = raw[offsets[0] : offsets[-1]]
    starts = offsets[:-1] - offsets[0]
    lengths = np.diff(offsets)
    column = np.arange(len(letters)) - np.repeat(starts, lengths)
    from_end = np.repeat(lengths, lengths) - 1 - column
    with np.errstate(over="ignore"):
        forward = _sum_rows(_FORWARD[letters] * positions[column], starts, lengths)
        flipped = _sum_rows(_FLIPPED[letters] * positions[from_end], starts, lengths)
    known = _sum_rows(_KNOWN[letters], starts, lengths)
    with np.errstate(invalid="ignore"):
        gc = np.where(known > 0, _sum_rows(_STRONG[letters], starts, lengths) / known, np.nan)
    return forward + lengths.astype(np.uint64), flipped + lengths.astype(np.uint64), gc


def _sum_rows(values: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    sums = np.zeros(len(starts), values.dtype)
    # Empty rows have no letters, and reduceat would give them those of the next row.
    filled = lengths > 0
    if filled.any():
        sums[filled] = np.add.reduceat(values, starts[filled])
    return sums


def mix_bits(hashes: np.ndarray) -> np.ndarray:
    """Spread the bits (finaliser of splitmix64), so that any of them can be used."""
    h = hashes.astype(np.uint64)
    with np.errstate(over="ignore"):
        h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


_COMPLEMENT = str.maketrans("ACGTRYSWKMBDHVN", "TGCAYRSWMKVHDBN")


@dataclass(frozen=True)
class Overlap:
    """The rows of a split (n) that are also in another split: two disjoint masks (n,) bool, and counts of the other split.

    `reverse_complement` marks rows that the other split has only as their reverse complement.
    """

    exact: np.ndarray
    reverse_complement: np.ndarray
    other_exact: int
    other_reverse_complement: int

    @property
    def any(self) -> np.ndarray:
        """Mask (n,) of rows that the other split has on either strand."""
        return self.exact | self.reverse_complement

    def count(self) -> dict[str, int]:
        """Return counts from both sides, for the manifest."""
        return {
            "exact": int(self.exact.sum()),
            "reverse_complement": int(self.reverse_complement.sum()),
            "other_exact": self.other_exact,
            "other_reverse_complement": self.other_reverse_complement,
        }


def find_overlap(facts: Facts, others: Facts) -> Overlap:
    """Compare the n rows of a split with those of another, by their hashes."""
    exact = np.isin(facts.hash, others.hash)
    reverse = np.isin(facts.flipped, others.hash) & ~exact
    other_exact = np.isin(others.hash, facts.hash)
    other_reverse = np.isin(others.flipped, facts.hash) & ~other_exact
    return Overlap(exact, reverse, int(other_exact.sum()), int(other_reverse.sum()))


def reverse_complement_text(sequences: pa.Array | pa.ChunkedArray) -> pa.ChunkedArray:
    """Reverse complement of n upper-case sequences, IUPAC letters included. For a few: a Python loop a row."""
    flipped = [text.translate(_COMPLEMENT)[::-1] for text in sequences.to_pylist()]
    return pa.chunked_array([pa.array(flipped, sequences.type)])


PLACE_COLUMNS = ("chrom", "start", "end", "strand")
BATCH_ROWS = 10_000


@dataclass(frozen=True)
class Spool:
    """The rows of one split (or of 'all') in order.

    labels : codes (n,) int64, or (n, n_outputs) float32 mapped from disk. keys : a text a row for each key column.
    pieces : where each run of rows comes from: (first row, name), for messages. rna : whether a U was read as T.
    """

    path: Path
    facts: Facts
    labels: np.ndarray
    keys: dict[str, list[str]]
    pieces: list[tuple[int, str]]
    rna: bool

    def __len__(self) -> int:
        return len(self.facts)

    def where(self) -> str:
        """Return the first file's name."""
        return self.pieces[0][1]

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows in order: id, sequence, label and, where the source has them, chrom, start, end and strand."""
        with pa.memory_map(str(self.path)) as source, pa.ipc.open_file(source) as reader:
            for index in range(reader.num_record_batches):
                yield reader.get_batch(index)


@dataclass(frozen=True)
class Selection:
    """Some rows of a spool, in its order: `rows` are sorted indices."""

    spool: Spool
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def facts(self) -> Facts:
        """The facts of the chosen rows."""
        return self.spool.facts.take(self.rows)

    @property
    def labels(self) -> np.ndarray:
        """The labels of the chosen rows."""
        return self.spool.labels[self.rows]

    def keep(self, mask: np.ndarray) -> Selection:
        """Return those of the rows whose mask (len(self),) is true."""
        return Selection(self.spool, self.rows[mask])

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the chosen rows in order."""
        chosen = np.zeros(len(self.spool), bool)
        chosen[self.rows] = True
        start = 0
        for batch in self.spool.batches():
            part = batch.filter(pa.array(chosen[start : start + batch.num_rows]))
            start += batch.num_rows
            if part.num_rows:
                yield part

    def count_letters(self) -> dict[str, int]:
        """Count each letter of the chosen sequences."""
        counts: dict[str, int] = {}
        for batch in self.batches():
            for letter, n in count_letters(pa.chunked_array([batch["sequence"]])).items():
                counts[letter] = counts.get(letter, 0) + n
        return dict(sorted(counts.items(), key=lambda item: ("ACGT" + item[0]).index(item[0])))


def spool_pieces(
    pieces: list[Piece],
    task: Task,
    path: Path,
    max_length_bp: int,
    key_columns: tuple[str, ...] = (),
    progress: Callable[[int], None] = lambda rows: None,
    missing: frozenset[str] = MISSING,
) -> Spool:
    """Check all rows of some pieces and set them down at `path` (and labels at `path`.labels).

    Sequences come out upper-case DNA, labels parsed. `progress` receives the number of rows of each table. Texts of
    `missing` are no value.

    Raises
    ------
    UserError : whatever is wrong with a row, naming its file and number; a key column that is not there.
    """
    facts: list[Facts] = []
    keys: dict[str, list[str]] = {column: [] for column in key_columns}
    starts: list[tuple[int, str]] = []
    codes: list[np.ndarray] = []
    rna, n_rows, writer = False, 0, None
    label_path = path.with_name(f"{path.name}.labels")
    try:
        with label_path.open("wb") as label_file:
            for piece in pieces:
                starts.append((n_rows, piece.where))
                for table, found_rna in _clean(piece, task, max_length_bp, keys, missing):
                    rna |= found_rna
                    facts.append(measure_facts(table["sequence"]))
                    values = _label_values(table["label"], task)
                    if task.is_classification:
                        codes.append(values)
                    else:
                        label_file.write(np.ascontiguousarray(values, np.float32).tobytes())
                    if writer is None:
                        options = pa.ipc.IpcWriteOptions(compression="zstd")
                        writer = pa.ipc.new_file(str(path), table.schema, options=options)
                        schema = table.schema
                    elif table.schema != schema:
                        _refuse_other_columns(piece.where, table.schema, pieces[0].where, schema)
                    writer.write_table(table)
                    n_rows += table.num_rows
                    progress(table.num_rows)
    finally:
        if writer is not None:
            writer.close()
    if n_rows == 0:
        raise UserError(f"{pieces[0].where}: the file has no rows; give at least one sequence")
    if task.is_classification:
        labels = np.concatenate(codes)
    else:
        labels = np.memmap(label_path, np.float32, "r", shape=(n_rows, task.n_outputs))
    return Spool(path, join_facts(facts), labels, keys, starts, rna)


def _clean(
    piece: Piece, task: Task, max_length_bp: int, keys: dict[str, list[str]], missing: frozenset[str]
) -> Iterator[tuple[pa.Table, bool]]:
    first_row = 1
    for table in piece.tables():
        for start in range(0, table.num_rows, BATCH_ROWS):
            part = table.slice(start, BATCH_ROWS)
            sequences = clean_sequences(part["sequence"], piece.where, max_length_bp, first_row, missing)
            columns: dict[str, Any] = {
                "id": part["id"],
                "sequence": sequences,
                "label": parse_labels(part, task, piece.where, first_row, missing),
            }
            for name, texts in keys.items():
                texts += _read_keys(part, name, piece.where, first_row)
            for name in PLACE_COLUMNS:
                if name in part.column_names:
                    columns[name] = _place(part[name], name, piece.where, first_row)
            rna = pc.any(pc.match_substring(part["sequence"], "U", ignore_case=True)).as_py()
            first_row += part.num_rows
            yield pa.table(columns), bool(rna)


def _read_keys(table: pa.Table, column: str, where: str, first_row: int) -> list[str]:
    if column not in table.column_names:
        raise UserError(
            f"{where}: no column '{column}' to split the rows by ({nearest(column, table.column_names)}); "
            "name another, or choose another --split"
        )
    values = table[column].to_pylist()
    for row, value in enumerate(values, start=first_row):
        if value is None or not str(value).strip():
            raise UserError(
                f"{where}, row {row}: column '{column}' is empty; fill it in, it decides the split of a row"
            )
    return [str(value).strip() for value in values]


def _place(column: pa.ChunkedArray, name: str, where: str, first_row: int) -> pa.ChunkedArray:
    """Return text, or whole numbers for start and end; an empty cell is missing."""
    kind = pa.int64() if name in ("start", "end") else pa.string()
    try:
        if pa.types.is_large_string(column.type) and kind == pa.int64():
            column = pc.utf8_trim_whitespace(column)
            column = pc.if_else(pc.equal(column, ""), pa.scalar(None, column.type), column)
        return column.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        wanted = "whole number" if kind == pa.int64() else "text"
        row = next((row for row, value in enumerate(column.to_pylist()) if not _can_cast(value, column.type, kind)), 0)
        raise UserError(
            f"{where}, row {row + first_row}: column '{name}' holds '{show(column[row].as_py())}', which is no {wanted}; "
            "correct it, or rename the column if it is no place in a genome"
        ) from None


def _can_cast(value: Any, kind: pa.DataType, wanted: pa.DataType) -> bool:
    try:
        pa.array([value], kind).cast(wanted)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return False
    return True


def _refuse_other_columns(where: str, schema: pa.Schema, first: str, first_schema: pa.Schema) -> None:
    extra, lost = (set(a.names) - set(b.names) for a, b in ((schema, first_schema), (first_schema, schema)))
    before = "earlier rows have" if where == first else f"{first} has"
    differences = [f"a column '{name}', which {before} not" for name in sorted(extra)]
    differences += [f"no column '{name}', which {before}" for name in sorted(lost)]
    raise UserError(f"{where}: there is {' and '.join(differences)}; give all rows of a split the same columns")


def _label_values(column: pa.ChunkedArray, task: Task) -> np.ndarray:
    if task.is_classification:
        return column.to_numpy()
    flat = pa.concat_arrays([chunk.flatten() for chunk in column.chunks])
    return flat.to_numpy(zero_copy_only=False).reshape(-1, task.n_outputs)
