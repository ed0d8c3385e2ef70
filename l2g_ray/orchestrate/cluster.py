"""The Ray cluster: joined or started, its slots, numbers for Prometheus, interrupts, and a watch on its head."""

from __future__ import annotations

import _thread
import atexit
import contextlib
import logging
import math
import os
import signal
import socket
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l2g_ray.errors import ClusterLost, UserError
from l2g_ray.monitor.events import Epoch, Failure, News
from l2g_ray.monitor.status import TaskStatus
from l2g_ray.orchestrate.ray_private import make_job_config, place_sessions
from l2g_ray.tasks.metrics import find_metric, name_stage_metric

# Longest path of a socket in Linux (sockaddr_un, without the final zero), and Ray's names below its temporary folder.
SOCKET_BYTES = 107
_BELOW = len("/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store_1")
_SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")
_LINK = "l2g-ray-session-"


def find_session_folder() -> str:
    """Return the folder of a local Ray's sessions: `ray` in RAY_TMPDIR or TMPDIR, or in the system's where these
    cannot be used.

    Where its path is too long for a socket, a short link to it; the link is removed when this process ends.

    Raises
    ------
    UserError : Ray's session can be written nowhere.
    """
    named = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR")
    places = [Path(named).absolute() / "ray"] if named and Path(named).is_dir() else []
    shared = Path(tempfile.gettempdir()).absolute()
    places += [shared / "ray", shared / f"ray-{os.getuid()}"]  # the first may be another user's
    for folder in places:
        if _is_writable(folder):
            return str(folder) if len(os.fsencode(folder)) + _BELOW <= SOCKET_BYTES else _link(folder)
    raise UserError(f"{shared}: Ray's session cannot be written there; set TMPDIR to a folder that can be written")


def _is_writable(folder: Path) -> bool:
    try:
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _link(folder: Path) -> str:
    for short in map(Path, _SHORT_FOLDERS):
        link = short / f"{_LINK}{uuid.uuid4().hex[:8]}"
        try:
            link.symlink_to(folder, target_is_directory=True)
        except OSError:
            continue
        _remove_dangling(short)
        atexit.register(_end, link)
        return str(link)
    raise UserError(
        f"{folder}: is too long a path for Ray's sockets ({SOCKET_BYTES} bytes), and no link to it can be made in /tmp; "
        "set RAY_TMPDIR to a folder with a short path"
    )


def _remove_dangling(short: Path) -> None:
    """Links of processes that were killed, once what they led to is gone."""
    for link in short.glob(f"{_LINK}*"):
        with contextlib.suppress(OSError):
            if link.is_symlink() and link.lstat().st_uid == os.getuid() and not link.exists():
                link.unlink()


def _end(link: Path) -> None:
    import ray

    ray.shutdown()  # it ends its processes through the sockets
    link.unlink(missing_ok=True)


# Read by Ray when it is imported or started, so set first. Reader V2 costs seconds an epoch on small data; without
# the shorter poll a Train run takes twice as long to start and may lose its last checkpoint.
RAY_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_DATA_USE_DATASOURCE_V2": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_worker_maximum_startup_concurrency": "32",  # else the raylet warns about every Train run
    "RAY_idle_worker_killing_time_threshold_ms": "60000",  # processes stay warm from one stage to the next
}

# Failures after which a job starts again, as a Tune trial, a Ray Train run or a task of a warm process.
MAX_FAILURES = 2
# Ray's messages on a lost process or machine. The run reports the loss in one line instead, and restarts the work.
LOSSES = (
    r"^(A worker died or was killed|The node with node id: .* has been marked dead"
    r"|Task .* failed\. There are .* retries remaining)"
)


@dataclass(frozen=True)
class Slots:
    """How many trials run at once, and what each of a trial's workers takes. `packed`: a Tune trial whose kind
    has been measured takes only its share of a GPU."""

    count: int
    cpus: int
    gpus: float
    workers: int = 1
    packed: bool = False


def describe_start() -> str:
    """Return what `connect` is about to do, which takes seconds."""
    address = os.environ.get("RAY_ADDRESS")
    return f"joining the Ray cluster at {address}..." if address else "starting Ray on this machine..."


def connect(verbose: bool = False, num_cpus: int | None = None) -> Any:
    """Join the cluster that RAY_ADDRESS names, or start one on this machine. Returns the `ray` module.

    `num_cpus` bounds a local cluster; all cores when None.
    """
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not verbose:
        os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", LOSSES)
    import ray

    if ray.is_initialized():
        return ray
    options: dict[str, Any] = {
        "log_to_driver": verbose,
        "logging_level": logging.INFO if verbose else logging.ERROR,
        "job_config": make_job_config(),
    }
    if os.environ.get("RAY_ADDRESS"):
        options["runtime_env"] = {"env_vars": {name: os.environ[name] for name in RAY_ENVIRONMENT}}
    else:
        # No runtime_env: processes of this machine inherit the environment, and each starts in one step instead of two.
        cores = num_cpus or os.cpu_count() or 1
        options |= {"address": "local", "num_cpus": cores, "include_dashboard": False}
        options |= place_sessions(find_session_folder())
        # A process a Train run that looks whether machines are about to be taken away; this one is not.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    try:
        ray.init(**options)
    except ConnectionError as error:
        raise UserError(
            f"no Ray cluster answers at RAY_ADDRESS={os.environ.get('RAY_ADDRESS')} ({error}); "
            "start one with `ray start --head`, or unset RAY_ADDRESS to run on this machine"
        ) from None
    except Exception as error:
        # Ray has no type of its own for this.
        if "timed out during startup" not in str(error):
            raise
        raise UserError(
            "Ray did not start in its time on this machine, which is likely busy; wait for other work to end and run "
            "the same command again"
        ) from None
    if not verbose:
        for name in ("ray", "ray.tune", "ray.train", "ray.data"):
            logging.getLogger(name).setLevel(logging.ERROR)
    return ray


def read_nodes(ray: Any) -> list[dict[str, float]]:
    """Return the resources of each machine that is there."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def wait_for_room(ray: Any, gpus: float, workers: int, wait_s: float, say: Callable[[str], None]) -> None:
    """Ask the cluster's autoscaler for the first trial's machines, and wait until they are there.

    More come by themselves, as trials queue. Without an autoscaler it waits for machines that someone adds.

    Raises
    ------
    UserError : as `measure_slots`, after `wait_s` seconds without them.
    """
    from ray.autoscaler.sdk import request_resources

    until, said = time.monotonic() + wait_s, False
    try:
        while True:
            try:
                measure_slots(read_nodes(ray), 1, gpus, workers)
                return
            except UserError as error:
                if time.monotonic() >= until:
                    raise UserError(f"{error}; waited {wait_s:g} s for one (cluster.scale_wait_s)") from None
            if not said:
                said = True
                say(f"waits up to {wait_s:g} s for the cluster to grow: no machine has room for a trial yet")
                bundle = {"CPU": 1, "GPU": gpus} if gpus else {"CPU": 1}
                request_resources(bundles=[bundle] * workers)
            time.sleep(1.0)
    finally:
        if said:
            request_resources(bundles=[])


def measure_slots(nodes: list[dict[str, float]], cpus: int = 1, gpus: float = 0.0, workers: int = 1) -> Slots:
    """Trials that fit at once into a cluster, from the resources of each of its nodes; a worker runs on one node.

    Raises
    ------
    UserError : not even one fits; the message names what is there and what is missing.
    """
    if gpus > 1 and gpus != int(gpus):
        raise UserError(f"a trial cannot have {gpus:g} GPUs; ask for a share of one, or for a whole number")
    wanted = {"CPU": float(cpus), "GPU": gpus}
    # Rounded up a trace, for shares: ten times 0.1 GPU fit into one.
    fitting = [
        min(int(node.get(name, 0.0) / amount + 1e-9) for name, amount in wanted.items() if amount) for node in nodes
    ]
    if sum(fitting) < 1:
        best = max(nodes, key=lambda node: (node.get("GPU", 0.0), node.get("CPU", 0.0)), default={})
        there = {name: best.get(name, 0.0) for name in wanted}
        missing = [f"{wanted[name] - there[name]:g} {name}" for name in wanted if wanted[name] > there[name]]
        machines = (
            "the cluster's one machine" if len(nodes) == 1 else f"the largest of the cluster's {len(nodes)} machines"
        )
        raise UserError(
            f"a trial needs {cpus} CPU and {gpus:g} GPU, but {machines} has {there['CPU']:g} CPU and {there['GPU']:g} GPU "
            f"(missing: {', '.join(missing)}); add a machine that has it, or ask for less with --gpus-per-trial"
        )
    if sum(fitting) < workers:
        raise UserError(
            f"a trial of {workers} workers needs {workers} times {cpus} CPU and {gpus:g} GPU, but the cluster has room for "
            f"{sum(fitting)}; add machines, or lower --workers-per-trial"
        )
    return Slots(sum(fitting) // workers, cpus, gpus, workers)


STATES = ("waiting", "running", "done", "failed")


class SuiteMetrics:
    """Gauges and counters of one suite, set by its driver; `task_metrics` names each task's metric. Needs a connected Ray."""

    def __init__(self, suite: str, task_metrics: Mapping[str, str]) -> None:
        from ray.util import metrics

        self._tags, self._task_metrics = {"suite": suite}, task_metrics
        self._tasks = metrics.Gauge("l2g_ray_tasks", "Tasks of a suite, by state.", ("suite", "state"))
        self._waiting = metrics.Gauge("l2g_ray_mlflow_events", "Events that MLflow has not got yet.", ("suite",))
        self._best = metrics.Gauge(
            "l2g_ray_best_score", "Best validation score so far, by task and stage.", ("suite", "task", "stage")
        )
        place = ("suite", "task", "stage")
        self._epochs = metrics.Counter("l2g_ray_epochs", "Epochs that trials have reported.", place)
        self._failures = metrics.Counter("l2g_ray_trial_failures", "Trials that failed, attempts counted.", place)

    def record(self, event: News) -> None:
        """Take one event of the board."""
        if not isinstance(event, Epoch | Failure):
            return
        stage = event.name.stage
        tags = self._tags | {"task": event.task, "stage": stage}
        if isinstance(event, Failure):
            self._failures.inc(1, tags)
            return
        self._epochs.inc(1, tags)
        best = event.row.get("best_score", -math.inf)
        if math.isfinite(best):
            # Events have it with the sign that makes higher better.
            metric = find_metric(name_stage_metric(stage, self._task_metrics[event.task]))
            self._best.set(metric.sign * best, tags)

    def show(self, tasks: Mapping[str, TaskStatus], waiting_events: int) -> None:
        """Record the state of the tasks (`Progress.snapshot`), and how much MLflow has not got."""
        counted = Counter(task.state for task in tasks.values())
        for state in STATES:
            self._tasks.set(counted[state], self._tags | {"state": state})
        self._waiting.set(waiting_events, self._tags)


class SuiteStopped(KeyboardInterrupt):
    """A suite was interrupted and has stopped cleanly; the text describes its state and how to resume."""


@contextlib.contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt. Does nothing outside of the main thread.

    Schedulers, `kill` and `ray job stop` send SIGTERM. To be entered again after `ray.init`, which takes the signal for
    itself.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def name_interrupt() -> str:
    """Return what interrupted this process: SIGTERM or Ctrl-C. Ray also raises KeyboardInterrupts, without a cause."""
    return _received[-1] if _received else "Ctrl-C"


_received: list[str] = []


def _interrupt(signum: int, frame: Any) -> None:
    _received.append(signal.Signals(signum).name)
    # After the first signal the process stops cleanly; a second signal must not break that.
    signal.signal(signum, signal.SIG_IGN)
    raise KeyboardInterrupt


EVERY_S = 2.0
# Shorter than the 60 s after which Ray ends a process without its control service, and prints no message.
LIMIT_S = 20.0
GRACE_S = 10.0


class ClusterWatch:
    """Connects to the head's control service now and then; interrupts the main thread when it is away for `LIMIT_S`.

    A context manager. What the interrupt raises is turned into ClusterLost on the way out.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._lost = False
        self._changed = threading.Event()
        self._thread = threading.Thread(target=self._look, name="cluster-watch", daemon=True)

    def __enter__(self) -> ClusterWatch:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: object) -> None:
        self._changed.set()
        self._thread.join(timeout=EVERY_S + 1.0)
        if error is not None and (self._lost or self._is_going(error)):
            raise ClusterLost(
                f"the Ray cluster at {self.address} does not answer any more; when it is back, run the same command "
                "again: finished stages are kept"
            ) from error

    def _is_going(self, error: BaseException) -> bool:
        """Return whether an error is the first sign of a lost head: Ray may notice first, and raise a RayError."""
        from ray.exceptions import RayError

        if isinstance(error, KeyboardInterrupt):
            return False
        # The actors of a head that goes down end some seconds before its control service does.
        limit = time.monotonic() + (GRACE_S if isinstance(error, RayError) else 0.0)
        while self._answers():
            if time.monotonic() >= limit:
                return False
            time.sleep(0.2)
        return True

    def _look(self) -> None:
        answered = time.monotonic()
        while not self._changed.wait(EVERY_S):
            if self._answers():
                answered = time.monotonic()
            elif time.monotonic() - answered > LIMIT_S:
                self._lost = True
                _thread.interrupt_main()
                return

    def _answers(self) -> bool:
        host, _, port = self.address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=EVERY_S).close()
        except OSError:
            return False
        return True
