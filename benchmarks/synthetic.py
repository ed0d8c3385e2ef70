"""Random sequences in the form in which `prepare` leaves them, without its checks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROWS_PER_SHARD = 10_000


def write_prepared(folder: Path, n_rows: int, length_bp: int, n_labels: int = 0, valid_rows: int = 500) -> Path:
    """Write shards and manifest of a set with `n_labels` multilabel outputs, or a binary one for 0; return `folder`."""
    generator = np.random.default_rng(0)
    splits, shards = {}, {}
    for split, rows in (("train", n_rows), ("valid", valid_rows)):
        (folder / split).mkdir(parents=True)
        shards[split] = []
        for shard, start in enumerate(range(0, rows, ROWS_PER_SHARD)):
            name = f"{split}/part-{shard:05d}.parquet"
            table = draw_table(generator, min(ROWS_PER_SHARD, rows - start), length_bp, n_labels)
            pq.write_table(table, folder / name, compression="zstd")
            shards[split].append(name)
        length = {"min": length_bp, "median": length_bp, "max": length_bp}
        letters = {"A": rows * length_bp}
        splits[split] = {"rows": rows, "length_bp": length, "letters": letters, "fingerprint": f"{split}{rows}"}
    names = [f"target_{i:03d}" for i in range(n_labels)] or ["absent", "present"]
    task = {"bench": "user", "name": "synthetic", "kind": "multilabel" if n_labels else "binary", "labels": names}
    if n_labels:
        task["label_columns"] = ["label"]
    manifest = {"schema": 2, "key": "", "task": task | {"synthetic": True}, "splits": splits, "shards": shards}
    (folder / "task.json").write_text(json.dumps(manifest | {"warnings": []}))
    return folder


def draw_table(generator: np.random.Generator, rows: int, length_bp: int, n_labels: int = 0) -> pa.Table:
    """Return columns id, sequence and label of random rows."""
    letters = np.frombuffer(b"ACGT", np.uint8)[generator.integers(0, 4, (rows, length_bp), dtype=np.uint8)]
    offsets = pa.py_buffer(np.arange(0, (rows + 1) * length_bp, length_bp, dtype=np.int64))
    sequences = pa.LargeStringArray.from_buffers(rows, offsets, pa.py_buffer(letters.tobytes()))
    label: pa.Array = pa.array(generator.integers(0, 2, rows))
    if n_labels:
        labels = (generator.random((rows, n_labels), np.float32) < 0.02).astype(np.float32)
        label = pa.FixedSizeListArray.from_arrays(pa.array(labels.reshape(-1)), n_labels)
    return pa.table({"id": pa.array([str(i) for i in range(rows)]), "sequence": sequences, "label": label})
