"""Which rows are train, valid and test, which stay together, and the folds that arms train on; always seeded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from l2g_ray.data.checks import show
from l2g_ray.data.dataset import PreparedTask
from l2g_ray.data.raw import SourceOptions
from l2g_ray.errors import UserError, nearest

if TYPE_CHECKING:
    from l2g_ray.data.batches import Source

SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "dev": "valid",
    "test": "test",
}


@dataclass(frozen=True)
class Partition:
    """Row indices (sorted int64) of train, test and, where the rule gives one, valid; and how they were made."""

    rows: dict[str, np.ndarray]
    made: dict[str, Any]


def part_rows(
    n_rows: int,
    options: SourceOptions,
    where: str,
    classes: np.ndarray | None = None,
    keys: Sequence[str] | None = None,
) -> Partition:
    """Split the rows of a source that comes in one piece.

    Parameters
    ----------
    classes : (n_rows,) codes to stratify a random split or folds by; None for none.
    keys : (n_rows,) texts: the split's name, the chromosome or the group of each row, as `options.split` needs.

    Raises
    ------
    UserError : too few rows, or keys that leave train or test empty.
    """
    rule = find_rule(options)
    if rule == "given":
        return _by_name(_need(keys, options.split_column or "split", where), options, where)
    if rule == "chromosome":
        return _by_chromosome(_need(keys, "chrom", where), options, where)
    groups = np.arange(n_rows)
    if rule == "group" or (rule == "folds" and options.group_column):
        groups = np.unique(np.asarray(_need(keys, options.group_column or "", where)), return_inverse=True)[1]
        classes = None
    n_groups = int(groups.max()) + 1 if n_rows else 0
    if rule == "folds":
        fold = cut_folds(n_groups, options.folds, options.seed, classes)[groups]
        if len(np.unique(fold)) < options.folds:
            raise UserError(
                f"{where}: {n_groups} rows or groups are too few for {options.folds} folds; give fewer folds"
            )
        chosen = np.flatnonzero(fold == options.fold)
        made = {"rule": "folds", "folds": options.folds, "fold": options.fold, "seed": options.seed}
    else:
        chosen = np.flatnonzero(np.isin(groups, cut_validation(n_groups, options.test_fraction, options.seed, classes)))
        made = {"rule": rule, "test_fraction": options.test_fraction, "seed": options.seed}
    if options.group_column:
        made["group_column"] = options.group_column
    if len(chosen) == 0 or len(chosen) == n_rows:
        were = "row is" if n_rows == 1 else "rows are"
        raise UserError(f"{where}: {n_rows} {were} too few to cut a test split from; add rows, or give a test file")
    return Partition({"train": np.setdiff1d(np.arange(n_rows), chosen), "test": chosen}, made)


def find_rule(options: SourceOptions) -> str:
    """Return the rule that splits a source without given splits.

    'auto' goes by `split_column` where one is named, else by `group_column`, else it draws at random.
    """
    if options.split != "auto":
        return options.split
    if options.split_column:
        return "given"
    return "group" if options.group_column else "random"


def find_key_column(options: SourceOptions) -> str | None:
    """Return the column that `part_rows` needs as `keys`, or None."""
    rule = find_rule(options)
    if rule == "given":
        return options.split_column or "split"
    if rule == "chromosome":
        return "chrom"
    return options.group_column


def _need(keys: Sequence[str] | None, column: str, where: str) -> Sequence[str]:
    if keys is None:
        raise UserError(f"{where}: no column '{column}' to split the rows by; name it, or choose another --split")
    return keys


def _by_name(keys: Sequence[str], options: SourceOptions, where: str) -> Partition:
    column = options.split_column or "split"
    words, codes = np.unique(np.asarray(keys), return_inverse=True)
    rows: dict[str, list[np.ndarray]] = {}
    for code, word in enumerate(words):
        found = np.flatnonzero(codes == code)
        split = SPLIT_WORDS.get(word.strip().lower())
        if split is None:
            raise UserError(
                f"{where}, row {found[0] + 1}: '{show(word)}' in column '{column}' names no split; write train, valid or test"
            )
        rows.setdefault(split, []).append(found)
    for split in ("train", "test"):
        if split not in rows:
            raise UserError(f"{where}: no row of column '{column}' says {split}; add rows, or choose another --split")
    joined = {split: np.sort(np.concatenate(found)) for split, found in rows.items()}
    return Partition(joined, {"rule": "given", "column": column})


def _by_chromosome(keys: Sequence[str], options: SourceOptions, where: str) -> Partition:
    chromosomes = np.asarray(keys)
    known = np.unique(chromosomes).tolist()
    for name in (*options.test_chromosomes, *options.valid_chromosomes):
        if name not in known:
            raise UserError(f"{where}: no row on chromosome '{name}' ({nearest(name, known)}); correct the hold-out")
    test = np.isin(chromosomes, options.test_chromosomes)
    valid = np.isin(chromosomes, options.valid_chromosomes)
    rows = {"train": np.flatnonzero(~test & ~valid), "test": np.flatnonzero(test)}
    if options.valid_chromosomes:
        rows["valid"] = np.flatnonzero(valid)
    if len(rows["train"]) == 0:
        raise UserError(f"{where}: every chromosome is held out; leave some for training")
    made = {"rule": "chromosome", "test_chromosomes": list(options.test_chromosomes)}
    if options.valid_chromosomes:
        made["valid_chromosomes"] = list(options.valid_chromosomes)
    return Partition(rows, made)


def cut_folds(
    n_groups: int, folds: int, seed: int, classes: np.ndarray | None, sizes: np.ndarray | None = None
) -> np.ndarray:
    """Return the fold (n_groups,) of each row or group; each class is dealt out evenly, groups of many rows (`sizes`)
    first.
    """
    generator = np.random.default_rng(seed)
    fold = np.empty(n_groups, np.int64)
    start = 0
    for group in _by_class(n_groups, classes):
        # Each class starts in the fold after the last one used, so that small classes do not all end in fold 0.
        order = generator.permutation(group)
        if sizes is not None:
            order = order[np.argsort(-sizes[order], kind="stable")]
        fold[order] = (start + np.arange(len(group))) % folds
        start += len(group)
    return fold


def cut_validation(n_rows: int, fraction: float, seed: int, classes: np.ndarray | None = None) -> np.ndarray:
    """Row indices of a held-out part, sorted int64.

    Parameters
    ----------
    classes : (n_rows,) int codes to stratify by: each class gives its share, rounded, and every class of two or more
        rows gives at least one and keeps at least one. None draws from all rows alike.

    The same arguments give the same indices. Empty where no class has two rows.
    """
    generator = np.random.default_rng(seed)
    chosen = []
    for group in _by_class(n_rows, classes):
        n_chosen = min(max(round(fraction * len(group)), 1), len(group) - 1)
        chosen.append(generator.permutation(group)[: max(n_chosen, 0)])
    return np.sort(np.concatenate(chosen)).astype(np.int64) if chosen else np.empty(0, np.int64)


def _by_class(n_rows: int, classes: np.ndarray | None) -> list[np.ndarray]:
    if classes is None:
        return [np.arange(n_rows)]
    return [np.flatnonzero(classes == code) for code in np.unique(classes)]


def hash_indices(indices: np.ndarray) -> str:
    """sha256 of row indices (n,), as little-endian int64."""
    return hashlib.sha256(np.ascontiguousarray(indices, dtype="<i8").tobytes()).hexdigest()


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
        from scipy.sparse import coo_matrix  # half a second of imports that a plan can do without
        from scipy.sparse.csgraph import connected_components

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
    """Return all folds of a task; the given split as the only one for 0."""
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
        """Yield one pass over the wanted rows, in order."""
        start = 0
        for source in self.sources:
            for table in source.tables():
                yield table.filter(pa.array(self.wanted[start : start + table.num_rows]))
                start += table.num_rows
