"""A run that is killed in the middle of its stages and started again ends where an uninterrupted one ends."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from runs import Driver, Sources, execute, read_board, stage_folders, without_times
from test_suite import Tree, check_task

from l2g_ray.monitor.status import read_status

# When a stage has begun to compute, and how the run is ended then; SIGKILL leaves it no time for anything.
INTERRUPTIONS = [
    ("search", signal.SIGKILL),
    ("embedder_only", signal.SIGTERM),
    ("trial", signal.SIGKILL),
    ("refit", signal.SIGKILL),
]
A_MOMENT_S = 0.2
INTERRUPTED = 130


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_run_killed_in_several_stages_ends_like_one_that_was_not(
    suite_of_three: Path, sources: Sources, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run = out / "user-composition-smoke"
    command = sources.command("composition", out)
    kept: dict[str, int] = {}
    for stage, number in INTERRUPTIONS:
        driver = Driver(command)
        driver.wait_for(f"stages/{stage}/*.work", out)
        time.sleep(A_MOMENT_S)
        code = driver.end(number)
        said = driver.read()
        assert "composition: select " in said
        if number == signal.SIGKILL:
            assert code == -signal.SIGKILL
        else:
            assert code == INTERRUPTED
            assert "interrupted (SIGTERM); its MLflow runs are marked KILLED, finished stages are kept" in said
            assert "the same command resumes from here: l2g-ray run " in said.splitlines()[-1]
            assert Tree(run).suite.info.status == "KILLED"
        assert not (run / "leaderboard.json").exists()
        state = "killed" if number == signal.SIGKILL else "stopped"
        assert read_status(run).state == state
        found = stage_folders(out)
        assert found.items() >= kept.items(), "a finished stage was recomputed"
        assert len(found) > len(kept)
        kept = found

    said = execute(command)
    for stage in ("search", "embedder only", "align", "finetune"):
        assert f"composition: {stage} is there already" in said
    assert stage_folders(out).items() >= kept.items()
    (row,) = read_board(run)["tasks"]
    (uninterrupted,) = (r for r in read_board(suite_of_three / "three")["tasks"] if r["task"] == "composition")
    assert without_times(row) == without_times(uninterrupted)

    tree = Tree(run)
    assert tree.suite.info.status == "FINISHED"
    check_task(tree, "composition", row)
    assert not list(out.glob("stages/*/*.work"))

    assert "Nothing to do" in execute(command)
