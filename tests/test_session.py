"""Where commands are started: files beside them that have a library's name are not imported, and any TMPDIR will do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from commands import Cli
from runs import Sources, environment, execute, run_command
from servers import start_server

from l2g_ray.orchestrate import cluster as session

L2G_RAY = str(Path(sys.executable).with_name("l2g-ray"))
QUICK = {"search.enabled": False, "align.source": "vocabulary", "align.alphas": [1.0], "finetune.trials": 1}
# What Python loads before it looks at the working directory cannot be shadowed there.
OWN = {"l2g_ray", "__main__", "site", "sitecustomize", "usercustomize"}
IMPORTS = "import sys, json, mlflow.pyfunc, mlflow.server, transformers, uvicorn, sklearn.metrics, lightgbm, peft, ray.train.torch, ray.tune"


@pytest.fixture(scope="module")
def traps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file for each module that commands import; one that is imported leaves a mark."""
    said = subprocess.run(
        [sys.executable, "-c", f"{IMPORTS}; print(json.dumps(list(sys.modules)))"],
        capture_output=True,
        text=True,
        check=True,
    )
    names = {name.partition(".")[0] for name in json.loads(said.stdout.splitlines()[-1])} - OWN
    assert {"torch", "transformers", "ray", "numpy", "click", "difflib", "ctypes", "uvicorn"} <= names
    folder = tmp_path_factory.mktemp("traps")
    for name in names:
        text = f"open({str(folder / name)!r} + '.imported', 'w').close()\nraise ImportError\n"
        (folder / f"{name}.py").write_text(text)
    return folder


def imported(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.imported"))


@pytest.mark.slow
def test_a_trap_would_catch(traps: Path) -> None:
    done = subprocess.run([sys.executable, "-c", "import difflib"], cwd=traps, capture_output=True, text=True)
    assert done.returncode == 1
    assert imported(traps) == ["difflib"]
    (traps / "difflib.imported").unlink()


def test_python_m_imports_no_package_from_where_it_starts(tmp_path: Path) -> None:
    for name in ("click", "traceback"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(7)")
    execute_in(tmp_path, [sys.executable, "-m", "l2g_ray.cli.main", "--help"])


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("runner", ["process", "train"])
def test_a_run_imports_nothing_from_where_it_starts(traps: Path, tmp_path: Path, sources: Sources, runner: str) -> None:
    own = QUICK | {"finetune.trial_runner": runner}
    command = run_command(sources.planted, tmp_path / "out", sources.language_model, own)
    execute_in(traps, [L2G_RAY, *command[command.index("run") :]])
    assert imported(traps) == []
    run = next((tmp_path / "out").glob("*/leaderboard.json")).parent
    execute_in(
        traps,
        [
            L2G_RAY,
            "predict",
            str(run),
            "--input",
            str(sources.planted / "test.csv"),
            "--output",
            str(tmp_path / "p.csv"),
        ],
    )
    execute_in(traps, [L2G_RAY, "report", str(run)])
    assert imported(traps) == []
    served = start_server(traps, str(tmp_path / "out"), command="ui", ready="MLflow UI: ", program=[L2G_RAY])
    served.stop()
    assert imported(traps) == []


@pytest.mark.slow
def test_the_server_imports_nothing_from_where_it_starts(traps: Path) -> None:
    served = start_server(traps, program=[L2G_RAY])
    served.stop()
    shutil.rmtree(traps / "mlflow-server")
    assert imported(traps) == []


def execute_in(folder: Path, command: list[str]) -> None:
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, f"{imported(folder)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


# ---- temporary folders -----------------------------------------------------------------------------------------------

PROGRAM = """
import json
import os
from l2g_ray.orchestrate.cluster import connect

ray = connect(num_cpus=1)

@ray.remote
def look():
    import sys, tempfile
    return sys.path, tempfile.gettempdir()

print(json.dumps([ray._private.worker._global_node.get_session_dir_path(), *ray.get(look.remote())]))
"""


def start_ray(folder: Path, temporary: Path) -> tuple[str, list[str], str]:
    (folder / "program.py").write_text(PROGRAM)
    return tuple(
        json.loads(execute([sys.executable, str(folder / "program.py")], TMPDIR=str(temporary), RAY_TMPDIR=""))
    )


def test_ray_starts_below_a_long_temporary_folder(tmp_path: Path) -> None:
    long = tmp_path / ("t" * 97)
    long.mkdir()
    before = set(Path("/tmp").glob("l2g-ray-session-*"))
    place, path, temporary = start_ray(tmp_path, long)
    assert len(place) <= 72  # with the process's number
    assert list((long / "ray").glob("session_*")), "what Ray writes is in the folder that was asked for"
    assert temporary == str(long)
    assert str(tmp_path) not in path, "neither the script's folder nor the working directory"
    assert not [link for link in set(Path("/tmp").glob("l2g-ray-session-*")) - before if str(link) in place]


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_a_temporary_folder_that_is_none_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    place = tmp_path / "a" / "b" if kind == "missing" else tmp_path / "file"
    (tmp_path / "file").touch()
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert Path(session.find_session_folder()).parent == Path(tempfile.gettempdir())
    assert not (tmp_path / "a").exists()


def test_a_folder_of_another_user_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "ray").touch()  # as unusable as a folder that belongs to somebody else, to the superuser too
    monkeypatch.setattr(session.atexit, "register", lambda *arguments: None)
    found = Path(session.find_session_folder())
    assert found.resolve() == tmp_path / f"ray-{os.getuid()}"
    if found.is_symlink():
        found.unlink()


def test_links_that_lead_nowhere_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = Path(tempfile.mkdtemp(dir="/tmp"))
    long = tmp_path / ("t" * 97)
    long.mkdir()
    stale, alive = short / "l2g-ray-session-1", short / "l2g-ray-session-2"
    stale.symlink_to(tmp_path / "gone")
    alive.symlink_to(tmp_path)
    monkeypatch.setattr(session, "_SHORT_FOLDERS", (str(short),))
    monkeypatch.setattr(session.atexit, "register", lambda *arguments: None)
    monkeypatch.setenv("TMPDIR", str(long))
    try:
        link = Path(session.find_session_folder())
        assert link.resolve() == long / "ray"
        assert set(short.iterdir()) == {alive, link}
    finally:
        shutil.rmtree(short)


def test_without_any_temporary_folder_a_command_ends_with_one_sentence(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    # The superuser can write to /tmp whatever its permissions.
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "nowhere")])
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    said = cli("data", "check", "demo/splice_junction", "--out", tmp_path / "check")
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert f"{tmp_path / 'nowhere'}: no temporary files can be written; set TMPDIR" in said.err
