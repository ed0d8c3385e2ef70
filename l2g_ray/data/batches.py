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
        """The one table."""
        yield self.table


@dataclass(frozen=True)
class Part:
    """Which rows of a whole batch a worker or a micro-batch sees: `start` up to `stop` of `n_rows`.

    `n_labels` is how many labels the whole batch has (missing ones left out), what its mean loss is divided by.
    `micro` counts the micro-batches of one worker, from 0.
    """

    start: int
    stop: int
    n_rows: int
    n_labels: int
    micro: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether these are all rows."""
        return self.stop - self.start == self.n_rows

    @property
    def is_empty(self) -> bool:
        """Whether these are no rows at all."""
        return self.stop == self.start


@dataclass(frozen=True)
class Batch:
    """B rows.

    codes : (B, L) uint8, A C G T N = 0..4, padded on the right with N.
    lengths_bp : (B,) int64, real positions of each row.
    labels : (B,) int64 codes for classification, (B, C) float32 with NaN = missing otherwise; (0,) without labels.
    row_index : (B,) int64, each row's place in the stream, from 0.
    part : which rows of a larger batch these are; None for a batch of its own. A part without rows has one row of
        length 0 in their place, all padding, since models want a row; `n_own` does not count it.
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
        return self.part.n_rows if self.part else len(self.codes)

    @property
    def n_own(self) -> int:
        """Rows of this part."""
        return self.part.stop - self.part.start if self.part else len(self.codes)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with codes and labels on another device; to a GPU they travel while the host goes on.

        Lengths and indices stay where they are: whether a batch has padding is decided on the host, which would otherwise wait
        for the device.
        """
        return replace(self, codes=send(self.codes, device), labels=send(self.labels, device), _host_codes=self.letters)

    def split(self, n: int) -> list[Batch]:
        """The same rows in `n` micro-batches of like size, in order; some are empty where there are fewer rows."""
        whole = self.part or Part(0, len(self.codes), len(self.codes), count_labels(self.labels))
        pieces = []
        for i in range(n):
            start, stop = cut_rows(self.n_own, i, n)
            part = replace(whole, start=whole.start + start, stop=whole.start + stop, micro=i)
            pieces.append(self._take(start, stop, part))
        return pieces

    def _take(self, start: int, stop: int, part: Part) -> Batch:
        if start < stop:
            rows = slice(start, stop)
            return Batch(self.codes[rows], self.lengths_bp[rows], self.labels[rows], self.row_index[rows], part)
        codes = torch.full_like(self.codes[:1], N_CODE)
        return Batch(codes, torch.zeros_like(self.lengths_bp[:1]), self.labels[:1], self.row_index[:1], part)


def cut_rows(n_rows: int, index: int, n: int) -> tuple[int, int]:
    """Start and stop of part `index` of `n` parts of like size; the first one is never empty."""
    return -(-n_rows * index // n), -(-n_rows * (index + 1) // n)


def count_labels(labels: torch.Tensor) -> int:
    """Labels of a batch that are not missing."""
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
    shuffle_window_rows : rows are permuted within windows of so many; a window is what must fit in memory.
    rc_augment, shift_bp : reverse complement of each row with probability 1/2; shift by -shift_bp .. shift_bp, uniform.
    bucket_batches : rows are sorted by length within so many shuffled batches, and these batches shuffled, so that a
        batch pads little; 0 for not at all. Rows of one length stay as they are.
    drop_last : leave out a last batch of one row, for which batch norm has no variance (training wants this). Larger
        unfilled batches stay. `count_batches` counts the same.
    max_batches : stop after so many.
    worker : (rank, number of workers): only this worker's rows of every batch, as the whole batch would have them.

    Raises
    ------
    UserError : a letter that is no nucleotide.
    """
    rows = _shuffle(_number(tables), shuffle_window_rows, seed, epoch)
    if bucket_batches:
        rows = _bucket(rows, batch_size, bucket_batches, seed, epoch)
    for index, table in enumerate(_cut(rows, batch_size)):
        if index == max_batches:
            return
        if drop_last and table.num_rows == 1 < batch_size:
            return
        batch = make_part(table, kind, length_bp, worker)
        yield _augment(batch, rc_augment, shift_bp, seed, epoch, index)


def iter_evaluation_batches(
    tables: Iterable[pa.Table], *, kind: Kind, batch_size: int, worker: tuple[int, int] = (0, 1)
) -> Iterator[Batch]:
    """All rows in order, as they are; the last batch may be smaller. L is each batch's longest sequence.

    `worker` (rank, number of workers) gives that worker's rows of every batch.

    Raises
    ------
    UserError : a letter that is no nucleotide.
    """
    for table in _cut(_number(tables), batch_size):
        yield make_part(table, kind, None, worker)


def make_part(table: pa.Table, kind: Kind, length_bp: int | None, worker: tuple[int, int]) -> Batch:
    """A worker's rows of the batch that `table` is, as wide as the whole batch. Only these rows are encoded."""
    rank, n_workers = worker
    if n_workers == 1:
        return make_batch(table, kind, length_bp)
    if length_bp is None:
        length_bp = int(pc.max(pc.binary_length(table["sequence"])).as_py())
    start, stop = cut_rows(table.num_rows, rank, n_workers)
    labels = read_labels(table, kind)
    # An empty part encodes some row too, for its width.
    batch = make_batch(table.slice(min(start, table.num_rows - 1), max(1, stop - start)), kind, length_bp)
    return batch._take(0, stop - start, Part(start, stop, table.num_rows, count_labels(labels)))


def make_batch(table: pa.Table, kind: Kind, length_bp: int | None = None) -> Batch:
    """The rows of a table as one batch, in order; `row_index` is the table's column of that name, else 0..B-1.

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
    """Labels of a table, as `Batch` has them."""
    if "label" not in table.column_names:
        return torch.empty(0)
    column = table["label"].combine_chunks()
    column = pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column
    if kind in ("binary", "multiclass"):
        return torch.from_numpy(np.array(column.to_numpy(zero_copy_only=False), dtype=np.int64))
    values = np.array(column.flatten().to_numpy(zero_copy_only=False), dtype=np.float32)
    return torch.from_numpy(values.reshape(len(column), -1))


def _number(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Keep what a batch needs and add `row_index`."""
    start = 0
    for table in tables:
        columns = [name for name in ("sequence", "label") if name in table.column_names]
        index = pa.array(np.arange(start, start + table.num_rows, dtype=np.int64))
        yield table.select(columns).append_column("row_index", index)
        start += table.num_rows


def _cut(tables: Iterable[pa.Table], n_rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of exactly `n_rows`, the last one smaller."""
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
    """The same rows without the rest of what they were sliced from."""
    return table.take(np.arange(table.num_rows))


def _shuffle(tables: Iterable[pa.Table], window_rows: int, seed: int, epoch: int) -> Iterator[pa.Table]:
    windows = _cut(tables, window_rows)
    for window in itertools.count():
        table = next(windows, None)  # `enumerate` would keep it
        if table is None:
            return
        order = np.random.default_rng([_SHUFFLE, seed, epoch, window]).permutation(table.num_rows)
        joined = table.combine_chunks()  # once, or each `take` would do it
        del table
        pa.default_memory_pool().release_unused()
        # Not all at once, which would need the window's memory twice more: for the result, and for an index of each label.
        for start in range(0, len(order), _TAKE_ROWS):
            yield joined.take(order[start : start + _TAKE_ROWS])
        del joined


def _bucket(tables: Iterable[pa.Table], batch_size: int, n_batches: int, seed: int, epoch: int) -> Iterator[pa.Table]:
    """The same rows, in buckets of so many batches: batches of like length, in a shuffled order.

    The rest that fills no batch is taken before sorting, so that it is not always the longest rows.
    """
    for bucket, table in enumerate(_cut(tables, batch_size * n_batches)):
        lengths = pc.binary_length(table["sequence"]).to_numpy()
        if lengths.min() == lengths.max():
            yield table
            continue
        n_whole = len(lengths) - len(lengths) % batch_size
        order = np.argsort(lengths[:n_whole], kind="stable").reshape(-1, batch_size)
        generator = np.random.default_rng([_BUCKET, seed, epoch, bucket])
        yield table.take(np.concatenate([generator.permutation(order).reshape(-1), np.arange(n_whole, len(lengths))]))


def _augment(batch: Batch, rc_augment: bool, shift_bp: int, seed: int, epoch: int, index: int) -> Batch:
    if not (rc_augment or shift_bp) or not batch.n_own:
        return batch
    word = np.random.SeedSequence([_AUGMENT, seed, epoch, index]).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(word >> np.uint64(1)))
    codes, n_rows = batch.codes, batch.n_whole
    # Both are drawn always, so that turning one off leaves the other as it was; and for the whole batch, so that a
    # row's draw does not depend on the worker that has it.
    flip = torch.rand(n_rows, generator=generator) < 0.5
    offsets = torch.randint(-shift_bp, shift_bp + 1, (n_rows,), generator=generator)
    if batch.part:
        own = slice(batch.part.start, batch.part.stop)
        flip, offsets = flip[own], offsets[own]
    if rc_augment:
        codes = torch.where(flip[:, None], reverse_complement(codes, batch.lengths_bp), codes)
    if shift_bp:
        codes = shift(codes, batch.lengths_bp, offsets)
    return replace(batch, codes=codes)
