"""A second run under the name of a finished one: refused where it would replace results, allowed where it resumes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import Cli, Said
from rich.console import Console
from toys import plant

from l2g_ray.cli.suite import make_request
from l2g_ray.data.raw import SourceOptions
from l2g_ray.data.sources import open_source
from l2g_ray.errors import UserError
from l2g_ray.orchestrate.identity import SuiteIdentity, identify_suite, prepare_task, refuse_replacement, resolve_task
from l2g_ray.orchestrate.suite import _Run
from l2g_ray.places import sqlite_uri
from l2g_ray.request import SuiteRequest

NAME = "user-tiny-smoke"


def write_table(folder: Path, seed: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    plant(60, 30, seed).to_pandas().to_csv(folder / "tiny.csv", index=False)
    return folder / "tiny.csv"


def open_request(table: Path, out: Path, language_model: Path, **changes: Any) -> SuiteRequest:
    source = open_source([table], SourceOptions())
    assignments = {"model.language_model": str(language_model)}
    return replace(
        SuiteRequest(NAME, "user", [source.task], {source.task.name: source}, "smoke", assignments, out), **changes
    )


def leave(request: SuiteRequest, state: str) -> SuiteIdentity:
    """What a suite of this request leaves in its folder in a state; returns its identity."""
    settings = {task.name: resolve_task(request, task) for task in request.tasks}
    prepared = {t.name: prepare_task(request, t, settings[t.name], Console(quiet=True)) for t in request.tasks}
    identity = identify_suite(request, settings, prepared)
    folder = request.out / request.name
    run = _Run(request, settings, prepared, folder, identity, Console(quiet=True), 0.0)
    run.environment = {"git_revision": None, "machine": {"processor": ""}, "versions": {}}
    run._write_suite_file(state, sqlite_uri(request.out / "mlflow.db"))
    (folder / "leaderboard.json").write_text(json.dumps({"schema": 1, "tasks": []}))
    return identity


@pytest.fixture
def request_a(tmp_path: Path, tiny_lm: Path) -> SuiteRequest:
    return open_request(write_table(tmp_path / "projectA", 0), tmp_path / "out", tiny_lm)


@pytest.fixture
def run_command(cli: Cli, tmp_path: Path, tiny_lm: Path) -> Cli:
    def call(table: Path, *options: object) -> Said:
        return cli("run", table, "--preset", "smoke", "--language-model", tiny_lm, "--out", tmp_path / "out", *options)

    return call


@pytest.mark.parametrize("state", ["finished", "unsent"])
def test_another_project_does_not_replace_a_finished_run(
    state: str, request_a: SuiteRequest, run_command: Cli, tmp_path: Path
) -> None:
    leave(request_a, state)
    folder = tmp_path / "out" / NAME
    before = {path: path.read_bytes() for path in folder.iterdir()}
    said = run_command(write_table(tmp_path / "projectB", 1))
    assert said.code == 2
    for part in (
        f"{folder}: is a finished run with other data (tiny)",
        "nothing was changed",
        "--name NEW",
        "--replace",
    ):
        assert part in said.err
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--set", "finetune.trials=7"], "finetune.trials=2, now 7"),
        (["--seeds", "3"], "seeds=1, now 3"),
        (["--set", "seed=5"], "seed=0, now 5"),
    ],
)
def test_what_differs_is_named(
    options: list[str], part: str, request_a: SuiteRequest, run_command: Cli, tmp_path: Path
) -> None:
    leave(request_a, "finished")
    said = run_command(tmp_path / "projectA" / "tiny.csv", *options)
    assert said.code == 2
    assert f"is a finished run with {part};" in said.err


def test_other_models_tasks_and_versions_are_named(request_a: SuiteRequest) -> None:
    identity = leave(request_a, "finished")
    task = identity.tasks["tiny"]
    for changes, part in (
        ({"bench": "nt"}, "benchmark user, now nt"),
        ({"language_models": ["other"]}, "other files of the language model"),
        ({"tasks": {"tiny": task | {"metric": "auroc"}}}, "other facts of the task"),
        ({"versions": identity.versions | {"refit": 99}}, "another version of l2g-ray"),
        ({"settings": {"big": {}}, "data": {"big": ["x"]}, "tasks": {"big": task}}, "tasks tiny, now tasks big"),
    ):
        with pytest.raises(UserError, match=part):
            refuse_replacement(request_a, replace(identity, **changes))


@pytest.mark.parametrize("state", ["running", "failed", "stopped", "reporting"])
def test_an_unfinished_run_goes_on_with_a_corrected_setting(
    state: str, request_a: SuiteRequest, tiny_lm: Path, tmp_path: Path
) -> None:
    leave(request_a, state)
    assignments = request_a.assignments | {"finetune.trials": 7}
    corrected = leave(replace(request_a, assignments=assignments, name="elsewhere"), "finished")
    refuse_replacement(request_a, corrected)
    (tmp_path / "out" / NAME / "tiny").mkdir()
    (tmp_path / "out" / NAME / "tiny" / "metrics.json").write_text("{}")
    refuse_replacement(request_a, corrected)
    # A task of it that is finished, of other rows.
    other = open_request(write_table(tmp_path / "projectB", 1), tmp_path / "out", tiny_lm, name="elsewhere")
    identity = leave(other, "finished")
    with pytest.raises(UserError, match=r"holds finished results of other data \(tiny\)"):
        refuse_replacement(request_a, identity)


def test_replace_is_asked_for_and_leaves_no_task_of_before(request_a: SuiteRequest, tmp_path: Path) -> None:
    identity = leave(request_a, "finished")
    refuse_replacement(request_a, identity)
    old = tmp_path / "out" / NAME / "tiny"
    old.mkdir()
    facts = identity.tasks["tiny"]
    other = replace(identity, settings={"big": {}}, data={"big": ["x"]}, tasks={"big": facts})
    refuse_replacement(replace(request_a, replace=True), other)
    assert not old.exists()


def test_options_reach_the_request(tmp_path: Path) -> None:
    options: dict[str, Any] = dict.fromkeys(
        ("language_model", "seeds", "name", "data_dir", "cpus", "gpus_per_trial", "slots"), None
    )
    options |= {"assignments": (), "keep_duplicates": False, "out": str(tmp_path), "preset": "smoke"}
    options |= {"register": False, "verbose": False, "workers_per_trial": 1, "experiment": "mine", "replace": True}
    request = make_request("user", [], {}, "name", options)
    assert (request.experiment, request.replace) == ("mine", True)


def test_simple_baselines_do_not_replace_others(cli: Cli, tmp_path: Path) -> None:
    table = write_table(tmp_path / "projectA", 0)
    options = ["--out", tmp_path / "out", "--preset", "smoke", "--name", "mine"]
    said = cli("baseline", "majority,kmer_linear", table, *options)
    assert said.code == 0, said.err
    study = tmp_path / "out" / "mine" / "study.json"
    before = study.read_text()
    assert cli("baseline", "majority,kmer_linear", table, *options).code == 0
    for arguments in (("majority", table), ("majority,kmer_linear", write_table(tmp_path / "projectB", 1))):
        said = cli("baseline", *arguments, *options)
        assert said.code == 2
        assert "is a finished run of other baselines, data or settings; nothing was changed" in said.err
    assert json.loads(study.read_text())["compared"] == json.loads(before)["compared"]
    assert cli("baseline", "majority", table, *options, "--replace").code == 0
    assert len(json.loads(study.read_text())["compared"]) == 1
