"""Splits with planted answers for tests of the data check, and the plain computations to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from l2g_ray.data.check.balance import Part
from l2g_ray.data.spool import measure_facts
from l2g_ray.tasks.catalogue import find_tasks, parse_task
from l2g_ray.tasks.schema import Task

SHARED = Path(__file__).parents[2] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no real data at {SHARED}")
COMPLEMENT = str.maketrans("ACGTRYSWKMBDHVN", "TGCAYRSWMKVHDBN")


def flip(text: str) -> str:
    return text.translate(COMPLEMENT)[::-1]


def draw(n: int, length: int = 70, seed: int = 0, letters: str = "ACGT") -> list[str]:
    generator = np.random.default_rng(seed)
    return ["".join(row) for row in generator.choice(list(letters), (n, length))]


def make_part(texts: Sequence[str], labels: np.ndarray | None = None, rows_a_table: int = 37) -> Part:
    column = pa.array(texts, pa.large_string())
    cuts = range(0, max(len(texts), 1), rows_a_table)
    labels = np.zeros(len(texts), np.int64) if labels is None else np.asarray(labels)
    return Part(measure_facts(column), labels, lambda: (column.slice(i, rows_a_table) for i in cuts))


def make_task(**fields) -> Task:
    base = {"bench": "user", "name": "own", "kind": "binary", "labels": ["negative", "positive"]}
    return parse_task({**base, **fields}, "test")


def kmer_set(text: str, k: int) -> frozenset[str]:
    words = (text[i : i + k] for i in range(len(text) - k + 1))
    return frozenset(min(word, flip(word)) for word in words if set(word) <= set("ACGT"))


def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / max(len(one | other), 1)


def compare_all(texts: list[str], others: list[str], k: int) -> np.ndarray:
    sets, other_sets = [kmer_set(t, k) for t in texts], [kmer_set(t, k) for t in others]
    return np.array([[jaccard(a, b) for b in other_sets] for a in sets])


def substitute(text: str, n: int, generator: np.random.Generator) -> str:
    letters = list(text)
    for place in generator.choice(len(text), n, replace=False):
        letters[place] = generator.choice([letter for letter in "ACGT" if letter != letters[place]])
    return "".join(letters)


def plant(length: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Unrelated rows, and beside them shifted windows, 1 to 5 substitutions, either strand, copies and N."""
    generator = np.random.default_rng(seed)
    texts, others = draw(150, length, seed + 1), draw(60, length, seed + 2)
    for i, text in enumerate(texts[:80]):
        shifted = int(generator.integers(1, length // 2))
        changed = [
            text[shifted:] + draw(1, shifted, 100 + i)[0],
            substitute(text, 1 + i % 5, generator),
            text,
            text[: length // 2] + "N" + text[length // 2 + 1 :],
        ][i % 4]
        others.append(flip(changed) if i % 3 == 0 else changed)
    return texts, others


def read_real(bench: str, name: str) -> tuple[Task, dict[str, Part]]:
    (task,) = find_tasks(bench, [name])
    parts = {}
    for split in ("train", "valid", "test"):
        path = SHARED / str(task.folder) / f"{split}.parquet"
        if path.exists():
            table = pq.read_table(path, partitioning=None)
            labels = np.stack([table[c].to_numpy() for c in task.label_columns], 1)
            labels = labels[:, 0] if task.is_classification else labels
            column = table["sequence"]
            parts[split] = Part(measure_facts(column), labels, lambda c=column: iter(c.chunks))
    return task, parts
