"""Real suites in real processes: the folders they read, the command lines, and what is left of them when killed.

Run as a program it is the suite that `suite_of_three` shares: two tasks that train side by side and one that fails.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Small enough for seconds, and yet each choice is a real one: two alphas, three trials of which ASHA may stop two.
SETTINGS: dict[str, Any] = {
    "select.backbones": ["resnet"],
    "select.batch_size": 16,
    "search.batch_size": 16,
    "align.batch_size": 16,
    "align.max_samples": 31,
    "embedder_only.batch_size": 16,
    "finetune.batch_size": [16],
    "finetune.trials": 3,
    "finetune.parallel_trials": 1,
    "folds": 0,
    "arms": ["embedder_only", "l2g"],
}
# Settings of each task: two folds, two seeds and two alphas without a search; one split, a search, one seed, one alpha and
# streamed rows, so that its refit is a Ray Train run; a missing corpus.
OWN_SETTINGS: dict[str, dict[str, Any]] = {
    "planted": {
        "seeds": 2,
        "folds": 2,
        "arms": ["gapped_kmer", "cnn", "embedder_only", "l2g"],
        "align.alphas": [0.0, 1.0],
        "search.enabled": False,
        "align.source": "vocabulary",
    },
    "composition": {
        "seeds": 1,
        "align.alphas": [1.0],
        "search.enabled": True,
        "align.source": "vocabulary",
        "data.residence": "stream",
    },
    "lost": {"align.source": "text", "align.source_path": "nowhere.txt"},
}
DEADLINE_S = 580


@dataclass(frozen=True)
class Sources:
    """Folders of a user's own: a planted motif, two numbers to predict; and a language model."""

    planted: Path
    composition: Path
    language_model: Path

    def command(self, task: str, out: Path, **changes: Any) -> list[str]:
        """`l2g-ray run FOLDER` with the settings that the shared suite gives this task; `__` in `changes` is a dot."""
        own = OWN_SETTINGS[task] | {key.replace("__", "."): value for key, value in changes.items()}
        return run_command(getattr(self, task), out, self.language_model, own)


def run_command(folder: Path, out: Path, language_model: Path, own: dict[str, Any]) -> list[str]:
    """Return `l2g-ray run` of a folder, with the small settings and its task's settings."""
    options = ["--preset", "smoke", "--language-model", str(language_model), "--out", str(out), "--cpus", "2"]
    for key, value in (SETTINGS | own).items():
        options += ["--set", f"{key}={json.dumps(value)}"]
    return [sys.executable, "-m", "l2g_ray.cli.main", "run", str(folder), *options]


def environment() -> dict[str, str]:
    """This process's, without what would send runs to another cluster or store."""
    return {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}


def execute(command: list[str], expected: int = 0, **variables: str) -> str:
    """Run to the end and check the exit code; returns stdout."""
    done = subprocess.run(
        command, env=environment() | variables, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert done.returncode == expected, f"exit code {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


class Driver:
    """A suite's process that a test may kill."""

    def __init__(self, command: list[str], **variables: str) -> None:
        # In a separate session, as a job of a scheduler is.
        self.process = subprocess.Popen(
            command,
            env=environment() | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait_for(self, pattern: str, out: Path) -> None:
        """Until a path of `out` matches, which is when a stage has begun to compute."""
        deadline = time.monotonic() + DEADLINE_S
        while not any(out.glob(pattern)):
            assert self.process.poll() is None, f"ended before {pattern}: {self.read()}"
            assert time.monotonic() < deadline, f"no {pattern} within {DEADLINE_S} s"
            time.sleep(0.01)

    def wait_for_worker(self, stage: str, out: Path, stages: str = "stages") -> int:
        """Until a process computes a job of this stage: the one that holds the lock of its key."""
        return self.wait_for_any([stage], out, stages)[1]

    def wait_for_any(self, names: Iterable[str], out: Path, stages: str = "stages") -> tuple[str, int]:
        """Until a process computes a job of one of these stages: the stage, and the process."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            for name in names:
                for lock in out.glob(f"{stages}/{name}/*.lock"):
                    if lock.with_suffix(".work").exists() and (found := find_holder(lock)):
                        return name, found
            assert self.process.poll() is None, f"ended before {names}: {self.read()}"
            assert time.monotonic() < deadline, f"no {names} within {DEADLINE_S} s"
            time.sleep(0.005)

    def find(self, name: str) -> list[int]:
        """Its processes of that name."""
        return [pid for pid in _descendants(self.process.pid) if _name(pid).startswith(name)]

    def finish(self, expected: int = 0) -> str:
        """Wait for its own end; checks the exit code and that no process is left; what it has printed."""
        seen: dict[int, str] = {}
        assert self.process.stdout is not None
        deadline = time.monotonic() + DEADLINE_S
        os.set_blocking(self.process.stdout.fileno(), False)
        said = b""
        while self.process.poll() is None:
            seen |= _descendants(self.process.pid)
            said += self.process.stdout.read() or b""
            assert time.monotonic() < deadline, f"not over within {DEADLINE_S} s: {said.decode()[-4000:]}"
            time.sleep(0.2)
        said += self.process.stdout.read() or b""
        text = said.decode()
        assert self.process.returncode == expected, f"exit code {self.process.returncode}\n{text[-6000:]}"
        wait_until_gone(seen)
        return text

    def end(self, number: int) -> int:
        """Send a signal, wait until the process and all of its trials are gone; returns the exit code."""
        started = _descendants(self.process.pid)
        self.process.send_signal(number)
        code = self.process.wait(DEADLINE_S)
        wait_until_gone(started)
        return code

    def read(self) -> str:
        """What it has printed, once it has ended."""
        assert self.process.stdout is not None
        return self.process.stdout.read().decode()


def find_holder(lock: Path) -> int | None:
    """The process that has a lock file open."""
    for folder in Path("/proc").glob("[0-9]*/fd"):
        with contextlib.suppress(OSError):
            if any(os.readlink(entry) == str(lock) for entry in folder.iterdir()):
                return int(folder.parent.name)
    return None


def wait_until_gone(started: dict[int, str]) -> None:
    """Until none of some processes is left, within a minute. Ray's own agents look for their cluster for another one;
    nobody waits for them."""
    agents = {pid for pid in started if _name(pid).endswith("Agent")}
    deadline = time.monotonic() + 60
    while left := {pid for pid, begun in started.items() if _started(pid) == begun} - agents:
        assert time.monotonic() < deadline, f"outlived their driver by a minute: {[_name(pid) for pid in left]}"
        time.sleep(0.05)
    for pid in agents:
        if _started(pid) == started[pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """When a process began, in ticks; None where it is gone (or only waits for its parent to notice)."""
    fields = _stat(pid)
    return fields[19] if fields and fields[0] != "Z" else None


def _descendants(pid: int) -> dict[int, str]:
    """What it has started and is alive, and when that began."""
    parents = {int(path.name): _stat(int(path.name)) for path in Path("/proc").iterdir() if path.name.isdigit()}
    found, new = set(), {pid}
    while new:
        found |= new
        new = {child for child, fields in parents.items() if fields and int(fields[1]) in new} - found
    begun = {child: _started(child) for child in found - {pid}}
    return {child: ticks for child, ticks in begun.items() if ticks is not None}


def read_board(run: Path) -> dict[str, Any]:
    """`leaderboard.json` of a run's folder."""
    return json.loads((run / "leaderboard.json").read_text())


def without_times(row: dict[str, Any]) -> dict[str, Any]:
    """A leaderboard row without what differs between two runs that found the same."""
    times = ("wall_s", "cpu_s", "gpu_s", "costs", "model_uri")
    kept = {key: value for key, value in row.items() if key not in times}
    return kept | {"used": {key: value for key, value in row["used"].items() if key != "rows_per_s"}}


def stage_folders(out: Path) -> dict[str, int]:
    """Finished stage results to the time of their last change."""
    folders = [path for path in (out / "stages").glob("*/*") if path.is_dir() and path.suffix != ".work"]
    return {f"{path.parent.name}/{path.name}": path.stat().st_mtime_ns for path in folders}


def run_three(out: Path, planted: Path, composition: Path, language_model: Path) -> None:
    """Two tasks side by side, and one whose text corpus is not there."""
    from rich.console import Console

    from l2g_ray.data.raw import SourceOptions
    from l2g_ray.data.sources import open_source
    from l2g_ray.orchestrate.suite import run_suite
    from l2g_ray.request import SuiteRequest

    folders = {"planted": planted, "composition": composition, "lost": planted}
    sources = {name: open_source([folder], SourceOptions()) for name, folder in folders.items()}
    tasks = [source.task.model_copy(update={"name": name}) for name, source in sources.items()]
    assignments = SETTINGS | {"model.language_model": str(language_model)}
    request = SuiteRequest(
        "three", "user", tasks, sources, "smoke", assignments, out, cpus=2, task_assignments=OWN_SETTINGS
    )
    result = run_suite(request, Console(width=110))
    (out / "failures.json").write_text(json.dumps(result.failures))


if __name__ == "__main__":
    run_three(*(Path(argument) for argument in sys.argv[1:]))
