"""The options for reading and splitting a user's files, shared by `run`, `plan` and `data`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from l2g_ray.cli.options import option
from l2g_ray.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from l2g_ray.data.dataset import PreparedTask
    from l2g_ray.data.raw import RawTask, SourceOptions
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
_LISTS = {"labels", "na_values", "test_chromosomes", "valid_chromosomes"}


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


def make_options(flags: dict[str, Any]) -> SourceOptions:
    """Return the options of these flags. Raises UserError for values that contradict each other."""
    from pydantic import ValidationError

    from l2g_ray.data.raw import SourceOptions
    from l2g_ray.tasks.catalogue import describe_invalid

    given = {key: value for key, value in flags.items() if _is_given(value)}
    for key in _LISTS & set(given):
        given[key] = tuple(part.strip() for part in given[key].split(",") if part.strip())
    if "split" not in given and (given.get("test_chromosomes") or given.get("valid_chromosomes")):
        given["split"] = "chromosome"
    for flag, field in (("--folds", "folds"), ("--fold", "fold")):
        if field in given and given.get("split") != "folds":
            raise UserError(f"flags: {flag} has no effect without --split folds; add it, or leave {flag} out")
    try:
        return SourceOptions.model_validate(given)
    except ValidationError as error:
        raise UserError(f"flags: {describe_invalid(error, SourceOptions)}") from None


def find_source(names: tuple[str, ...], flags: dict[str, Any], data_dir: Path | None) -> RawTask | PreparedTask:
    """Return what `names` mean: a user's files or folder, a prepared folder, or BENCH/TASK of the catalogue.

    Raises UserError for anything else.
    """
    from l2g_ray.data.dataset import open_prepared
    from l2g_ray.data.sources import open_source
    from l2g_ray.data.sources.official import find_raw
    from l2g_ray.storage import as_location
    from l2g_ray.tasks.catalogue import find_tasks, list_benches

    options = make_options(flags)
    first = as_location(names[0])
    if len(names) > 1 or first.exists():
        if len(names) == 1 and (first / "task.json").exists():
            _refuse_flags(flags, names[0])
            return open_prepared(first)
        return open_source(names, options)
    bench, _, name = names[0].partition("/")
    if name and bench in list_benches():
        (task,) = find_tasks(bench, [name])
        return find_raw(task, data_dir, options)
    raise UserError(
        f"'{names[0]}' is neither a file or folder nor BENCH/TASK of the catalogue; see `l2g-ray tasks`, "
        "or give a table, FASTA or BED, or a folder with train and test files"
    )


def show_notes(task: Task, console: Console) -> None:
    """Print the notes of a task: how its labels were read, and how to change that."""
    from rich.markup import escape

    for note in task.notes:
        console.print(escape(f"note: {note}"), soft_wrap=True)


def _refuse_flags(flags: dict[str, Any], folder: str) -> None:
    given = [flag for flag, field, *_ in _FLAGS if _is_given(flags.get(field))]
    if given:
        raise UserError(
            f"{folder}: is already prepared, so {given[0]} has no effect; leave it out, or prepare the data again"
        )


def _is_given(value: Any) -> bool:
    return value is not None and value is not False and value != ()
