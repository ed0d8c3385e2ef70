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
    """The tracking URI that a suite's folder, or the folder above it, belongs to."""
    if (run / "suite.json").exists():
        return str(json.loads((run / "suite.json").read_text())["tracking_uri"])
    if (run / "mlflow.db").exists():
        return f"sqlite:///{(run / 'mlflow.db').resolve()}"
    raise UserError(
        f"{run}: neither a run (suite.json) nor a folder of runs (mlflow.db); give the --out folder of a suite"
    )


@click.command()
@click.argument("run", type=click.Path(path_type=Path), default=Path("runs"))
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=5000, show_default=True, type=click.IntRange(1, 65535))
@click.option("--open/--no-open", "opens", default=None, help="Open the page in a browser; by default on a screen.")
def ui(run: Path, host: str, port: int, opens: bool | None) -> None:
    """The MLflow UI on the store of RUN (a run's folder, or the folder of all runs), at the table of its runs."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or find_store(run)
    from l2g_ray.redaction import redact
    from l2g_ray.server.page import find_runs_page, has_browser

    if uri.startswith(("http://", "https://")):
        click.echo(f"this run's store is a server with its own UI: {find_runs_page(uri)}")
        return
    from l2g_ray.server.process import run_mlflow
    from l2g_ray.server.settings import QUIET, check_port

    check_port(host, port)
    command = [sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", "1"]
    # Not on the command line, where a password in it would stand in the list of processes.
    environment = QUIET | dict(os.environ) | {"MLFLOW_BACKEND_STORE_URI": uri}
    url = f"http://{host}:{port}"
    click.echo(f"MLflow starts on {redact(uri)}")

    def introduce() -> None:
        page = find_runs_page(url)
        click.echo(f"MLflow UI: {page} (Ctrl-C ends it)")
        if has_browser() if opens is None else opens:
            webbrowser.open(page)

    if not run_mlflow(command, environment, url, introduce):
        raise click.exceptions.Exit(1)
