"""All checks of a task's splits, as one JSON-ready report."""

from __future__ import annotations

from typing import Any

import numpy as np

from l2g_ray.data.check.balance import measure_balance
from l2g_ray.data.check.conflicts import count_repeats, find_conflicts
from l2g_ray.data.check.findings import list_findings
from l2g_ray.data.check.kmers import choose_k
from l2g_ray.data.check.part import Part
from l2g_ray.data.check.shifts import measure_leak, measure_shift
from l2g_ray.data.check.similar import find_similar
from l2g_ray.data.leakage import find_overlap
from l2g_ray.tasks.schema import Task

SCHEMA = 1
# In this order, so that of each pair the second, as a rule the smaller one, is held by `find_similar`.
_PAIRS = (("train", "test"), ("train", "valid"), ("valid", "test"))


def check_splits(task: Task, parts: dict[str, Part], *, near: bool = True) -> dict[str, Any]:
    """Check the splits 'train' and 'test', and 'valid' where there is one, against each other and in themselves.

    near : look for near-duplicates too, which takes most of the time and reads the sequences again.

    Returns
    -------
    JSON-ready: schema, task, kind, labels, strand_specific, rows; duplicates (by pair, 'train_in_test'; see
    `Overlap.count`); repeats (by split); near (by pair, and by split under 'within'; see `find_similar`; None if not
    asked for); conflicts, balance, shift, leak (of the module of that name; leak is of train); findings, a list of
    {level: 'warning' or 'note', text: one sentence}, the warnings first.
    """
    pairs = [(a, b) for a, b in _PAIRS if a in parts and b in parts]
    check: dict[str, Any] = {
        "schema": SCHEMA,
        "task": f"{task.bench}/{task.name}",
        "kind": task.kind,
        "labels": list(task.labels),
        "strand_specific": task.strand_specific,
        "rows": {split: len(part) for split, part in parts.items()},
        "duplicates": {f"{a}_in_{b}": find_overlap(parts[a].facts, parts[b].facts).count() for a, b in pairs},
        "repeats": {split: count_repeats(part) for split, part in parts.items()},
        "near": None,
        "conflicts": find_conflicts(task, parts),
        "balance": measure_balance(task, {split: part.labels for split, part in parts.items()}),
        "shift": measure_shift({split: part.facts for split, part in parts.items()}),
        "leak": measure_leak(task, parts["train"].facts, parts["train"].labels),
    }
    if near:
        # One k for all, so that the numbers can be compared.
        k = choose_k(np.concatenate([part.facts.length_bp for part in parts.values()]))
        between = {f"{a}_in_{b}": find_similar(parts[a], parts[b], k=k) for a, b in pairs}
        check["near"] = between | {"within": {split: find_similar(part, k=k) for split, part in parts.items()}}
    check["findings"] = list_findings(check)
    return check
