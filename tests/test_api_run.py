"""`l2g_ray.run` on Ray, the examples of all docstrings of the API, and progress in a notebook; one tiny run for all."""

from __future__ import annotations

import doctest
import importlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient
from toys import plant

import l2g_ray as l2g

pytestmark = pytest.mark.slow
# One fold, one seed, and no search: an embedder alone, trained for an epoch. As in the docstring of `run`.
OPTIONS: dict[str, Any] = {"preset": "smoke", "arms": "embedder_only", "language_model": "tiny-lm", "name": "toy"}
SETTINGS = {"search.enabled": False}


@pytest.fixture(scope="module")
def here(tiny_lm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory, with what the examples name: planted.csv, tiny-lm and runs/toy."""
    folder = tmp_path_factory.mktemp("api-run")
    plant(60, 40, 0).to_pandas().to_csv(folder / "planted.csv", index=False)
    shutil.copytree(tiny_lm, folder / "tiny-lm")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        l2g.run("planted.csv", settings=SETTINGS, cpus=2, quiet=True, **OPTIONS)
        yield folder
    import ray

    ray.shutdown()


def test_a_run_and_what_it_leaves(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in here.glob("runs/stages/*/*")}
    done = l2g.run([here / "planted.csv"], settings=SETTINGS, **OPTIONS)
    assert {path: path.stat().st_mtime_ns for path in here.glob("runs/stages/*/*")} == before != {}
    assert "select" not in capsys.readouterr().out  # a second call trains nothing
    assert (done.folder, done.failures) == (Path("runs/toy"), {})
    assert done.report.is_file()
    board = json.loads((done.folder / "leaderboard.json").read_text())
    assert done.leaderboard["used_mean"].tolist() == [board["tasks"][0]["used"]["test"]["mean"]]
    found = done.best("planted").predict("planted.csv")
    assert len(found) == 60
    pd.testing.assert_frame_equal(found, l2g.load(done).predict("planted.csv"))
    # The run's own rows are there to be explained.
    assert len(done.best().explain(top=5, motifs=False, references=2, quiet=True).sequences) == 5
    with pytest.raises(l2g.UserError, match="is a finished run with seeds=1, now 2"):
        l2g.run("planted.csv", settings=SETTINGS, seeds=2, **OPTIONS)


@pytest.mark.parametrize(("module", "examples"), [("loading", 3), ("predictor", 8), ("runs", 8)])
@pytest.mark.usefixtures("here")
def test_examples_of_docstrings_run(module: str, examples: int) -> None:
    found = doctest.testmod(importlib.import_module(f"l2g_ray.api.{module}"), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert (found.attempted >= examples, found.failed) == (True, 0)


def test_all_that_is_offered_has_an_example() -> None:
    offered = [getattr(l2g, name) for name in l2g.__all__ if name not in ("__version__", "UserError")]
    methods = [getattr(l2g.Predictor, name) for name in ("predict", "embed", "explain", "variants", "mutate")]
    assert [one.__qualname__ for one in (*offered, *methods, l2g.Run.best) if ">>> " not in (one.__doc__ or "")] == []


def test_a_failed_task_is_an_error(here: Path) -> None:
    lost = SETTINGS | {"align.source": "text", "align.source_path": "nowhere.txt"}
    options = OPTIONS | {"name": "lost", "arms": "l2g"}
    with pytest.raises(RuntimeError, match=r"planted failed: .*nowhere\.txt"):
        l2g.run(here / "planted.csv", settings=lost, quiet=True, **options)


@pytest.mark.usefixtures("here")
def test_a_notebook_shows_progress(tmp_path: Path) -> None:
    cells = [
        "import l2g_ray as l2g",
        f"run = l2g.run('planted.csv', settings={SETTINGS}, out={str(tmp_path)!r}, cpus=2, **{OPTIONS})",
        "run.best().predict(['ACGT' * 10] * 9)",
        "run.best().predict(['ACGT' * 10] * 9, quiet=True)",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=500, kernel_name="python3").execute()
    trained, shown, quiet = ([html(output) for output in cell["outputs"]] for cell in notebook.cells[1:])
    # The last state of the table of tasks remains, a bar disappears when its computation is over.
    assert any("ensemble of embedder only 100%, test mcc" in text for text in trained)
    assert ["<table" in text for text in shown] == [False, True]
    assert shown[0] == ""
    assert ["<table" in text for text in quiet] == [True]


def html(output: Any) -> str:
    return output.get("data", {}).get("text/html", "")
