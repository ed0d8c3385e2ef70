from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_DATA_USE_DATASOURCE_V2", "0")

import numpy as np
import pyarrow as pa
import pytest
import torch

from l2g_ray.config import DataSettings
from l2g_ray.data.batches import InMemorySource, iter_batches
from l2g_ray.data.dataset import PreparedTask
from l2g_ray.data.prepare import prepare
from l2g_ray.data.raw import SourceOptions
from l2g_ray.data.sources.files import open_folder
from l2g_ray.orchestrate.train import RayDataSource, make_ray_dataset
from l2g_ray.storage import as_location
from l2g_ray.tasks.catalogue import parse_task

pytestmark = pytest.mark.usefixtures("two_cores")


def make_prepared(folder: Path, outputs: int) -> PreparedTask:
    generator = np.random.default_rng(outputs)
    source = folder / f"source{outputs}"
    source.mkdir()
    for split, n_rows in (("train", 230), ("valid", 40), ("test", 40)):
        lengths = generator.integers(20, 30, n_rows)
        columns = {"sequence": ["".join(generator.choice(list("ACGT"), n)) for n in lengths]}
        names = [f"output{i}" for i in range(outputs)] or ["label"]
        for name in names:
            columns[name] = generator.normal(size=n_rows) if outputs else generator.integers(0, 2, n_rows)
        pa.parquet.write_table(pa.table(columns), source / f"{split}.parquet")
    kind = {"kind": "regression", "labels": names} if outputs else {"kind": "binary", "labels": ["no", "yes"]}
    task = parse_task({"bench": "user", "name": "own", **kind}, "test")
    return prepare(
        open_folder(as_location(source), SourceOptions(), task),
        folder / f"prepared{outputs}",
        DataSettings(),
        rows_per_shard=50,
    )


@pytest.mark.parametrize("outputs", [0, 2])
def test_ray_stream_and_memory_give_the_same_batches(tmp_path: Path, outputs: int) -> None:
    prepared = make_prepared(tmp_path, outputs)
    assert len(prepared.shard_paths("train")) == 5
    memory = InMemorySource(prepared.table("train"))
    stream = RayDataSource(make_ray_dataset(prepared, "train"), memory.n_rows, rows_per_table=64)
    for epoch in range(2):
        options = {
            "kind": prepared.task.kind,
            "batch_size": 32,
            "seed": 1,
            "epoch": epoch,
            "rc_augment": True,
            "shift_bp": 3,
        }
        pairs = list(
            zip(
                iter_batches(memory.tables(), shuffle_window_rows=100, **options),
                iter_batches(stream.tables(), shuffle_window_rows=100, **options),
                strict=True,
            )
        )
        assert len(pairs) == 8
        for one, other in pairs:
            for name in ("codes", "lengths_bp", "labels", "row_index"):
                assert torch.equal(getattr(one, name), getattr(other, name))


def test_a_train_workers_shard_keeps_the_order(tmp_path: Path) -> None:
    prepared = make_prepared(tmp_path, 0)
    (shard,) = make_ray_dataset(prepared, "train").streaming_split(1)
    streamed = pa.concat_tables(RayDataSource(shard, 230).tables())
    assert streamed["sequence"].to_pylist() == prepared.table("train")["sequence"].to_pylist()


def test_the_test_split_does_not_stream(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="evaluate"):
        make_ray_dataset(make_prepared(tmp_path, 0), "test")
