"""What a source gives before anything is checked: how a person's files are read, the task, and the pieces of each split."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from l2g_ray.data.checks import NA_VALUES
from l2g_ray.storage import Location
from l2g_ray.tasks.schema import Kind, Task

SplitRule = Literal["auto", "given", "random", "chromosome", "group", "folds"]


class SourceOptions(BaseModel):
    """What cannot be seen from the files alone. Every field has a default that fits a plain table.

    `header_pattern` is a regular expression over a whole FASTA header (without '>') with a group named `label` and,
    where wanted, one named `id`. `label_table` gives labels by id (columns `id_column` and the label columns).
    `na_values` are the texts that mean no value, in labels and sequences; an empty cell does so always.
    `window_bp` cuts windows of that width round a peak's summit, or its middle; None takes intervals as they are.
    `strict` stops at an interval, or a window, that does not fit on the genome; otherwise it is left out and counted.
    `split` 'auto' takes the splits that a source has (files, folders, `split_column`), else draws them at random, whole
    groups where there is a `group_column`. With any rule a validation split is cut in whole groups.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str | None = None
    kind: Kind | None = None
    labels: tuple[str, ...] = ()
    sequence_column: str = "sequence"
    label_columns: tuple[str, ...] = ()
    id_column: str = "id"
    strand_specific: bool = False
    na_values: tuple[str, ...] = NA_VALUES

    header_pattern: str | None = None
    label_table: Path | None = None

    genome: Path | None = None
    window_bp: int | None = Field(default=None, gt=0)
    negatives_per_peak: float = Field(default=1.0, ge=0)
    gc_tolerance: float = Field(default=0.02, gt=0, le=1)
    stranded: bool = False
    strict: bool = False

    split: SplitRule = "auto"
    split_column: str | None = None
    test_fraction: float = Field(default=0.1, gt=0, lt=1)
    test_chromosomes: tuple[str, ...] = ()
    valid_chromosomes: tuple[str, ...] = ()
    group_column: str | None = None
    folds: int = Field(default=5, ge=2)
    fold: int = Field(default=0, ge=0)
    seed: int = 0

    @field_validator("header_pattern")
    @classmethod
    def _has_label_group(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            groups = re.compile(value).groupindex
        except re.error as error:
            raise ValueError(f"'{value}' is no regular expression ({error})") from None
        if "label" not in groups:
            raise ValueError(f"'{value}' has no group named label, for example (?P<id>[^|]+)\\|(?P<label>.+)")
        return value

    @model_validator(mode="after")
    def _split_is_complete(self) -> SourceOptions:
        if self.split == "chromosome" and not self.test_chromosomes:
            raise ValueError("split 'chromosome' needs test_chromosomes, for example chr8,chr9")
        if self.split == "group" and not self.group_column:
            raise ValueError("split 'group' needs group_column, the column whose values stay together")
        if self.split == "random" and self.group_column:
            raise ValueError("split 'random' parts groups; write split 'group', or leave group_column out")
        if self.fold >= self.folds:
            raise ValueError(f"fold {self.fold} is not one of {self.folds} folds (counted from 0)")
        if shared := set(self.test_chromosomes) & set(self.valid_chromosomes):
            raise ValueError(f"{', '.join(sorted(shared))}: in both test_chromosomes and valid_chromosomes")
        return self


# The split of a source without given splits: `prepare` splits it by `SourceOptions.split`.
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

    splits : 'train', 'test' and, optionally, 'valid'; or 'all' alone, to be split.
    files : what the rows depend on; hashed into the content key, so all files that are read must be named.
    options : how to read and split the source; part of the content key, as is
    content : whatever else the rows depend on, JSON-ready.
    notes : sentences that the manifest and the leaderboard shall carry.
    """

    task: Task
    splits: dict[str, list[Piece]]
    files: Mapping[str, Path | Location]
    options: SourceOptions = field(default_factory=SourceOptions)
    content: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
