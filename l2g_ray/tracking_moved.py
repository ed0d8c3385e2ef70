"""Artifact places in a folder's own MLflow store, after the folder was moved or copied.

MLflow 3.17 keeps the place of artifacts as absolute URIs in its SQL tables, and has no call that changes them. This
module is the only one that touches these tables.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from l2g_ray.places import ARTIFACT_FOLDER

COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def follow_folder(store: Path) -> int:
    """Point the store `mlflow.db` at the artifacts beside it; returns the number of changed rows.

    Experiments that `l2g-ray` made keep their artifacts in `mlartifacts` beside the store. Where one names a folder of
    that name elsewhere, the experiment is changed, and with it each run and model whose files are in the folder here,
    or are not in the folder there.
    """
    here = (store.absolute().parent / ARTIFACT_FOLDER).as_uri()
    changed = 0
    with closing(sqlite3.connect(f"{store.absolute().as_uri()}?mode=rw", uri=True, timeout=30)) as database, database:
        for old in _find_old_roots(database, here):
            for table, column in COLUMNS:
                for row, place in _find_below(database, table, column, old):
                    new = here + place[len(old) :]
                    if table == "experiments" or _path(new).exists() or not _path(place).exists():
                        database.execute(f'UPDATE "{table}" SET "{column}" = ? WHERE rowid = ?', (new, row))
                        changed += 1
    return changed


def _find_old_roots(database: sqlite3.Connection, here: str) -> list[str]:
    found = {place for _, place in _find_below(database, "experiments", "artifact_location", "file:")}
    return sorted(
        place for place in found if place.endswith(f"/{ARTIFACT_FOLDER}") and place != here and not _same(place, here)
    )


def _find_below(database: sqlite3.Connection, table: str, column: str, start: str) -> list[tuple[int, str]]:
    """Rows of a table whose column begins with `start`; none where the store has no such column."""
    columns = {name for _, name, *_ in database.execute(f'PRAGMA table_info("{table}")')}
    if column not in columns:
        return []
    query = f'SELECT rowid, "{column}" FROM "{table}" WHERE substr("{column}", 1, ?) = ?'
    return database.execute(query, (len(start), start)).fetchall()


def _same(place: str, other: str) -> bool:
    try:
        return _path(place).samefile(_path(other))
    except OSError:
        return False


def _path(uri: str) -> Path:
    return Path(unquote(urlsplit(uri).path))
