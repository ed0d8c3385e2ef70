"""Whatever a person gives, as a `RawTask`: the reader is found by what the files are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from l2g_ray.data.raw import RawTask, SourceOptions
from l2g_ray.data.readers import FASTA_SUFFIXES
from l2g_ray.data.sources.bed import is_bed, open_bed
from l2g_ray.data.sources.files import open_classes, open_file, open_folder
from l2g_ray.data.text import split_suffix
from l2g_ray.errors import UserError
from l2g_ray.storage import Location, as_location

__all__ = ["open_source"]


def open_source(paths: Sequence[str | Path | Location], options: SourceOptions) -> RawTask:
    """Return the task that some files, or a folder, hold.

    A folder has split files (train, test and, optionally, valid) or FASTA files that are a class each. One file is a
    table, a FASTA, or a BED (with `options.genome`); several are a class each: FASTA files, or BED files.

    Raises
    ------
    UserError : files that are not there or cannot be read together, and whatever is wrong with their columns.
    """
    locations = [as_location(path) for path in paths]
    for location in locations:
        if not location.exists():
            raise UserError(f"{location}: no such file or folder; check the path")
    if len(locations) == 1:
        (location,) = locations
        if location.is_dir():
            return open_folder(location, options)
        if is_bed(location.name):
            return open_bed([location.local], options)
        return open_file(location, options)
    if all(is_bed(location.name) for location in locations):
        return open_bed([location.local for location in locations], options)
    if all(split_suffix(location.name)[0].endswith(FASTA_SUFFIXES) for location in locations):
        return open_classes(locations, options)
    raise UserError(
        f"{', '.join(location.name for location in locations)}: several files must be FASTA or BED, one a class; "
        "give one table, or a folder with train and test files"
    )
