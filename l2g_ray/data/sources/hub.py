"""A task's files from the Hugging Face hub, into its cache."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from l2g_ray.errors import UserError
from l2g_ray.hub import hub_answers
from l2g_ray.tasks.schema import Task

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
        one without files for the task. Each says how to give the files by hand.
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
    """The folder in the repository that holds the task's split files, and these files."""
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
    """Whether one of the two paths ends with the whole of the other: GUE/EMP/H3 and EMP/H3, but not tf/0 and mouse/0."""
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
