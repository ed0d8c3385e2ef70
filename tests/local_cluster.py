"""A Ray cluster of its own for a test: `ray start --head` with token authentication, away from all others."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from servers import free_port

ROOT = Path(__file__).parents[1]
MARK = "L2G_TEST_CLUSTER"
START = "ray start --head --dashboard-host=127.0.0.1"


@dataclass
class Shell:
    """A person's shell on the head: a home, a working directory, variables, and what each command said.

    `replaced` maps what a page says to what it is here.
    """

    home: Path
    replaced: dict[str, str]
    variables: dict[str, str]
    said: dict[str, str] = field(default_factory=dict)

    def start(self, line: str, more: str = "") -> subprocess.Popen[str]:
        """Begin a command line, with further options at its end."""
        for old, new in self.replaced.items():
            line = line.replace(old, new)
        return subprocess.Popen(
            ["bash", "-c", f"{line} {more}".strip()],
            cwd=ROOT,
            env=self.variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def finish(self, process: subprocess.Popen[str], expected: int = 0, limit_s: float = 240) -> str:
        """Wait for a command; returns all that it said."""
        said, _ = process.communicate(timeout=limit_s)
        assert process.returncode == expected, f"exit code {process.returncode}: {process.args}\n{said[-6000:]}"
        return said

    def type(self, line: str, more: str = "", expected: int = 0) -> str:
        """Run one line of a page; `export` sets a variable for those that follow."""
        if line.startswith("export "):
            name, _, value = line.removeprefix("export ").partition("=")
            for old, new in self.replaced.items():
                value = value.replace(old, new)
            self.variables[name] = value
            return ""
        self.said[line] = self.finish(self.start(line, more), expected)
        return self.said[line]


@contextlib.contextmanager
def local_shell(shared: Path) -> Iterator[tuple[Shell, int]]:
    """A shell in which `ray start --head` starts a cluster that dies with this context, and the port of its metrics.

    `/shared` is `shared`, the dashboard's port a free one.
    """
    root = Path(tempfile.mkdtemp(prefix="l2g-", dir="/tmp"))  # short: Ray's sockets lie below it
    ports = [free_port() for _ in range(5)]
    gcs, dashboard, client, agent, metrics = ports
    mark = uuid.uuid4().hex
    kept = ("LANG", "PYTHONPATH", "HF_HUB_OFFLINE", "MLFLOW_DISABLE_TELEMETRY", "OMP_NUM_THREADS")
    variables = {name: os.environ[name] for name in kept if name in os.environ}
    # Nobody's token but the one that the page makes; the tests' own Ray has none.
    variables |= {"HOME": str(root), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", MARK: mark}
    variables |= {"RAY_USAGE_STATS_ENABLED": "0"}
    options = {
        "--port": gcs,
        "--dashboard-port": dashboard,
        "--ray-client-server-port": client,
        "--dashboard-agent-listen-port": agent,
        "--metrics-export-port": metrics,
        "--temp-dir": f"{root}/ray",
        "--num-cpus": 2,
        "--object-store-memory": 200_000_000,
    }
    started = " ".join([START, *(f"{name}={shlex.quote(str(value))}" for name, value in options.items())])
    replaced = {START: started, "127.0.0.1:8265": f"127.0.0.1:{dashboard}", "/shared": str(shared)}
    try:
        yield Shell(root, replaced, variables), metrics
    finally:
        end_marked(mark)
        shutil.rmtree(root, ignore_errors=True)


def end_marked(mark: str) -> None:
    """Kill the processes that carry the mark in their environment, and only these, until none is left."""
    limit = time.monotonic() + 30
    while (left := _marked(mark)) and time.monotonic() < limit:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
    assert not left, f"could not be ended: {left}"


def _marked(mark: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"{MARK}={mark}".encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found
