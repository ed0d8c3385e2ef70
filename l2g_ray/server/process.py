"""MLflow's own server as a child process: started, waited for, ended."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import sysconfig
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Mapping

from l2g_ray.errors import UserError
from l2g_ray.redaction import redact

START_S = 120.0
STOP_S = 15.0
POLL_S = 0.2
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PR_SET_PDEATHSIG = 1


def run_mlflow(
    options: list[str],
    environment: Mapping[str, str],
    probe_url: str,
    introduce: Callable[[], None],
    mask: Callable[[str], str] = redact,
) -> bool:
    """Run `mlflow server` with these options until a signal ends it.

    `introduce` is called once MLflow answers at `probe_url`. MLflow's messages go to stderr through `mask`. Returns
    True after Ctrl-C, SIGTERM or SIGHUP, False when MLflow ended first; no process is left in either case. Raises UserError
    where MLflow does not come up.
    """
    stopping, ready = threading.Event(), threading.Event()
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:  # one that is ignored (nohup) stays so
            signal.signal(number, lambda *_: stopping.set())
    prctl = getattr(ctypes.CDLL(None), "prctl", lambda *_: None)  # only Linux has it
    child = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *options],
        # Neither Python nor uvicorn imports from the working directory; the latter would put `--app-dir` first.
        env={**environment, "PYTHONSAFEPATH": "1", "UVICORN_APP_DIR": sysconfig.get_path("stdlib")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        # A session of its own: Ctrl-C then reaches this process alone, which ends the others in order.
        start_new_session=True,
        # MLflow gets SIGTERM however this process dies, SIGKILL included.
        preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGTERM),
    )
    lines: deque[str] = deque(maxlen=200)

    def read() -> None:
        for line in map(mask, child.stdout or ()):
            lines.append(line)
            if ready.is_set():
                print(line, end="", file=sys.stderr, flush=True)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        limit = time.monotonic() + START_S
        while not _answers(probe_url):
            if child.poll() is not None:
                reader.join(timeout=1)
                raise UserError(f"MLflow did not start ({_find_reason(lines)}); mend that and start again")
            if time.monotonic() > limit:
                raise UserError(
                    f"MLflow did not answer within {START_S:.0f} s ({_find_reason(lines)}); is the machine overloaded, "
                    "or the database far away?"
                )
            if stopping.wait(POLL_S):
                return True
        ready.set()
        introduce()
        while child.poll() is None:
            if stopping.wait(POLL_S):
                return True
        return False
    finally:
        # MLflow passes SIGTERM on and waits for its workers; what is left of the group is killed.
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(STOP_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _answers(probe_url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy does not know this machine
    try:
        with opener.open(f"{probe_url}/health", timeout=2):
            return True
    except OSError:
        return False


def _find_reason(said: deque[str]) -> str:
    """Return the line that tells best why MLflow ended."""
    lines = [line.strip() for line in said if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b.*: |Error: ", line)]
    return (errors or lines or ["it said nothing"])[-1][:300].rstrip(".")
