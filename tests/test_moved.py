"""A finished run whose folder was moved: every command that reads it finds what it needs inside of the folder."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from commands import Cli
from mlflow import MlflowClient

from l2g_ray.cli.server import find_store
from l2g_ray.places import sqlite_uri
from l2g_ray.tracking.store import COLUMNS

GONE = "/gone/runs"


@pytest.fixture(scope="module")
def moved(suite_of_three: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared suite as if it had been made in a folder that is not there any more, under a name with a '?'."""
    out = tmp_path_factory.mktemp("moved") / "a?b"
    shutil.copytree(suite_of_three, out, ignore=shutil.ignore_patterns("tune"))
    for path in [*out.glob("*/*.json"), *out.glob("*/*/*.json")]:
        path.write_text(path.read_text().replace(str(suite_of_three), GONE))
    with sqlite3.connect(out / "mlflow.db") as database:
        for table, column in COLUMNS:
            database.execute(
                f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (suite_of_three.as_uri(), f"file://{GONE}")
            )
    return out


@pytest.fixture(autouse=True)
def no_named_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_stored_places_are_relative(suite_of_three: Path) -> None:
    stages = json.loads((suite_of_three / "three" / "planted" / "stages.json").read_text())
    named = [*stages["results"].values(), *(stages["deployed"][name] for name in ("align", "refit", "prepared"))]
    assert all(place.startswith("../../") for place in named)


def test_ui_opens_the_store_here(moved: Path, tmp_path: Path, use_store: Callable[[str], None]) -> None:
    uri = find_store(moved / "three")
    assert uri == find_store(moved) == sqlite_uri(moved / "mlflow.db")
    client = MlflowClient(uri, uri)
    experiment = client.get_experiment_by_name("l2g_ray")
    assert experiment.artifact_location == (moved / "mlartifacts").as_uri()
    (run,) = client.search_runs(
        [experiment.experiment_id], "attributes.run_name = 'planted' AND attributes.status = 'FINISHED'"
    )
    assert "metrics.json" in {found.path for found in client.list_artifacts(run.info.run_id)}
    (row,) = [r for r in json.loads((moved / "three/leaderboard.json").read_text())["tasks"] if r["task"] == "planted"]
    use_store(uri)
    assert len(mlflow.pyfunc.load_model(row["model_uri"]).predict(["ACGT" * 10])) == 1


def test_status_shows_commands_for_the_place_where_it_is(cli: Cli, moved: Path) -> None:
    said = cli("status", moved / "three", "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert found["links"]["mlflow"] == f"l2g-ray ui '{moved / 'three'}'"
    assert GONE not in said.out
    meta = json.loads((moved / "three" / "suite.json").read_text())
    assert meta["folder"] == f"{GONE}/three"


@pytest.mark.parametrize("old", [False, True], ids=["relative", "absolute"])
def test_embed_and_explain_find_stages_and_rows(cli: Cli, moved: Path, tmp_path: Path, old: bool) -> None:
    run = tmp_path / "out" / "three"
    shutil.copytree(moved, run.parent)
    if old:  # as earlier versions wrote it
        path = run / "planted" / "stages.json"
        path.write_text(path.read_text().replace("../../", f"{GONE}/"))
    said = cli("embed", run, "--task", "planted", "--max-rows", "20", "--arm", "l2g")
    assert said.code == 0, said.err
    assert "after align" in said.out
    said = cli("explain", run, "--task", "planted", "--no-motifs", "--top", "2", "--references", "2")
    assert said.code == 0, said.err
    assert (run / "planted" / "explain").is_dir()


def test_predict_and_plan_read_it(cli: Cli, moved: Path, tmp_path: Path) -> None:
    pd.DataFrame({"sequence": ["ACGT" * 10]}).to_csv(tmp_path / "in.csv", index=False)
    target = tmp_path / "out.csv"
    said = cli("predict", moved / "three", "--task", "planted", "--input", tmp_path / "in.csv", "--output", target)
    assert said.code == 0, said.err
    assert len(pd.read_csv(target)) == 1
    said = cli("plan", moved / "three", "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["tasks"]["planted"]["stages"]


def test_report_is_put_into_the_store_here(cli: Cli, moved: Path) -> None:
    (moved / "three" / "report.html").unlink()
    said = cli("report", moved / "three")
    assert said.code == 0, said.err
    assert f"and in MLflow ({sqlite_uri(moved / 'mlflow.db')})" in said.out
    assert (moved / "three" / "report.html").exists()
    assert not Path(GONE).exists()
