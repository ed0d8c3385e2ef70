"""Tables to torch batches: windowed shuffle, encoding on Arrow, augmentation. No Ray here.

A batch depends on the rows, their order and the seeds, never on how the stream was cut into tables: reading shards in
memory or through Ray Data gives the same batches, bit for bit.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from l2g_ray.sequence import N_CODE, encode, reverse_complement, send, shift
from l2g_ray.tasks.schema import Kind

# First word of each seed, so that shuffling, augmentation and bucketing never draw from one stream.
_SHUFFLE, _AUGMENT, _BUCKET = 0, 1, 2
_TAKE_ROWS = 4096


class Source(Protocol):
    """What a stage trains or evaluates on: the same rows in the same order at every call of `tables`."""

    @property
    def n_rows(self) -> int:
        """Rows of all tables together."""
        ...

    def tables(self) -> Iterator[pa.Table]:
        """Tables with the columns sequence and label."""
        ...


@dataclass(frozen=True)
class InMemorySource:
    """A source that holds one table."""

    table: pa.Table

    @property
    def n_rows(self) -> int:
        """Rows of the table."""
        return self.table.num_rows

    def tables(self) -> Iterator[pa.Table]:
        """Yield the one table."""
        yield self.table


@dataclass(frozen=True)
class Part:
    """What a worker's batch, or a micro-batch, knows of the whole batch.

    n_own : rows of this part. by_worker : rows of each worker, all micro-batches together. n_labels : labels of the whole
    batch (missing ones left out), what its mean loss is divided by. micro : counts the micro-batches, from 0.
    """

    n_own: int
    by_worker: tuple[int, ...]
    n_labels: int
    micro: int = 0


@dataclass(frozen=True)
class Batch:
    """B rows.

    codes : (B, L) uint8, A C G T N = 0..4, padded on the right with N.
    lengths_bp : (B,) int64, real positions of each row.
    labels : (B,) int64 codes for classification, (B, C) float32 with NaN = missing otherwise; (0,) without labels.
    row_index : (B,) int64, each row's place in the stream, from 0.
    part : set where these are not all rows of a batch. A part without rows has one row of length 0 in their place, all
        padding, since models want a row; `n_own` does not count it.
    """

    codes: torch.Tensor
    lengths_bp: torch.Tensor
    labels: torch.Tensor
    row_index: torch.Tensor
    part: Part | None = None
    # What `letters` gives, once the codes have moved.
    _host_codes: torch.Tensor | None = None

    @property
    def letters(self) -> torch.Tensor:
        """The codes on the host, for models that read text: their tokenizer would else wait for the device."""
        return self.codes if self._host_codes is None else self._host_codes

    @property
    def n_whole(self) -> int:
        """Rows of the whole batch."""
        return sum(self.part.by_worker) if self.part else len(self.codes)

    @property
    def n_own(self) -> int:
        """Rows of this part."""
        return self.part.n_own if self.part else len(self.codes)

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch with codes and labels on another device; copies to a GPU do not block the host.

        Lengths and indices stay where they are: whether a batch has padding is decided on the host, which would otherwise wait
        for the device.
        """
        return replace(self, codes=send(self.codes, device), labels=send(self.labels, device), _host_codes=self.letters)

    def split(self, n: int) -> list[Batch]:
        """Return the same rows in `n` micro-batches of like size, in order; some are empty where there are fewer
        rows.
        """
        whole = self.part or Part(self.n_own, (self.n_own,), count_labels(self.labels))
        edges = [cut_rows(self.n_own, i, n) for i in range(n)]
        return [self.take(start, stop, replace(whole, micro=i)) for i, (start, stop) in enumerate(edges)]

    def take(self, start: int, stop: int, part: Part) -> Batch:
        """Return the rows from `start` up to `stop`, as a part of what `part` says."""
        part, rows = replace(part, n_own=stop - start), slice(start, stop)
        if start < stop:
            return Batch(self.codes[rows], self.lengths_bp[rows], self.labels[rows], self.row_index[rows], part)
        codes = torch.full_like(self.codes[:1], N_CODE)
        return Batch(codes, torch.zeros_like(self.lengths_bp[:1]), self.labels[:1], self.row_index[:1], part)


def cut_rows(n_rows: int, index: int, n: int) -> tuple[int, int]:
    """Start and stop of part `index` of `n` parts of like size; the first one is never empty."""
    return -(-n_rows * index // n), -(-n_rows * (index + 1) // n)


def count_labels(labels: torch.Tensor) -> int:
    """Return labels of a batch that are not missing."""
    return int(torch.isfinite(labels).sum()) if labels.is_floating_point() else labels.numel()


def iter_batches(
    tables: Iterable[pa.Table],
    *,
    kind: Kind,
    batch_size: int,
    seed: int,
    epoch: int,
    length_bp: int | None = None,
    shuffle_window_rows: int = 50_000,
    rc_augment: bool = False,
    shift_bp: int = 0,
    bucket_batches: int = 0,
    drop_last: bool = False,
    max_batches: int | None = None,
    worker: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """Training batches of one epoch.

    Parameters
    ----------
    tables : columns sequence and label, in a fixed order.
    length_bp : width L of every batch, longer sequences cut at the right end; None: the batch's longest sequence.
    shuffle_window_rows : rows a window; rows are permuted within a window, which must fit in memory.
    rc_augment, shift_bp : reverse complement of each row with probability 1/2; shift by -shift_bp .. shift_bp, uniform.
    bucket_batches : shuffled batches a bucket. Rows of a bucket are sorted by length and its batches are shuffled, so
        that a batch pads little; 0 turns this off. Rows of one length stay as they are.
    drop_last : leave out a last batch of one row, for which batch norm has no variance (training wants this). Larger
        unfilled batches stay. `count_batches` counts the same.
    max_batches : the most batches to yield; None: all.
    worker : (rank, number of workers): tables are this worker's share of the rows, and batches its share of `batch_size`. It
        draws for itself.

    Raises
    ------
    UserError : a letter that is no nucleotide.
    """
    rank, n_workers = worker
    start, stop = cut_rows(batch_size, rank, n_workers)
    batch_size = stop - start
    seeds = (seed, epoch, rank) if rank else (seed, epoch)
    rows = _shuffle(_number(tables), shuffle_window_rows, seeds)
    if bucket_batches:
        rows = _bucket(rows, batch_size, bucket_batches, seeds)
    for index, table in enumerate(_cut(rows, batch_size)):
        if index == max_batches:
            return
        if drop_last and table.num_rows == 1 < batch_size and n_workers == 1:
            return
        yield _augment(make_batch(table, kind, length_bp), rc_augment, shift_bp, seeds, index)


def fill_steps(batches: Iterable[Batch], n: int) -> Iterator[Batch]:
    """Yield the first `n` batches, and where there are fewer, batches without rows: all workers take the same steps.

    Raises ValueError where there is no batch at all.
    """
    last, done = None, 0
    for last in itertools.islice(batches, n):
        yield last
        done += 1
    if last is None:
        raise ValueError("a worker has no rows; use fewer workers")
    for _ in range(n - done):
        yield last.take(0, 0, Part(0, (0,), 0))


def iter_evaluation_batches(tables: Iterable[pa.Table], *, kind: Kind, batch_size: int) -> Iterator[Batch]:
    """Yield all rows in order, as they are; the last batch may be smaller. L is each batch's longest sequence.

    Raises
    ------
    UserError : a letter that is no nucleotide.
    """
    for table in _cut(_number(tables), batch_size):
        yield make_batch(table, kind)


def make_batch(table: pa.Table, kind: Kind, length_bp: int | None = None) -> Batch:
    """Return the rows of a table as one batch, in order; `row_index` is the table's column of that name, else 0..B-1.

    Raises
    ------
    UserError : a letter that is no nucleotide.
    """
    codes, lengths = encode(table["sequence"], length_bp)
    has_index = "row_index" in table.column_names
    row_index = table["row_index"].to_numpy() if has_index else np.arange(table.num_rows)
    return Batch(
        torch.from_numpy(codes),
        torch.from_numpy(np.ascontiguousarray(lengths)),
        read_labels(table, kind),
        torch.from_numpy(np.array(row_index, dtype=np.int64)),
    )


def read_labels(table: pa.Table, kind: Kind) -> torch.Tensor:
    """Return labels of a table, as `Batch` has them."""
    if "label" not in table.column_names:
        return torch.empty(0)
    column = table["label"].combine_chunks()
    column = pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column
    if kind in ("binary", "multiclass"):
        return torch.from_numpy(np.array(column.to_numpy(zero_copy_only=False), dtype=np.int64))
    values = np.array(column.flatten().to_numpy(zero_copy_only=False), dtype=np.float32)
    return torch.from_numpy(values.reshape(len(column), -1))


def _number(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Keep what a batch needs and add `row_index`, unless the rows have it."""
    start = 0
    for table in tables:
        if "row_index" in table.column_names:
            yield table
            continue
        columns = [name for name in ("sequence", "label") if name in table.column_names]
        index = pa.array(np.arange(start, start + table.num_rows, dtype=np.int64))
        yield table.select(columns).append_column("row_index", index)
        start += table.num_rows


def _cut(tables: Iterable[pa.Table], n_rows: int) -> Iterator[pa.Table]:
    """Yield the same rows in tables of exactly `n_rows`, the last one smaller."""
    held: list[pa.Table] = []
    n_held = 0
    for table in tables:
        held.append(table)
        n_held += table.num_rows
        if n_held < n_rows:
            continue
        joined = pa.concat_tables(held)
        whole = n_held - n_held % n_rows
        pieces = [joined.slice(start, n_rows) for start in range(0, whole, n_rows)][::-1]
        held, n_held = [_copy(joined.slice(whole))], n_held - whole
        # While the pieces are used, and the next table is made, nothing here keeps the rows that are done.
        del joined, table
        while pieces:
            yield pieces.pop()
    if n_held:
        yield pa.concat_tables(held)


def _copy(table: pa.Table) -> pa.Table:
    """Return the same rows without the rest of what they were sliced from."""
    return table.take(np.arange(table.num_rows))


def _shuffle(tables: Iterable[pa.Table], window_rows: int, seeds: tuple[int, ...]) -> Iterator[pa.Table]:
    windows = _cut(tables, window_rows)
    for window in itertools.count():
        table = next(windows, None)  # `enumerate` would keep it
        if table is None:
            return
        order = np.random.default_rng([_SHUFFLE, *seeds, window]).permutation(table.num_rows)
        joined = table.combine_chunks()  # once, or each `take` would do it
        del table
        pa.default_memory_pool().release_unused()
        # Not all at once, which would need the window's memory twice more: for the result, and for an index of each label.
        for start in range(0, len(order), _TAKE_ROWS):
            yield joined.take(order[start : start + _TAKE_ROWS])
        del joined


def _bucket(tables: Iterable[pa.Table], batch_size: int, n_batches: int, seeds: tuple[int, ...]) -> Iterator[pa.Table]:
    """Yield the same rows in buckets of `n_batches` batches: batches of similar length, in shuffled order.

    The rest that fills no batch is taken before sorting, so that it is not always the longest rows.
    """
    for bucket, table in enumerate(_cut(tables, batch_size * n_batches)):
        lengths = pc.binary_length(table["sequence"]).to_numpy()
        if lengths.min() == lengths.max():
            yield table
            continue
        n_whole = len(lengths) - len(lengths) % batch_size
        order = np.argsort(lengths[:n_whole], kind="stable").reshape(-1, batch_size)
        generator = np.random.default_rng([_BUCKET, *seeds, bucket])
        yield table.take(np.concatenate([generator.permutation(order).reshape(-1), np.arange(n_whole, len(lengths))]))


def _augment(batch: Batch, rc_augment: bool, shift_bp: int, seeds: tuple[int, ...], index: int) -> Batch:
    if not (rc_augment or shift_bp):
        return batch
    word = np.random.SeedSequence([_AUGMENT, *seeds, index]).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(word >> np.uint64(1)))
    codes = batch.codes
    # Both are drawn always, so that turning one off leaves the other as it was.
    flip = torch.rand(len(codes), generator=generator) < 0.5
    offsets = torch.randint(-shift_bp, shift_bp + 1, (len(codes),), generator=generator)
    if rc_augment:
        codes = torch.where(flip[:, None], reverse_complement(codes, batch.lengths_bp), codes)
    if shift_bp:
        codes = shift(codes, batch.lengths_bp, offsets)
    return replace(batch, codes=codes)
