"""DeepSEA as published: one-hot windows and 0/1 labels in MATLAB files, or in the npz of NAS-Bench-360.

The four channels are A, G, C, T, in this order; a position without any is N. The MATLAB bundle says so. The npz says
nothing: it was made from the bundle, and its order is assumed to be the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from l2g_ray.data.raw import Piece, RawTask
from l2g_ray.data.sources.deepsea_files import N_CHANNELS, Arrays, open_mat, open_npz
from l2g_ray.data.text import readable
from l2g_ray.errors import UserError
from l2g_ray.tasks.schema import Task

CHANNELS = "AGCT"
BLOCK_ROWS = 1_024
LABEL_COLUMN = "label"
_NPZ = "deepsea_filtered.npz"
_NPZ_SPLITS = {"train": "train", "valid": "val", "test": "test"}
_NAME_FILES = ("predictor.names", "names.txt")
_LETTERS = np.frombuffer(f"{CHANNELS}N".encode(), np.uint8)


def is_deepsea(folder: Path) -> bool:
    """Whether a folder holds `train.mat` or `deepsea_filtered.npz`."""
    return (folder / "train.mat").is_file() or (folder / _NPZ).is_file()


def open_deepsea(task: Task, folder: Path) -> RawTask:
    """The bundle (train.mat, valid.mat, test.mat) or the npz; where both are there, the one with the task's labels.

    All labels of a row are one list, float32, in the column `label`. Labels are named by `predictor.names` or
    `names.txt` beside the files, one a line; a name that comes again gets a number. Row ids are row numbers from 1.

    Raises
    ------
    UserError : a split that is not there, a file that cannot be read, another number of labels than the task's; from
        the pieces: a position that is not one-hot, by file, row and position.
    """
    forms = [arrays for arrays in (_open_bundle(folder), _open_npz(folder)) if arrays]
    arrays = next((form for form in forms if form["train"].n_outputs == task.n_outputs), forms[0])
    for split, part in arrays.items():
        if part.n_outputs != task.n_outputs or task.is_classification:
            raise UserError(
                f"{part.path}: {part.n_outputs} labels a row ({split}) where the task '{task.name}' has "
                f"{task.n_outputs} of kind {task.kind}; give the files of that task"
            )
    labels, named_by, notes = _name_labels(task, folder)
    fields = {**task.model_dump(), "labels": labels, "label_columns": (LABEL_COLUMN,)}
    files = {**{split: part.path for split, part in arrays.items()}, **named_by}
    splits = {}
    for split, part in arrays.items():
        where = f"{part.path} ({split})"
        splits[split] = [Piece(where, partial(_read, part, where))]
    return RawTask(Task.model_validate(fields), splits, files, notes=notes)


def decode(windows: np.ndarray, where: str, first_row: int = 1) -> pa.Array:
    """Sequences (n,) large_string of one-hot windows (n, 4, length) in the order of `CHANNELS`; all zeros are N.

    Raises
    ------
    UserError : a position with two ones, or a value other than 0 and 1; `where`, row and position are named.
    """
    ones = windows == 1
    counts = ones.sum(axis=1)
    wrong = (counts > 1) | ((windows != 0) & ~ones).any(axis=1)
    if wrong.any():
        row, position = np.argwhere(wrong)[0]
        values = ", ".join(f"{value:g}" for value in windows[row, :, position].astype(float))
        raise UserError(
            f"{where}, row {row + first_row}: position {position + 1} is {values} in the {N_CHANNELS} channels, where "
            "one of them may be 1; download the file again"
        )
    letters = _LETTERS[np.where(counts == 1, ones.argmax(axis=1), N_CHANNELS)]
    n, length = letters.shape
    offsets = np.arange(n + 1, dtype=np.int64) * length
    return pa.LargeStringArray.from_buffers(n, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(letters)))


def _open_bundle(folder: Path) -> dict[str, Arrays]:
    paths = {split: folder / f"{split}.mat" for split in ("train", "valid", "test")}
    if not paths["train"].is_file():
        return {}
    if not paths["test"].is_file():
        raise UserError(f"{folder}: train.mat is there, but no test.mat; copy all files of the bundle into one folder")
    return {split: open_mat(path, split) for split, path in paths.items() if path.is_file()}


def _open_npz(folder: Path) -> dict[str, Arrays]:
    path = folder / _NPZ
    if not path.is_file():
        return {}
    found = {split: open_npz(path, name) for split, name in _NPZ_SPLITS.items()}
    for split in ("train", "test"):
        if found[split] is None:
            raise UserError(f"{path}: no x_{split} and y_{split}; download the file again")
    return {split: arrays for split, arrays in found.items() if arrays is not None}


def _name_labels(task: Task, folder: Path) -> tuple[tuple[str, ...], dict[str, Path], tuple[str, ...]]:
    """Labels; the file that they are from, where there is one; and what to say of one that does not fit."""
    path = next((folder / name for name in _NAME_FILES if (folder / name).is_file()), None)
    if path is None:
        return task.labels, {}, ()
    with readable(str(path)):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    names = [line.strip() for line in lines if line.strip()]
    if len(names) != task.n_outputs:
        return task.labels, {}, (f"{path.name} has {len(names)} names for {task.n_outputs} labels: not used.",)
    seen: dict[str, int] = {}
    labels = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        labels.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return tuple(labels), {"labels": path}, ()


def _read(arrays: Arrays, where: str) -> Iterator[pa.Table]:
    row = 1
    for windows, labels in arrays.blocks(BLOCK_ROWS):
        n = len(windows)
        flat = pa.array(np.ascontiguousarray(labels, dtype=np.float32).reshape(-1))
        yield pa.table(
            {
                "id": pa.array([str(number) for number in range(row, row + n)], pa.string()),
                "sequence": decode(windows, where, row),
                LABEL_COLUMN: pa.FixedSizeListArray.from_arrays(flat, arrays.n_outputs),
            }
        )
        row += n
