"""A finished suite whose MLflow runs are gone: the same command logs them again, and trains nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from commands import Cli
from mlflow import MlflowClient
from runs import Sources, execute, stage_folders
from test_suite import Tree, check_task, rows_of

from l2g_ray.places import sqlite_uri


@pytest.fixture(scope="module")
def finished(suite_of_three: Path, sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, `planted`, in an --out of its own whose stages were there before."""
    out = tmp_path_factory.mktemp("relog") / "out"
    shutil.copytree(suite_of_three / "stages", out / "stages")
    execute(sources.command("planted", out))
    return out / "user-planted-smoke"


@pytest.fixture
def again(cli: Cli, finished: Path, sources: Sources, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The same command in this process: nothing here needs Ray."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)

    def call(*options: object) -> str:
        stages = stage_folders(finished.parent)
        said = cli(*sources.command("planted", finished.parent)[3:], *options)
        assert said.code == 0, said.err
        assert stage_folders(finished.parent) == stages
        return said.out

    return call


def check_logged(run: Path) -> Tree:
    tree = Tree(run)
    assert tree.suite.info.status == "FINISHED"
    assert tree.artifacts(tree.suite) >= {"leaderboard.json", "report.html", "suite.json"}
    check_task(tree, "planted", rows_of(run)["planted"])
    model_id = rows_of(run)["planted"]["model_uri"].removeprefix("models:/")
    assert tree.client.get_logged_model(model_id).source_run_id == tree.tasks["planted"].info.run_id
    return tree


def test_all_is_there_and_nothing_is_written(again: Cli, finished: Path) -> None:
    files = {path: path.stat().st_mtime_ns for path in finished.parent.rglob("*") if path.is_file()}
    assert "Nothing to do: all results exist." in again()
    assert {path: path.stat().st_mtime_ns for path in finished.parent.rglob("*") if path.is_file()} == files


@pytest.mark.parametrize("which", ["suite", "task", "all"])
def test_deleted_runs_are_logged_again(which: str, again: Cli, finished: Path) -> None:
    before = check_logged(finished)
    doomed = {
        "suite": [before.suite],
        "task": [before.tasks["planted"]],
        "all": before.find(""),
    }[which]
    for run in doomed:
        before.client.delete_run(run.info.run_id)
    assert "logged in MLflow again" in again()
    check_logged(finished)
    assert "Nothing to do" in again()


def test_a_store_that_was_removed_is_filled_again(
    cli: Cli, finished: Path, sources: Sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a copy: MLflow holds on to an SQLite file that this process has opened."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    out = tmp_path / "out"
    shutil.copytree(finished.parent, out, ignore=shutil.ignore_patterns("mlflow.db", "mlartifacts", "tune"))
    said = cli(*sources.command("planted", out)[3:])
    assert said.code == 0, said.err
    assert "logged in MLflow again" in said.out
    check_logged(out / finished.name)


def test_another_store_and_another_experiment_get_it_too(
    again: Cli, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = sqlite_uri(tmp_path / "other.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert "logged in MLflow again" in again()
    assert json.loads((finished / "suite.json").read_text())["tracking_uri"] == uri
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert "Nothing to do" in again(), "without a name, the store that it was logged to last"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_uri(finished.parent / "mlflow.db"))
    again()
    assert "logged in MLflow again" in again("--experiment", "mine")
    client = MlflowClient(sqlite_uri(finished.parent / "mlflow.db"))
    found = client.search_runs([client.get_experiment_by_name("mine").experiment_id], "attributes.status = 'FINISHED'")
    assert {"user-planted-smoke", "planted"} <= {run.info.run_name for run in found}
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    assert "Nothing to do" in again()


def test_a_deleted_experiment_and_a_silent_server_are_told(
    again: Cli, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    said = again()
    assert "finished, but not logged in MLflow" in said
    assert "Nothing to do" in said
    store = sqlite_uri(finished.parent / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    client = MlflowClient(store)
    client.create_experiment("doomed")
    client.delete_experiment(client.get_experiment_by_name("doomed").experiment_id)
    said = again("--experiment", "doomed")
    assert "mlflow experiments restore --experiment-id" in said
    assert "Nothing to do" in said
