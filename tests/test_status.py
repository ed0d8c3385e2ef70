"""`l2g-ray status` from what the driver wrote down: running, stopped, killed, failed and finished suites."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from commands import Cli
from rich.console import Console

from l2g_ray.errors import UserError
from l2g_ray.monitor.events import Epoch, Failure, StageBegan, StageDone, TrialName
from l2g_ray.monitor.progress import Progress
from l2g_ray.monitor.status import SILENT_S, STATUS_FILE, StatusWriter, find_runs, read_status

COMMAND = "l2g-ray suite --bench toy"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a suite that says that it runs."""
    folder = tmp_path / "toy-fast"
    folder.mkdir()
    say(folder, "running")
    return folder


def say(folder: Path, state: str) -> None:
    (folder / "suite.json").write_text(json.dumps({"name": folder.name, "state": state, "command": COMMAND}))


def change(folder: Path, **facts: Any) -> None:
    path = folder / STATUS_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


def progress_of_two() -> Progress:
    """`a` in its second stage with a trial that failed once, `b` failed, `c` waiting."""
    progress = Progress(Console(quiet=True), dict.fromkeys("abc", "mcc"), "toy")
    progress.update(StageBegan("a", "select", 1))
    progress.update(StageBegan("a", "align", 3))
    progress.update(Epoch(TrialName("a", "align", "x", "k", {}), {"epoch": 4, "best_score": 0.75}))
    progress.update(Failure(TrialName("a", "align", "y", "l", {}), True, "ValueError: no", ""))
    progress.update(StageBegan("b", "select", 1))
    progress.finish("b", "failed: ValueError: no", failed=True)
    return progress


def test_a_running_suite_and_then_its_end(run: Path, cli: Cli) -> None:
    writer = StatusWriter(run, ["a", "b", "c"], {"dashboard": "http://127.0.0.1:8265"})
    assert [task.status.state for task in read_status(run).tasks] == ["waiting"] * 3
    writer.say("trains")
    writer.show(progress_of_two().snapshot())
    writer.tell("a: align x, epoch 5")
    limit = time.monotonic() + 10
    while read_status(run).last_event is None and time.monotonic() < limit:
        time.sleep(0.05)
    found = json.loads(cli("status", run, "--json").out)
    assert (found["state"], found["doing"], found["driver"]["alive"]) == ("running", "trains", True)
    a, b, c = found["tasks"]
    assert (a["stage"], a["trials_begun"], a["trials"], a["epoch"], a["best"]) == ("align", 1, 3, 5, 0.75)
    assert a["failures"] == 1
    assert (b["state"], b["result"]) == ("failed", "failed: ValueError: no")
    assert c == {"task": "c", "state": "waiting"}
    said = cli("status", run).out
    for part in ("toy-fast: running", "1 of 3", "0.750", "a: align x, epoch 5", "http://127.0.0.1:8265", "alive"):
        assert part in said

    writer.close("failed")
    say(run, "failed")
    found = read_status(run)
    assert (found.state, found.driver.alive) == ("failed", False)
    assert found.next == f"mend what failed (b), then run `{COMMAND}`: it repeats only that"
    assert not [path for path in run.iterdir() if path.name.startswith(".")]


def test_the_form_of_the_file_and_of_what_is_printed(run: Path) -> None:
    writer = StatusWriter(run, ["a", "b", "c"], {})
    progress = progress_of_two()
    progress.update(StageBegan("a", "warmup", 2))  # no score yet
    writer.show(progress.snapshot())
    writer.tell("a: warmup begins")
    writer.close("failed")
    found = json.loads((run / STATUS_FILE).read_text())
    facts = {"schema", "host", "pid", "process_started", "links", "started", "doing", "tasks", "last_event", "at"}
    assert found.keys() == facts
    assert found["schema"] == 1
    assert found["last_event"].keys() == {"at", "text"}
    a, b, c = found["tasks"].values()
    begun = {"begun": a["begun"], "failures": 1}
    seen = {"state": "running", "stage": "warmup", "trials": 2, "trials_begun": 0, "epoch": 0, "best": None}
    assert a == seen | begun
    assert b.keys() == {"state", "stage", "begun", "failures", "result", "ended"}
    assert c == {"state": "waiting"}
    shown = read_status(run).to_json()
    keys = "run name state doing driver elapsed_s tasks last_event links command next"
    assert list(shown) == keys.split()
    assert shown["driver"].keys() == {"alive", "host", "pid", "silent_s"}
    assert shown["last_event"].keys() == {"text", "ago_s"}
    state = {"task": "a", "state": "interrupted", "failures": 1}
    assert shown["tasks"][0] == seen | state | {"elapsed_s": shown["tasks"][0]["elapsed_s"]}
    change(run, news=1, tasks={"a": {"state": "running", "begun": 1.0, "news": 1}})  # of a later version
    assert read_status(run).tasks[0].status.begun == 1.0
    least = {name: found[name] for name in ("host", "pid", "started", "at")}
    (run / STATUS_FILE).write_text(json.dumps(least))  # of a version that knew less
    assert (read_status(run).tasks, read_status(run).driver.host) == ([], found["host"])


def test_a_killed_driver_is_not_taken_for_a_living_one(run: Path) -> None:
    """The number of a process alone says nothing: it is given out again."""
    script = (
        "import sys, os; from pathlib import Path; from l2g_ray.monitor.status import StatusWriter, TaskStatus\n"
        "writer = StatusWriter(Path(sys.argv[1]), ['a'], {}); writer.show({'a': TaskStatus('running', begun=0.0)})\n"
        "writer.say('trains'); writer._write(); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script, str(run)], check=False, timeout=60)
    found = read_status(run)
    assert (found.state, found.driver.alive) == ("killed", False)
    assert found.tasks[0].status.state == "interrupted"
    assert found.next.startswith(f"run `{COMMAND}`: finished stages are kept")
    change(run, pid=os.getpid())
    assert read_status(run).state == "killed"


def test_a_driver_elsewhere_is_known_by_its_last_beat(run: Path) -> None:
    StatusWriter(run, ["a"], {}).close("trains")
    change(run, host=f"not-{socket.gethostname()}", at=time.time() - SILENT_S / 2)
    assert read_status(run).state == "running"
    change(run, at=time.time() - 2 * SILENT_S)
    assert read_status(run).state == "killed"


@pytest.mark.parametrize(
    ("state", "advice"), [("finished", "report.html"), ("stopped", COMMAND), ("unsent", "sends the rest")]
)
def test_ends_say_what_to_do_next(run: Path, state: str, advice: str) -> None:
    StatusWriter(run, ["a"], {}).close(state)
    say(run, state)
    found = read_status(run)
    assert found.state == state
    assert advice in found.next


def test_a_run_of_an_older_version_has_no_status_file(run: Path) -> None:
    say(run, "finished")
    assert read_status(run).state == "finished"


def test_a_folder_of_runs_shows_all_of_them(run: Path, cli: Cli) -> None:
    StatusWriter(run, ["a"], {}).close("stopped")
    other = run.with_name("other")
    other.mkdir()
    say(other, "finished")
    assert find_runs(run.parent) == [run, other]
    found = json.loads(cli("status", run.parent, "--json").out)
    assert [(one["name"], one["state"]) for one in found] == [("toy-fast", "killed"), ("other", "finished")]


def test_a_folder_without_a_run_is_one_sentence(tmp_path: Path, cli: Cli) -> None:
    with pytest.raises(UserError, match="no suite has started here"):
        find_runs(tmp_path)
    assert cli("status", tmp_path / "nowhere").code == 2


def test_a_folder_that_refuses_writes_does_not_end_the_suite(run: Path) -> None:
    writer = StatusWriter(run, ["a"], {})
    with writer._writing:  # between the lines its thread would make the folder again
        (run / STATUS_FILE).unlink()
        run.rename(run.with_name("away"))
        run.write_text("in the way")
    writer.tell("lost")
    writer._write()
    with writer._writing:
        run.unlink()
        run.with_name("away").rename(run)
    writer.tell("back")
    writer.close("trains")
    event = read_status(run).last_event
    assert event is not None
    assert event.text == "back"


def test_status_imports_neither_torch_nor_ray_nor_mlflow(run: Path) -> None:
    script = (
        "import sys; sys.argv = ['l2g-ray', 'status', sys.argv[1]]; from l2g_ray.cli.main import main\n"
        "main.main(standalone_mode=False); print({'torch', 'ray', 'mlflow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(run)], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip().endswith("set()"), done.stdout + done.stderr


def test_a_stopped_suite_that_was_moved_goes_on_where_it_is(run: Path, tmp_path: Path) -> None:
    """Its command names the old --out; the last one of two counts."""
    meta = {"name": "toy", "state": "stopped", "command": COMMAND, "folder": str(run)}
    (run / "suite.json").write_text(json.dumps(meta))
    assert read_status(run).command == COMMAND
    (tmp_path / "a b").mkdir()
    there = run.rename(tmp_path / "a b" / run.name)
    found = read_status(there)
    assert f"run `{COMMAND} --out '{tmp_path}/a b'`" in found.next
    assert found.links == {"mlflow": f"l2g-ray ui '{there}'"}


def test_a_stage_beside_others_has_the_table_only_where_none_of_them_runs() -> None:
    said = io.StringIO()
    progress = Progress(Console(file=said, width=100), {"a": "mcc"}, "toy")

    def stage(name: str, state: str = "running") -> None:
        beside = name in ("arms", "embedder")
        progress.update(StageDone("a", name, False) if state == "done" else StageBegan("a", name, 2, beside))

    def epoch(name: str, key: str, score: float) -> None:
        progress.update(Epoch(TrialName("a", name, key, key, {}), {"epoch": 0, "best_score": score}))

    stage("warmup")
    stage("arms")
    epoch("baseline", "cnn", 0.9)  # the score of one fold is none of the warm-up's
    epoch("warmup", "w", 0.5)
    assert (progress.views["a"].stage, progress.views["a"].best_value) == ("warmup", 0.5)
    stage("warmup", "done")
    assert "warmup done, best validation mcc 0.500" in said.getvalue()
    stage("embedder")  # nothing else runs
    epoch("embedder_only", "e", 0.7)
    assert (progress.views["a"].stage, len(progress.views["a"].trials)) == ("embedder", 1)
    assert "a: embedder only begins, 2 trials\n" in said.getvalue()
    stage("align")
    assert progress.views["a"].stage == "align"
    stage("arms", "done")
    assert "a: arms done\n" in said.getvalue(), "no score of single folds"
