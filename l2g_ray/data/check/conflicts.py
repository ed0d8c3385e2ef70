"""Rows with one sequence: repeated in a split, or with labels that contradict each other."""

from __future__ import annotations

from typing import Any

import numpy as np

from l2g_ray.data.check.part import Part
from l2g_ray.tasks.schema import Task

MAX_EXAMPLES = 20
_ROWS_AN_EXAMPLE = 4
# Regression: values of one sequence that lie further apart than this share of the train split's sd are a conflict.
CONFLICT_SD = 0.5


def count_repeats(part: Part) -> dict[str, int]:
    """Rows whose sequence already stood in the split: 'exact', or only as 'reverse_complement'."""
    n_exact = len(part) - len(np.unique(part.facts.hash))
    n_either = len(part) - len(np.unique(part.facts.canonical))
    return {"exact": n_exact, "reverse_complement": n_either - n_exact}


def find_conflicts(task: Task, parts: dict[str, Part]) -> dict[str, Any]:
    """Sequences that have different labels in different rows.

    A reverse complement is the same sequence, unless the task is strand_specific. Missing values contradict nothing.

    Returns
    -------
    JSON-ready: within (for each split), across (of any two splits) and total: sequences, and the rows that hold them;
    sd_share (None but for regression); examples, those across splits first, each a list of {split, row, label}, rows
    counted from 1.
    """
    names = list(parts)
    split = np.repeat(np.arange(len(names)), [len(part) for part in parts.values()])
    row = np.concatenate([np.arange(len(part)) for part in parts.values()])
    facts = [part.facts for part in parts.values()]
    key = np.concatenate([f.hash if task.strand_specific else f.canonical for f in facts])
    # Labels may be many columns wide: only those of rows that share their sequence are gathered.
    _, number, copies = np.unique(key, return_inverse=True, return_counts=True)
    shared = copies[number] > 1
    split, row, key = split[shared], row[shared], key[shared]
    columns = [_to_columns(task, part.labels[row[split == i]]) for i, part in enumerate(parts.values())]
    labels = np.concatenate(columns)
    limit = _limit(task, parts)

    within = {}
    for i, name in enumerate(names):
        groups = _Groups(key[split == i], labels[split == i], limit)
        within[name] = groups.count(groups.conflicts)
    groups = _Groups(key, labels, limit)
    spread = _reduce(np.maximum, split[groups.order], groups) > _reduce(np.minimum, split[groups.order], groups)
    across = groups.conflicts & spread
    chosen = np.concatenate([np.flatnonzero(across), np.flatnonzero(groups.conflicts & ~across)])[:MAX_EXAMPLES]
    examples = []
    for group in chosen:
        members = np.sort(groups.order[groups.starts[group] :][: groups.sizes[group]])
        examples.append(
            [
                {"split": names[split[m]], "row": int(row[m]) + 1, "label": _name_label(task, labels[m])}
                for m in _pick(members, labels[members])
            ]
        )
    return {
        "within": within,
        "across": groups.count(across),
        "total": groups.count(groups.conflicts),
        "sd_share": CONFLICT_SD if task.kind == "regression" else None,
        "examples": examples,
    }


class _Groups:
    """Rows (n,) in groups of one key: their order, the groups' starts and sizes (g,), and which are conflicts (g,)."""

    def __init__(self, key: np.ndarray, labels: np.ndarray, limit: np.ndarray) -> None:
        self.order = np.argsort(key, kind="stable")
        ordered = key[self.order]
        self.starts = np.flatnonzero(np.concatenate([ordered[:1] == ordered[:1], ordered[1:] != ordered[:-1]]))
        self.sizes = np.diff(self.starts, append=len(key))
        values = labels[self.order]
        # fmax and fmin pass over NaN, a missing value.
        difference = _reduce(np.fmax, values, self) - _reduce(np.fmin, values, self)
        self.conflicts = (difference > limit).any(axis=1)

    def count(self, chosen: np.ndarray) -> dict[str, int]:
        return {"sequences": int(chosen.sum()), "rows": int(self.sizes[chosen].sum())}


def _reduce(function: np.ufunc, ordered: np.ndarray, groups: _Groups) -> np.ndarray:
    return function.reduceat(ordered, groups.starts) if len(ordered) else ordered


def _to_columns(task: Task, labels: np.ndarray) -> np.ndarray:
    return labels.astype(float).reshape(-1, 1 if task.is_classification else task.n_outputs)


def _limit(task: Task, parts: dict[str, Part]) -> np.ndarray:
    """By how much the values of a sequence may differ, for each column."""
    if task.kind != "regression":
        return np.zeros(1)
    columns = parts["train"].labels.astype(float).T
    known = [column[~np.isnan(column)] for column in columns]
    return np.array([CONFLICT_SD * values.std() if len(values) else np.inf for values in known])


def _pick(members: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """A few rows of a group, such that different labels are among them."""
    _, first = np.unique(labels, axis=0, return_index=True)
    rest = np.setdiff1d(np.arange(len(members)), first)
    return members[np.sort(np.concatenate([np.sort(first), rest])[:_ROWS_AN_EXAMPLE])]


def _name_label(task: Task, values: np.ndarray) -> Any:
    if task.is_classification:
        return task.labels[int(values[0])]
    return [None if np.isnan(value) else round(float(value), 4) for value in values]
