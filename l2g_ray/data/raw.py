"""What a source gives before anything is checked: a task, and for each split the pieces that its rows come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from l2g_ray.data.options import SourceOptions
from l2g_ray.storage import Location
from l2g_ray.tasks.schema import Task

# The split of a source that has none of its own: `prepare` parts it by `SourceOptions.split`.
ALL = "all"


@dataclass(frozen=True)
class Piece:
    """Rows from one place, in order.

    where : the file (or object) as messages shall name it; rows are counted from 1 within a piece.
    tables : each call gives the rows from the beginning, in tables with the columns id (string), sequence
        (large_string, as found: not yet upper-case or checked), the task's label columns, and, where the source has
        them, chrom, start, end, strand and the group column. Raises UserError naming `where`, row and fix.
    """

    where: str
    tables: Callable[[], Iterator[pa.Table]]


@dataclass(frozen=True)
class RawTask:
    """A task and its rows, unchecked.

    splits : 'train', 'test' and, optionally, 'valid'; or 'all' alone, to be parted.
    files : what the rows depend on; hashed into the content key, so all files that are read must be named.
    options : how the source was asked to be read and parted; part of the content key, as is
    content : whatever else the rows depend on, JSON-ready.
    notes : sentences that the manifest and the leaderboard shall carry.
    """

    task: Task
    splits: dict[str, list[Piece]]
    files: Mapping[str, Path | Location]
    options: SourceOptions = field(default_factory=SourceOptions)
    content: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
