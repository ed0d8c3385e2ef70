"""How many rows a task has and how long they are, as far as it can be known without preparing anything."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

import numpy as np
import pyarrow.compute as pc

from l2g_ray.config import DataSettings
from l2g_ray.data.dataset import PreparedTask
from l2g_ray.data.raw import ALL, Piece, RawTask
from l2g_ray.data.splits import find_key_column, part_rows
from l2g_ray.tasks.schema import Task

UNIT_ROWS = 1000


@dataclass(frozen=True)
class Rows:
    """Rows of each split, and the shortest, mean and longest sequence of train and valid in bp.

    `known` false: the data is not here, and the numbers stand for 1,000 training rows. `origin` says how it is known.
    """

    train: int
    valid: int
    test: int
    min_bp: int
    mean_bp: float
    max_bp: int
    known: bool
    origin: str

    @property
    def is_padded(self) -> bool:
        """Whether lengths differ, so that batches carry a mask."""
        return self.min_bp < self.max_bp

    @property
    def length_bp(self) -> int:
        """The mean length as a whole number."""
        return max(1, round(self.mean_bp))


class Lengths(TypedDict):
    """Of the sequences of a split."""

    min: int
    median: float
    max: int


class SplitFacts(TypedDict):
    """What `task.json` says of a split; counts of `letters` are missing where an earlier version prepared it."""

    rows: int
    length_bp: Lengths
    letters: NotRequired[dict[str, int]]


def rows_of_manifest(splits: dict[str, SplitFacts], origin: str) -> Rows:
    """From `splits` of a prepared task's `task.json`."""
    seen = [splits[name] for name in ("train", "valid")]
    n_rows = sum(split["rows"] for split in seen)
    bases = sum(sum(s["letters"].values()) if "letters" in s else s["length_bp"]["median"] * s["rows"] for s in seen)
    return Rows(
        train=splits["train"]["rows"],
        valid=splits["valid"]["rows"],
        test=splits["test"]["rows"],
        min_bp=min(split["length_bp"]["min"] for split in seen),
        mean_bp=bases / max(1, n_rows),
        max_bp=max(split["length_bp"]["max"] for split in seen),
        known=True,
        origin=origin,
    )


def count_rows(source: RawTask | PreparedTask, settings: DataSettings) -> Rows:
    """Return rows of a source: a prepared task's manifest, or one pass over the files that keeps nothing but lengths.

    Counts may be a little above the rows that are trained on: duplicates between splits, which preparing drops, are counted,
    and a random split is not stratified. Raises UserError for files that cannot be read.
    """
    if isinstance(source, PreparedTask):
        return rows_of_manifest(source.manifest["splits"], "prepared data")
    if ALL in source.splits:
        lengths, key_column = {}, find_key_column(source.options)
        every, keys = _read(source.splits[ALL], key_column)
        where = source.splits[ALL][0].where
        for split, rows in part_rows(len(every), source.options, where, keys=keys or None).rows.items():
            lengths[split] = every[rows]
    else:
        lengths = {split: _read(pieces, None)[0] for split, pieces in source.splits.items()}
    n_train = len(lengths["train"])
    n_valid = len(lengths["valid"]) if "valid" in lengths else round(n_train * settings.valid_fraction)
    if "valid" not in lengths:
        n_train -= n_valid
    seen = np.concatenate([lengths["train"], lengths.get("valid", lengths["train"][:0])])
    return Rows(
        n_train,
        n_valid,
        len(lengths["test"]),
        int(seen.min()),
        float(seen.mean()),
        int(seen.max()),
        True,
        "the source's files",
    )


def assume_rows(task: Task, settings: DataSettings) -> Rows | None:
    """Assume, for data that is not here, 1,000 training rows of the catalogue's length, test as large as validation.

    None where the catalogue has no length either.
    """
    if task.length_bp is None:
        return None
    share = settings.valid_fraction / (1 - settings.valid_fraction)
    held_out = round(UNIT_ROWS * share)
    bp = task.length_bp
    return Rows(UNIT_ROWS, held_out, held_out, bp, float(bp), bp, False, "rows unknown: per 1,000 training rows")


def _read(pieces: list[Piece], key_column: str | None) -> tuple[np.ndarray, list[str]]:
    """Lengths (n,) of all rows, and their keys."""
    lengths, keys = [np.empty(0, np.int64)], []
    for table in _tables(pieces):
        lengths.append(np.asarray(pc.binary_length(table["sequence"]).to_numpy(), np.int64))
        if key_column is not None and key_column in table.column_names:
            keys += [str(key) for key in table[key_column].to_pylist()]
    return np.concatenate(lengths), keys


def _tables(pieces: list[Piece]) -> Iterator[Any]:
    for piece in pieces:
        yield from piece.tables()
