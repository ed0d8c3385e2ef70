"""A job in a process of its own, without Ray: it hangs, it is killed, its storage refuses writes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from faults import plant
from runs import Sources, environment
from toys import tiny_settings

from l2g_ray.data.prepare import prepare
from l2g_ray.data.raw import SourceOptions
from l2g_ray.data.sources import open_source
from l2g_ray.errors import UserError
from l2g_ray.store import guard
from l2g_ray.store.guard import StorageWatch, persist, read_stall, why_refused
from l2g_ray.store.results import Store

# At the end of the second epoch: nothing, or `refuse` all writes for so many seconds, or `kill`.
JOB = """
import json, os, resource, signal, sys, threading
from l2g_ray.orchestrate.jobs import run_job
spec, then, seconds = json.loads(sys.argv[1]), sys.argv[2], float(sys.argv[3])
before, epochs = resource.getrlimit(resource.RLIMIT_FSIZE), []

def report(row):
    epochs.append(row["epoch"])
    if row["epoch"] == 1 and then == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if row["epoch"] == 1 and then == "refuse":
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
        restore = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)
        timer = threading.Timer(seconds, restore)
        timer.daemon = True
        timer.start()

run_job(spec, report)
sys.stdout.write(json.dumps(epochs))
"""
Spec = dict[str, Any]


def run(spec: Spec, then: str = "", seconds: float = 0.0, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", JOB, json.dumps(spec), then, str(seconds)]
    return subprocess.run(command, capture_output=True, text=True, env=environment() | variables, timeout=300)


@pytest.fixture(scope="module")
def spec(sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Spec:
    """A job that trains a backbone for four epochs, and `expected`: what it finds when nothing disturbs it."""
    folder = tmp_path_factory.mktemp("job")
    settings = tiny_settings(sources.language_model, select__epochs=4, align__source="vocabulary")
    prepared = prepare(open_source([sources.planted], SourceOptions()), folder / "prepared", settings.data)
    common = {
        "root": str(folder / "stages"),
        "remote": None,
        "prepared": str(prepared.folder),
        "settings": settings.model_dump(mode="json"),
        "threads": 1,
        "device": "cpu",
        "precision": "fp32",
        "data_dir": None,
        "args": {},
        "inputs": {},
    }
    done = run(common | {"stage": "reference", "key": "r"})
    assert done.returncode == 0, done.stderr
    reference = Store(folder / "stages").find("reference", "r")
    assert reference is not None
    made = common | {
        "stage": "select",
        "reference": str(reference.folder),
        "reference_facts": reference.values,
        "args": {"backbone": "resnet", "architecture": [[3, 1]] * 9, "seed": 0},
    }
    assert run(made | {"key": "expected"}).stdout == "[0, 1, 2, 3]"
    return made


def with_cluster(spec: Spec, **changes: float) -> Spec:
    return spec | {"settings": spec["settings"] | {"cluster": spec["settings"]["cluster"] | changes}}


def check_same(spec: Spec, key: str) -> None:
    store = Store(Path(spec["root"]))
    histories = []
    for name in ("expected", key):
        found = store.find("select", name)
        assert found is not None
        histories.append([(row["epoch"], row["train_loss"], row["score"]) for row in found.values["history"]])
        assert {path.name for path in found.folder.iterdir()} == {"result.json"}
    assert histories[0] == histories[1]
    assert not list(store.root.rglob("*.work"))
    assert not list(store.root.rglob("*.lock"))


def test_a_killed_job_goes_on_after_its_last_epoch(spec: Spec) -> None:
    assert run(spec | {"key": "killed"}, "kill").returncode == -signal.SIGKILL
    assert run(spec | {"key": "killed"}).stdout == "[0, 1, 2, 3]"
    check_same(spec, "killed")


def test_a_job_that_hangs_is_ended_and_goes_on(spec: Spec, tmp_path: Path) -> None:
    hasty = with_cluster(spec, stall_limit_s=3.0) | {"key": "hung"}
    assert run(hasty, **plant(tmp_path, {"stage": "select", "kind": "hang", "times": 1})).returncode == 1
    stalled = read_stall(Store(Path(spec["root"])).work_folder("select", "hung"))
    assert stalled is not None
    assert "sitecustomize.py" in stalled
    assert "in broken, File " in stalled
    assert run(spec | {"key": "hung"}).stdout == "[0, 1, 2, 3]", "the next one may have no limit"
    check_same(spec, "hung")


@pytest.mark.slow
def test_a_job_waits_for_storage_that_refuses_writes(spec: Spec) -> None:
    done = run(spec | {"key": "waited"}, "refuse", 4.0)
    assert done.stdout == "[0, 1, 2, 3]", done.stderr
    check_same(spec, "waited")
    done = run(with_cluster(spec, storage_wait_s=1.0) | {"key": "given-up"}, "refuse", 60.0)
    last = done.stderr.strip().splitlines()[-1]
    assert "stages: cannot be written for 1 s (File too large); make room there and run the same command again" in last
    assert run(spec | {"key": "given-up"}).stdout == "[0, 1, 2, 3]"
    check_same(spec, "given-up")


def test_what_is_no_fault_of_the_storage_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "POLL_S", 0.0)
    calls: list[int] = []

    def fail(error: Exception) -> None:
        calls.append(1)
        raise error

    for error, tries in ((ValueError("x"), 1), (UserError("x"), 1), (OSError(28, "full"), guard.TRIES)):
        calls.clear()
        with pytest.raises(type(error)):
            persist(tmp_path, lambda error=error: fail(error), 1.0)  # type: ignore[misc]
        assert len(calls) == tries
    assert list(tmp_path.iterdir()) == []


def test_the_driver_tells_when_storage_goes_and_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    watch = StorageWatch(tmp_path, said.append, every_s=0.0)
    answers = iter([None, "No space left on device", "No space left on device", None, None])
    monkeypatch.setattr(guard, "why_refused", lambda folder: next(answers))
    for _ in range(5):
        watch.look()
    assert said == [
        f"{tmp_path}: cannot be written (No space left on device); make room there: trials wait, and go on by themselves",
        f"{tmp_path}: can be written again",
    ]


def test_a_probe_leaves_nothing(tmp_path: Path) -> None:
    assert why_refused(tmp_path) is None
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    assert why_refused(tmp_path / "file" / "folder") == os.strerror(20)
