"""Events on their way to MLflow: a real server that goes and comes back, a driver that dies, an end without a server."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow import MlflowClient
from servers import free_port, start_server

from l2g_ray.errors import UserError
from l2g_ray.tracking.record import WAIT_VARIABLE, Recorder
from l2g_ray.tracking.runs import Tracker
from l2g_ray.tracking.store import StoreUnavailable
from l2g_ray.tracking.writer import JOURNAL, TrackingWriter


class Flaky:
    """Stands for a Tracker; it does not answer while `down`, and remembers what arrived."""

    def __init__(self) -> None:
        self.down = False
        self.arrived: list[tuple[Any, ...]] = []
        self.known = {"a"}

    def resume(self, key: str) -> bool:
        self._answer()
        return key in self.known

    def start(self, key: str, **arguments: Any) -> None:
        self._answer()
        self.known.add(key)
        self.arrived.append(("start", key))

    def log_metrics(self, key: str, metrics: dict[str, float], step: int | None, at_ms: int | None = None) -> None:
        self._answer()
        if "bad" in metrics:
            raise UserError("refused: bad")
        self.arrived.append((key, step))

    def log_model(self, key: str, model_folder: str) -> str:
        self._answer()
        return "models:/1"

    def _answer(self) -> None:
        if self.down:
            raise StoreUnavailable("the MLflow store does not answer")


def _until(condition: Any, limit_s: float = 60.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_order_is_kept_and_the_person_is_told_once(tmp_path: Path) -> None:
    tracker, said = Flaky(), list[str]()
    writer = TrackingWriter(tracker, tmp_path / JOURNAL, said.append)  # type: ignore[arg-type]
    writer.put("log_metrics", "a", metrics={"x": 1.0}, step=0)
    assert writer.wait(10) == 0
    assert (tmp_path / JOURNAL).read_text() == ""
    tracker.down = True
    for step in range(1, 20):
        writer.put("log_metrics", "a", metrics={"x": 1.0}, step=step)
    _until(lambda: said)
    assert writer.wait(1.0) == 19
    assert len((tmp_path / JOURNAL).read_text().splitlines()) == 19
    tracker.down = False
    assert writer.wait(30) == 0
    assert tracker.arrived == [("a", step) for step in range(20)]
    assert [("the run continues" in line, "answers again" in line) for line in said] == [(True, False), (False, True)]
    assert writer.close() == 0
    assert not (tmp_path / JOURNAL).exists()


def test_what_a_killed_driver_left_is_sent_first(tmp_path: Path) -> None:
    tracker = Flaky()
    tracker.down = True
    line = '{"method": "log_metrics", "key": "a", "arguments": {"metrics": {"x": 1.0}, "step": 6}}'
    (tmp_path / JOURNAL).write_text(f"{line}\n")  # of an earlier version
    first = TrackingWriter(tracker, tmp_path / JOURNAL, lambda line: None)  # type: ignore[arg-type]
    first.put("log_metrics", "a", metrics={"x": 1.0}, step=7)
    first.put("start", "b", name="b", parent_key="a", params={"hf_token": "hush", "lr": 1})
    first.put("log_metrics", "gone", metrics={"x": 1.0}, step=8)  # of another store
    assert first.close() == 4
    with (tmp_path / JOURNAL).open("a") as journal:
        journal.write('{"method": "log_metr')  # killed here
    assert "hush" not in (tmp_path / JOURNAL).read_text()
    tracker.down = False
    second = TrackingWriter(tracker, tmp_path / JOURNAL, lambda line: None)  # type: ignore[arg-type]
    second.put("log_metrics", "b", metrics={"x": 1.0}, step=0)
    assert second.wait(10) == 0
    assert tracker.arrived == [("a", 6), ("a", 7), ("start", "b"), ("b", 0)]
    assert second.close() == 0


def test_a_refused_event_holds_up_no_other(tmp_path: Path) -> None:
    tracker = Flaky()
    writer = TrackingWriter(tracker, tmp_path / JOURNAL, lambda line: None)  # type: ignore[arg-type]
    writer.put("log_metrics", "a", metrics={"bad": 1.0}, step=0)
    writer.put("log_model", "a", model_folder="m")
    assert writer.model_uri("b") is None
    assert writer.wait(10) == 0
    assert writer.refused == ["refused: bad"]
    assert writer.model_uri("a") == "models:/1"
    with pytest.raises(ValueError, match="queued"):
        writer.put("__init__")
    writer.close()


@pytest.mark.slow
def test_server_down_in_the_middle_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    port, said, steps = free_port(), list[str](), 120
    served = start_server(tmp_path, port=port)
    tracker = Tracker(served.url, "l2g", tmp_path / "home")
    writer = TrackingWriter(tracker, tmp_path / JOURNAL, said.append)
    written = threading.Event()
    longest_put_s = 0.0

    def train() -> None:
        nonlocal longest_put_s
        writer.put("start", "run", name="run")
        for step in range(steps):
            begun = time.monotonic()
            writer.put("log_metrics", "run", metrics={"loss": float(step)}, step=step, at_ms=1_000 + step)
            longest_put_s = max(longest_put_s, time.monotonic() - begun)
            time.sleep(0.1)
        writer.put("end", "run", status="FINISHED")
        written.set()

    trainer = threading.Thread(target=train)
    trainer.start()
    time.sleep(2.0)
    served.stop()
    _until(lambda: said)
    assert written.wait(60)
    trainer.join()
    assert writer.wait(0) > 0
    journal = tmp_path / JOURNAL
    assert json.loads(journal.read_text().splitlines()[-1])["method"] == "end"

    # The driver dies with the server still away; both come back, and a part is sent twice.
    assert writer.close() > 0
    served = start_server(tmp_path, port=port)
    try:
        again = TrackingWriter(Tracker(served.url, "l2g", tmp_path / "home"), journal, said.append)
        assert again.wait(60) == 0
        assert again.close() == 0
        client = MlflowClient(served.url, served.url)
        runs = client.search_runs([tracker.experiment_id])
        assert [run.info.status for run in runs] == ["FINISHED"]
        history = client.get_metric_history(runs[0].info.run_id, "loss")
        assert [(m.step, m.value, m.timestamp) for m in history] == [(s, float(s), 1_000 + s) for s in range(steps)]
    finally:
        served.stop()
    assert len(said) == 1
    assert longest_put_s < 5, "training must not wait"


@pytest.mark.slow
def test_writer_goes_on_when_the_server_is_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    port, said = free_port(), list[str]()
    served = start_server(tmp_path, port=port)
    writer = TrackingWriter(Tracker(served.url, "l2g", tmp_path / "home"), tmp_path / JOURNAL, said.append)
    (tmp_path / "file.txt").write_text("kept")
    writer.put("start", "run", name="run")
    assert writer.wait(30) == 0
    served.stop()
    writer.put("log_metrics", "run", metrics={"loss": 1.0}, step=0)
    writer.put("log_artifacts", "run", path=str(tmp_path / "file.txt"))
    _until(lambda: said)
    served = start_server(tmp_path, port=port)
    try:
        assert writer.wait(90) == 0
        client = MlflowClient(served.url, served.url)
        (run,) = client.search_runs([client.get_experiment_by_name("l2g").experiment_id])
        assert run.data.metrics == {"loss": 1.0}
        assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["file.txt"]
        assert len(said) == 2
        assert writer.refused == []
    finally:
        writer.close()
        served.stop()


def test_a_request_that_failed_is_asked_about_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracker = Tracker(None, "l2g", tmp_path)
    run_id = tracker.start("run", "run")
    send = tracker._client.log_batch

    def lose_the_request(*args: Any, **kwargs: Any) -> None:
        raise OSError("gone")

    def lose_the_answer(*args: Any, **kwargs: Any) -> None:
        send(*args, **kwargs)
        raise OSError("gone")

    for step, broken in enumerate((lose_the_request, lose_the_answer)):
        tracker._client.log_batch = broken
        with pytest.raises(StoreUnavailable):
            tracker.log_metrics("run", {"loss": 1.0}, step=step)
        tracker._client.log_batch = send
        tracker.log_metrics("run", {"loss": 1.0}, step=step)
    assert [m.step for m in tracker._client.get_metric_history(run_id, "loss")] == [0, 1]


def test_a_suite_ends_without_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    request: Any = SimpleNamespace(
        experiment="l2g", out=tmp_path, bench="b", preset="smoke", command="c", tasks=[], name="n"
    )
    environment = {"git_revision": "", "machine": {"processor": "cpu"}, "versions": {}}
    said: list[str] = []

    def open_recorder() -> Recorder:
        return Recorder(request, "key", {}, environment, tmp_path / "suite", said.append)

    monkeypatch.setenv(WAIT_VARIABLE, "soon")
    with pytest.raises(UserError, match="number of seconds"):
        open_recorder()
    monkeypatch.setenv(WAIT_VARIABLE, "1")
    recorder = open_recorder()
    assert recorder.writer.wait(30) == 0

    def fail(*args: Any, **kwargs: Any) -> None:
        raise OSError("the disk is full")

    recorder.writer._tracker._client.set_terminated = fail  # type: ignore[method-assign]
    assert recorder.close("FINISHED") is False
    assert recorder.close("KILLED") is False
    assert "run the same command again" in said[-1]
    assert "disk is full" in said[0]

    recorder = open_recorder()
    assert recorder.close("FINISHED") is True
    assert recorder.writer._tracker.is_finished(recorder.root)
    assert not (tmp_path / "suite" / JOURNAL).exists()
