"""Events of the board as MLflow runs: names, times and scores, in a real store and without Ray."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from toys import make_task, tiny_settings

from l2g_ray.counts import describe_end, name_trial
from l2g_ray.monitor.events import (
    End,
    Epoch,
    Failure,
    Note,
    Recorded,
    TrialName,
    Winner,
    event_from_json,
    event_to_json,
)
from l2g_ray.orchestrate.place import emit_history
from l2g_ray.request import SuiteRequest
from l2g_ray.tracking.record import MAX_CHARS, Recorder, describe_suite
from l2g_ray.tracking.runs import Tracker

ENVIRONMENT: dict[str, Any] = {"git_revision": "", "machine": {"processor": "cpu"}, "versions": {}}
BEGAN = 1_700_000_000.0  # long ago: nothing here may be taken from the clock


@pytest.fixture(autouse=True)
def no_environment_uri(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def open_recorder(home: Path, metric: str = "mcc") -> Recorder:
    task = make_task("regression" if metric == "mse_mean" else "binary", metric=metric)
    request = SuiteRequest("toy", "toy", [task], {}, "smoke", {}, home)
    return Recorder(request, "key", {"planted": tiny_settings("")}, ENVIRONMENT, home / "toy", lambda text: None)


def name(number: int = 0, stage: str = "trial") -> TrialName:
    return TrialName("planted", stage, name_trial(number), f"key-{number}", {"alpha": 1.0})


def rows(*scores: float, best_from: int = 0) -> list[dict[str, Any]]:
    """Epochs of one second with these scores; none is the best before epoch `best_from`."""
    found: list[dict[str, Any]] = []
    for epoch, score in enumerate(scores):
        known = scores[best_from : epoch + 1]
        best = {"best_score": max(known, default=float("-inf")), "best_epoch": -1}
        if known:
            best["best_epoch"] = best_from + known.index(max(known))
        found.append({"epoch": epoch, "train_loss": 1.0, "score": score, "lr": 0.1, "wall_s": 1.0, "cpu_s": 1.0} | best)
    return found


def close(recorder: Recorder) -> dict[str, Run]:
    """End it, and return the runs of its store by name."""
    assert recorder.close("FINISHED")
    assert recorder.writer.refused == []
    client = MlflowClient(recorder.uri, recorder.uri)
    found = client.search_runs([client.get_experiment_by_name("l2g_ray").experiment_id])
    return {run.info.run_name: run for run in found}


def emit_to(recorder: Recorder) -> Any:
    return SimpleNamespace(emit=recorder.record)


def test_a_trial_has_its_own_times_numbers_and_reason(tmp_path: Path) -> None:
    recorder = open_recorder(tmp_path)
    for number, scores in enumerate(((0.1, 0.3, 0.2), (0.05,))):
        for row in rows(*scores):
            at = BEGAN + 10 * number + row["epoch"] + 1
            recorder.record(Epoch(name(number), row, BEGAN + 10 * number, at))
        stopped = describe_end(len(scores), 1.0, 3, [1])
        recorder.record(End(name(number), BEGAN + 10 * number, BEGAN + 10 * number + 3.5, stopped))
    recorder.record(Winner(name(0)))
    runs = close(recorder)
    first, second = runs["trial/00 ★"], runs["trial/01"]
    for run, begun in ((first, BEGAN), (second, BEGAN + 10)):
        assert (run.info.start_time, run.info.end_time) == (1000 * begun, 1000 * (begun + 3.5))
        assert run.info.status == "FINISHED"
    assert first.data.metrics | {"lr": 0.1} == {
        "train_loss": 1.0, "lr": 0.1, "wall_s": 1.0, "cpu_s": 1.0,
        "valid_mcc": 0.2, "best_valid_mcc": 0.3, "best_epoch": 2.0, "epochs": 3.0,
    }  # fmt: skip
    client = MlflowClient(recorder.uri, recorder.uri)
    curve = [(m.step, m.value, m.timestamp) for m in client.get_metric_history(first.info.run_id, "valid_mcc")]
    assert curve == [(epoch, value, 1000 * (BEGAN + epoch)) for epoch, value in ((1, 0.1), (2, 0.3), (3, 0.2))]
    assert [m.value for m in client.get_metric_history(first.info.run_id, "best_epoch")] == [2.0]
    assert first.data.params == {"trial": "00", "alpha": "1.0"}
    assert [run.data.tags.get("l2g_ray.winner") for run in (first, second)] == ["true", None]
    assert [run.data.tags["l2g_ray.stopped"] for run in (first, second)] == ["finished", "ASHA, rung 1 (epoch 1)"]
    assert "best valid_mcc 0.3000 in epoch 2" in first.data.tags["mlflow.note.content"]


def test_lower_is_better_keeps_its_sign_and_no_best_epoch_is_not_plotted(tmp_path: Path) -> None:
    recorder = open_recorder(tmp_path, "mse_mean")
    emit_history(emit_to(recorder), name(0), rows(-3.0, -2.0), BEGAN, BEGAN + 5)
    emit_history(emit_to(recorder), name(1, "warmup"), rows(-3.0, best_from=9), BEGAN)
    emit_history(emit_to(recorder), name(2, "pretrain"), rows(-3.0))
    runs = close(recorder)
    found = runs["trial/00"].data.metrics
    assert (found["valid_mse_mean"], found["best_valid_mse_mean"]) == (2.0, 2.0)
    assert (runs["trial/00"].info.start_time, runs["trial/00"].info.end_time) == (1000 * BEGAN, 1000 * (BEGAN + 5))
    warm = runs["warmup/01"].data.metrics
    assert warm["valid_mse_mean"] == 3.0
    assert not {"best_epoch", "best_valid_mse_mean"} & warm.keys()
    # A result of an earlier version has no times: its run lasts as long as its epochs.
    early = runs["pretrain/02"]
    assert early.info.end_time - early.info.start_time == pytest.approx(1000, abs=2)
    assert early.data.metrics["valid_masked_loss"] == 3.0


def test_a_trial_that_failed_says_how(tmp_path: Path) -> None:
    recorder = open_recorder(tmp_path)
    for again in (True, False):
        recorder.record(Failure(name(), again, "no epoch ended within 3 s", "a traceback", "stall limit"))
    recorder.end_task("planted", "FINISHED")
    runs = close(recorder)
    assert runs["trial/00"].info.status == "FAILED"
    assert runs["trial/00"].data.tags["l2g_ray.stopped"] == "stall limit"
    assert runs["planted"].info.status == "FINISHED"


def test_runs_of_an_earlier_layout_go_on(tmp_path: Path) -> None:
    """Names, metrics and steps were others: what is finished stays, what was killed gets the rest."""
    old = Tracker(None, "l2g_ray", tmp_path)
    old.start("suite-key", "toy")
    old.start("suite-key/planted", "planted", parent_key="suite-key")
    for number, status in enumerate(("FINISHED", "KILLED")):
        key = f"suite-key/planted/trial/key-{number}"
        old.start(key, f"trial/trial-abc{number}", parent_key="suite-key/planted", params={"alpha": 1.0})
        old.log_metrics(key, {"train_loss": 1.0, "score": 0.1, "best_epoch": -1}, step=0, at_ms=1000)
        old.end(key, status)
    old.close_open_runs("KILLED")

    recorder = open_recorder(tmp_path)
    for number in (0, 1):
        times = {"began_at": BEGAN, "ended_at": BEGAN + 2}
        emit_history(emit_to(recorder), name(number), rows(0.1, 0.2), **times)
    recorder.end_task("planted", "FINISHED")
    runs = close(recorder)
    assert runs.keys() == {"toy", "planted", "trial/trial-abc0", "trial/01"}
    assert all(run.info.status == "FINISHED" for run in runs.values())
    assert runs["trial/trial-abc0"].data.metrics == {"train_loss": 1.0, "score": 0.1, "best_epoch": -1.0}
    again = runs["trial/01"]
    assert again.data.params["trial"] == "01"
    assert (again.data.metrics["valid_mcc"], again.data.metrics["best_epoch"]) == (0.2, 2.0)


NAMED = {"task": "planted", "stage": "trial", "key": "key-0", "params": {"alpha": 1.0}, "trial": "00"}
TIMES = {"began_at": BEGAN, "at": BEGAN + 1}
LINES: list[tuple[dict[str, Any], Recorded]] = [
    ({"type": "trial", **NAMED, **TIMES, "row": {"epoch": 0}}, Epoch(name(), {"epoch": 0}, BEGAN, BEGAN + 1)),
    ({"type": "trial", **NAMED, "row": {"epoch": 0}}, Epoch(name(), {"epoch": 0})),
    (
        {"type": "end", **NAMED, "began_at": BEGAN, "ended_at": BEGAN + 2, "stopped": "finished"},
        End(name(), BEGAN, BEGAN + 2, "finished"),
    ),
    ({"type": "winner", **NAMED}, Winner(name())),
    (
        {"type": "failure", **NAMED, "again": True, "stopped": "stall limit", "reason": "stood", "text": "all of it"},
        Failure(name(), True, "stood", "all of it", "stall limit"),
    ),
]


@pytest.mark.parametrize(("line", "event"), LINES)
def test_the_lines_of_a_suites_events(line: dict[str, Any], event: Recorded) -> None:
    """As earlier versions wrote them."""
    assert event_to_json(event) == line
    assert event_from_json(line) == event


def test_a_failure_of_an_earlier_version_is_read() -> None:
    """Of a trial that never began, before there was a limit for one that hangs."""
    line = {"type": "failure", **NAMED, "params": None, "again": False, "reason": "no room", "text": "all of it"}
    assert event_from_json(line) == Failure(replace(name(), params={}), False, "no room", "all of it", "failed")


def test_a_task_begins_with_its_first_event(tmp_path: Path) -> None:
    recorder = open_recorder(tmp_path)
    assert close(recorder).keys() == {"toy"}
    recorder = open_recorder(tmp_path)
    recorder.record(Note("planted", "aligns to words"))
    assert close(recorder).keys() == {"toy", "planted"}


@pytest.mark.parametrize(
    ("epochs", "loss", "reason"),
    [
        (1, 1.0, "ASHA, rung 1 (epoch 1)"),
        (3, 1.0, "ASHA, rung 2 (epoch 3)"),
        (9, 1.0, "finished"),
        (3, float("nan"), "loss not finite"),
    ],
)
def test_why_a_trial_ended(epochs: int, loss: float, reason: str) -> None:
    assert describe_end(epochs, loss, 9, [1, 3]) == reason


def test_a_long_leaderboard_is_cut_between_its_lines() -> None:
    board = "\n".join(["# many", "", "| Task |", "|---|", *(f"| task-{i} |" for i in range(1000))])
    note = describe_suite(board, "l2g-ray suite")
    assert len(note) <= MAX_CHARS
    assert note.startswith("```sh\nl2g-ray suite\n```")
    assert note.splitlines()[-1] == "The whole table is the artifact `leaderboard.md`."
    assert all(line.endswith(" |") for line in note.splitlines() if line.startswith("| "))
    assert describe_suite("| all |", "") == "| all |"
