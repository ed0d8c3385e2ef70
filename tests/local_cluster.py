"""A Ray cluster of its own for a test: `ray start --head` with token authentication, away from all others."""

from __future__ import annotations

import contextlib
import json
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


@contextlib.contextmanager
def growing_cluster(cpus: int) -> Iterator[str]:
    """The address of a cluster whose head has no CPU, and whose autoscaler may start one machine with `cpus` CPUs.

    By Ray's fake machines, which are processes of this one. `ray.cluster_utils.AutoscalingCluster` wants a file that the wheel
    does not have, and ends all other Ray of the machine.
    """
    root = Path(tempfile.mkdtemp(prefix="l2g-", dir="/tmp"))
    ports = [free_port() for _ in range(4)]
    gcs, client, agent, metrics = ports
    address = f"127.0.0.1:{gcs}"
    mark = uuid.uuid4().hex
    machine = {"resources": {"CPU": cpus}, "node_config": {}, "min_workers": 0, "max_workers": 1}
    head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    config = {
        "cluster_name": "growing",
        "max_workers": 1,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": address,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": {"ray.head.default": head, "machine": machine},
        "head_node_type": "ray.head.default",
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 5,
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        "cluster_synced_files": [],
        "rsync_exclude": [],
        "rsync_filter": [],
    }
    commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    config |= {f"{name}_commands": [] for name in commands}
    path = root / "cluster.json"
    path.write_text(json.dumps(config))
    options = {
        "--autoscaling-config": path,
        "--port": gcs,
        "--ray-client-server-port": client,
        "--dashboard-agent-listen-port": agent,
        "--metrics-export-port": metrics,
        "--temp-dir": f"{root}/ray",
        "--num-cpus": 0,
        "--object-store-memory": 200_000_000,
        "--include-dashboard": "false",
    }
    command = [f"{Path(sys.executable).parent}/ray", "start", "--head", *(f"{k}={v}" for k, v in options.items())]
    variables = {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1", MARK: mark}
    try:
        subprocess.run(command, env=os.environ | variables, check=True, capture_output=True, timeout=120)
        yield address
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
