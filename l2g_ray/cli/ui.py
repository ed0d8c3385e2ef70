"""`l2g-ray ui`."""

from __future__ import annotations

import json
import os
import sys
import webbrowser
from pathlib import Path

import click

from l2g_ray.errors import UserError


def find_store(run: Path) -> str:
    """Return the tracking URI that a suite's folder, or the folder above it, belongs to."""
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
    """Refuse a file that is not there: MLflow's server would make an empty store in its place."""
    from l2g_ray.places import sqlite_file

    file = sqlite_file(uri)
    if file is not None and not file.exists():
        raise UserError(
            f"there is no MLflow store at {file}; run the suite's command again to log it anew, or name another store "
            "with MLFLOW_TRACKING_URI"
        )


def _has_browser() -> bool:
    """Whether a page can be opened for the person: a terminal on a machine with a screen."""
    screen = sys.platform in ("darwin", "win32") or any(os.environ.get(n) for n in ("DISPLAY", "WAYLAND_DISPLAY"))
    return sys.stdout.isatty() and screen


@click.command()
@click.argument("run", type=click.Path(path_type=Path), default=Path("runs"))
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=5000, show_default=True, type=click.IntRange(1, 65535))
@click.option("--open/--no-open", "opens", default=None, help="Open the page in a browser; by default on a screen.")
def ui(run: Path, host: str, port: int, opens: bool | None) -> None:
    """The MLflow UI on the store of RUN (a run's folder, or the folder of all runs), at the table of its runs."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or find_store(run)
    _refuse_missing(uri)
    from l2g_ray.redaction import redact
    from l2g_ray.server.running import find_runs_page

    if uri.startswith(("http://", "https://")):
        click.echo(f"this run's store is a server with its own UI: {find_runs_page(uri)}")
        return
    from l2g_ray.server.process import run_mlflow
    from l2g_ray.server.settings import QUIET, check_port

    check_port(host, port)
    options = ["--host", host, "--port", str(port), "--workers", "1"]
    # Not on the command line, where a password in it would stand in the list of processes.
    environment = QUIET | dict(os.environ) | {"MLFLOW_BACKEND_STORE_URI": uri}
    url = f"http://{host}:{port}"
    click.echo(f"MLflow starts on {redact(uri)}")

    def introduce() -> None:
        page = find_runs_page(url)
        click.echo(f"MLflow UI: {page} (Ctrl-C ends it)")
        if _has_browser() if opens is None else opens:
            webbrowser.open(page)

    if not run_mlflow(options, environment, url, introduce):
        raise click.exceptions.Exit(1)
