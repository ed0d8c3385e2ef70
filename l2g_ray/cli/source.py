"""The flags that say how a person's own files are to be read and parted; `run` and `data prepare` share them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

    from l2g_ray.tasks.schema import Task

_SPLITS = ["auto", "given", "random", "chromosome", "group", "folds"]
# Flag, the field of SourceOptions that it sets, and what click needs to know.
_FLAGS: list[tuple[str, str, dict[str, Any]]] = [
    ("--task-name", "name", {"metavar": "NAME", "help": "Name of the task; that of the file or folder by default."}),
    (
        "--kind",
        "kind",
        {
            "type": click.Choice(["binary", "multiclass", "multilabel", "regression"]),
            "help": "Kind of task, where it cannot be seen from the labels.",
        },
    ),
    ("--labels", "labels", {"metavar": "A,B", "help": "Names of the classes or outputs, in order."}),
    ("--sequence-column", "sequence_column", {"metavar": "NAME", "help": "Column of the sequences [sequence]."}),
    (
        "--label-column",
        "label_columns",
        {"multiple": True, "metavar": "NAME", "help": "Column of a label [label]; repeat it for several outputs."},
    ),
    ("--id-column", "id_column", {"metavar": "NAME", "help": "Column of the ids [id]."}),
    (
        "--na-values",
        "na_values",
        {
            "metavar": "A,B",
            "help": "Texts read as missing, in labels and sequences [NA,NaN,null,None,N/A and the like]; '' for none.",
        },
    ),
    ("--strand-specific", "strand_specific", {"is_flag": True, "help": "The label belongs to the strand given."}),
    (
        "--header-pattern",
        "header_pattern",
        {"metavar": "REGEX", "help": "FASTA headers: groups (?P<label>...) and (?P<id>...)."},
    ),
    (
        "--label-table",
        "label_table",
        {"type": click.Path(path_type=Path), "help": "Table of labels by id, for FASTA files."},
    ),
    ("--genome", "genome", {"type": click.Path(path_type=Path), "help": "Genome FASTA, for BED and narrowPeak."}),
    ("--window-bp", "window_bp", {"type": int, "help": "Width of the window round each peak."}),
    (
        "--negatives-per-peak",
        "negatives_per_peak",
        {"type": float, "help": "GC-matched windows outside the peaks, so many a peak [1]."},
    ),
    ("--gc-tolerance", "gc_tolerance", {"type": float, "help": "How far a negative's GC share may be off [0.02]."}),
    ("--stranded", "stranded", {"is_flag": True, "help": "Read each interval on its own strand."}),
    ("--strict", "strict", {"is_flag": True, "help": "Stop at a peak that is not on the genome [left out, counted]."}),
    (
        "--split",
        "split",
        {"type": click.Choice(_SPLITS), "help": "How train and test are parted [auto: as given, else random]."},
    ),
    ("--split-column", "split_column", {"metavar": "NAME", "help": "Column that says train, valid or test."}),
    ("--test-fraction", "test_fraction", {"type": float, "help": "Share of the rows for test [0.1]."}),
    ("--test-chromosomes", "test_chromosomes", {"metavar": "A,B", "help": "Chromosomes held out for test."}),
    ("--valid-chromosomes", "valid_chromosomes", {"metavar": "A,B", "help": "Chromosomes held out for validation."}),
    ("--group-column", "group_column", {"metavar": "NAME", "help": "Rows of one group stay in one split."}),
    ("--folds", "folds", {"type": int, "help": "Number of folds, with --split folds [5]."}),
    ("--fold", "fold", {"type": int, "help": "Which fold is the test split, counted from 0."}),
    ("--split-seed", "seed", {"type": int, "help": "Seed of a random split, of folds and of negatives [0]."}),
]
# Beside the commands' own parameters, --name among them.
_PREFIX = "source_"


def with_source_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the flags; their values reach the command as the dict `source_flags`."""
    import functools

    @functools.wraps(command)
    def gathering(**values: Any) -> Any:
        flags = {field: values.pop(_PREFIX + field) for _, field, _ in _FLAGS}
        return command(source_flags=flags, **values)

    wrapped: Callable[..., Any] = gathering
    for flag, field, details in reversed(_FLAGS):
        wrapped = click.option(flag, _PREFIX + field, **details)(wrapped)
    return wrapped


def show_notes(task: Task, console: Console) -> None:
    """What a reader of the results should know about a task: how its labels were read, and how to change that."""
    from rich.markup import escape

    for note in task.notes:
        console.print(escape(f"note: {note}"), soft_wrap=True)
