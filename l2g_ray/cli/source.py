"""The options for reading and splitting a user's files, shared by `run`, `plan` and `data`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from l2g_ray.cli.options import option

if TYPE_CHECKING:
    from rich.console import Console

    from l2g_ray.tasks.schema import Task

_SPLITS = ["auto", "given", "random", "chromosome", "group", "folds"]
_KINDS = ["binary", "multiclass", "multilabel", "regression"]
_FILE = click.Path(path_type=Path)
# Flag, the field of SourceOptions that it sets, and what click needs to know.
_DATA: list[tuple[str, str, dict[str, Any]]] = [
    (
        "--task-name",
        "name",
        {"metavar": "NAME", "show_default": "the file's or folder's", "help": "Name of the task."},
    ),
    (
        "--kind",
        "kind",
        {
            "type": click.Choice(_KINDS),
            "show_default": "inferred from the labels",
            "help": "Kind of task.",
        },
    ),
    ("--labels", "labels", {"metavar": "A,B", "help": "Names of the classes or outputs, in order."}),
    (
        "--sequence-column",
        "sequence_column",
        {"metavar": "NAME", "show_default": "sequence", "help": "Column that holds the sequences."},
    ),
    (
        "--label-column",
        "label_columns",
        {
            "multiple": True,
            "metavar": "NAME",
            "show_default": "label",
            "help": "Column that holds a label. Repeat it for several outputs.",
        },
    ),
    ("--id-column", "id_column", {"metavar": "NAME", "show_default": "id", "help": "Column that holds the ids."}),
    (
        "--na-values",
        "na_values",
        {
            "metavar": "A,B",
            "show_default": "NA,NaN,null,None,N/A and similar",
            "help": "Texts read as missing in labels and sequences; '' for none.",
        },
    ),
    (
        "--strand-specific",
        "strand_specific",
        {"is_flag": True, "help": "The label belongs to the given strand, not to both."},
    ),
    (
        "--header-pattern",
        "header_pattern",
        {
            "metavar": "REGEX",
            "help": "Pattern of FASTA headers, with groups (?P<label>...) and (?P<id>...).",
        },
    ),
    (
        "--label-table",
        "label_table",
        {"type": _FILE, "metavar": "FILE", "help": "Table of labels by id, for FASTA files."},
    ),
    ("--genome", "genome", {"type": _FILE, "metavar": "FILE", "help": "Genome FASTA, for BED and narrowPeak."}),
    ("--window-bp", "window_bp", {"type": int, "metavar": "BP", "help": "Width of the window around each peak."}),
    (
        "--negatives-per-peak",
        "negatives_per_peak",
        {
            "type": float,
            "metavar": "NUMBER",
            "show_default": "1",
            "help": "Negatives per peak: GC-matched windows outside of the peaks.",
        },
    ),
    (
        "--gc-tolerance",
        "gc_tolerance",
        {
            "type": float,
            "metavar": "SHARE",
            "show_default": "0.02",
            "help": "Largest difference in GC share between a peak and its negative.",
        },
    ),
    ("--stranded", "stranded", {"is_flag": True, "help": "Read each interval on the strand in its file."}),
    (
        "--strict",
        "strict",
        {"is_flag": True, "help": "Stop at a peak outside of the genome instead of skipping it."},
    ),
]
_SPLIT: list[tuple[str, str, dict[str, Any]]] = [
    (
        "--split",
        "split",
        {
            "type": click.Choice(_SPLITS),
            "show_default": "auto: as given, otherwise random",
            "help": "How rows are split into train, validation and test.",
        },
    ),
    (
        "--split-column",
        "split_column",
        {"metavar": "NAME", "help": "Column that holds train, valid or test for each row."},
    ),
    (
        "--test-fraction",
        "test_fraction",
        {"type": float, "metavar": "SHARE", "show_default": "0.1", "help": "Share of the rows for test."},
    ),
    ("--test-chromosomes", "test_chromosomes", {"metavar": "A,B", "help": "Chromosomes held out for test."}),
    ("--valid-chromosomes", "valid_chromosomes", {"metavar": "A,B", "help": "Chromosomes held out for validation."}),
    (
        "--group-column",
        "group_column",
        {"metavar": "NAME", "help": "Column of groups. All rows of a group go to the same split."},
    ),
    (
        "--folds",
        "folds",
        {"type": int, "metavar": "N", "show_default": "5", "help": "Number of folds, with --split folds."},
    ),
    (
        "--fold",
        "fold",
        {"type": int, "metavar": "N", "help": "Fold that is the test split, counted from 0, with --split folds."},
    ),
    (
        "--split-seed",
        "seed",
        {"type": int, "metavar": "N", "show_default": "0", "help": "Seed of random splits, folds and negatives."},
    ),
]
_FLAGS = [(*one, "Data") for one in _DATA] + [(*one, "Splits") for one in _SPLIT]
# Keeps the fields apart from the commands' own parameters, such as --name.
_PREFIX = "source_"


def with_source_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options. The command gets their values as the dict `source_flags`."""
    import functools

    @functools.wraps(command)
    def gathering(**values: Any) -> Any:
        flags = {field: values.pop(_PREFIX + field) for _, field, *_ in _FLAGS}
        return command(source_flags=flags, **values)

    wrapped: Callable[..., Any] = gathering
    for flag, field, details, group in reversed(_FLAGS):
        wrapped = option(flag, _PREFIX + field, group=group, **details)(wrapped)
    return wrapped


def show_notes(task: Task, console: Console) -> None:
    """Print the notes of a task: how its labels were read, and how to change that."""
    from rich.markup import escape

    for note in task.notes:
        console.print(escape(f"note: {note}"), soft_wrap=True)
