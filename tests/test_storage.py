"""Data in an object store, over HTTP with a real S3 protocol server on localhost."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from l2g_ray.config import DataSettings
from l2g_ray.data.dataset import ShardSource, open_prepared
from l2g_ray.data.prepare import prepare
from l2g_ray.data.raw import SourceOptions
from l2g_ray.data.sources import open_source
from l2g_ray.errors import UserError
from l2g_ray.orchestrate.train import RayDataSource, make_ray_dataset
from l2g_ray.storage import Location, as_location


def write_tables(folder: Location, seed: int = 0) -> None:
    generator = np.random.default_rng(seed)
    for split, n_rows in (("train", 200), ("test", 40)):
        rows = ["".join(row) for row in generator.choice(list("ACGT"), (n_rows, 30))]
        lines = [f"{sequence},{row % 2}" for row, sequence in enumerate(rows)]
        (folder / f"{split}.csv").write_text("\n".join(["sequence,label", *lines, ""]))


def test_a_location_is_a_path_or_a_uri(tmp_path: Path) -> None:
    here = as_location(tmp_path) / "a" / "b.csv"
    assert (str(here), here.name, here.is_remote) == (str(tmp_path / "a" / "b.csv"), "b.csv", False)
    assert not here.exists()
    here.write_text("x")
    assert (here.read_text(), here.is_file(), here.fingerprint()[:8]) == ("x", True, "2d711642")
    assert [child.name for child in as_location(tmp_path / "a").children()] == ["b.csv"]
    there = Location("s3://bucket/folder?region=eu-west-1") / "part.parquet"
    assert (str(there), there.name) == ("s3://bucket/folder/part.parquet?region=eu-west-1", "part.parquet")
    with pytest.raises(ValueError, match="not on this machine"):
        there.__fspath__()
    with pytest.raises(UserError, match=r"ftp://x/y: cannot be opened .*give a local path, s3://"):
        Location("ftp://x/y").exists()


def test_from_a_bucket_to_a_bucket(bucket: str, tmp_path: Path) -> None:
    folder = Location(f"{bucket}/mine")
    write_tables(folder)
    raw = open_source([folder], SourceOptions())
    remote = prepare(raw, f"{bucket}/prepared/mine", DataSettings(), rows_per_shard=50)
    local = prepare(raw, tmp_path / "mine", DataSettings(), rows_per_shard=50)
    assert [remote.fingerprint(s) for s in ("train", "valid", "test")] == [
        local.fingerprint(s) for s in ("train", "valid", "test")
    ]
    assert remote.table("train").equals(local.table("train"))
    assert len(remote.shard_paths("train")) == 4
    streamed = pa.concat_tables(ShardSource(tuple(remote.shard_paths("train")), 180, rows_per_table=33).tables())
    assert streamed.equals(local.table("train", ["sequence", "label"]))
    again = prepare(raw, f"{bucket}/prepared/mine", DataSettings(), rows_per_shard=50)
    assert again.manifest == remote.manifest

    write_tables(folder, seed=1)
    changed = prepare(open_source([folder], SourceOptions()), f"{bucket}/prepared/mine", DataSettings())
    assert changed.fingerprint("train") != remote.fingerprint("train")
    left = [child.name for child in Location(f"{bucket}/prepared/mine/train").children()]
    assert left == [Path(name).name for name in changed.manifest["shards"]["train"]], "shards of before are gone"


@pytest.mark.slow
def test_ray_data_reads_a_bucket(bucket: str) -> None:
    import ray

    write_tables(Location(f"{bucket}/streamed"))
    prepared = prepare(
        open_source([f"{bucket}/streamed"], SourceOptions()), f"{bucket}/p", DataSettings(), rows_per_shard=50
    )
    environment = {n: v for n, v in __import__("os").environ.items() if n.startswith("AWS_")}
    started = not ray.is_initialized()
    if started:
        ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": environment})
    try:
        dataset = make_ray_dataset(open_prepared(f"{bucket}/p"), "train")
        streamed = pa.concat_tables(RayDataSource(dataset, 180).tables())
        assert streamed["sequence"].to_pylist() == prepared.table("train")["sequence"].to_pylist()
    finally:
        if started:
            ray.shutdown()


def test_a_folder_of_other_things_is_left_alone(bucket: str) -> None:
    write_tables(Location(f"{bucket}/source"))
    (Location(f"{bucket}/other") / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other files"):
        prepare(open_source([f"{bucket}/source"], SourceOptions()), f"{bucket}/other", DataSettings())
    assert [child.name for child in Location(f"{bucket}/other").children()] == ["notes.txt"]


def test_a_store_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    begun = time.monotonic()
    with pytest.raises(UserError, match=r"s3://nobody-there/x: the store does not answer .*AWS_ENDPOINT_URL"):
        open_source(["s3://nobody-there/x"], SourceOptions())
    assert time.monotonic() - begun < 5


def test_a_damaged_manifest_in_a_bucket(bucket: str) -> None:
    (Location(f"{bucket}/damaged") / "task.json").write_text(json.dumps({"schema": 0}))
    with pytest.raises(UserError, match="schema 0 is not 2; prepare the task again"):
        open_prepared(f"{bucket}/damaged")
    with pytest.raises(UserError, match="no such file; give a folder that l2g-ray has prepared"):
        open_prepared(f"{bucket}/nowhere")
