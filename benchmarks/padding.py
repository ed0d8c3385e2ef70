"""How much of a training batch is padding, with and without length buckets, on human_ensembl_regulatory."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import Options
from l2g_ray.config import DataSettings
from l2g_ray.data.batches import iter_batches
from l2g_ray.data.dataset import ShardSource
from l2g_ray.data.prepare import prepare
from l2g_ray.data.sources.official import find_folder, find_raw
from l2g_ray.tasks.catalogue import find_tasks


def run(options: Options) -> list[dict[str, Any]]:
    """Return one row a batch size and bucket: the share of positions that are padding, over three epochs."""
    (task,) = find_tasks("genomic_benchmarks", ["human_ensembl_regulatory"])
    if find_folder(task, options.data_dir) is None:
        return []
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(find_raw(task, options.data_dir), Path(folder) / "set", DataSettings())
        source = ShardSource(tuple(prepared.shard_paths("train")), prepared.n_rows("train"))
        for batch_size in (32, 64, 128):
            for buckets in (0, DataSettings().bucket_batches):
                real = padded = 0
                for epoch in range(3):
                    for batch in iter_batches(
                        source.tables(),
                        kind=task.kind,
                        batch_size=batch_size,
                        seed=0,
                        epoch=epoch,
                        bucket_batches=buckets,
                    ):
                        real += int(batch.lengths_bp.sum())
                        padded += batch.codes.numel()
                rows.append(
                    {"batch size": batch_size, "data.bucket_batches": buckets, "padding %": 100 * (1 - real / padded)}
                )
    return rows
