"""A job in a separate process, without Ray: it hangs, it is killed, its storage refuses writes."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from faults import plant
from runs import Sources, environment
from toys import make_site, tiny_settings

from l2g_ray.data.prepare import prepare
from l2g_ray.data.raw import SourceOptions
from l2g_ray.data.sources import open_source
from l2g_ray.errors import UserError
from l2g_ray.orchestrate.spec import JobSpec
from l2g_ray.store import guard
from l2g_ray.store.guard import StorageWatch, persist, read_stall, why_refused
from l2g_ray.store.results import Job

# At the end of the second epoch: nothing, or `refuse` all writes for `seconds`, or `kill`.
JOB = """
import json, os, pickle, resource, signal, sys, threading
from l2g_ray.orchestrate.jobs import run_job
spec, then, seconds = pickle.loads(bytes.fromhex(sys.argv[1])), sys.argv[2], float(sys.argv[3])
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


def run(spec: JobSpec, then: str = "", seconds: float = 0.0, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", JOB, pickle.dumps(spec).hex(), then, str(seconds)]
    return subprocess.run(command, capture_output=True, text=True, env=environment() | variables, timeout=300)


@pytest.fixture(scope="module")
def spec(sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> JobSpec:
    """A job that trains a backbone for four epochs, and the result named `expected`: what it finds when nothing disturbs it."""
    folder = tmp_path_factory.mktemp("job")
    settings = tiny_settings(sources.language_model, select__epochs=4, align__source="vocabulary")
    prepare(open_source([sources.planted], SourceOptions()), folder / "prepared", settings.data)
    site = make_site(folder, settings)
    making = Job("reference", "", {}, {}, {})
    done = run(JobSpec(site, making))
    assert done.returncode == 0, done.stderr
    reference = site.open_store().find("reference", making.key)
    assert reference is not None
    args = {"backbone": "resnet", "architecture": [[3, 1]] * 9, "seed": 0}
    made = JobSpec(replace(site, reference=reference), Job("select", "", args, {}, {}))
    assert run(named(made, "expected")).stdout == "[0, 1, 2, 3]"
    return made


def named(spec: JobSpec, which: str) -> JobSpec:
    """Return the same job under another key."""
    return replace(spec, job=replace(spec.job, parts={"which": which}))


def with_cluster(spec: JobSpec, **changes: float) -> JobSpec:
    settings = spec.site.settings
    cluster = settings.cluster.model_copy(update=changes)
    return replace(spec, site=replace(spec.site, settings=settings.model_copy(update={"cluster": cluster})))


def check_same(spec: JobSpec, which: str) -> None:
    store = spec.site.open_store()
    histories = []
    for one in ("expected", which):
        found = store.find("select", named(spec, one).job.key)
        assert found is not None
        histories.append([(row["epoch"], row["train_loss"], row["score"]) for row in found.values["history"]])
        assert {path.name for path in found.folder.iterdir()} == {"result.json"}
    assert histories[0] == histories[1]
    assert not list(store.root.rglob("*.work"))
    assert not list(store.root.rglob("*.lock"))


def test_a_killed_job_goes_on_after_its_last_epoch(spec: JobSpec) -> None:
    assert run(named(spec, "killed"), "kill").returncode == -signal.SIGKILL
    assert run(named(spec, "killed")).stdout == "[0, 1, 2, 3]"
    check_same(spec, "killed")


def test_a_job_that_hangs_is_ended_and_goes_on(spec: JobSpec, tmp_path: Path) -> None:
    hasty = named(with_cluster(spec, stall_limit_s=3.0), "hung")
    assert run(hasty, **plant(tmp_path, {"stage": "select", "kind": "hang", "times": 1})).returncode == 1
    stalled = read_stall(spec.site.open_store().work_folder("select", hasty.job.key))
    assert stalled is not None
    assert "sitecustomize.py" in stalled
    assert "in broken, File " in stalled
    assert run(named(spec, "hung")).stdout == "[0, 1, 2, 3]", "the next one may have no limit"
    check_same(spec, "hung")


@pytest.mark.slow
def test_a_job_waits_for_storage_that_refuses_writes(spec: JobSpec) -> None:
    done = run(named(spec, "waited"), "refuse", 4.0)
    assert done.stdout == "[0, 1, 2, 3]", done.stderr
    check_same(spec, "waited")
    done = run(named(with_cluster(spec, storage_wait_s=1.0), "given-up"), "refuse", 60.0)
    last = done.stderr.strip().splitlines()[-1]
    assert "stages: cannot be written for 1 s (File too large); make room there and run the same command again" in last
    assert run(named(spec, "given-up")).stdout == "[0, 1, 2, 3]"
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
        f"{tmp_path}: cannot be written (No space left on device); make room there: trials wait, and resume when it can be written",
        f"{tmp_path}: can be written again",
    ]


def test_a_probe_leaves_nothing(tmp_path: Path) -> None:
    assert why_refused(tmp_path) is None
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    assert why_refused(tmp_path / "file" / "folder") == os.strerror(20)
