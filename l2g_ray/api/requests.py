"""From what a person names (files, a benchmark, options) to the request of a suite."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l2g_ray.errors import UserError, nearest

if TYPE_CHECKING:
    from l2g_ray.data.dataset import PreparedTask
    from l2g_ray.data.raw import RawTask, SourceOptions
    from l2g_ray.request import SuiteRequest
    from l2g_ray.tasks.schema import Task

# How a person's own files are read and split: the option's name to its field of SourceOptions.
FILE_OPTIONS = {
    "task_name": "name",
    "kind": "kind",
    "labels": "labels",
    "sequence_column": "sequence_column",
    "label_column": "label_columns",
    "id_column": "id_column",
    "na_values": "na_values",
    "strand_specific": "strand_specific",
    "header_pattern": "header_pattern",
    "label_table": "label_table",
    "genome": "genome",
    "window_bp": "window_bp",
    "negatives_per_peak": "negatives_per_peak",
    "gc_tolerance": "gc_tolerance",
    "stranded": "stranded",
    "strict": "strict",
    "split": "split",
    "split_column": "split_column",
    "test_fraction": "test_fraction",
    "test_chromosomes": "test_chromosomes",
    "valid_chromosomes": "valid_chromosomes",
    "group_column": "group_column",
    "folds": "folds",
    "fold": "fold",
    "split_seed": "seed",
}
_LISTS = {"labels", "na_values", "test_chromosomes", "valid_chromosomes"}


def make_options(flags: Mapping[str, Any]) -> SourceOptions:
    """Return the options of a source; `flags` maps fields of SourceOptions to values, lists also as 'A,B'.

    Raises UserError for values that do not go together.
    """
    from pydantic import ValidationError

    from l2g_ray.data.raw import SourceOptions
    from l2g_ray.tasks.catalogue import describe_invalid

    given = {key: value for key, value in flags.items() if _is_given(value)}
    for key in _LISTS & set(given):
        given[key] = split_list(given[key])
    if "split" not in given and (given.get("test_chromosomes") or given.get("valid_chromosomes")):
        given["split"] = "chromosome"
    for flag, field in (("--folds", "folds"), ("--fold", "fold")):
        if field in given and given.get("split") != "folds":
            raise UserError(f"flags: {flag} does nothing without --split folds; add it, or leave {flag} out")
    try:
        return SourceOptions.model_validate(given)
    except ValidationError as error:
        raise UserError(f"flags: {describe_invalid(error, SourceOptions)}") from None


def split_list(names: str | Iterable[str]) -> tuple[str, ...]:
    """Return the names of 'A,B', or of a list."""
    if not isinstance(names, str):
        return tuple(names)
    return tuple(part.strip() for part in names.split(",") if part.strip())


def find_source(names: Sequence[str | Path], flags: Mapping[str, Any], data_dir: Path | None) -> RawTask | PreparedTask:
    """Return what `names` are: a person's files or folder, a prepared folder, or BENCH/TASK of the catalogue.

    Raises UserError for none of these.
    """
    from l2g_ray.data.dataset import open_prepared
    from l2g_ray.data.sources import open_source
    from l2g_ray.data.sources.official import find_raw
    from l2g_ray.storage import as_location
    from l2g_ray.tasks.catalogue import find_tasks, list_benches

    options = make_options(flags)
    given = tuple(map(str, names))
    first = as_location(given[0])
    if len(given) > 1 or first.exists():
        if len(given) == 1 and (first / "task.json").exists():
            _refuse_flags(flags, given[0])
            return open_prepared(first)
        return open_source(given, options)
    bench, _, name = given[0].partition("/")
    if name and bench in list_benches():
        (task,) = find_tasks(bench, [name])
        return find_raw(task, data_dir, options)
    raise UserError(
        f"'{given[0]}' is neither a file or folder nor BENCH/TASK of the catalogue; see `l2g-ray tasks`, "
        "or give a table, FASTA or BED, or a folder with train and test files"
    )


def _refuse_flags(flags: Mapping[str, Any], folder: str) -> None:
    given = [name for name, field in FILE_OPTIONS.items() if _is_given(flags.get(field))]
    if given:
        flag = f"--{given[0].replace('_', '-')}"
        raise UserError(f"{folder}: is prepared already, {flag} would do nothing; leave it out, or prepare it again")


def _is_given(value: Any) -> bool:
    return value is not None and value is not False and value != ()


def request_suite(bench: str, tasks: Sequence[str] | None = None, **options: Any) -> SuiteRequest:
    """Return the request of a benchmark's tasks, all by default. `options` are those of `make_request`.

    Raises UserError for an unknown name, or data that is not there.
    """
    from l2g_ray.data.sources.official import find_raw
    from l2g_ray.tasks.catalogue import find_tasks

    data_dir, preset = options.get("data_dir"), options.get("preset", DEFAULT_PRESET)
    chosen = find_tasks(bench, None if tasks is None else list(tasks))
    sources = {task.name: find_raw(task, data_dir) for task in chosen}
    chosen = [sources[task.name].task for task in chosen]  # a source may know more: DeepSEA's label names
    named = f"-{'-'.join(task.name for task in chosen)}" if tasks else ""
    return make_request(bench, chosen, sources, f"{bench}-{Path(preset).stem}{named}"[:80], **options)


def request_task(names: Sequence[str | Path], flags: Mapping[str, Any], **options: Any) -> SuiteRequest:
    """Return the request of one task: see `find_source` for `names` and `flags`, `make_request` for `options`."""
    found = find_source(names, flags, options.get("data_dir"))
    task = found.task
    default = f"{task.bench}-{task.name}-{Path(options.get('preset', DEFAULT_PRESET)).stem}"
    return make_request(task.bench, [task], {task.name: found}, default, **options)


DEFAULT_PRESET, DEFAULT_OUT = "fast", "runs"
EXPERIMENT_VARIABLE = "MLFLOW_EXPERIMENT_NAME"


def make_request(
    bench: str,
    tasks: list[Task],
    sources: Mapping[str, RawTask | PreparedTask],
    default_name: str,
    *,
    preset: str = DEFAULT_PRESET,
    settings: Mapping[str, Any] | None = None,
    language_model: str | Path | None = None,
    seeds: int | None = None,
    arms: str | Iterable[str] | None = None,
    keep_duplicates: bool = False,
    out: str | Path = DEFAULT_OUT,
    name: str | None = None,
    suffix: str = "",
    experiment: str | None = None,
    **others: Any,
) -> SuiteRequest:
    """Return a `SuiteRequest` from the options that every command and function for runs has.

    Parameters
    ----------
    settings : mapping of str to values, optional
        Dotted keys to values, as `--set` gives them. `language_model`, `seeds`, `arms` and `keep_duplicates` are
        settings that have a parameter here, and override these.
    arms : str or iterable of str, optional
        Names, "A,B" or "all".
    suffix : str
        Added to a given `name`, for several suites of one command.
    **others : Any
        Further fields of `SuiteRequest`.
    """
    from l2g_ray.request import EXPERIMENT, SuiteRequest
    from l2g_ray.storage import Location
    from l2g_ray.store.shared import work_folder

    assignments = dict(settings or {})
    if language_model is not None:
        assignments["model.language_model"] = str(language_model)
    if keep_duplicates:
        assignments["data.keep_duplicates"] = True
    if arms is not None:
        names = list(split_list(arms))
        assignments["arms"] = "all" if names == ["all"] else names
    if seeds is not None:
        assignments["seeds"] = seeds
    place = Location(str(out))
    return SuiteRequest(
        name="-".join(part for part in (name, suffix) if part) if name else default_name,
        bench=bench,
        tasks=tasks,
        sources=sources,
        preset=preset,
        assignments=assignments,
        out=work_folder(place) if place.is_remote else place.local,
        remote=place if place.is_remote else None,
        experiment=experiment or os.environ.get(EXPERIMENT_VARIABLE) or EXPERIMENT,
        **others,
    )


def refuse_unknown(function: str, options: Iterable[str], known: Iterable[str]) -> None:
    """Raise UserError, with the nearest name, for an option that the function has not."""
    for name in options:
        if name not in known:
            only_run = name in FILE_OPTIONS
            hint = "it is for your own files; use `run`" if only_run else nearest(name, known)
            raise UserError(f"{function}: no option '{name}' ({hint})")


def take_file_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of SourceOptions that named options set."""
    fields = {FILE_OPTIONS[name]: value for name, value in options.items()}
    if isinstance(columns := fields.get("label_columns"), str):
        fields["label_columns"] = (columns,)
    return fields
