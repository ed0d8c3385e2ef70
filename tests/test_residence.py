"""Rows shared through the object store or streamed from shards: the same batches, and memory that does not grow."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch

from l2g_ray.config import DataSettings
from l2g_ray.counts import count_batches
from l2g_ray.data.batches import InMemorySource, iter_batches
from l2g_ray.data.dataset import PreparedTask, ShardSource
from l2g_ray.data.prepare import prepare
from l2g_ray.data.raw import SourceOptions
from l2g_ray.data.sources import open_source
from l2g_ray.orchestrate.keys import make_baseline_job
from l2g_ray.orchestrate.memory import estimate_bytes, fits
from l2g_ray.presets import resolve


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedTask:
    folder = tmp_path_factory.mktemp("source")
    generator = np.random.default_rng(0)
    for split, n_rows in (("train", 500), ("test", 50)):
        lengths = generator.integers(20, 400, n_rows)
        lines = ["".join(generator.choice(list("ACGT"), n)) + f",{i % 2}" for i, n in enumerate(lengths)]
        (folder / f"{split}.csv").write_text("\n".join(["sequence,label", *lines, ""]))
    return prepare(open_source([folder], SourceOptions()), folder / "out", DataSettings(), rows_per_shard=64)


def sources(prepared: PreparedTask) -> tuple[ShardSource, InMemorySource]:
    shards = ShardSource(tuple(prepared.shard_paths("train")), prepared.n_rows("train"), rows_per_table=37)
    return shards, InMemorySource(prepared.table("train"))


@pytest.mark.parametrize("buckets", [0, 3])
def test_a_stream_of_shards_gives_the_batches_of_memory(prepared: PreparedTask, buckets: int) -> None:
    options = {"kind": "binary", "batch_size": 16, "seed": 1, "epoch": 2, "bucket_batches": buckets}
    streamed, held = (
        list(iter_batches(source.tables(), shuffle_window_rows=100, rc_augment=True, **options))
        for source in sources(prepared)
    )
    assert len(streamed) == len(held) == count_batches(450, 16)
    for one, other in zip(streamed, held, strict=True):
        assert torch.equal(one.codes, other.codes)
        assert torch.equal(one.row_index, other.row_index)


def test_buckets_keep_every_row_and_pad_little(prepared: PreparedTask) -> None:
    source = sources(prepared)[1]
    share = {}
    for buckets in (0, 50):
        batches = list(
            iter_batches(source.tables(), kind="binary", batch_size=16, seed=0, epoch=0, bucket_batches=buckets)
        )
        assert sorted(np.concatenate([b.row_index for b in batches]).tolist()) == list(range(450))
        assert [len(b.codes) for b in batches] == [16] * 28 + [2]
        share[buckets] = 1 - sum(int(b.lengths_bp.sum()) for b in batches) / sum(b.codes.numel() for b in batches)
    assert share[50] < 0.1 < share[0]


def test_the_order_of_batches_is_shuffled_again_each_epoch(prepared: PreparedTask) -> None:
    def widths(epoch: int) -> list[int]:
        tables = sources(prepared)[1].tables()
        return [
            b.codes.shape[1]
            for b in iter_batches(tables, kind="binary", batch_size=16, seed=0, epoch=epoch, bucket_batches=50)
        ]

    assert widths(0) == widths(0)
    assert widths(0) != widths(1)
    assert widths(0) != sorted(widths(0))


def test_rows_of_one_length_are_not_reordered() -> None:
    table = pa.table({"sequence": ["ACGT"] * 40, "label": pa.array([0, 1] * 20)})
    options = {"kind": "binary", "batch_size": 8, "seed": 0, "epoch": 0}
    plain, bucketed = (list(iter_batches([table], bucket_batches=b, **options)) for b in (0, 50))
    assert all(torch.equal(a.row_index, b.row_index) for a, b in zip(plain, bucketed, strict=True))


def test_what_fits_is_a_share_of_the_store(prepared: PreparedTask) -> None:
    bases = sum(pc.sum(pc.binary_length(prepared.table(s)["sequence"])).as_py() for s in ("train", "valid"))
    assert estimate_bytes(prepared) == bases + 500 * 16
    assert fits(prepared, DataSettings(), 10 * estimate_bytes(prepared))
    assert not fits(prepared, DataSettings(), 10 * estimate_bytes(prepared), tasks_at_once=4)
    assert fits(prepared, DataSettings(residence="memory"), 0)
    assert not fits(prepared, DataSettings(residence="stream"), 1e15)


def test_a_manifest_from_elsewhere_names_its_shards(prepared: PreparedTask, tmp_path: Path) -> None:
    manifest = json.loads((prepared.folder / "task.json").read_text())
    assert sum(len(names) for names in manifest["shards"].values()) == 10
    assert [path.name for path in prepared.shard_paths("valid")] == ["part-00000.parquet"]


def test_a_baseline_keeps_its_key_while_the_settings_of_others_change(prepared: PreparedTask) -> None:
    def key(name: str, **changes: int) -> str:
        named = {f"baselines.{setting}": value for setting, value in changes.items()}
        return make_baseline_job(prepared, resolve("fast", None, {"model.language_model": "x"} | named), name).key

    assert key("cnn", cnn_steps=9) != key("cnn") == key("cnn", boosting_rounds=9)
    assert key("kmer_boosting", boosting_rounds=9) != key("kmer_boosting") == key("kmer_boosting", cnn_steps=9)
    assert key("kmer_linear", k=3) != key("kmer_linear") == key("kmer_linear", boosting_rounds=9, cnn_steps=9)
