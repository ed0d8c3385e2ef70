"""Validation scores after training with one worker and with two that have a shard of the rows each, over seeds.

Two workers draw other dropout and shuffle other rows together than one does, so equal numbers are not expected, equal
scores are. The embedder is trained as `embedder_only` does, by gloo processes on this machine, without Ray. Results are appended to `workers.jsonl` in
`--out` as they come, and what is there is not measured again.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import distributed, multiprocessing

from benchmarks.dash import BACKBONE, REFERENCE, load_rows
from benchmarks.l2g_runs import TASKS
from benchmarks.measure import Kept, Options
from l2g_ray.counts import default_architecture
from l2g_ray.data.batches import InMemorySource
from l2g_ray.data.sources.official import find_folder
from l2g_ray.models.team import Team
from l2g_ray.presets import resolve
from l2g_ray.stages.context import make_embedder_config
from l2g_ray.stages.embedder_only import train_embedder_only
from l2g_ray.stages.loop import Runtime
from l2g_ray.tasks.catalogue import find_tasks

ONLY_BY_NAME = True
SEEDS = (0, 1, 2)
WORKERS = (1, 2)


@dataclass(frozen=True)
class Shard:
    """One worker's rows of a split of `n_rows`."""

    table: pa.Table
    n_rows: int

    def tables(self) -> Iterator[pa.Table]:
        """Yield the shard's rows, each with its number in the split."""
        yield self.table


def run(options: Options) -> list[dict[str, Any]]:
    """Return one row a task and number of workers: mean and standard deviation of validation scores over seeds."""
    kept = Kept("workers", options)
    tasks, seeds = (TASKS[:1], SEEDS[:1]) if options.quick else (TASKS, SEEDS)
    for seed in seeds:
        for name in tasks:
            bench, _, task = name.partition("/")
            if find_folder(find_tasks(bench, [task])[0], options.data_dir) is None:
                continue
            for n_workers in WORKERS:
                case = {"task": name, "seed": seed, "workers": n_workers}
                if kept.has(case):
                    continue
                begun = time.monotonic()
                with tempfile.TemporaryDirectory() as folder:
                    multiprocessing.spawn(train, (n_workers, folder, name, seed, options), n_workers)
                    score = float((Path(folder) / "score").read_text())
                kept.add(case | {"score": round(score, 4), "wall_s": round(time.monotonic() - begun, 1)})
    return summarise(kept.rows)


def train(rank: int, n_workers: int, folder: str, name: str, seed: int, options: Options) -> None:
    """Train as one worker; the first one leaves the score of the last epoch in `folder`."""
    torch.set_num_threads(options.threads)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=n_workers)
    team = Team.joined()
    bench, _, task_name = name.partition("/")
    task = find_tasks(bench, [task_name])[0]
    quick = {"embedder_only.epochs": 1} if options.quick else {}
    settings = resolve("fast", task.overrides, quick).for_task(task.strand_specific)
    data = load_rows(name, settings, replace(options, out=Path(folder) / str(rank)))
    if n_workers > 1:
        data = replace(data, train=cut(data.train, rank, n_workers), valid=cut(data.valid, rank, n_workers))
    architecture = [(settings.select.kernel_sizes[0], 1)] * len(default_architecture(BACKBONE))
    config = make_embedder_config(settings, data, REFERENCE, BACKBONE, architecture)
    trained = train_embedder_only(data, settings, REFERENCE, Runtime(team=team), config=config, seed=seed)
    if team.is_first:
        (Path(folder) / "score").write_text(str(trained.history[-1]["score"]))
    distributed.destroy_process_group()


def cut(source: Any, rank: int, n_workers: int) -> Shard:
    """Return the worker's shard: rows in a row, as shards of a stream are."""
    assert isinstance(source, InMemorySource)
    n_rows = source.table.num_rows
    numbered = source.table.append_column("row_index", pa.array(np.arange(n_rows)))
    start, stop = (n_rows * i // n_workers for i in (rank, rank + 1))
    return Shard(numbered.slice(start, stop - start), n_rows)


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return mean, standard deviation and seeds of each task and number of workers."""
    table = []
    for task, n_workers in dict.fromkeys((row["task"], row["workers"]) for row in rows):
        mine = [row for row in rows if (row["task"], row["workers"]) == (task, n_workers)]
        scores = [row["score"] for row in mine]
        table.append(
            {"task": task, "workers": n_workers, "seeds": len(scores), "score": round(float(np.mean(scores)), 4)}
            | {
                "sd": round(float(np.std(scores)), 4),
                "wall_s": round(float(np.mean([row["wall_s"] for row in mine])), 1),
            }
        )
    return table
