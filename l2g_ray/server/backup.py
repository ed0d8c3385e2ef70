"""A copy of an SQLite store and its artifact folder, while the server runs."""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path

from l2g_ray.errors import UserError
from l2g_ray.redaction import redact
from l2g_ray.server.store import resolve_store, sqlite_path

DATABASE, ARTIFACTS = "mlflow.db", "artifacts"


def back_up(store: str, artifacts: str, target: Path) -> tuple[int, int]:
    """Copy the database (by SQLite's online back-up) and then the artifacts into the new folder `target`.

    In this order every artifact that the copied tables name is in the copy, unless somebody deletes runs meanwhile.
    The folder appears when it is complete. Returns the bytes of the database and the number of artifact files.

    Raises
    ------
    UserError : a PostgreSQL store, artifacts in an object store, a target that exists, or a copy that failed.
    """
    store = resolve_store(store)
    if not store.startswith("sqlite"):
        raise UserError(
            f"the store {redact(store)} is backed up by its own tool: pg_dump --format=custom --file=mlflow.dump DATABASE"
        )
    source = sqlite_path(store)
    if not source.is_file():
        raise UserError(f"{source}: no such store; give the server's own --store")
    if "://" in artifacts:
        raise UserError(f"--artifacts {redact(artifacts)}: an object store is copied by its own tool; give a folder")
    if target.exists():
        raise UserError(f"{target} exists already; give the name of a new folder")
    work = target.with_name(f".{target.name}.part")
    try:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        _copy_database(source, work / DATABASE)
        if Path(artifacts).is_dir():
            shutil.copytree(artifacts, work / ARTIFACTS)
        files = sum(len(names) for _, _, names in os.walk(work / ARTIFACTS))
        size = (work / DATABASE).stat().st_size
        work.rename(target)
    except (OSError, shutil.Error, sqlite3.Error) as error:
        shutil.rmtree(work, ignore_errors=True)
        reason = getattr(error, "strerror", None) or str(error)[:200]
        raise UserError(f"{target}: the back-up failed ({reason}); nothing was left there, try again") from None
    return size, files


def _copy_database(source: Path, target: Path) -> None:
    # Read only, so that a mistyped path cannot make an empty store.
    origin = sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True, timeout=30)
    copy = sqlite3.connect(target)
    try:
        origin.backup(copy)
    finally:
        copy.close()
        origin.close()
