"""`l2g-ray ui`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
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
def ui(run: Path, host: str, port: int) -> None:
    """The MLflow UI on the store of RUN (a run's folder, or the folder of all runs)."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or find_store(run)
    if uri.startswith(("http://", "https://")):
        click.echo(f"this run's store is a server with its own UI: {uri}")
        return
    click.echo(f"MLflow UI on {uri}: http://{host}:{port} (Ctrl-C ends it)")
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        uri,
        "--host",
        host,
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    sys.exit(subprocess.run(command, check=False).returncode)
