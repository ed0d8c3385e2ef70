"""Official benchmarks for tests: tasks, files in their published forms, and the rows that a form gives."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from l2g_ray.data.raw import RawTask, SourceOptions
from l2g_ray.data.sources.official import open_official
from l2g_ray.tasks.catalogue import find_tasks, parse_task
from l2g_ray.tasks.schema import Task

OPTIONS = SourceOptions()
DEEPSTARR = find_tasks("deepstarr")[0]


def make_task(**fields) -> Task:
    base = {"bench": "own", "name": "own", "kind": "binary", "labels": ["negative", "positive"]}
    return parse_task({**base, **fields}, "test")


def open_form(task: Task, folder: Path, options: SourceOptions = OPTIONS) -> RawTask:
    raw = open_official(task, folder, options)
    assert raw is not None
    assert all(path.is_file() for path in raw.files.values())
    return raw


def rows(raw: RawTask, split: str, *columns: str) -> list[tuple]:
    """The rows of all pieces of a split: id, sequence and these columns."""
    found = []
    for piece in raw.splits[split]:
        for table in piece.tables():
            assert table.schema.field("id").type == pa.string()
            assert table.schema.field("sequence").type == pa.large_string()
            found += list(zip(*(table[name].to_pylist() for name in ("id", "sequence", *columns)), strict=True))
    return found


def block_sizes(raw: RawTask, split: str) -> list[int]:
    return [table.num_rows for piece in raw.splits[split] for table in piece.tables()]


def write_shard(path: Path, **columns: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def write_nt_tables(folder: Path) -> Path:
    for split, offset in (("train", 0), ("test", 10)):
        write_shard(
            folder / "data" / f"{split}-00000-of-00001.parquet",
            sequence=["ACGT", "GGCC", "TTTT", "A" * (5 + offset)],
            name=["chr1:5-9", "same", "chr2:1-5", "same"],
            label=[0, 1, 1, 0],
            task=["H3", "enhancers", "H3K9ac", "enhancers"],
        )
    return folder


def labels_task(count: int) -> Task:
    return make_task(kind="multilabel", labels={"prefix": "target_", "count": count}, label_columns=["label"])
