"""An epoch through the data path, with RC and shift augmentation, against a baseline: the same model on tensors in memory.

In a Ray Train worker, as a refit runs: Parquet shards, Ray Data, batches, training step; and the table of Ray's object
store, as trials read it. The baseline has all codes in one tensor and takes shuffled rows of it, without augmentation.
10,000 sequences of 200 bp, the ResNet of the preset `fast`, batches of 64, one thread.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.measure import Options, interleave
from benchmarks.synthetic import write_prepared
from l2g_ray.data.batches import Batch, InMemorySource, Source, iter_batches
from l2g_ray.data.dataset import open_prepared
from l2g_ray.models.embedder import EmbedderConfig, EmbedderNet

LENGTH_BP, BATCH_SIZE = 200, 64


def run(options: Options) -> list[dict[str, Any]]:
    """Return one row a way of feeding: rows a second beside tensors in memory, and the share of a step spent on
    waiting.
    """
    import ray
    import ray.train
    from ray.train.torch import TorchTrainer

    from l2g_ray.orchestrate.cluster import connect
    from l2g_ray.orchestrate.train import make_ray_dataset

    connect(False, 2)
    with tempfile.TemporaryDirectory() as folder:
        prepared = write_prepared(Path(folder) / "set", 2_000 if options.quick else 10_000, LENGTH_BP)
        target, rounds = Path(folder) / "found.json", 1 if options.quick else 2

        def worker(config: dict[str, Any]) -> None:
            target.write_text(json.dumps(_measure(prepared, rounds)))

        TorchTrainer(
            worker,
            train_loop_config={},
            datasets={"train": make_ray_dataset(open_prepared(str(prepared)), "train")},
            scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
            run_config=ray.train.RunConfig(name="data-path", storage_path=folder),
        ).fit()
        return json.loads(target.read_text())


def _measure(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Time epochs of the three ways in turn, in the worker."""
    import ray.train

    from l2g_ray.orchestrate.train import RayDataSource

    torch.set_num_threads(1)
    prepared = open_prepared(str(folder))
    n_rows = prepared.n_rows("train")
    table = prepared.table("train", ["sequence", "label"]).combine_chunks()
    ways: dict[str, Callable[[int], Iterable[Batch]]] = {
        "Parquet, Ray Data": _through(RayDataSource(ray.train.get_dataset_shard("train"), n_rows)),
        "object store": _through(InMemorySource(table)),
        "tensors": _tensors(InMemorySource(table)),
    }
    step = _make_step()
    waits: dict[str, list[float]] = {name: [] for name in ways}

    def epoch(name: str) -> Callable[[], None]:
        def work() -> None:
            waits[name].append(_run_epoch(ways[name](len(waits[name])), step))

        return work

    found = interleave({name: epoch(name) for name in ways}, rounds)
    rows = []
    for name in ("Parquet, Ray Data", "object store"):
        ours, other = (n_rows / found[way]["median_s"] for way in (name, "tensors"))
        wait = sorted(waits[name][1:])[len(waits[name][1:]) // 2]
        met = ours / other >= 0.95 and wait <= 0.05
        columns = {"what": name, "ours rows/s": ours, "other rows/s": other, "ratio": ours / other}
        target = {"target": ">= 0.95, wait <= 5 %", "met": "yes" if met else "no"}
        rows.append(columns | target | {"wait % of a step": 100 * wait})
    return rows


def _through(source: Source) -> Callable[[int], Iterator[Batch]]:
    return lambda epoch: iter_batches(
        source.tables(),
        kind="binary",
        batch_size=BATCH_SIZE,
        length_bp=LENGTH_BP,
        seed=0,
        epoch=epoch,
        rc_augment=True,
        shift_bp=3,
        bucket_batches=50,
    )


def _tensors(source: Source) -> Callable[[int], Iterator[Batch]]:
    (whole,) = iter_batches(source.tables(), kind="binary", batch_size=source.n_rows, seed=0, epoch=0)

    def batches(epoch: int) -> Iterator[Batch]:
        order = torch.randperm(source.n_rows, generator=torch.Generator().manual_seed(epoch))
        for rows in order.split(BATCH_SIZE):
            yield Batch(whole.codes[rows], whole.lengths_bp[rows], whole.labels[rows], rows)

    return batches


def _make_step() -> Callable[[Batch], None]:
    net = EmbedderNet(
        EmbedderConfig(
            "resnet", (32, 64, 96), LENGTH_BP, 384, 512, 2, pool=2, target_tokens=25, architecture=((7, 1),) * 9
        )
    )
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True)

    def step(batch: Batch) -> None:
        batch = batch.to("cpu")
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(net(batch.codes, batch.lengths_bp), batch.labels).backward()
        optimizer.step()

    return step


def _run_epoch(batches: Iterable[Batch], step: Callable[[Batch], None]) -> float:
    """Train for an epoch; returns the share of its time that went into waiting for batches."""
    waited, begun = 0.0, time.perf_counter()
    iterator = iter(batches)
    while True:
        start = time.perf_counter()
        batch = next(iterator, None)
        waited += time.perf_counter() - start
        if batch is None:
            return waited / (time.perf_counter() - begun)
        step(batch)
