"""Memory of a training worker on 200,000 and on 1,000,000 rows of DeepSEA's shape (1,000 bp, 919 labels, synthetic).

A worker trains a small embedder for one epoch by the stage's function, in a separate process: once fed by `ShardSource`
(a trial whose data does not fit), once as a Ray Train worker fed by Ray Data. Peaks are of the worker's private memory:
pages of Ray's object store, which all workers of a node share, are counted separately.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import Options
from benchmarks.synthetic import write_prepared

ONLY_BY_NAME = True
LENGTH_BP, LABELS = 1_000, 919


def run(options: Options) -> list[dict[str, Any]]:
    """Return one row a way of feeding and a number of rows; the last column is the peak beside that of the fewest
    rows.
    """
    sizes = (2_000, 10_000) if options.quick else (200_000, 1_000_000)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        prepared = {n_rows: write_prepared(Path(folder) / str(n_rows), n_rows, LENGTH_BP, LABELS) for n_rows in sizes}
        for way in ("shards", "ray"):
            for n_rows in sizes:
                rows.append({"fed by": way, "rows": n_rows} | _measure(prepared[n_rows], way))
                print(json.dumps(rows[-1]), flush=True)  # minutes each
    for row in rows:
        least = next(r["peak own MiB"] for r in rows if r["fed by"] == row["fed by"])
        row["beside the fewest"] = row["peak own MiB"] / least
    return sorted(rows, key=lambda row: str(row["fed by"]))


def _measure(prepared: Path, way: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.stream_memory", str(prepared), way]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return json.loads(done.stdout.strip().splitlines()[-1])


def _work(prepared_folder: str, way: str) -> dict[str, Any]:
    """Run an epoch over all rows in the worker, with the peak of memory sampled beside it."""
    import torch

    from l2g_ray.data.dataset import ShardSource, open_prepared
    from l2g_ray.orchestrate.train import RayDataSource

    torch.set_num_threads(1)
    prepared = open_prepared(prepared_folder)
    if way == "ray":
        import ray.train

        sources = {s: RayDataSource(ray.train.get_dataset_shard(s), prepared.n_rows(s)) for s in ("train", "valid")}
    else:
        sources = {s: ShardSource(tuple(prepared.shard_paths(s)), prepared.n_rows(s)) for s in ("train", "valid")}
    sampler = _Sampler()
    begun = time.monotonic()
    _train(prepared, sources)
    return sampler.stop() | {"wall s": round(time.monotonic() - begun, 1)}


def _train(prepared: Any, sources: dict[str, Any]) -> None:
    import torch

    from l2g_ray.orchestrate.jobs import load_data
    from l2g_ray.presets import resolve
    from l2g_ray.stages.context import Reference, make_embedder_config
    from l2g_ray.stages.embedder_only import train_embedder_only
    from l2g_ray.stages.loop import Runtime

    changes = {"model.deepsea_channels": [4, 4, 4], "embedder_only.epochs": 1, "embedder_only.batch_size": 256}
    settings = resolve("smoke", None, changes)
    width = 16
    reference = Reference(width, 512, 1e-12, torch.ones(width), torch.zeros(width), torch.zeros(1, width))
    data = load_data(prepared, sources["train"], sources["valid"])
    config = make_embedder_config(settings, data, reference, "deepsea")
    train_embedder_only(data, settings, reference, Runtime(), config=config, seed=0)


class _Sampler:
    """Peaks of this process's memory, read from /proc ten times a second: its own (anonymous), and pages of Ray's object
    store, which are the node's. `smaps` would call those private that no other process has touched."""

    FIELDS = (("peak own MiB", "RssAnon:"), ("peak object store MiB", "RssShmem:"))

    def __init__(self) -> None:
        self.peaks = {name: 0.0 for name, _ in self.FIELDS}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._end.wait(0.1):
            fields = {
                line.split()[0]: line.split()[1]
                for line in Path("/proc/self/status").read_text().splitlines()
                if "kB" in line
            }
            for name, field in self.FIELDS:
                self.peaks[name] = max(self.peaks[name], round(int(fields[field]) / 1024, 1))

    def stop(self) -> dict[str, float]:
        self._end.set()
        self._thread.join()
        return self.peaks


def _in_ray_train(prepared_folder: str) -> dict[str, Any]:
    import os

    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    import ray
    import ray.train
    from ray.train.torch import TorchTrainer

    from l2g_ray.data.dataset import open_prepared
    from l2g_ray.orchestrate.cluster import connect
    from l2g_ray.orchestrate.train import make_ray_dataset

    connect(False, 2)
    prepared = open_prepared(prepared_folder)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "found.json"

        def worker(config: dict[str, Any]) -> None:
            target.write_text(json.dumps(_work(prepared_folder, "ray")))

        TorchTrainer(
            worker,
            train_loop_config={},
            datasets={split: make_ray_dataset(prepared, split) for split in ("train", "valid")},
            scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
            run_config=ray.train.RunConfig(name="memory", storage_path=folder),
        ).fit()
        return json.loads(target.read_text())


if __name__ == "__main__":
    found = _in_ray_train(sys.argv[1]) if sys.argv[2] == "ray" else _work(sys.argv[1], "shards")
    print(json.dumps(found))
