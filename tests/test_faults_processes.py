"""Processes that are killed, raise or hang in the middle of a real run: it ends where an undisturbed one ends."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest
from faults import RUN, STAGES, check_same, check_tidy, command, copy_stages, plant
from runs import Driver, Sources, execute, read_board, without_times

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def test_a_worker_killed_in_each_stage(undisturbed: Path, sources: Sources, tmp_path: Path) -> None:
    out = tmp_path / "out"
    driver = Driver(command(sources, out))
    left = list(STAGES)
    while left:
        # The first that computes, since some stages run in parallel; the others continue.
        stage, worker = driver.wait_for_any(left, out)
        os.kill(worker, signal.SIGKILL)
        left.remove(stage)
        if stage == "search":
            (pipeline,) = driver.find("ray::run_task")
            os.kill(pipeline, signal.SIGKILL)
    said = driver.finish()
    check_same(out, undisturbed)
    assert "composition: lost its process or machine and restarts; finished stages are reused" in said
    for name in ("select (resnet|unet)", "align alpha-1 seed-0", "evaluate test"):
        assert re.search(rf"composition: {name} failed: .*; restarts from its last epoch", said)
    assert "(raylet)" not in said, "Ray's own words are for -v"


@pytest.mark.parametrize(
    "stages", [("reference", "select"), ("warmup", "align"), ("refit", "evaluate")], ids=lambda s: "-".join(s)
)
def test_the_driver_killed_in_each_stage(
    undisturbed: Path, sources: Sources, tmp_path: Path, stages: tuple[str, ...]
) -> None:
    """`test_resume` kills in search, embedder_only, trial and refit."""
    out = copy_stages(undisturbed, tmp_path / "out", *STAGES[STAGES.index(stages[0]) :], "finetune")
    for stage in stages:
        driver = Driver(command(sources, out))
        driver.wait_for_worker(stage, out)
        driver.end(signal.SIGKILL)
        assert not (out / RUN / "leaderboard.json").exists()
    assert list(out.glob("tune/*")), "SIGKILL leaves no time to tidy up"
    said = execute(command(sources, out))
    assert "is there already" in said
    check_same(out, undisturbed)


def test_trials_that_raise_or_hang_now_and_then(undisturbed: Path, sources: Sources, tmp_path: Path) -> None:
    out = copy_stages(undisturbed, tmp_path / "out", "align", "trial", "finetune", "refit", "evaluate")
    faults = plant(
        tmp_path,
        {"stage": "align", "kind": "hang", "times": 1},
        {"stage": "trial", "kind": "raise", "times": 2},
        {"stage": "evaluate", "kind": "raise", "times": 1},
    )
    said = Driver(command(sources, out, cluster__stall_limit_s=20), **faults).finish()
    check_same(out, undisturbed)
    limit = "failed: no epoch ended within 20 s (cluster.stall_limit_s), it stood in File "
    assert f"composition: align alpha-1 seed-0 {limit}" in said
    assert "in broken, File " in said
    assert said.count("failed: RuntimeError: planted fault; restarts from its last epoch") == 3
    assert "given up" not in said


def test_a_trial_that_always_fails_is_a_trial_that_lost(undisturbed: Path, sources: Sources, tmp_path: Path) -> None:
    out = copy_stages(undisturbed, tmp_path / "out", "trial", "finetune", "refit", "evaluate")
    faults = plant(tmp_path, {"stage": "trial", "kind": "raise"})
    said = Driver(command(sources, out), **faults).finish()
    assert said.count("failed: RuntimeError: planted fault; restarts") == 2
    assert said.count("failed: RuntimeError: planted fault; given up") == 1
    trials = json.loads((out / RUN / "composition" / "stages.json").read_text())["trials"]
    assert [trial["trial"] is None for trial in trials] == [True, False]
    check_tidy(out)


def test_a_stage_that_cannot_end_fails_its_task_and_says_how_to_go_on(
    undisturbed: Path, sources: Sources, tmp_path: Path
) -> None:
    out = copy_stages(undisturbed, tmp_path / "out", "align", "finetune", "refit", "evaluate")
    faults = plant(tmp_path, {"stage": "align", "kind": "hang"})
    said = Driver(command(sources, out, cluster__stall_limit_s=4), **faults).finish(expected=1)
    last = said.splitlines()[-1]
    assert last == "1 task failed: fix the errors above and run the same command again; finished stages are kept"
    assert (
        "composition failed: composition, stage align: alpha-1 seed-0 failed: no epoch ended within 4 s (cluster.stall_limit_s)"
        in said
    )
    assert "; tried 3 times" in said
    assert "Traceback" not in said
    assert json.loads((out / RUN / "suite.json").read_text())["state"] == "failed"
    # Another limit is another setting, but none that a result depends on.
    execute(command(sources, out))
    check_same(out, undisturbed)


def test_two_submits_of_one_suite(undisturbed: Path, sources: Sources, tmp_path: Path) -> None:
    """The same name: one runs, the other waits and is refused. Another name: both run, and share what they can."""
    out = tmp_path / "out"
    first = Driver(command(sources, out))
    first.wait_for("stages/reference/*.work", out)
    second = Driver(command(sources, out))
    third = Driver([*command(sources, out), "--name", "third"])
    refused = second.finish(expected=2)
    assert f"{out / RUN}: runs already (process {first.process.pid} on " in refused
    assert refused.splitlines()[-1].endswith("wait until it has ended, or choose another --name or --out")
    first.finish()
    third.finish()
    check_same(out, undisturbed)
    rows = [without_times(row) for row in read_board(out / "third")["tasks"]]
    assert rows == [without_times(row) for row in read_board(undisturbed / RUN)["tasks"]]
    assert "Nothing to do" in execute(command(sources, out))
