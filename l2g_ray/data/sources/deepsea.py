"""DeepSEA as published: one-hot windows and 0/1 labels in MATLAB files, or in the npz of NAS-Bench-360."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa

from l2g_ray.data.raw import Piece, RawTask
from l2g_ray.data.text import readable
from l2g_ray.errors import UserError
from l2g_ray.extras import need
from l2g_ray.tasks.schema import Task

N_CHANNELS = 4
_HDF5, _MATLAB_HEADER = b"\x89HDF\r\n\x1a\n", 512
# HDF5 unpacks whole chunks. A read covers the chunks that it touches, at most this number of rows (4 kB each).
_MOST_ROWS = 65_536
_Blocks = Iterator[tuple[np.ndarray, np.ndarray]]
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@dataclass(frozen=True)
class Arrays:
    """Windows and labels of one split, not read yet.

    blocks : given a number of rows, blocks of at most that many, in order: windows (n, 4, length) of 0 and 1, and
        labels (n, n_outputs).
    """

    path: Path
    n_outputs: int
    blocks: Callable[[int], _Blocks]


def open_mat(path: Path, split: str) -> Arrays:
    """Return the variables `<split>xdata` and `<split>data` of a MATLAB file.

    A 7.3 file (HDF5) is read in slices; it holds the axes in reverse, (length, 4, n) and (n_outputs, n). A version 5
    file, (n, 4, length) and (n, n_outputs), can only be read whole: it is held in memory while its blocks are given.

    Raises
    ------
    UserError : no MATLAB file, a variable that is not there, shapes that do not fit, or HDF5 without the extra `hdf5`.
    """
    with _damage(path):
        is_hdf5 = _is_hdf5(path)
    if is_hdf5:
        need("hdf5", str(path), "h5py")
    with _damage(path):
        return _open_hdf5(path, split) if is_hdf5 else _open_mat5(path, split)


def open_npz(path: Path, split: str) -> Arrays | None:
    """Return the arrays `x_<split>` (n, length, 4) and `y_<split>` (n, n_outputs) of an npz file; None where it has
    neither.

    Read in order through the archive, compressed or not, so that no array is held whole.

    Raises
    ------
    UserError : no npz file, one array without the other, shapes that do not fit, or objects instead of numbers.
    """
    names = (f"x_{split}", f"y_{split}")
    with _damage(path), zipfile.ZipFile(path) as archive:
        there = [name for name in names if f"{name}.npy" in archive.namelist()]
        if not there:
            return None
        if len(there) == 1:
            missing = names[1 - names.index(there[0])]
            raise UserError(f"{path}: {there[0]} is there, but no {missing}; download the file again")
        shapes = []
        for name in names:
            with archive.open(f"{name}.npy") as stream:
                shapes.append(_read_header(stream, path, name)[0])
    (rows, *window), labels = shapes
    n_outputs = _check_shapes(path, names, (rows, *reversed(window)), labels)
    return Arrays(path, n_outputs, partial(_npz_blocks, path, names))


def _is_hdf5(path: Path) -> bool:
    """Return whether a file has HDF5's signature at its start, or after MATLAB's header of 512 bytes."""
    with path.open("rb") as file:
        head = file.read(_MATLAB_HEADER + len(_HDF5))
    return head.startswith(_HDF5) or head[_MATLAB_HEADER:] == _HDF5


def _open_hdf5(path: Path, split: str) -> Arrays:
    import h5py

    names = (f"{split}xdata", f"{split}data")
    with h5py.File(path, "r") as file:
        _check_names(path, names, list(file))
        windows, labels = (tuple(reversed(file[name].shape)) for name in names)
    return Arrays(path, _check_shapes(path, names, windows, labels), partial(_hdf5_blocks, path, names))


def _open_mat5(path: Path, split: str) -> Arrays:
    import scipy.io

    names = (f"{split}xdata", f"{split}data")
    shapes = {name: shape for name, shape, _ in scipy.io.whosmat(str(path))}
    _check_names(path, names, list(shapes))
    n_outputs = _check_shapes(path, names, shapes[names[0]], shapes[names[1]])
    return Arrays(path, n_outputs, partial(_mat5_blocks, path, names))


def _hdf5_blocks(path: Path, names: tuple[str, str], block_rows: int) -> _Blocks:
    import h5py

    with _damage(path), h5py.File(path, "r") as file:
        windows, labels = file[names[0]], file[names[1]]
        chunk = windows.chunks[-1] if windows.chunks else 1
        step = min(-(-block_rows // chunk) * chunk, max(block_rows, _MOST_ROWS))
        for start in range(0, windows.shape[-1], step):
            read = windows[:, :, start : start + step].transpose(2, 1, 0)
            values = labels[:, start : start + step].T
            for first in range(0, len(read), block_rows):
                yield read[first : first + block_rows], values[first : first + block_rows]


def _mat5_blocks(path: Path, names: tuple[str, str], block_rows: int) -> _Blocks:
    import scipy.io

    with _damage(path):
        read = scipy.io.loadmat(str(path), variable_names=list(names))
    for first in range(0, len(read[names[1]]), block_rows):
        yield read[names[0]][first : first + block_rows], read[names[1]][first : first + block_rows]


def _npz_blocks(path: Path, names: tuple[str, str], block_rows: int) -> _Blocks:
    # Two handles: each array is a separate stream.
    with (
        _damage(path),
        zipfile.ZipFile(path) as archive,
        archive.open(f"{names[0]}.npy") as windows,
        archive.open(f"{names[1]}.npy") as labels,
    ):
        streams = [
            (stream, *_read_header(stream, path, name)) for stream, name in ((windows, names[0]), (labels, names[1]))
        ]
        rows = streams[0][1][0]
        for first in range(0, rows, block_rows):
            n = min(block_rows, rows - first)
            x, y = (_read_rows(stream, n, shape, dtype, path) for stream, shape, dtype in streams)
            yield x.transpose(0, 2, 1), y


def _read_header(stream: IO[bytes], path: Path, name: str) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(stream)
    if version not in _HEADERS:
        raise ValueError(f"array format {version}")
    shape, by_column, dtype = _HEADERS[version](stream)
    if dtype.hasobject or (by_column and len(shape) > 1):
        kind = "objects" if dtype.hasobject else "its columns one after another (Fortran order)"
        raise UserError(f"{path}: {name} holds {kind}; save it again as numbers in C order")
    return shape, dtype


def _read_rows(stream: IO[bytes], n: int, shape: tuple[int, ...], dtype: np.dtype, path: Path) -> np.ndarray:
    n_bytes = n * int(np.prod(shape[1:])) * dtype.itemsize
    data = stream.read(n_bytes)
    if len(data) < n_bytes:
        raise ValueError("the data is cut short")
    return np.frombuffer(data, dtype).reshape(n, *shape[1:])


def _check_names(path: Path, names: tuple[str, str], there: list[str]) -> None:
    for name in names:
        if name not in there:
            raise UserError(f"{path}: no variable '{name}' (it has {', '.join(there)}); download the file again")


def _check_shapes(path: Path, names: tuple[str, str], windows: tuple[int, ...], labels: tuple[int, ...]) -> int:
    """Return the number of outputs, of shapes (n, 4, length) and (n, n_outputs)."""
    if len(windows) != 3 or windows[1] != N_CHANNELS or len(labels) != 2 or windows[0] != labels[0] or not windows[0]:
        raise UserError(
            f"{path}: {names[0]} and {names[1]} have the shapes {windows} and {labels}, which are not n windows of "
            "4 channels and their n rows of labels; download the file again"
        )
    return labels[1]


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Raise a sentence for what the libraries raise for a damaged file."""
    from scipy.io.matlab import MatReadError

    try:
        yield
    except (
        OSError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        RuntimeError,
        EOFError,
        struct.error,
        zipfile.BadZipFile,
        zlib.error,
        MatReadError,
    ) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: the file cannot be read ({reason}); download it again") from None


CHANNELS = "AGCT"
BLOCK_ROWS = 1_024
LABEL_COLUMN = "label"
_NPZ = "deepsea_filtered.npz"
_NPZ_SPLITS = {"train": "train", "valid": "val", "test": "test"}
_NAME_FILES = ("predictor.names", "names.txt")
_LETTERS = np.frombuffer(f"{CHANNELS}N".encode(), np.uint8)


def is_deepsea(folder: Path) -> bool:
    """Return whether a folder holds `train.mat` or `deepsea_filtered.npz`."""
    return (folder / "train.mat").is_file() or (folder / _NPZ).is_file()


def open_deepsea(task: Task, folder: Path) -> RawTask:
    """Return the bundle (train.mat, valid.mat, test.mat) or the npz; where both are there, the one with the task's
    labels.

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
    """Return sequences (n,) large_string of one-hot windows (n, 4, length) in the order of `CHANNELS`; all zeros are N.

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
    """Return labels; the file that they are from, where there is one; and what to say of one that does not fit."""
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
