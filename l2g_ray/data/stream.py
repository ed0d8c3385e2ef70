"""Prepared shards through Ray Data, as the same `Source` that memory gives. Ray is imported on use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from l2g_ray.data.dataset import PreparedTask, read_shard
from l2g_ray.storage import Location

# Shards read at once. Readers ask for no CPU, so that nothing else would bound them: Ray would start a process a shard.
READERS = 2


class RayDataSource:
    """A source over a Ray Dataset, or over the shard of one that a Train worker gets.

    Parameters
    ----------
    dataset : anything with Ray's `iter_batches`, whose order is the same at every pass (see `make_ray_dataset`).
    n_rows : its rows; a shard cannot count itself cheaply.
    rows_per_table : how many rows come over at once.
    """

    def __init__(self, dataset: Any, n_rows: int, rows_per_table: int = 8192) -> None:
        self._dataset = dataset
        self._n_rows = n_rows
        self._rows_per_table = rows_per_table

    @property
    def n_rows(self) -> int:
        """Rows of the dataset."""
        return self._n_rows

    def tables(self) -> Iterator[pa.Table]:
        """One pass over the rows, in order."""
        yield from self._dataset.iter_batches(batch_size=self._rows_per_table, batch_format="pyarrow")


def make_ray_dataset(prepared: PreparedTask, split: str) -> Any:
    """A Ray Dataset (columns sequence and label) of train or valid, in the shards' order. Raises ValueError for test.

    Ray must be initialised. Reading asks for no CPU: Train workers may hold them all while they wait for these very
    rows, and `ray.data.read_parquet` would wait for one, if only to look at the files. `preserve_order` is set on this
    dataset's own context, not on the process's.
    """
    import ray.data

    paths = [{"path": str(path)} for path in prepared.shard_paths(split)]
    dataset = ray.data.from_items(paths, override_num_blocks=len(paths)).map_batches(
        _read_shards, batch_size=1, batch_format="pyarrow", num_cpus=0, concurrency=READERS
    )
    dataset.context.execution_options.preserve_order = True
    return dataset


def _read_shards(paths: pa.Table) -> pa.Table:
    return pa.concat_tables([read_shard(Location(text), ["sequence", "label"]) for text in paths["path"].to_pylist()])
