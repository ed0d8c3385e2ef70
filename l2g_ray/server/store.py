"""The database behind the server: reached, and its tables made or brought up to date, by one process at a time."""

from __future__ import annotations

import fcntl
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l2g_ray.errors import UserError, how_to_install
from l2g_ray.places import sqlite_uri
from l2g_ray.redaction import redact

if TYPE_CHECKING:
    from sqlalchemy import Engine

CONNECT_S = 5
# Any number will do; it must be the same for all servers of a database.
ADVISORY_LOCK = 0x6C32675F


def resolve_store(uri: str) -> str:
    """The URI with an absolute path for SQLite.

    Raises
    ------
    UserError : not an SQLite file or a PostgreSQL database, or a driver that is not installed.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    try:
        url = make_url(uri)
        kind = url.get_backend_name()
    except (ArgumentError, ValueError):
        kind = ""
    if kind == "sqlite" and url.database not in (None, "", ":memory:"):
        path = Path(os.path.abspath(str(url.database)))
        return str(make_url(sqlite_uri(path)).set(query=url.query))
    if kind != "postgresql":
        raise UserError(
            f"--store {redact(uri)}: must be sqlite:///PATH or postgresql://USER@HOST/DATABASE (a '/', '@' or '%' in a "
            "password is written as %2F, %40, %25)"
        )
    try:
        url.get_dialect().import_dbapi()
    except (ImportError, NoSuchModuleError):
        raise UserError(
            f"--store {redact(uri)}: the driver of {url.drivername} is not installed; run: {how_to_install('server')}"
        ) from None
    return uri


def prepare_store(uri: str, upgrade: bool = False) -> None:
    """Make MLflow's tables in an empty database; bring those of an older MLflow up to date when `upgrade` is set.

    Servers that start at the same moment do this one after the other.

    Raises
    ------
    UserError : no answer within 5 s, a folder without permission, tables of something else or of another version.
    """
    from sqlalchemy import create_engine
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import NullPool

    if uri.startswith("sqlite"):
        _check_folder(sqlite_path(uri).parent)
    timeout = {"timeout" if uri.startswith("sqlite") else "connect_timeout": CONNECT_S}
    engine = create_engine(uri, connect_args=timeout, poolclass=NullPool)
    try:
        with _alone(engine):
            _make_tables(engine, uri, upgrade)
    except SQLAlchemyError as error:
        reason = redact(str(getattr(error, "orig", None) or error).strip().splitlines()[0])
        raise UserError(
            f"the store {redact(uri)} does not answer ({reason}); start the database, or correct --store"
        ) from None


def sqlite_path(uri: str) -> Path:
    """The file of an SQLite URI."""
    from sqlalchemy.engine import make_url

    return Path(str(make_url(uri).database))


def _make_tables(engine: Engine, uri: str, upgrade: bool) -> None:
    from alembic.migration import MigrationContext
    from mlflow.store.db.utils import _get_latest_schema_revision, _upgrade_db
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from sqlalchemy import inspect

    for name in ("mlflow", "alembic"):  # after MLflow's import, which sets its own
        logging.getLogger(name).setLevel(logging.WARNING)
    tables = set(inspect(engine).get_table_names())
    if tables and "experiments" not in tables:
        raise UserError(
            f"the store {redact(uri)} holds tables that are not MLflow's ({', '.join(sorted(tables)[:3])}); "
            "give it a database of its own"
        )
    if not tables:
        SqlAlchemyStore(uri, "mlflow-artifacts:/")
        return
    with engine.connect() as connection:
        found = MigrationContext.configure(connection).get_current_revision()
    if found == _get_latest_schema_revision():
        return
    if not upgrade:
        raise UserError(
            f"the tables of the store {redact(uri)} are of another version of MLflow (revision {found}); back it up, "
            "then start once with --upgrade"
        )
    try:
        _upgrade_db(engine)
    except Exception as error:
        # Alembic raises its own for a revision that it does not know: tables of a newer MLflow.
        reason = redact(str(error).strip().splitlines()[0]) if str(error).strip() else type(error).__name__
        raise UserError(
            f"the tables of the store {redact(uri)} cannot be brought up to date ({reason}); "
            "install the MLflow that made them, or a newer one"
        ) from error


@contextmanager
def _alone(engine: Engine) -> Iterator[None]:
    from sqlalchemy import text

    if engine.dialect.name == "sqlite":
        # The lock of `tracking_store`, which makes the tables of a suite's own store.
        with (Path(str(engine.url.database)).parent / ".mlflow.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        return
    key: dict[str, Any] = {"key": ADVISORY_LOCK}
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(:key)"), key)
        connection.commit()  # the lock is the session's: an open transaction would hold up a migration
        yield  # it ends with the connection


def _check_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"--store: {folder} cannot be written ({error.strerror}); choose another folder") from None
