"""A trial that fails, or is killed, leaves its error and its last lines in its MLflow run."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from mlflow import MlflowClient
from ray import tune
from rich.console import Console
from toys import make_site, make_task, tiny_settings

from l2g_ray.monitor.events import Board, Event, Failure, TrialName
from l2g_ray.monitor.progress import Progress
from l2g_ray.monitor.trial_logs import note_logs, read_last_lines
from l2g_ray.orchestrate.cluster import MAX_FAILURES, Slots
from l2g_ray.orchestrate.place import Place, StageFailed
from l2g_ray.orchestrate.spec import TuneReport
from l2g_ray.orchestrate.tasks import run_jobs
from l2g_ray.orchestrate.tune import _experiment
from l2g_ray.request import SuiteRequest
from l2g_ray.store.results import Job, Store
from l2g_ray.tracking.record import Recorder

ENVIRONMENT = {"git_revision": None, "machine": {"processor": ""}, "versions": {}}


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Event]]:
    """The events of a Tune run with trials that end, raise and die (`ends`, `raises`, `dies`), and of a job `broken`."""
    started = not ray.is_initialized()
    if started:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    scratch = tmp_path_factory.mktemp("scratch")

    def trial(config: dict[str, Any]) -> None:
        label = ["ends", "raises", "dies"][config["index"]]
        name = TrialName("planted", "align", label, f"key-{label}", {"alpha": 1.0})
        note_logs(scratch, tune.get_context().get_trial_id(), name)
        print(f"{label} has begun")
        if label == "raises":
            raise ValueError("no such kernel; store is http://me:hidden@store")
        if label == "dies":
            print("dies has a last word", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        tune.report(TuneReport(name, {"epoch": 0, "best_score": 0.5}, 0.0).to_tune())

    told: list[Event] = []
    board = ray.remote(num_cpus=0)(Board).remote()
    broken = make_site(scratch, threads=0, scratch=scratch)
    place = Place(broken, Store(broken.root), Slots(2, 1, 0.0), board, told.append)
    with _experiment(place, "align") as (run_config, _):
        space = {"index": tune.grid_search([0, 1, 2])}
        tune.Tuner(tune.with_resources(trial, {"cpu": 1}), param_space=space, run_config=run_config).fit()
    with pytest.raises(StageFailed, match="RuntimeError"):
        run_jobs(place, "evaluate", [Job("evaluate", "broken", {}, {}, {})])
    yield told
    if started:
        ray.shutdown()


def test_a_job_outside_of_a_search_is_told_too(events: list[Event]) -> None:
    failures = [event for event in events if isinstance(event, Failure) and event.name.trial == "broken"]
    assert [event.again for event in failures] == [True] * MAX_FAILURES + [False]
    for event in failures:
        assert event.name.stage == "evaluate"
        assert event.reason.startswith("RuntimeError: ")
        assert 'jobs.py", line ' in event.text


@pytest.mark.parametrize(("label", "words"), [("raises", "ValueError: no such kernel"), ("dies", "worker")])
def test_every_attempt_is_told(events: list[Event], label: str, words: str) -> None:
    failures = [event for event in events if isinstance(event, Failure) and event.name.trial == label]
    assert [event.again for event in failures] == [True] * MAX_FAILURES + [False]
    for event in failures:
        assert (event.task, event.name.stage, event.name.key) == ("planted", "align", f"key-{label}")
        assert words in event.reason
        assert f"{label} has begun" in event.text
    # Ray leaves out the word, but not the lines.
    assert ('test_trial_logs.py", line ' in failures[-1].text) == (label == "raises")
    assert ("dies has a last word" in failures[-1].text) == (label == "dies")


def test_the_failures_stand_in_mlflow_and_in_the_status(events: list[Event], tmp_path: Path) -> None:
    task = make_task()
    request = SuiteRequest("toy", "toy", [task], {}, "smoke", {}, tmp_path)
    settings = {"planted": tiny_settings("")}
    recorder = Recorder(request, "key", settings, ENVIRONMENT, tmp_path / "toy", lambda text: None)
    progress = Progress(Console(quiet=True), {"planted": "mcc"}, "toy")
    for event in events:
        progress.update(event)
        recorder.record(event)
    assert progress.snapshot()["planted"].failures == 3 * (MAX_FAILURES + 1)
    recorder.end_task("planted", "FINISHED")
    assert recorder.close("FINISHED")
    client = MlflowClient(recorder.uri, recorder.uri)
    experiment = client.get_experiment_by_name("l2g_ray").experiment_id
    runs = {run.info.run_name: run for run in client.search_runs([experiment])}
    assert {name: runs[f"align/{name}"].info.status for name in ("ends", "raises", "dies")} == {
        "ends": "FINISHED",
        "raises": "FAILED",
        "dies": "FAILED",
    }
    assert runs["align/raises"].data.params["alpha"] == "1.0"
    assert not client.list_artifacts(runs["align/ends"].info.run_id)
    text = Path(client.download_artifacts(runs["align/raises"].info.run_id, "failure.txt", str(tmp_path))).read_text()
    assert "raises has begun" in text
    assert "ValueError: no such kernel" in text
    assert "hidden" not in text


def test_only_the_trials_own_last_lines_are_read(tmp_path: Path) -> None:
    log = tmp_path / "worker.out"
    log.write_text("of the trial before\n:job_id:01000000\n")
    begun = log.stat().st_size
    log.write_text(log.read_text() + "".join(f"line {i}\n" for i in range(1000)))
    said = read_last_lines({"output": (str(log), begun), "errors": (str(log), begun + 10**6)})
    first, second = said.split("--- last lines of its errors\n")
    assert first.splitlines()[0] == "--- last lines of its output"
    assert first.splitlines()[1:] == [f"line {i}" for i in range(800, 1000)]
    assert second.endswith("line 999\n")
