"""Places of a run: URIs of odd folder names, a store that follows its folder, what is not made by looking at it."""

from __future__ import annotations

import shlex
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import mlflow
import pytest
from commands import Cli
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from runs import environment

from l2g_ray.errors import UserError
from l2g_ray.places import find_place, find_run_store, name_place, show_command, sqlite_file, sqlite_uri
from l2g_ray.server.settings import ServerSettings, prepare_store, resolve_store
from l2g_ray.tracking.runs import Tracker
from l2g_ray.tracking.store import COLUMNS, follow_folder, is_file_store, is_own_store, resolve_uri

ODD = ["a?b", "a%20b", "a%3Fb", "a#b", "a b", "aü", "a&b=c", "a:b", "a@b", "a'b", "plain"]
NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/"), min_size=1).filter(
    lambda name: name not in (".", "..") and len(name.encode()) < 200
)


@settings(deadline=None)
@given(NAMES)
def test_an_sqlite_uri_is_read_back(name: str) -> None:
    path = Path("/runs") / name / "mlflow.db"
    uri = sqlite_uri(path)
    assert sqlite_file(uri) == path
    assert is_file_store(uri)
    assert sqlite_file(resolve_store(uri)) == path


@settings(deadline=None)
@given(st.lists(NAMES, min_size=1))
def test_a_shown_command_is_read_back_by_a_shell(names: list[str]) -> None:
    assert shlex.split(show_command(*names)) == ["l2g-ray", *names]


@pytest.mark.parametrize("name", ODD)
def test_store_and_artifacts_are_in_the_folder_of_an_odd_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracker = Tracker(None, "l2g_ray", tmp_path / name)
    run_id = tracker.start("run", "run")
    tracker.log_text("run", "kept", "note.txt")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert {path.name for path in (tmp_path / name).iterdir()} == {"mlflow.db", "mlartifacts", ".mlflow.lock"}
    assert [path.read_text() for path in (tmp_path / name).rglob("note.txt")] == ["kept"]
    client = MlflowClient(tracker.uri, tracker.uri)
    assert [found.path for found in client.list_artifacts(run_id)] == ["note.txt"]


def test_a_server_keeps_store_and_artifacts_in_folders_of_odd_names(tmp_path: Path) -> None:
    store = resolve_store(sqlite_uri(tmp_path / "a?b" / "m.db"))
    prepare_store(store)
    assert [path.name for path in tmp_path.iterdir()] == ["a?b"]
    given_ = ServerSettings(store, str(tmp_path / "a%20b"), "127.0.0.1", 5000, (), None, None).environment({})
    assert unquote(urlsplit(given_["MLFLOW_ARTIFACTS_DESTINATION"]).path) == str(tmp_path / "a%20b")


# ---- a folder that moves ---------------------------------------------------------------------------------------------


def test_places_of_a_task_are_relative_and_move_with_it(tmp_path: Path) -> None:
    task, stage, outside = tmp_path / "runs/suite/task", tmp_path / "runs/stages/refit/k", tmp_path / "mine"
    for folder in (task, stage, outside):
        folder.mkdir(parents=True)
    assert name_place(stage, task) == "../../stages/refit/k"
    assert name_place(outside, task) == str(outside)
    assert name_place("s3://bucket/runs/stages/refit/k", task) == "s3://bucket/runs/stages/refit/k"
    (tmp_path / "runs").rename(tmp_path / "moved")
    moved, there = tmp_path / "moved/suite/task", str(tmp_path / "moved/stages/refit/k")
    assert find_place("../../stages/refit/k", moved) == there
    assert find_place(str(stage), moved) == there, "an absolute path, as earlier versions wrote it"
    assert find_place(str(outside), moved) == str(outside)
    assert find_place("s3://bucket/x", moved) == "s3://bucket/x"


def fill_store(home: Path) -> str:
    """A run with an artifact, and a registered model, in the folder's own store; returns the run's id."""
    tracker = Tracker(None, "l2g_ray", home)
    run_id = tracker.start("run", "run")
    tracker.log_text("run", "kept", "note.txt")
    (home / "model").mkdir()
    (home / "model" / "weights.txt").write_text("1")
    tracker.log_model("run", home / "model", registered_name="own")
    return run_id


def read_places(store: Path) -> set[str]:
    with sqlite3.connect(store) as database:
        return {
            place
            for table, column in COLUMNS
            for (place,) in database.execute(f"SELECT {column} FROM {table}")
            if place and place.startswith("file:")
        }


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_a_store_follows_its_folder(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow 3.17: the tables and columns of `tracking.store.COLUMNS` are all that name a place."""
    assert mlflow.__version__.startswith("3.17."), "look at MLflow's tables again, then change this line"
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    old, new = tmp_path / "old", tmp_path / "a?b"
    run_id = fill_store(old)
    before = read_places(old / "mlflow.db")
    assert (old.rename if how == "moved" else lambda target: shutil.copytree(old, target))(new)
    tracker = Tracker(None, "l2g_ray", new)
    assert all(place.startswith(new.as_uri()) for place in read_places(new / "mlflow.db"))
    with sqlite3.connect(new / "mlflow.db") as database:
        dump = "\n".join(database.iterdump())
    assert str(old) not in dump
    client = MlflowClient(tracker.uri, tracker.uri)
    assert [found.path for found in client.list_artifacts(run_id)] == ["note.txt"]
    (version,) = client.search_model_versions("name='own'")
    assert (Path(unquote(urlsplit(version.source).path)) / "MLmodel").is_file()
    tracker.start("second", "second")
    tracker.log_text("second", "also", "also.txt")
    assert [path.read_text() for path in new.rglob("also.txt")] == ["also"]
    assert not list(old.rglob("also.txt"))
    assert follow_folder(new / "mlflow.db") == 0
    if how == "copied":
        assert read_places(old / "mlflow.db") == before


def test_artifacts_that_another_folder_keeps_stay_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store in one folder may have been named by MLFLOW_TRACKING_URI for runs of another."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = sqlite_uri(tmp_path / "one" / "mlflow.db")
    (tmp_path / "one").mkdir()
    run_id = Tracker(store, "l2g_ray", tmp_path / "other").start("run", "run")
    client = MlflowClient(store, store)
    client.log_text(run_id, "x", "x.txt")
    Tracker(None, "l2g_ray", tmp_path / "one")
    assert [found.path for found in client.list_artifacts(run_id)] == ["x.txt"]
    experiment = client.get_experiment_by_name("l2g_ray")
    assert experiment.artifact_location == (tmp_path / "one" / "mlartifacts").as_uri()


def test_a_run_knows_its_store_after_a_move(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "suite"
    run.mkdir(parents=True)
    own, gone, server = sqlite_uri(tmp_path / "runs/mlflow.db"), sqlite_uri(Path("/gone/mlflow.db")), "http://h:5000"
    assert find_run_store(run, {"tracking_uri": gone, "store": "../mlflow.db"}) == own
    assert find_run_store(run, {"tracking_uri": gone}) == gone
    (tmp_path / "runs/mlflow.db").touch()
    assert find_run_store(run, {"tracking_uri": gone}) == own, "an earlier version, moved"
    assert find_run_store(run, {"tracking_uri": server}) == server
    assert is_own_store(own, tmp_path / "runs")
    assert not is_own_store(own, tmp_path)
    assert not is_own_store(server, tmp_path / "runs")


def test_ui_makes_no_store(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = tmp_path / "suite"
    run.mkdir()
    (run / "suite.json").write_text(f'{{"tracking_uri": "sqlite:///{tmp_path}/old/mlflow.db"}}')
    said = cli("ui", run)
    assert said.code == 2
    assert f"there is no MLflow store at {tmp_path}/old/mlflow.db" in said.err
    assert not (tmp_path / "old").exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_uri(tmp_path / "named" / "m.db"))
    assert "there is no MLflow store" in cli("ui", run).err
    assert not (tmp_path / "named").exists()


# ---- an experiment that was deleted ----------------------------------------------------------------------------------


def test_a_deleted_experiment_is_restored_by_the_command_that_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    home = tmp_path / "a ?b"
    tracker = Tracker(None, "l2g_ray", home)
    run_id = tracker.start("run", "run")
    MlflowClient(tracker.uri, tracker.uri).delete_experiment(tracker.experiment_id)
    with pytest.raises(UserError, match=r"was deleted.*--experiment NAME or MLFLOW_EXPERIMENT_NAME") as refusal:
        Tracker(None, "l2g_ray", home)
    command = str(refusal.value).split("`")[1].replace(" mlflow ", f" {sys.executable} -m mlflow ")
    subprocess.run(command, shell=True, check=True, capture_output=True, env=environment(), cwd=tmp_path)
    again = Tracker(None, "l2g_ray", home)
    assert again.start("run", "run") == run_id
    assert Tracker(None, "another", home).experiment_id != again.experiment_id
    assert resolve_uri(None, home) == tracker.uri
