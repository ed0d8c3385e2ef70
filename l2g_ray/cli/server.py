"""`l2g-ray ui` and `l2g-ray server`: start, health, backup."""

from __future__ import annotations

import json
import os
import sys
import webbrowser
from pathlib import Path
from typing import Any

import click

from l2g_ray.cli.options import Group, LocalRun, command, group, option
from l2g_ray.errors import UserError


def find_store(run: Path) -> str:
    """Return the tracking URI of a suite's folder, or of the folder that holds it."""
    from l2g_ray.places import STORE_FILE, find_run_store, sqlite_file, sqlite_uri
    from l2g_ray.tracking.store import follow_folder

    if (run / "suite.json").exists():
        uri = find_run_store(run, json.loads((run / "suite.json").read_text()))
    elif (run / STORE_FILE).exists():
        uri = sqlite_uri((run / STORE_FILE).resolve())
    else:
        raise UserError(
            f"{run}: neither a run (suite.json) nor a folder of runs (mlflow.db); give the --out folder of a suite"
        )
    file = sqlite_file(uri)
    if file is not None and file.exists() and file.parent in (run.resolve(), run.resolve().parent):
        follow_folder(file)
    return uri


def _refuse_missing(uri: str) -> None:
    """Refuse a missing file: MLflow's server would create an empty store."""
    from l2g_ray.places import sqlite_file

    file = sqlite_file(uri)
    if file is not None and not file.exists():
        raise UserError(
            f"there is no MLflow store at {file}; run the suite's command again to log it, or name another store "
            "with MLFLOW_TRACKING_URI"
        )


def _has_browser() -> bool:
    """Return whether a browser can be opened: on a terminal of a machine with a screen."""
    screen = sys.platform in ("darwin", "win32") or any(os.environ.get(n) for n in ("DISPLAY", "WAYLAND_DISPLAY"))
    return sys.stdout.isatty() and screen


with_port = option("--port", default=5000, type=click.IntRange(1, 65535), metavar="N", help="Port to listen on.")


@command()
@click.argument("run", type=LocalRun(), default=Path("runs"))
@option("--host", default="127.0.0.1", metavar="ADDRESS", help="Address to listen on.")
@with_port
@option(
    "--open/--no-open",
    "opens",
    default=None,
    show_default="open, on a machine with a screen",
    help="Open the page in a browser.",
)
def ui(run: Path, host: str, port: int, opens: bool | None) -> None:
    """Open the MLflow UI on the store of RUN, a run's folder or the folder of all runs, at the table of its runs."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or find_store(run)
    _refuse_missing(uri)
    from l2g_ray.redaction import redact
    from l2g_ray.server.process import find_runs_page

    if uri.startswith(("http://", "https://")):
        click.echo(f"this run's store is an MLflow server, see its UI: {find_runs_page(uri)}")
        return
    from l2g_ray.server.process import run_mlflow
    from l2g_ray.server.settings import QUIET, check_port

    check_port(host, port)
    options = ["--host", host, "--port", str(port), "--workers", "1"]
    # Not on the command line: the list of processes would show a password in it.
    environment = QUIET | dict(os.environ) | {"MLFLOW_BACKEND_STORE_URI": uri}
    url = f"http://{host}:{port}"
    click.echo(f"starting MLflow on {redact(uri)}...")

    def introduce() -> None:
        page = find_runs_page(url)
        click.echo(f"MLflow UI: {page} (Ctrl-C stops it)")
        if _has_browser() if opens is None else opens:
            webbrowser.open(page)

    if not run_mlflow(options, environment, url, introduce):
        raise click.exceptions.Exit(1)


DEFAULT_STORE = "sqlite:///mlflow-server/mlflow.db"
DEFAULT_ARTIFACTS = "mlflow-server/artifacts"
with_store = option(
    "--store",
    default=DEFAULT_STORE,
    envvar="MLFLOW_BACKEND_STORE_URI",
    show_envvar=True,
    metavar="URI",
    help="Database: sqlite:///PATH or postgresql://USER@HOST/DATABASE.",
)
with_artifacts = option(
    "--artifacts",
    default=DEFAULT_ARTIFACTS,
    envvar="MLFLOW_ARTIFACTS_DESTINATION",
    show_envvar=True,
    metavar="FOLDER|s3://...",
    help="Storage of files. Clients need no access to it.",
)


class _StartByDefault(Group):
    """Runs `l2g-ray server --port 5001` as `l2g-ray server start --port 5001`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["start", *args]
        return super().parse_args(ctx, args)


@group(cls=_StartByDefault)
def server() -> None:
    """Run the MLflow tracking server of a team: start, health, backup.

    Without a subcommand, the server starts. docs/server.md describes logins, PostgreSQL, object stores and upgrades.
    """


@server.command()
@with_store
@with_artifacts
@option("--host", default="127.0.0.1", metavar="ADDRESS", help="Address to listen on; 0.0.0.0 for all.")
@with_port
@option(
    "--allowed-hosts",
    metavar="A,B",
    help="Host names that clients use for this machine. Required unless --host is local.",
)
@option(
    "--basic-auth",
    "auth_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Require logins, by this INI file of MLflow.",
)
@option(
    "--workers",
    type=click.IntRange(1, 64),
    metavar="N",
    show_default="1 with SQLite, otherwise 4",
    help="Server processes.",
)
@option("--upgrade", is_flag=True, help="Migrate the tables of an older MLflow first.")
def start(
    store: str,
    artifacts: str,
    host: str,
    port: int,
    allowed_hosts: str | None,
    auth_file: Path | None,
    workers: int | None,
    upgrade: bool,
) -> None:
    """Start the server. Ctrl-C stops it.

    \b
    Examples:
      l2g-ray server
      l2g-ray server --host 0.0.0.0 --allowed-hosts mlflow.lab --artifacts s3://bucket/mlflow
      MLFLOW_BACKEND_STORE_URI=postgresql://mlflow:...@db/mlflow l2g-ray server
    """
    from l2g_ray.redaction import redact
    from l2g_ray.server.process import run_mlflow
    from l2g_ray.server.settings import ServerSettings, prepare_store, resolve_store, split_hosts

    if store in sys.argv and redact(store) != store and ":" in store.partition("://")[2].partition("@")[0]:
        click.echo(
            "note: the list of processes shows the password in --store; export MLFLOW_BACKEND_STORE_URI instead",
            err=True,
        )
    names = split_hosts(allowed_hosts)
    settings = ServerSettings(resolve_store(store), _absolute(artifacts), host, port, names, auth_file, workers)
    settings.check()
    prepare_store(settings.store, upgrade)

    def introduce() -> None:
        click.echo(f"MLflow answers at {settings.client_url}")
        click.echo(f"store      {redact(settings.store)}")
        click.echo(f"artifacts  {redact(settings.artifacts)}, served through the server")
        if auth_file is not None:
            click.echo(f"logins     {auth_file}; clients export MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")
        click.echo(f"clients    export MLFLOW_TRACKING_URI={settings.client_url}")
        click.echo(f"stop       Ctrl-C, or: kill {os.getpid()}")

    if not run_mlflow(
        settings.options(), settings.environment(os.environ), settings.probe_url, introduce, settings.mask
    ):
        click.echo("error: MLflow ended unexpectedly; its last messages are above", err=True)
        sys.exit(1)
    click.echo("MLflow stopped")


@server.command()
@click.argument("url", required=False)
def health(url: str | None) -> None:
    """Check whether the server at URL answers: exit code 0 if it does, otherwise 1.

    URL defaults to MLFLOW_TRACKING_URI, or to http://127.0.0.1:5000.
    """
    from l2g_ray.server.process import check_health

    well, line = check_health(url or os.environ.get("MLFLOW_TRACKING_URI") or "http://127.0.0.1:5000")
    click.echo(line)
    sys.exit(0 if well else 1)


@server.command()
@with_store
@with_artifacts
@click.argument("folder", type=click.Path(path_type=Path))
def backup(folder: Path, **options: Any) -> None:
    """Copy an SQLite store and its artifacts to the new FOLDER. The server can keep running.

    For PostgreSQL, use pg_dump.
    """
    from l2g_ray.server.process import back_up

    size, files = back_up(options["store"], _absolute(options["artifacts"]), folder)
    click.echo(f"{folder}: mlflow.db ({size / 1e6:.1f} MB) and {files} artifact file{'' if files == 1 else 's'}")


def _absolute(artifacts: str) -> str:
    return artifacts if "://" in artifacts else os.path.abspath(artifacts)
