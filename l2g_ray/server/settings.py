"""What a person asks of the server: checked before anything starts, and passed on to `mlflow server`."""

from __future__ import annotations

import configparser
import fcntl
import ipaddress
import logging
import os
import re
import secrets
import shlex
import socket
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from l2g_ray.errors import UserError
from l2g_ray.extras import how_to_install, is_installed, need
from l2g_ray.places import sqlite_file, sqlite_uri
from l2g_ray.redaction import HIDDEN, redact
from l2g_ray.tracking.mlflow_private import find_latest_revision, upgrade_tables

if TYPE_CHECKING:
    from sqlalchemy import Engine

CONNECT_S = 5
# Any number will do; it must be the same for all servers of a database.
ADVISORY_LOCK = 0x6C32675F
# A module that must be there for a kind of artifact store, and the package that brings it.
ARTIFACT_DRIVERS = {"s3": ("boto3", "boto3"), "gs": ("google.cloud.storage", "google-cloud-storage")}
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
# No processes for jobs of MLflow's own (they would outlive a server that is killed), and nothing sent to its makers.
QUIET = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}


@dataclass(frozen=True)
class ServerSettings:
    """A server to start. `store` is an SQLAlchemy URI with absolute paths, `artifacts` a folder or an object store's URI."""

    store: str
    artifacts: str
    host: str
    port: int
    allowed_hosts: tuple[str, ...] = ()
    auth_file: Path | None = None
    workers: int | None = None

    @property
    def probe_url(self) -> str:
        """Where this machine reaches the server."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def client_url(self) -> str:
        """What clients put into MLFLOW_TRACKING_URI."""
        name = next((host for host in self.allowed_hosts if "*" not in host), None)
        if name is None:
            return self.probe_url
        return f"http://{name}" if _has_port(name) else f"http://{name}:{self.port}"

    def options(self) -> list[str]:
        """Options of `mlflow server`; addresses that may hold a password are in `environment`."""
        workers = self.workers or (1 if self.store.startswith("sqlite") else 4)
        options = ["--serve-artifacts", "--host", self.host, "--port", str(self.port), "--workers", str(workers)]
        options += ["--uvicorn-opts", "--no-access-log"]
        if self.allowed_hosts:
            # The Host header carries the port. This machine's own names stay valid, or nobody could look from here.
            local = [pattern for name in LOCAL_NAMES for pattern in (name, f"{name}:*")]
            named = [p for n in self.allowed_hosts for p in ((n,) if _has_port(n) or n == "*" else (n, f"{n}:*"))]
            # Else MLflow takes its own pages, opened by these names, for those of a stranger.
            origins = [f"{scheme}://{name}" for name in named if name != "*" for scheme in ("http", "https")]
            options += ["--allowed-hosts", ",".join([*named, *local])]
            options += ["--cors-allowed-origins", ",".join(origins)] if origins else []
        return options + (["--app-name", "basic-auth"] if self.auth_file is not None else [])

    def environment(self, given: Mapping[str, str]) -> dict[str, str]:
        """Return the environment of MLflow's processes, from that of this one."""
        kept = {name: value for name, value in given.items() if name != "MLFLOW_TRACKING_URI"}
        artifacts = self.artifacts if "://" in self.artifacts else Path(self.artifacts).absolute().as_uri()
        forced = {"MLFLOW_BACKEND_STORE_URI": self.store, "MLFLOW_ARTIFACTS_DESTINATION": artifacts}
        if self.auth_file is None:
            return QUIET | kept | forced
        # Signs the forms of the sign-up page; one for all workers. A new one at each start only voids open pages.
        key = {"MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32)}
        return QUIET | key | kept | forced | {"MLFLOW_AUTH_CONFIG_PATH": str(self.auth_file.absolute())}

    def check(self) -> None:
        """Raise UserError for hosts, a port, artifacts or a login file that cannot work. Makes the artifact folder."""
        if not self.allowed_hosts and not _is_loopback(self.host):
            raise UserError(
                f"--host {self.host} lets other machines in; say by which names they call this one, for example "
                f"--allowed-hosts {socket.gethostname()}"
            )
        check_port(self.host, self.port)
        scheme, separator, _ = self.artifacts.partition("://")
        if not separator:
            _check_folder("--artifacts", Path(self.artifacts))
        module, package = ARTIFACT_DRIVERS.get(scheme if separator else "", ("sys", ""))
        if not is_installed(module.partition(".")[0]):
            raise UserError(f"--artifacts {scheme}://...: needs the package {package}; run: pip install {package}")
        if self.auth_file is not None:
            _check_auth_file(self.auth_file)

    def mask(self, text: str) -> str:
        """Take passwords out of a text: those inside URLs, and the ones of these settings wherever they are."""
        for password in self._passwords:
            text = text.replace(password, HIDDEN)
        return redact(text)

    @cached_property
    def _passwords(self) -> list[str]:
        """Every password of stores and logins, as it is and as URLs write it; the longest first."""
        found = [os.environ.get(name, "") for name in ("MLFLOW_AUTH_ADMIN_PASSWORD", "PGPASSWORD")]
        addresses = [self.store, self.artifacts]
        if self.auth_file is not None:
            section = _read_auth_file(self.auth_file)
            found.append(section.get("admin_password", ""))
            addresses.append(section.get("database_uri", ""))
        for address in addresses:
            found += re.findall(r"://[^:/@\s]*:(.*)@", address) + re.findall(r"[?&]passw(?:or)?d=([^&\s]+)", address)
        forms = {form for word in found if word for form in (word, unquote(word), quote(word, safe=""))}
        return sorted(forms, key=len, reverse=True)


def split_hosts(text: str | None) -> tuple[str, ...]:
    """Return the names of `--allowed-hosts`, as a browser would send them: no scheme, no path."""
    names = tuple(name.strip() for name in (text or "").split(",") if name.strip())
    for name in names:
        if not re.fullmatch(r"[\w.\-*]+(:\d+|:\*)?|\[[0-9a-fA-F:]+\](:\d+)?", name):
            raise UserError(f"--allowed-hosts: '{name}' is not a host; write names only, such as mlflow.lab,10.0.0.5")
    return names


def check_port(host: str, port: int) -> None:
    """Raise UserError where nothing can listen on `host` and `port`."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except socket.gaierror:
        raise UserError(f"--host {host}: no such name; give an address of this machine, or 0.0.0.0 for all") from None
    except OSError as error:
        raise UserError(
            f"cannot listen on {host}:{port} ({(error.strerror or str(error)).lower()}); stop what listens there, "
            "or choose others with --port and --host"
        ) from None


def resolve_store(uri: str) -> str:
    """Return the URI with an absolute path for SQLite.

    Raises UserError for what is no SQLite file or PostgreSQL database, and for a driver that is not installed.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    try:
        url = make_url(uri)
        kind = url.get_backend_name()
    except (ArgumentError, ValueError):
        kind = ""
    if kind == "sqlite" and url.database not in (None, "", ":memory:"):
        return str(make_url(sqlite_uri(Path(os.path.abspath(str(url.database))))).set(query=url.query))
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
    """Make MLflow's tables in an empty store; bring those of an older MLflow up to date when `upgrade` is set.

    MLflow's server would also make its tables between those of another program, two servers that start at once would
    break each other's, and it updates some older tables unasked. Raises UserError for no answer within 5 s, a folder
    without permission, tables of something else or of another version.
    """
    from alembic.migration import MigrationContext
    from alembic.util.exc import CommandError
    from sqlalchemy import create_engine, inspect
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import NullPool

    for name in ("mlflow", "alembic"):  # after MLflow's import, which sets its own
        logging.getLogger(name).setLevel(logging.WARNING)
    file, shown = sqlite_file(uri), redact(uri)
    if file is not None:
        _check_folder("--store", file.parent)
    timeout = {"timeout" if file is not None else "connect_timeout": CONNECT_S}
    engine = create_engine(uri, connect_args=timeout, poolclass=NullPool)
    try:
        with _alone(engine):
            tables = inspect(engine).get_table_names()
            with engine.connect() as connection:
                found = MigrationContext.configure(connection).get_current_revision()
            if tables and "experiments" not in tables:
                raise UserError(
                    f"the store {shown} holds tables that are not MLflow's ({', '.join(sorted(tables)[:3])}); "
                    "give it a database of its own"
                )
            if tables and found == find_latest_revision():
                return
            if tables and not upgrade:
                raise UserError(
                    f"the tables of the store {shown} are of another version of MLflow (revision {found}); back it up, "
                    "then start once with --upgrade"
                )
            upgrade_tables(uri)
    except SQLAlchemyError as error:
        reason = redact(str(getattr(error, "orig", None) or error).strip().splitlines()[0])
        raise UserError(
            f"the store {shown} does not answer ({reason}); start the database, or correct --store"
        ) from None
    except CommandError as error:  # a revision that it does not know
        raise UserError(
            f"the tables of the store {shown} cannot be brought up to date ({redact(str(error))}); "
            "install the MLflow that made them, or a newer one"
        ) from error


@contextmanager
def _alone(engine: Engine) -> Iterator[None]:
    from sqlalchemy import text

    if engine.dialect.name == "sqlite":
        # The lock of `tracking.store`, which makes the tables of a suite's own store.
        with (Path(str(engine.url.database)).parent / ".mlflow.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        return
    with engine.connect() as connection:
        connection.execute(text(f"SELECT pg_advisory_lock({ADVISORY_LOCK})"))
        connection.commit()  # the lock is the session's: an open transaction would hold up a migration
        yield  # it ends with the connection


def _read_auth_file(path: Path) -> configparser.SectionProxy:
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(path.read_text())
        return parser["mlflow"]
    except (OSError, UnicodeDecodeError, configparser.Error, KeyError) as error:
        reason = getattr(error, "strerror", None) or "it has no section [mlflow]"
        raise UserError(f"--basic-auth {path}: cannot be used ({reason}); docs/server.md shows one") from None


def _check_auth_file(path: Path) -> None:
    """Raise UserError where MLflow would go wrong with a login file."""
    section = _read_auth_file(path)
    need("server", "--basic-auth", "flask_wtf")
    if section.get("admin_password") and stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise UserError(
            f"--basic-auth {path}: holds a password that others can read; run: chmod 600 {shlex.quote(str(path))}"
        )
    if not re.match(r"sqlite:////|postgresql(\+\w+)?://", section.get("database_uri", "")):
        raise UserError(
            f"--basic-auth {path}: database_uri must be sqlite:////ABSOLUTE/PATH.db or postgresql://..., "
            "since a relative path would depend on where the server was started"
        )


def _check_folder(option: str, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{option} {folder}: cannot be written ({error.strerror}); choose another folder") from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _has_port(name: str) -> bool:
    return bool(re.search(r":(\d+|\*)$", name)) and not name.endswith("]")
