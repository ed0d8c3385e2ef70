"""Folds over a task's training and validation rows: stratified, with near-duplicates and given groups on one side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from l2g_ray.data.dataset import PreparedTask
from l2g_ray.data.splits import cut_folds, hash_indices
from l2g_ray.errors import UserError

if TYPE_CHECKING:
    from l2g_ray.data.batches import Source


def find_groups(canonical: np.ndarray, *others: np.ndarray) -> np.ndarray:
    """Group (n,) int64 of every row: rows of one group must not be on two sides of a split.

    Parameters
    ----------
    canonical : (n,) one hash for a sequence and its reverse complement (`Facts.canonical`).
    others : (n,) each: chromosomes, groups of the user's, families of near-duplicates. Rows that agree in one of them are one
        group, and so is whatever is joined through such rows.
    """
    groups = np.unique(canonical, return_inverse=True)[1]
    for keys in others:
        given = np.unique(keys, return_inverse=True)[1] + len(groups)
        size = int(given.max(initial=0)) + 1
        edges = coo_matrix((np.ones(len(groups), np.int8), (groups, given)), shape=(size, size))
        joined = connected_components(edges, directed=False)[1][groups]
        groups = np.unique(joined, return_inverse=True)[1]
    return groups.astype(np.int64)


def assign_folds(groups: np.ndarray, classes: np.ndarray | None, n_folds: int, seed: int, where: str) -> np.ndarray:
    """Fold (n,) int8 of every row, each group whole, each class dealt out evenly.

    Parameters
    ----------
    classes : (n,) codes to stratify by; a group counts with the class of its first row. None: all rows alike.

    Raises
    ------
    UserError : fewer groups than folds, or a fold without rows; names `where`.
    """
    names, first, inverse, sizes = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
    fold = cut_folds(len(names), n_folds, seed, None if classes is None else classes[first], sizes)[inverse]
    if len(np.unique(fold)) < n_folds:
        raise UserError(
            f"{where}: {len(names)} different sequences or groups are too few for {n_folds} folds; lower folds, or set it to 0"
        )
    return fold.astype(np.int8)


@dataclass(frozen=True)
class Fold:
    """Which rows of train and valid are held out: fold `number` of `of`, dealt out by `seed`. 0 of 0: those of valid.

    `groups` is a hash of the rows' groups, so that keys depend on them.
    """

    number: int
    of: int
    seed: int
    groups: str = ""

    def read(self, prepared: PreparedTask) -> np.ndarray:
        """Fold (n,) of every row of train, then of valid: 0 for valid and 1 for train where there is only that split.

        Raises UserError as `assign_folds` and `PreparedTask.row_groups`.
        """
        if not self.of:
            return np.repeat([1, 0], [prepared.n_rows("train"), prepared.n_rows("valid")])
        classes = None
        if prepared.task.is_classification:
            classes = np.concatenate([prepared.table(s, ["label"])["label"].to_numpy() for s in ("train", "valid")])
        return assign_folds(prepared.row_groups(), classes, self.of, self.seed, prepared.task.name)


def make_folds(prepared: PreparedTask, n_folds: int, seed: int) -> list[Fold]:
    """All folds of a task; the given split as the only one for 0."""
    if not n_folds:
        return [Fold(0, 0, 0)]
    groups = prepared.row_groups()
    # Groups of several rows are dealt out by size, which earlier versions did not.
    digest = hash_indices(groups)[:12] + ("-by-size" if len(np.unique(groups)) < len(groups) else "")
    return [Fold(number, n_folds, seed, digest) for number in range(n_folds)]


@dataclass(frozen=True)
class SelectedRows:
    """The rows of several sources, one after the other, for which `wanted` (n,) is true; see `batches.Source`."""

    sources: tuple[Source, ...]
    wanted: np.ndarray

    @property
    def n_rows(self) -> int:
        """Rows that are wanted."""
        return int(self.wanted.sum())

    def tables(self) -> Iterator[pa.Table]:
        """One pass over the wanted rows, in order."""
        start = 0
        for source in self.sources:
            for table in source.tables():
                yield table.filter(pa.array(self.wanted[start : start + table.num_rows]))
                start += table.num_rows
