"""What a person asks of the server, checked before anything starts."""

from __future__ import annotations

import configparser
import importlib.util
import ipaddress
import os
import re
import secrets
import shlex
import socket
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from l2g_ray.errors import UserError, how_to_install

# A module that must be there for a kind of artifact store, and the package that brings it.
ARTIFACT_DRIVERS = {"s3": ("boto3", "boto3"), "gs": ("google.cloud.storage", "google-cloud-storage")}
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
SQLITE_WORKERS, DATABASE_WORKERS = 1, 4
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
        return f"http://{_bracket(host)}:{self.port}"

    @property
    def client_url(self) -> str:
        """What clients put into MLFLOW_TRACKING_URI."""
        name = next((host for host in self.allowed_hosts if "*" not in host), None)
        if name is None:
            return self.probe_url
        return f"http://{name}" if _has_port(name) else f"http://{name}:{self.port}"

    def command(self, python: str) -> list[str]:
        """MLflow's own command line; addresses that may hold a password are in `environment`."""
        workers = self.workers or (SQLITE_WORKERS if self.store.startswith("sqlite") else DATABASE_WORKERS)
        command = [python, "-m", "mlflow", "server", "--serve-artifacts", "--host", self.host]
        command += ["--port", str(self.port), "--workers", str(workers), "--uvicorn-opts", "--no-access-log"]
        if self.allowed_hosts:
            # The Host header carries the port. This machine's own names stay valid, or nobody could look from here.
            local = [pattern for name in LOCAL_NAMES for pattern in (name, f"{name}:*")]
            named = [p for n in self.allowed_hosts for p in ((n,) if _has_port(n) or n == "*" else (n, f"{n}:*"))]
            # Else MLflow takes its own pages, opened by these names, for those of a stranger.
            origins = [f"{scheme}://{name}" for name in named if name != "*" for scheme in ("http", "https")]
            command += ["--allowed-hosts", ",".join([*named, *local])]
            command += ["--cors-allowed-origins", ",".join(origins)] if origins else []
        if self.auth_file is not None:
            command += ["--app-name", "basic-auth"]
        return command

    def environment(self, given: Mapping[str, str]) -> dict[str, str]:
        """The environment of MLflow's processes, from that of this one."""
        kept = {name: value for name, value in given.items() if name != "MLFLOW_TRACKING_URI"}
        defaults = dict(QUIET)
        forced = {"MLFLOW_BACKEND_STORE_URI": self.store, "MLFLOW_ARTIFACTS_DESTINATION": _as_uri(self.artifacts)}
        if self.auth_file is not None:
            # Signs the forms of the sign-up page; one for all workers. A new one at each start only voids open pages.
            defaults["MLFLOW_FLASK_SERVER_SECRET_KEY"] = secrets.token_hex(32)
            forced["MLFLOW_AUTH_CONFIG_PATH"] = str(self.auth_file.absolute())
        return defaults | kept | forced


def _as_uri(artifacts: str) -> str:
    return artifacts if "://" in artifacts else Path(artifacts).absolute().as_uri()


def check_settings(settings: ServerSettings) -> None:
    """Raise UserError for hosts, a port, artifacts or a login file that cannot work. Makes the artifact folder."""
    _check_hosts(settings)
    check_port(settings.host, settings.port)
    _check_artifacts(settings.artifacts)
    if settings.auth_file is not None:
        read_auth_file(settings.auth_file)


def split_hosts(text: str | None) -> tuple[str, ...]:
    """Names of `--allowed-hosts`, as a browser would send them: no scheme, no path."""
    names = tuple(name.strip() for name in (text or "").split(",") if name.strip())
    for name in names:
        if not re.fullmatch(r"[\w.\-*]+(:\d+|:\*)?|\[[0-9a-fA-F:]+\](:\d+)?", name):
            raise UserError(f"--allowed-hosts: '{name}' is not a host; write names only, such as mlflow.lab,10.0.0.5")
    return names


def read_auth_file(path: Path) -> configparser.SectionProxy:
    """The `[mlflow]` section of a login file, or UserError where MLflow would go wrong with it."""
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(path.read_text())
        section = parser["mlflow"]
    except (OSError, UnicodeDecodeError, configparser.Error, KeyError) as error:
        reason = getattr(error, "strerror", None) or "it has no section [mlflow]"
        raise UserError(f"--basic-auth {path}: cannot be used ({reason}); docs/server.md shows one") from None
    if importlib.util.find_spec("flask_wtf") is None:
        raise UserError(f"--basic-auth needs the package Flask-WTF; run: {how_to_install('server')}")
    if section.get("admin_password") and stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise UserError(
            f"--basic-auth {path}: holds a password that others can read; run: chmod 600 {shlex.quote(str(path))}"
        )
    database = section.get("database_uri", "")
    if not re.match(r"sqlite:////|postgresql(\+\w+)?://", database):
        raise UserError(
            f"--basic-auth {path}: database_uri must be sqlite:////ABSOLUTE/PATH.db or postgresql://..., "
            "since a relative path would depend on where the server was started"
        )
    return section


def _check_hosts(settings: ServerSettings) -> None:
    if settings.allowed_hosts or _is_loopback(settings.host):
        return
    raise UserError(
        f"--host {settings.host} lets other machines in; say by which names they call this one, for example "
        f"--allowed-hosts {socket.gethostname()}"
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


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


def _check_artifacts(artifacts: str) -> None:
    scheme, separator, _ = artifacts.partition("://")
    if separator:
        module, package = ARTIFACT_DRIVERS.get(scheme, (None, ""))
        if module is not None and importlib.util.find_spec(module.partition(".")[0]) is None:
            raise UserError(f"--artifacts {scheme}://...: needs the package {package}; run: pip install {package}")
        return
    try:
        os.makedirs(artifacts, exist_ok=True)
        with tempfile.TemporaryFile(dir=artifacts):
            pass
    except OSError as error:
        raise UserError(
            f"--artifacts {artifacts}: cannot be written ({error.strerror}); choose another folder"
        ) from None


def _has_port(name: str) -> bool:
    return bool(re.search(r":(\d+|\*)$", name)) and not name.endswith("]")


def _bracket(host: str) -> str:
    return f"[{host}]" if ":" in host else host
