"""What the tests of test_sources.py and test_source_splits.py share."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from Bio import bgzf

from l2g_ray.config import DataSettings
from l2g_ray.data.dataset import PreparedTask
from l2g_ray.data.prepare import prepare
from l2g_ray.data.raw import RawTask, SourceOptions
from l2g_ray.data.sources import open_source

N_ROWS = 60


def random_sequences(n: int, length_bp: int = 30, seed: int = 0) -> list[str]:
    generator = np.random.default_rng(seed)
    return ["".join(row) for row in generator.choice(list("ACGT"), (n, length_bp))]


SEQUENCES = random_sequences(N_ROWS)


def make_table(**columns: list) -> pa.Table:
    """Ids s0, s1, ..., the sequences, and further columns."""
    return pa.table({"id": [f"s{i}" for i in range(N_ROWS)], "sequence": SEQUENCES} | columns)


def delimited(table: pa.Table, delimiter: str) -> str:
    rows = [table.column_names, *zip(*table.to_pydict().values(), strict=True)]
    return "".join(delimiter.join("" if cell is None else str(cell) for cell in row) + "\n" for row in rows)


def write(path: Path, table: pa.Table) -> Path:
    """A table in the form that the path's name says: .csv, .tsv, .jsonl, .parquet; text also .gz, .zst."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stem = path.name.removesuffix(".gz").removesuffix(".zst")
    if stem.endswith(".parquet"):
        pq.write_table(table, path)
        return path
    if stem.endswith(".jsonl"):
        text = "".join(json.dumps(row) + "\n" for row in table.to_pylist())
    else:
        text = delimited(table, "\t" if stem.endswith(".tsv") else ",")
    return write_text(path, text)


def write_text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    elif path.suffix == ".zst":
        path.write_bytes(pa.Codec("zstd").compress(text.encode(), asbytes=True))
    elif path.suffix == ".bgz":
        with bgzf.BgzfWriter(str(path)) as file:
            file.write(text.encode())
    else:
        path.write_text(text)
    return path


def fasta(headers: list[str], sequences: list[str], width: int = 70) -> str:
    lines = []
    for header, sequence in zip(headers, sequences, strict=True):
        lines += [f">{header}", *(sequence[i : i + width] for i in range(0, len(sequence), width))]
    return "\n".join([*lines, ""])


def own(*paths: Path, **options: Any) -> RawTask:
    return open_source(paths, SourceOptions(**options))


def read_all(prepared: PreparedTask) -> dict[str, list[dict]]:
    """The rows of every split."""
    parts = {split: prepared.table(split) for split in ("train", "valid")} | {"test": prepared.open_test()}
    return {split: table.to_pylist() for split, table in parts.items()}


def collect(prepared: PreparedTask) -> dict[str, Any]:
    """Return sequence to label over all splits; no sequence may be in two."""
    rows = [row for found in read_all(prepared).values() for row in found]
    found = {row["sequence"]: row["label"] for row in rows}
    assert len(found) == len(rows)
    return found


def lay(tmp_path: Path, raw: RawTask, **settings: Any) -> PreparedTask:
    return prepare(raw, tmp_path / "out", DataSettings(**settings))


# ---- tables ----------------------------------------------------------------------------------------------------------

TABLES = [f"t.{kind}{suffix}" for kind in ("csv", "tsv", "jsonl") for suffix in ("", ".gz", ".zst")] + ["t.parquet"]
