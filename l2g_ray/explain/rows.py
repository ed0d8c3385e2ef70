"""Which model and which sequences are explained."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from l2g_ray.data.dataset import PreparedTask, open_prepared
from l2g_ray.data.readers import read_table
from l2g_ray.errors import UserError
from l2g_ray.places import find_place
from l2g_ray.predict import Predictor
from l2g_ray.sequence import encode


@dataclass(frozen=True)
class Candidates:
    """Sequences to choose from: `ids`, `codes` (n, length) right-padded, `lengths_bp` (n,); `source` says where from."""

    ids: list[str]
    codes: np.ndarray
    lengths_bp: np.ndarray
    source: str

    def take(self, rows: np.ndarray) -> Candidates:
        """Some of them, as far padded as they need."""
        lengths_bp = self.lengths_bp[rows]
        width = int(lengths_bp.max()) if len(rows) else 0
        return Candidates([self.ids[row] for row in rows], self.codes[rows, :width], lengths_bp, self.source)


def read_candidates(predictor: Predictor, path: Path, sequence_column: str | None) -> Candidates:
    """The sequences of a file. Raises UserError as `Predictor.clean`."""
    table = read_table(path, sequence_column=sequence_column or predictor.task.sequence_column)
    return _encode(predictor, table, str(path))


def open_candidates(predictor: Predictor, task_folder: Path, wanted: int) -> Candidates:
    """The run's own rows: those of validation, and those of training too where these are fewer than four times `wanted`.

    Raises UserError where the run's data is not there any more.
    """
    prepared = find_prepared(task_folder, "give --sequences FILE")
    splits = ["valid"] if prepared.n_rows("valid") >= 4 * wanted else ["valid", "train"]
    tables = [prepared.table(split, ["id", "sequence"]) for split in splits]
    return _encode(predictor, pa.concat_tables(tables), f"{' and '.join(splits)} of the run's data")


def find_prepared(task_folder: Path, otherwise: str) -> PreparedTask:
    """The prepared rows of a finished task: where its run had them, or beside the run, by their fingerprints.

    Raises UserError where they are not there any more; it ends with what to do `otherwise`.
    """
    try:
        splits = json.loads((task_folder / "task.json").read_text())["splits"]
        wanted = {split: facts["fingerprint"] for split, facts in splits.items()}
        known = json.loads((task_folder / "stages.json").read_text()).get("deployed", {}).get("prepared")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{task_folder}: no readable task.json and stages.json of a finished task, so its data is not known; {otherwise}"
        ) from None
    beside = sorted(path.parent for path in task_folder.absolute().parent.parent.glob("prepared/*/*/task.json"))
    reason = ""
    named = [find_place(known, task_folder)] if known else []
    for folder in [*named, *map(str, beside)]:
        try:
            prepared = open_prepared(folder)
        except UserError as error:
            reason = f" ({error})" if folder in named else reason
            continue
        if all(prepared.fingerprint(split) == mark for split, mark in wanted.items()):
            return prepared
    raise UserError(
        f"{task_folder}: the rows of this run are not there any more, or were prepared by an older version{reason}; "
        f"run the suite's command again, or {otherwise}"
    )


def choose_top(
    candidates: Candidates, score: Callable[[np.ndarray, np.ndarray], np.ndarray], top: int, batch_rows: int = 512
) -> Candidates:
    """The `top` candidates with the highest score, in their order; `score` takes codes and lengths to values (n,)."""
    n = len(candidates.ids)
    if n <= top:
        return candidates.take(np.arange(n))
    order = np.argsort(candidates.lengths_bp, kind="stable")
    values = np.empty(n)
    for start in range(0, n, batch_rows):
        rows = order[start : start + batch_rows]
        some = candidates.take(rows)
        values[rows] = score(some.codes, some.lengths_bp)
    return candidates.take(np.sort(np.argsort(-values, kind="stable")[:top]))


def choose_at_random(candidates: Candidates, n: int, seed: int) -> Candidates:
    """`n` of the candidates, whatever their value, in their order."""
    rows = np.random.default_rng(seed).permutation(len(candidates.ids))[:n]
    return candidates.take(np.sort(rows))


def _encode(predictor: Predictor, table: pa.Table, source: str) -> Candidates:
    clean = predictor.clean(table["sequence"], source)
    if not len(clean):
        raise UserError(f"{source}: no sequence; give a file with at least one")
    codes, lengths_bp = encode(clean)
    return Candidates(table["id"].to_pylist(), codes, lengths_bp, source)
