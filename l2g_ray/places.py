"""Places of a run: file URIs built and parsed by a library, paths that hold after a folder was moved, commands to show."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

STORE_FILE = "mlflow.db"
MODELS = "models:/"
ARTIFACT_FOLDER = "mlartifacts"
# Folders of `--out` beside the suites' folders, to which a task's folder refers.
SHARED_FOLDERS = ("stages", "prepared")


def is_uri(place: object) -> bool:
    """Return whether a run or model is in an object store or in MLflow (`models:/NAME/VERSION`), not in a folder."""
    return "://" in str(place) or str(place).startswith(MODELS)


def show_command(*arguments: object) -> str:
    """Return an `l2g-ray` command that a shell takes as it is printed."""
    return shlex.join(["l2g-ray", *map(str, arguments)])


def sqlite_uri(path: Path) -> str:
    """Return the URI of an SQLite file, as MLflow and SQLAlchemy take it."""
    from sqlalchemy.engine import URL

    plain, database = f"sqlite:///{path.absolute()}", str(path.absolute())
    uri = URL.create("sqlite", database=database).render_as_string()
    # MLflow 3.17 makes the parent folders of what follows 'sqlite:///' without decoding it; with a driver it does not.
    return uri if uri == plain else URL.create("sqlite+pysqlite", database=database).render_as_string()


def sqlite_file(uri: str) -> Path | None:
    """Return the file of an SQLite URI; None for any other store."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(uri)
    except (ArgumentError, ValueError):
        return None
    return Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None


def find_run_store(run: Path, meta: Mapping[str, Any]) -> str:
    """Return the tracking URI of the store of a suite in the folder `run`; `meta` is its `suite.json`.

    `store` in it names a store that moves with the folder. Earlier versions did not write it: where their store is not
    at its old place, the one beside the run's folder is taken.
    """
    if meta.get("store"):
        return sqlite_uri((run / meta["store"]).resolve())
    uri = str(meta["tracking_uri"])
    file, beside = sqlite_file(uri), run.absolute().parent / STORE_FILE
    return sqlite_uri(beside) if file is not None and not file.exists() and beside.exists() else uri


def name_place(place: object, task_folder: Path) -> str:
    """Return how a file in `task_folder` names `place`: relative inside of the `--out` folder, else as it is."""
    text = str(place)
    folder, path = task_folder.resolve(), Path(text).resolve()
    if "://" in text or not path.is_relative_to(folder.parent.parent):
        return text
    return os.path.relpath(path, folder)


def find_place(text: str, task_folder: Path) -> str:
    """Return the place that a file in `task_folder` names, also after the `--out` folder was moved.

    Earlier versions wrote absolute paths: one that is not there any more is looked for in the present `--out` folder.
    """
    if "://" in text:
        return text
    path = (task_folder / text).resolve()
    parts = Path(text).parts
    if Path(text).is_absolute() and not path.exists():
        out = task_folder.resolve().parent.parent
        starts = [i for i, part in enumerate(parts) if part in SHARED_FOLDERS]
        found = (out.joinpath(*parts[i:]) for i in reversed(starts))
        return str(next((place for place in found if place.exists()), path))
    return str(path)


def cache_folder() -> Path:
    """`L2G_RAY_CACHE_DIR`, else `l2g-ray` in the user's cache folder (`XDG_CACHE_HOME`)."""
    own = os.environ.get("L2G_RAY_CACHE_DIR")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "l2g-ray"
