"""The notebooks of docs/tutorials run, and are committed with outputs that name nothing of the machine that ran them.

`python tests/test_tutorials.py [NAME...]` runs them and writes their outputs.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
import pytest
from local_cluster import START, local_shell
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "docs" / "tutorials"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
DASHBOARD = re.compile(r"127\.0\.0\.1:\d+")
OF_A_MACHINE = re.compile(r"/(?:tmp|work|root|home|Users)/[\w./-]+")
STYLES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
# Shown while a cell runs, and different each time.
NOISE = re.compile(r"^.*(?:IProgress not found|autonotebook import|Missing packages: \['ipywidgets'\]).*\n?", re.M)


def execute(path: Path, where: Path) -> Any:
    """Run a notebook in a folder; returns it with its outputs. An error in a cell is raised."""
    notebook = nbformat.read(path, as_version=4)
    with contextlib.ExitStack() as stack:
        replaced: dict[str, str] = {}
        variables = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        if any(START in cell.source for cell in notebook.cells):
            # On free ports, and away from all other Ray of this machine.
            shell, _ = stack.enter_context(local_shell(where))
            replaced, variables = shell.replaced, shell.variables | {"RAY_AUTH_MODE": "disabled"}
        for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
            variables.pop(name, None)
        sources = [cell.source for cell in notebook.cells]
        for cell in notebook.cells:
            cell.source = replace(cell.source, replaced)
        client = NotebookClient(notebook, timeout=550, resources={"metadata": {"path": str(where)}})
        client.execute(env=variables)
    for cell, source in zip(notebook.cells, sources, strict=True):
        cell.source = source
    return notebook


def replace(text: str, replaced: dict[str, str]) -> str:
    for old, new in replaced.items():
        text = text.replace(old, new)
    return text


def strip(notebook: Any, where: Path) -> Any:
    """The notebook without what is different on each machine: paths, addresses of objects, and what a cell has cleared."""
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type != "code":
            continue
        kept = []
        for output in cell.outputs:
            output.metadata = {} if "metadata" in output else output.get("metadata")
            if output.output_type == "stream":
                output.pop("metadata", None)
                output.text = clean(output.text, where)
                if output.text.strip():
                    kept.append(output)
                continue
            output.data = {kind: clean(text, where) for kind, text in output.data.items()}
            if output.data.get("text/html") != "":
                kept.append(output)
        cell.outputs = kept
    return notebook


def clean(text: str, where: Path) -> str:
    for root in (where, Path(os.path.realpath(where))):
        text = text.replace(f"{root}/", "").replace(str(root), ".")
    text = DASHBOARD.sub("127.0.0.1:8265", text)
    text = text.replace(f" on {socket.gethostname()},", " on head,")
    text = STYLES.sub("", NOISE.sub("", text))
    return OF_A_MACHINE.sub(lambda found: f".../{found[0].rsplit('/', 1)[-1]}", text)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_tutorial_runs(name: str, tmp_path: Path) -> None:
    ran = execute(FOLDER / f"{name}.ipynb", tmp_path)
    committed = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    for cell, before in zip(strip(ran, tmp_path).cells, committed.cells, strict=True):
        assert kinds(cell) == kinds(before), cell.source


def kinds(cell: Any) -> set[str]:
    return {output.output_type for output in cell.get("outputs", ())}


@pytest.mark.parametrize("name", NAMES)
def test_committed_outputs_are_there_and_name_no_machine(name: str) -> None:
    path = FOLDER / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert sum(bool(cell.outputs) for cell in cells) >= len(cells) / 2
    assert all(cell.execution_count for cell in cells)
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)
    assert OF_A_MACHINE.search(path.read_text()) is None
    assert "\\u001b" not in path.read_text()


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for stem in sys.argv[1:] or NAMES:
        with tempfile.TemporaryDirectory() as scratch:
            done = execute(FOLDER / f"{stem}.ipynb", Path(scratch))
            nbformat.write(strip(done, Path(scratch)), FOLDER / f"{stem}.ipynb")
