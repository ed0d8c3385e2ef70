"""The rows of a task of the catalogue: from a folder of one's own, from inside the package, or from the hub."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from l2g_ray.data.options import SourceOptions
from l2g_ray.data.raw import RawTask
from l2g_ray.data.sources.files import find_splits, open_folder
from l2g_ray.data.sources.hub import fetch_dataset
from l2g_ray.data.sources.official import is_official, open_official
from l2g_ray.errors import UserError
from l2g_ray.storage import Location, as_location
from l2g_ray.tasks.schema import Task


def find_raw(task: Task, data_dir: str | Path | Location | None, options: SourceOptions | None = None) -> RawTask:
    """Where a catalogue task's rows come from: below `data_dir`, else inside the package, else its hub repository.

    Raises
    ------
    UserError : the files are nowhere, or the hub cannot be reached; it says where they were looked for.
    """
    options = options or SourceOptions()
    folder = find_folder(task, data_dir)
    if folder is None and task.hub is not None and data_dir is None:
        folder = as_location(fetch_dataset(task))
    if folder is None:
        looked = (
            " or ".join(str(as_location(data_dir) / relative) for relative in task.source_folders) if data_dir else ""
        )
        hint = f"looked in {looked}" if looked else "give the folder that holds the benches with --data-dir"
        where = f"; the data is at {task.url}" if task.url else ""
        raise UserError(f"task '{task.name}' of bench '{task.bench}': its files are not there; {hint}{where}")
    raw = None if folder.is_remote else open_official(task, folder.local, options)
    return raw or open_folder(folder, options, task)


def find_folder(task: Task, data_dir: str | Path | Location | None) -> Location | None:
    """The folder of a task's files below `data_dir` or inside the package; None for neither."""
    packaged = as_location(Path(str(resources.files("l2g_ray"))) / "data")
    # The packaged demo is found whatever --data-dir says, since that one holds other benches.
    roots = [as_location(data_dir), packaged] if data_dir is not None else [packaged]
    candidates = (root / relative for root in roots for relative in task.source_folders)
    return next((folder for folder in candidates if _holds_data(folder)), None)


def _holds_data(folder: Location) -> bool:
    return folder.is_dir() and (bool(find_splits(folder)) or (not folder.is_remote and is_official(folder.local)))
