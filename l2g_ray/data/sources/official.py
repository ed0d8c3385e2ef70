"""The rows of a benchmark's task: from a folder in the form in which it is published, from inside the package, or from the hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from importlib import resources
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from l2g_ray.data.raw import Piece, RawTask, SourceOptions
from l2g_ray.data.readers import iter_tables
from l2g_ray.data.sources import deepsea
from l2g_ray.data.sources import published as deepstarr
from l2g_ray.data.sources import published as genomic
from l2g_ray.data.sources.files import find_splits, open_folder
from l2g_ray.data.text import readable
from l2g_ray.errors import UserError, nearest
from l2g_ray.storage import Location, as_location, hub_answers
from l2g_ray.tasks.schema import Task

BLOCK_ROWS = 10_000
_SPLIT_NAMES = {"train": ("train",), "valid": ("valid", "validation", "dev"), "test": ("test",)}
# What the sequence column is named where it is not the task's own name for it.
_SEQUENCE_COLUMN = "seq"

_SHARED = "it separates the rows of several tasks: give the folder of this task alone"

_Opener = Callable[[Task, Path, SourceOptions], RawTask]


def open_official(task: Task, folder: Path, options: SourceOptions) -> RawTask | None:
    """Return a task from the published form that `folder` holds; None where it holds none of them.

    Genomic Benchmarks (intervals with references, or a text file a sequence), DeepSTARR (one table, or a FASTA file and
    a table a split), DeepSEA (MATLAB files, or npz), and the hub's Parquet shards (`data/train-00000-of-00001.parquet`,
    or without the `data`). Plain split files, as those of GUE and of the Nucleotide Transformer, are none of these.

    Raises
    ------
    UserError : files that are not whole or do not fit the task. What can only be seen by reading the rows is raised by
        the pieces.
    """
    opener = _recognise(folder)
    return None if opener is None else opener(task, folder, options)


def is_official(folder: Path) -> bool:
    """Return whether `open_official` knows the form that a folder holds; nothing is read."""
    return _recognise(folder) is not None


def _recognise(folder: Path) -> _Opener | None:
    forms: tuple[tuple[Callable[[Path], bool], _Opener], ...] = (
        (genomic.is_intervals, genomic.open_intervals),
        (genomic.is_text_files, lambda task, folder, options: genomic.open_text_files(task, folder)),
        (deepstarr.is_one_table, lambda task, folder, options: deepstarr.open_one_table(task, folder)),
        (deepstarr.is_split_files, lambda task, folder, options: deepstarr.open_split_files(task, folder)),
        (deepsea.is_deepsea, lambda task, folder, options: deepsea.open_deepsea(task, folder)),
        (_is_shards, lambda task, folder, options: _open_shards(task, folder)),
    )
    return next((opener for recognises, opener in forms if recognises(folder)), None)


def _is_shards(folder: Path) -> bool:
    return "train" in _find_shards(folder)


def _find_shards(folder: Path) -> dict[str, list[Path]]:
    for place in (folder / "data", folder):
        found = {
            split: sorted(path for name in names for path in place.glob(f"{name}-*.parquet"))
            for split, names in _SPLIT_NAMES.items()
        }
        if found["train"]:
            return {split: paths for split, paths in found.items() if paths}
    return {}


def _open_shards(task: Task, folder: Path) -> RawTask:
    shards = _find_shards(folder)
    if "test" not in shards:
        raise UserError(f"{folder}: train shards, but no test-*.parquet; download the data set again")
    for paths in shards.values():
        _check_complete(paths)
    files = {f"{split}/{path.name}": path for split, paths in shards.items() for path in paths}
    if not task.hub_filter:
        splits = {
            split: [Piece(str(path), partial(_read_shards, task, [path])) for path in paths]
            for split, paths in shards.items()
        }
        return RawTask(task, splits, files)
    chosen = ", ".join(f"{column} {value}" for column, value in task.hub_filter.items())
    splits = {
        # One piece, because a shard may hold no row of the task.
        split: [Piece(f"{paths[0]} ({chosen})", partial(_read_shards, task, paths))]
        for split, paths in shards.items()
    }
    return RawTask(task, splits, files)


def _check_complete(paths: list[Path]) -> None:
    """`train-00000-of-00002.parquet` says how many shards there are."""
    counted = [path for path in paths if "-of-" in path.stem]
    for path in counted:
        total = path.stem.rpartition("-of-")[2]
        if total.isdigit() and int(total) != len(counted):
            raise UserError(f"{path}: {len(counted)} of {int(total)} shards are there; download the others too")


def _read_shards(task: Task, paths: list[Path]) -> Iterator[pa.Table]:
    found = False
    others: dict[str, set[str]] = {column: set() for column in task.hub_filter}
    for path in paths:
        for table in iter_tables(path, BLOCK_ROWS, _sequence_column(task, path)):
            kept = table
            for column, value in task.hub_filter.items():
                _check_column(column, table, path, _SHARED)
                texts = kept[column].cast(pa.string())
                others[column] |= {text for text in pc.unique(texts).to_pylist() if text}
                kept = kept.filter(pc.equal(texts, value))
            if kept.num_rows:
                found = True
                yield _arrange(kept, task, path)
    if not found:
        column, value = next(iter(task.hub_filter.items()))
        raise UserError(
            f"{paths[0]}: no rows with {column} '{value}' ({nearest(value, others[column])}); "
            f"give the data set {task.hub or 'that the task belongs to'}"
        )


def _sequence_column(task: Task, path: Path) -> str:
    with readable(str(path)):
        names = pq.read_schema(path).names
    own = task.sequence_column
    return _SEQUENCE_COLUMN if own not in names and _SEQUENCE_COLUMN in names else own


def _check_column(column: str, table: pa.Table, path: Path, fix: str) -> None:
    if column not in table.column_names:
        raise UserError(f"{path}: no column '{column}' ({nearest(column, table.column_names)}); {fix}")


def _arrange(table: pa.Table, task: Task, path: Path) -> pa.Table:
    for column in task.label_columns:
        _check_column(column, table, path, "rename the column")
    # Ids that readers made up are row numbers; a name says more.
    ids = table["name"].cast(pa.string()) if "name" in table.column_names else table["id"]
    columns = {name: table[name] for name in task.label_columns}
    return pa.table({"id": ids, "sequence": table["sequence"], **columns})


# The hub's library asks three times: this keeps the whole within five seconds.
ANSWER_TIMEOUT_S = 0.8
_SPLIT_FILE = re.compile(r"(train|valid|validation|dev|test)[.-]")
_ROOTS = (PurePosixPath("data"), PurePosixPath("."))


def fetch_dataset(task: Task, cache: Path | None = None) -> Path:
    """Download a task's files from `task.hub`; what is in the cache already is not fetched again.

    Files are those of a folder that is named as one of the task's folders, else all Parquet files in the repository's
    root or its `data`. Where the hub cannot be reached, a copy in the cache will do.

    Parameters
    ----------
    cache : folder of the hub's cache; the library's own (HF_HOME) when None.

    Returns
    -------
    The local folder that `open_official`, or a reader of split files, understands.

    Raises
    ------
    UserError : a task without a hub, a hub that cannot be reached (within seconds), a repository that is not there, or
        one without files for the task. Each message says how to provide local files.
    """
    if task.hub is None:
        raise UserError(f"task '{task.name}': no hub has its files; {_by_hand(task)}")
    import huggingface_hub

    if not hub_answers():
        return _open_cached(task, task.hub, cache)
    try:
        info = huggingface_hub.HfApi().dataset_info(task.hub, timeout=ANSWER_TIMEOUT_S)
    except Exception as error:  # of whichever HTTP client the library carries
        raise UserError(f"task '{task.name}': {_describe(error, task.hub)}; {_by_hand(task)}") from None
    folder, files = _choose(task, [sibling.rfilename for sibling in info.siblings or []])
    try:
        root = huggingface_hub.snapshot_download(task.hub, repo_type="dataset", allow_patterns=files, cache_dir=cache)
    except Exception as error:
        raise UserError(f"task '{task.name}': {_describe(error, task.hub)}; try again, or {_by_hand(task)}") from None
    return Path(root) / folder


def _open_cached(task: Task, hub: str, cache: Path | None) -> Path:
    import huggingface_hub

    try:
        root = Path(huggingface_hub.snapshot_download(hub, repo_type="dataset", cache_dir=cache, local_files_only=True))
        folder, _ = _choose(task, [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()])
    except (OSError, ValueError, UserError):
        raise UserError(
            f"task '{task.name}': the data set {hub} is not in the local cache and the hub cannot be reached; "
            f"connect to the internet, or {_by_hand(task)}"
        ) from None
    return root / folder


def _choose(task: Task, names: list[str]) -> tuple[PurePosixPath, list[str]]:
    """Return the folder in the repository that holds the task's split files, and these files."""
    by_folder: dict[PurePosixPath, list[str]] = {}
    for name in sorted(names):
        if _SPLIT_FILE.match(PurePosixPath(name).name.lower()):
            by_folder.setdefault(PurePosixPath(name).parent, []).append(name)
    for wanted in task.source_folders:
        for folder, files in by_folder.items():
            if _is_tail(folder, PurePosixPath(wanted)):
                return folder, files
    for folder in _ROOTS:
        tables = [name for name in by_folder.get(folder, []) if name.endswith(".parquet")]
        if tables:
            # The folder above `data`, as in a copy of the repository.
            return PurePosixPath("."), tables
    raise UserError(f"task '{task.name}': the data set {task.hub} has no train and test files for it; {_by_hand(task)}")


def _is_tail(folder: PurePosixPath, wanted: PurePosixPath) -> bool:
    """Return whether one of the two paths ends with the whole of the other: GUE/EMP/H3 and EMP/H3, but not tf/0 and
    mouse/0.
    """
    n = min(len(folder.parts), len(wanted.parts))
    return n > 0 and folder.parts[-n:] == wanted.parts[-n:]


def _describe(error: Exception, hub: str) -> str:
    from huggingface_hub.errors import RepositoryNotFoundError

    if isinstance(error, RepositoryNotFoundError):
        return f"the hub has no data set {hub} that may be read"
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"the data set {hub} cannot be had from the hub ({reason})"


def _by_hand(task: Task) -> str:
    origin = task.url or (f"https://huggingface.co/datasets/{task.hub}" if task.hub else task.source)
    folders = " or ".join(f"DIR/{folder}" for folder in task.source_folders)
    return f"download the files yourself{f' from {origin}' if origin else ''} to {folders} and give --data-dir DIR"


def find_raw(task: Task, data_dir: str | Path | Location | None, options: SourceOptions | None = None) -> RawTask:
    """Return where a catalogue task's rows come from: below `data_dir`, else inside the package, else its hub
    repository.

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
    """Return the folder of a task's files below `data_dir` or inside the package; None for neither."""
    packaged = as_location(Path(str(resources.files("l2g_ray"))) / "data")
    # The packaged demo is found whatever --data-dir says, since that one holds other benches.
    roots = [as_location(data_dir), packaged] if data_dir is not None else [packaged]
    candidates = (root / relative for root in roots for relative in task.source_folders)
    return next((folder for folder in candidates if _holds_data(folder)), None)


def _holds_data(folder: Location) -> bool:
    return folder.is_dir() and (bool(find_splits(folder)) or (not folder.is_remote and is_official(folder.local)))
