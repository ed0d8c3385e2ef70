"""Storage that refuses writes for a while, a disk that fills up, a run in an object store whose machine is lost."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import RUN, check_same, check_tidy, command, copy_stages
from runs import Driver, Sources, execute, read_board, without_times
from servers import s3_bucket

from l2g_ray.storage import Location

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
REFUSED_S = 12.0


def test_storage_that_refuses_writes_for_a_while(undisturbed: Path, sources: Sources, tmp_path: Path) -> None:
    """The kernel refuses whatever driver and trial write to a file, as a file server that has gone read-only does."""
    out = copy_stages(undisturbed, tmp_path / "out", "align", "trial", "finetune", "refit", "evaluate")
    driver = Driver(command(sources, out))
    worker = driver.wait_for_worker("align", out)
    before = resource.prlimit(worker, resource.RLIMIT_FSIZE)
    for pid in (worker, driver.process.pid):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, before[1]))
    time.sleep(REFUSED_S)
    assert not list(out.glob("stages/trial/*")), "nothing can be finished meanwhile"
    for pid in (worker, driver.process.pid):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
    said = driver.finish()
    assert (
        f"{out}: cannot be written (File too large); make room there: trials wait, and resume when it can be written"
        in said
    )
    assert f"{out}: can be written again" in said
    check_same(out, undisturbed)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)], capture_output=True)
    if done.returncode:
        pytest.skip(f"needs the right to mount a small disk: {done.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(disk: Path) -> Path:
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"0" * 4096)
        except OSError:
            return filler


def test_a_disk_that_fills_up(undisturbed: Path, sources: Sources, small_disk: Path) -> None:
    out = copy_stages(undisturbed, small_disk / "out", "align", "trial", "finetune", "refit", "evaluate")
    # Longer than `storage_wait_s`: the run ends, and says how to resume.
    driver = Driver(command(sources, out, cluster__storage_wait_s=4))
    driver.wait_for_worker("align", out)
    filler = fill(small_disk)
    said = driver.finish(expected=2)
    assert "cannot be written (No space left on device)" in said
    last = said.splitlines()[-1]
    assert last.startswith(f"error: {out}"), said[-3000:]
    assert last.endswith("make room there and run the same command again: finished stages are kept")
    assert "Traceback" not in said
    # Small files may still find room.
    assert not (out / RUN / "leaderboard.json").exists() or read_board(out / RUN)["tasks"] == []
    # Shorter than that: the run waits, and resumes.
    filler.unlink()
    driver = Driver(command(sources, out))
    driver.wait_for_worker("align", out)
    filler = fill(small_disk)
    time.sleep(REFUSED_S)
    filler.unlink()
    said = driver.finish()
    assert f"{out}: can be written again" in said
    check_same(out, undisturbed)


def test_a_run_in_an_object_store(undisturbed: Path, sources: Sources, tmp_path: Path) -> None:
    """Its driver and machine are lost, the store fails for a while, another machine resumes and gets the same results."""
    expected = [without_times(row) for row in read_board(undisturbed / RUN)["tasks"]]
    with s3_bucket("runs") as bucket:
        out = f"{bucket.uri}/all"
        run = [out if argument == str(tmp_path) else argument for argument in command(sources, tmp_path)]
        machines = [tmp_path / name for name in ("first", "second", "third")]
        driver = Driver(run, L2G_RAY_WORK_DIR=str(machines[0]), **bucket.environment)
        driver.wait_for_worker("align", machines[0], "*/stages")
        driver.end(signal.SIGKILL)
        shutil.rmtree(machines[0])
        # Else the next one would wait for a minute whether it is alive: `test_shared_store` has that.
        (Location(out) / f".{RUN}.lease").delete()

        driver = Driver(run, L2G_RAY_WORK_DIR=str(machines[1]), **bucket.environment)
        driver.wait_for_worker("align", machines[1], "*/stages")
        bucket.stop()
        time.sleep(REFUSED_S)
        bucket.start()
        said = driver.finish()
        for stage in ("select", "search"):
            assert f"composition: {stage} is there already" in said
        assert f"stored in    {out}/{RUN}" in said
        (work,) = machines[1].iterdir()
        assert [without_times(row) for row in read_board(work / RUN)["tasks"]] == expected
        check_tidy(work)

        # A third machine finds it finished, and predicts from it.
        said = execute(run, L2G_RAY_WORK_DIR=str(machines[2]), **bucket.environment)
        assert "Nothing to do" in said
        (work,) = machines[2].iterdir()
        assert json.loads((work / RUN / "suite.json").read_text())["state"] == "finished"
        assert (work / RUN / "report.html").exists()
        table = tmp_path / "out.csv"
        given = str(sources.composition / "test.csv")
        predict = [*run[:3], "predict", f"{out}/{RUN}", "--input", given, "--output", str(table)]
        assert "40 predictions" in execute(predict, **bucket.environment)
        assert table.read_text().count("\n") == 41
