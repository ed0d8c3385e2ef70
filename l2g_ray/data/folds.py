"""Folds over a task's training and validation rows: stratified, with near-identical rows and given groups on one side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from l2g_ray.data.batches import Source
from l2g_ray.data.facts import join_facts, measure_facts
from l2g_ray.data.splits import cut_folds
from l2g_ray.errors import UserError


def find_groups(sources: Sequence[Source], column: str | None = None) -> np.ndarray:
    """Group (n,) int64 of every row of the sources, in order.

    A sequence and its reverse complement are one group; with `column` (a chromosome, a group of the user's), so are rows that
    agree in it, and whatever is joined through such rows.
    """
    facts = join_facts(measure_facts(table["sequence"]) for source in sources for table in source.tables())
    groups = np.unique(facts.canonical, return_inverse=True)[1]
    if column is None:
        return groups
    keys = [key for source in sources for table in source.tables() for key in table[column].to_pylist()]
    given = np.unique(np.asarray(keys), return_inverse=True)[1] + len(groups)
    size = int(given.max()) + 1
    edges = coo_matrix((np.ones(len(groups), np.int8), (groups, given)), shape=(size, size))
    return connected_components(edges, directed=False)[1][groups].astype(np.int64)


def assign_folds(groups: np.ndarray, classes: np.ndarray | None, n_folds: int, seed: int, where: str) -> np.ndarray:
    """Fold (n,) int8 of every row, each group whole, each class dealt out evenly.

    Parameters
    ----------
    classes : (n,) codes to stratify by; a group counts with the class of its first row. None: all rows alike.

    Raises
    ------
    UserError : fewer groups than folds, or a fold without rows; names `where`.
    """
    names, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    fold = cut_folds(len(names), n_folds, seed, None if classes is None else classes[first])[inverse]
    if len(np.unique(fold)) < n_folds:
        raise UserError(
            f"{where}: {len(names)} different sequences or groups are too few for {n_folds} folds; lower folds, or set it to 0"
        )
    return fold.astype(np.int8)


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
