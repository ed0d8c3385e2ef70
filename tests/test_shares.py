"""Workers that read shares of the rows through Ray: each row once, and a job from its rows to its predictions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_DATA_USE_DATASOURCE_V2", "0")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")

import numpy as np
import pyarrow as pa
import pytest
import ray
from pyarrow.csv import write_csv
from safetensors.torch import save_file
from toys import make_site, mixed_lengths, tiny_reference, tiny_settings

from l2g_ray.config import DataSettings
from l2g_ray.data.batches import InMemorySource
from l2g_ray.data.dataset import PreparedTask, open_prepared
from l2g_ray.data.prepare import prepare
from l2g_ray.data.raw import SourceOptions
from l2g_ray.data.sources import open_source
from l2g_ray.data.splits import make_folds
from l2g_ray.models.l2g import load_model
from l2g_ray.orchestrate.cluster import Slots
from l2g_ray.orchestrate.spec import JobSpec
from l2g_ray.orchestrate.train import RayDataSource, make_shared_dataset, run_in_train
from l2g_ray.stages.context import HELD_OUT, predict_source
from l2g_ray.stages.loop import Runtime
from l2g_ray.store.results import Job, StageResult


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    started = not ray.is_initialized()
    if started:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    if started:
        ray.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared task of several shards, and a reference."""
    folder = tmp_path_factory.mktemp("shares")
    source = folder / "source"
    source.mkdir()
    for seed, (split, rows) in enumerate((("train", 131), ("valid", 41), ("test", 8))):
        write_csv(mixed_lengths(rows, seed), source / f"{split}.csv")
    prepare(open_source([source], SourceOptions()), folder / "prepared", DataSettings(), rows_per_shard=30)
    reference = tiny_reference()
    (folder / "reference").mkdir()
    tensors = {name: getattr(reference, name) for name in ("norm_weight", "norm_bias", "features")}
    save_file(tensors, str(folder / "reference" / "reference.safetensors"))
    return folder


@pytest.fixture(scope="module")
def prepared(folder: Path) -> PreparedTask:
    return open_prepared(folder / "prepared")


@pytest.mark.parametrize("n_workers", [2, 3])
@pytest.mark.parametrize("folds", [0, 3])
def test_workers_read_each_row_once_an_epoch(prepared: PreparedTask, n_workers: int, folds: int) -> None:
    """Of the split, or of the folds that train; in shares that differ by less rows than there are workers."""
    everything = pa.concat_tables([prepared.table(split, ["sequence", "label"]) for split in ("train", "valid")])
    fold = make_folds(prepared, folds, 0)[-1]
    inside = fold.read(prepared) == fold.number
    for split, wanted in (("train", ~inside), ("valid", inside)):
        dataset, n_rows = make_shared_dataset(prepared, split, fold, n_workers)
        assert n_rows == wanted.sum()

        def read(shard: Any, n_rows: int = n_rows) -> pa.Table:
            return pa.concat_tables(RayDataSource(shard, n_rows).tables())

        shards = dataset.streaming_split(n_workers, equal=True)
        for _ in range(2):
            with ThreadPoolExecutor(n_workers) as pool:
                parts = list(pool.map(read, shards))
            sizes = [part.num_rows for part in parts]
            assert max(sizes) - min(sizes) < n_workers
            found = pa.concat_tables(parts).sort_by("row_index")
            assert found["row_index"].to_pylist() == list(range(n_rows))
            assert found.select(["sequence", "label"]).equals(everything.filter(pa.array(wanted)))


def test_a_shard_that_fits_is_read_once(prepared: PreparedTask) -> None:
    """Then workers need not meet for each pass: one may ask for three while the other asks for one."""
    dataset, n_rows = make_shared_dataset(prepared, "train", None, 2)
    sources = [RayDataSource(shard, n_rows, keep=True) for shard in dataset.streaming_split(2, equal=True)]
    passes = {0: 3, 1: 1}
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda i: [pa.concat_tables(sources[i].tables()) for _ in range(passes[i])], passes))
    assert all(one.equals(found[0][0]) for one in found[0])
    rows = pa.concat_tables([found[0][0], found[1][0]]).sort_by("row_index")
    assert rows["row_index"].to_pylist() == list(range(prepared.n_rows("train")))


@pytest.mark.slow
def test_two_train_workers_make_a_result(folder: Path, prepared: PreparedTask) -> None:
    """A member of an arm: trained on shards by Ray Train, predictions for its fold by the first worker."""
    facts = {"width": 16, "max_tokens": 64, "norm_eps": 1e-12}
    reference = StageResult("reference", "r", folder / "reference", facts)
    site = make_site(folder, tiny_settings(embedder_only__epochs=3), reference=reference)
    fold = make_folds(prepared, 3, 0)[1]
    args: dict[str, Any] = {"backbone": "resnet", "architecture": [[3, 1]] * 9, "seed": 0, "fold": vars(fold)}
    job = Job("embedder_only", "", args, {}, {})
    board = Board.remote()
    run_in_train(JobSpec(site, job), Slots(count=1, cpus=1, gpus=0.0, workers=2), board)
    assert ray.get(board.told.remote()) == [0, 1, 2]
    result = site.open_store().find("embedder_only", job.key)
    assert result is not None
    losses = [row["train_loss"] for row in result.values["history"]]
    assert len(set(losses)) == 3
    held_out = np.load(result.folder / HELD_OUT)
    inside = fold.read(prepared) == fold.number
    rows = pa.concat_tables([prepared.table(split, ["sequence", "label"]) for split in ("train", "valid")])
    source = InMemorySource(rows.filter(pa.array(inside)))
    expected, _ = predict_source(load_model(result.folder), source, prepared.task, Runtime())
    np.testing.assert_allclose(held_out[0], expected, atol=1e-5)


@ray.remote(num_cpus=0)
class Board:
    def __init__(self) -> None:
        self.epochs: list[int] = []

    def put(self, epoch: Any) -> None:
        self.epochs.append(epoch.row["epoch"])

    def told(self) -> list[int]:
        return self.epochs
