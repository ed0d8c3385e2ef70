"""Shares of A, C, G and T by split, class and position: a signal that any model of single letters finds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from l2g_ray.data.check.balance import Part, round_off
from l2g_ray.sequence import CODE_TABLE, N_CODE, bytes_and_offsets
from l2g_ray.tasks.schema import Task

# All rows of a split, next to its classes.
ALL_ROWS = "all rows"
# Positions are counted in this many bins at most; further classes and outputs are left out.
MAX_BINS, MAX_GROUPS = 50, 8
# Bases of a split that are counted, in rows that are evenly spread; and those that are held at once.
MAX_BASES, _BLOCK_BP = 20_000_000, 1 << 18


def measure_composition(task: Task, parts: dict[str, Part]) -> dict[str, Any]:
    """Count letters by split and class, and in train by position too. Letters other than A, C, G and T are left out.

    Returns
    -------
    JSON-ready: bins (how many positions), relative (positions are shares of the length, since lengths differ), length_bp
    (the longest), sampled (some split was too large to count all of it); splits, which hold for each split its groups
    with the shares [A, C, G, T] of their letters, None without a letter; positions, which hold for each group of train
    such shares by bin. Groups are all rows, and the first classes, or the positives of the first labels, or for
    regression the rows with the lowest and the highest quarter of the first output's values in train.
    """
    lengths = np.concatenate([part.facts.length_bp for part in parts.values()])
    longest = int(lengths.max(initial=0))
    bins = max(1, min(MAX_BINS, longest))
    steps = {name: _find_step(part) for name, part in parts.items()}
    counts = {name: _count(part, _group(task, part, parts["train"]), bins, steps[name]) for name, part in parts.items()}
    groups = [ALL_ROWS, *_name_groups(task)]
    return {
        "bins": bins,
        "relative": bool(lengths.min(initial=longest) < longest),
        "length_bp": longest,
        "sampled": any(step > 1 for step in steps.values()),
        "splits": {
            name: {group: _share(found.sum(0)) for group, found in zip(groups, of_split, strict=True)}
            for name, of_split in counts.items()
        },
        "positions": {
            group: [_share(of_bin) for of_bin in found] for group, found in zip(groups, counts["train"], strict=True)
        },
    }


def _name_groups(task: Task) -> list[str]:
    if task.kind == "regression":
        return [f"{task.labels[0]}, {quarter} quarter" for quarter in ("lowest", "highest")]
    return list(task.labels)[:MAX_GROUPS]


def _group(task: Task, part: Part, train: Part) -> np.ndarray:
    """Return which rows belong to which group (n, G)."""
    labels = np.asarray(part.labels)
    if task.kind == "regression":
        known = np.asarray(train.labels, float)[:, 0]
        known = known[~np.isnan(known)]
        low, high = np.quantile(known, [0.25, 0.75]) if len(known) else (-np.inf, np.inf)
        return np.stack([labels[:, 0] <= low, labels[:, 0] >= high], axis=1)
    if task.kind == "multilabel":
        return labels[:, :MAX_GROUPS] == 1
    return labels[:, None] == np.arange(min(task.n_outputs, MAX_GROUPS))


def _find_step(part: Part) -> int:
    return max(1, -(-int(part.facts.length_bp.sum()) // MAX_BASES))


def _count(part: Part, member: np.ndarray, bins: int, step: int) -> np.ndarray:
    """Letters (1 + G, bins, 4) of every `step`-th row: of all rows, then of the groups (n, G)."""
    counts = np.zeros((1 + member.shape[1], bins * 4), np.int64)
    read = 0
    for sequences in part.sequences():
        kept = np.arange(read, read + len(sequences)) % step == 0
        rows = np.flatnonzero(kept) + read
        read += len(sequences)
        raw, offsets = bytes_and_offsets(sequences if step == 1 else sequences.filter(pa.array(kept)))
        start = 0
        while start < len(offsets) - 1:
            end = max(start + 1, int(np.searchsorted(offsets, offsets[start] + _BLOCK_BP, side="right")) - 1)
            lengths = np.diff(offsets[start : end + 1])
            letters = CODE_TABLE[raw[offsets[start] : offsets[end]]].astype(np.int64)
            places = np.arange(len(letters)) - np.repeat(offsets[start:end] - offsets[start], lengths)
            cells = places * bins // np.repeat(lengths, lengths) * 4 + letters
            known = letters < N_CODE
            cells, owners = cells[known], np.repeat(rows[start:end], lengths)[known]
            counts[0] += np.bincount(cells, minlength=bins * 4)
            for group, belongs in enumerate(member.T, 1):
                counts[group] += np.bincount(cells[belongs[owners]], minlength=bins * 4)
            start = end
    return counts.reshape(-1, bins, 4)


def _share(counts: np.ndarray) -> list[float | None] | None:
    total = counts.sum()
    return [round_off(count / total) for count in counts] if total else None
