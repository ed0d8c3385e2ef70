"""Jobs as Ray tasks: processes that stay warm and keep nothing, what is tried again, and the events on the board."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from pyarrow.csv import write_csv
from toys import make_site, plant

from l2g_ray.counts import default_architecture
from l2g_ray.data.prepare import prepare
from l2g_ray.data.raw import SourceOptions
from l2g_ray.data.sources import open_source
from l2g_ray.errors import UserError
from l2g_ray.models.precision_choice import recall_cpu_precision
from l2g_ray.monitor.events import Board
from l2g_ray.orchestrate.cluster import MAX_FAILURES, Slots, connect
from l2g_ray.orchestrate.place import find_cause
from l2g_ray.orchestrate.precision import keep_cpu_precision
from l2g_ray.orchestrate.spec import JobSpec, Site
from l2g_ray.orchestrate.tasks import run_jobs_warm
from l2g_ray.presets import resolve
from l2g_ray.store.results import Job, Store

ONE = Slots(1, 1, 0.0)
KEPT_MB = 40  # what allocators may hold back; a job of this size that leaked would show after a few


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, tiny_lm: Path) -> Iterator[Site]:
    """What the jobs of a tiny task share, its reference included, and a Ray with one core."""
    folder = tmp_path_factory.mktemp("warm")
    for seed, (split, rows) in enumerate((("train", 400), ("test", 40))):
        write_csv(plant(rows, 60, seed), folder / f"{split}.csv")
    changes = {"model.language_model": str(tiny_lm), "align.source": "vocabulary", "embedder_only.epochs": 12}
    settings = resolve("smoke", None, changes)
    prepare(open_source([folder], SourceOptions()), folder / "prepared", settings.data)
    connect(num_cpus=1)
    site = make_site(folder, settings)
    making = Job("reference", "test", {}, {}, {})
    assert run_jobs_warm([JobSpec(site, making)], "process", ONE, {}, None) == [None]
    made = site.open_store().find("reference", making.key)
    assert made is not None
    yield replace(site, reference=made)
    ray.shutdown()


def train_job(number: int, site: Site) -> JobSpec:
    """The spec of a short training; `number` makes equal specs different."""
    args = {"backbone": "resnet", "architecture": default_architecture("resnet"), "seed": 0}
    return JobSpec(site, Job("embedder_only", "test", args, {}, {"number": number}))


def read_history(spec: JobSpec) -> list[tuple[int, float, float]]:
    found = spec.site.open_store().find(spec.job.stage, spec.job.key)
    assert found is not None
    return [(row["epoch"], row["train_loss"], row["score"]) for row in found.values["history"]]


def list_processes(title: str) -> list[int]:
    """Processes of this Ray, and of no other on the machine, that have that title and have loaded torch."""
    session = Path(ray._private.worker.global_worker.node.get_session_dir_path()).name
    found = []
    for path in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if path.name.isdigit() and (path / "cmdline").read_text().startswith(title):
                streams = os.readlink(path / "fd" / "2")
                if session in streams and "libtorch_cpu" in (path / "maps").read_text():
                    found.append(int(path.name))
    return found


def count_mb(pid: int) -> float:
    """Memory of a process that it shares with no other."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private")) / 1024


def test_one_process_runs_all_jobs_and_keeps_nothing(site: Site) -> None:
    specs = [train_job(number, site) for number in range(12)]
    board = ray.remote(num_cpus=0)(Board).remote()
    assert run_jobs_warm(specs[:4], "process", ONE, {}, board) == [None] * 4
    (pid,) = list_processes("ray::IDLE")
    before = count_mb(pid)
    assert run_jobs_warm(specs[4:], "process", ONE, {}, board) == [None] * 8
    assert list_processes("ray::IDLE") == [pid]
    assert count_mb(pid) < before + KEPT_MB
    events = ray.get(board.drain.remote())
    told = [(event.name.key, event.row["epoch"]) for event in events]
    n_epochs = len(read_history(specs[0]))
    assert n_epochs > 1
    assert told == [(spec.job.key, epoch) for spec in specs for epoch in range(n_epochs)]


def test_a_process_that_is_killed_is_replaced_and_goes_on(site: Site) -> None:
    """The same numbers as those of a job that was not, each epoch once on the board, and the failure told."""
    whole, broken = train_job(100, site), train_job(101, site)
    board = ray.remote(num_cpus=0)(Board).remote()
    store = site.open_store()
    failures: list[tuple[int, Exception, bool]] = []

    def kill() -> None:
        state = store.open_work("embedder_only", broken.job.key) / "state.pt"
        while not state.exists():
            time.sleep(0.005)
        (pid,) = list_processes("ray::run_warm")
        os.kill(pid, signal.SIGKILL)

    assert run_jobs_warm([whole], "process", ONE, {}, board) == [None]
    killer = threading.Thread(target=kill)
    killer.start()
    errors = run_jobs_warm([broken], "process", ONE, {}, board, lambda *told: failures.append(told))
    killer.join()
    assert errors == [None]
    ((index, error, again),) = failures
    assert (index, type(error), again) == (0, ray.exceptions.WorkerCrashedError, True)
    assert read_history(whole) == read_history(broken)
    told = [event.row["epoch"] for event in ray.get(board.drain.remote()) if event.name.key == broken.job.key]
    assert told == list(range(len(read_history(whole))))


def test_what_is_tried_again(site: Site) -> None:
    """A fault of the program or the machine is retried, a mistake of the user is not; other jobs continue."""
    language_model = site.settings.model.language_model
    changes = {"align.source": "text", "align.source_path": "nowhere.txt", "model.language_model": language_model}
    mistaken = resolve("smoke", None, changes)
    specs = [
        JobSpec(replace(site, settings=mistaken), Job("reference", "", {}, {}, {"number": 1})),
        JobSpec(site, Job("embedder_only", "", {"seed": 0}, {}, {"number": 2})),  # without a backbone
        train_job(0, site),
    ]
    board = ray.remote(num_cpus=0)(Board).remote()
    failures: list[tuple[int, type, bool]] = []
    errors = run_jobs_warm(
        specs,
        "process",
        ONE,
        {},
        board,
        lambda index, error, again: failures.append((index, type(find_cause(error)), again)),
    )
    assert [error and type(find_cause(error)) for error in errors] == [UserError, KeyError, None]
    assert "nowhere.txt: no such text corpus" in str(find_cause(errors[0]))
    retried = [(1, KeyError, attempt < MAX_FAILURES) for attempt in range(MAX_FAILURES + 1)]
    assert failures == [(0, UserError, False), *retried]


@pytest.mark.usefixtures("site")
def test_a_worker_measures_the_precision_once(tmp_path: Path) -> None:
    store = Store(tmp_path)
    chosen = keep_cpu_precision(store, 1)
    assert chosen == recall_cpu_precision(1), "the worker's machine, this one, keeps it"
    assert [path.name for path in (tmp_path / "precision").glob("*/*")] == ["result.json"]
