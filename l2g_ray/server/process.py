"""MLflow's processes: started, waited for, and ended all together."""

from __future__ import annotations

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
from pathlib import Path
from types import FrameType
from urllib.parse import quote, unquote

from l2g_ray.errors import UserError
from l2g_ray.redaction import redact
from l2g_ray.server.settings import ServerSettings, check_settings, read_auth_file
from l2g_ray.server.store import prepare_store, resolve_store

START_S = 120.0
STOP_S = 15.0
POLL_S = 0.2
# Linux ends MLflow with this process however it dies, SIGKILL included (prctl(2), PR_SET_PDEATHSIG; kept by exec).
DIE_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def serve(settings: ServerSettings, upgrade: bool, say: Callable[[str], None]) -> bool:
    """Run the server until a signal ends it.

    Parameters
    ----------
    settings : checked here, store included, before a process is started.
    upgrade : bring tables of an older MLflow up to date first.
    say : takes lines for the person; MLflow's own messages go to stderr, without passwords.

    Returns
    -------
    True after Ctrl-C, SIGTERM or SIGHUP; False when MLflow ended by itself. No process is left in either case.

    Raises
    ------
    UserError : a setting that cannot work, or a server that does not come up; says why.
    """
    mask = _make_mask(settings)
    try:
        settings = ServerSettings(**{**vars(settings), "store": resolve_store(settings.store)})
        check_settings(settings)
        prepare_store(settings.store, upgrade)
    except UserError as error:
        raise UserError(mask(str(error))) from None

    return run_mlflow(
        settings.command(sys.executable),
        settings.environment(os.environ),
        settings.probe_url,
        lambda: _introduce(settings, mask, say),
        mask,
    )


def run_mlflow(
    command: list[str],
    environment: Mapping[str, str],
    probe_url: str,
    introduce: Callable[[], None],
    mask: Callable[[str], str] = redact,
) -> bool:
    """Run MLflow's own `command` until a signal ends it; `introduce` is called once it answers at `probe_url`.

    Returns and raises as `serve` does. MLflow's messages go to stderr through `mask`.
    """
    stopping = threading.Event()

    def stop(signum: int, frame: FrameType | None) -> None:
        stopping.set()

    # One that is ignored (nohup) stays so.
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, stop)
    # Neither Python nor uvicorn imports from the working directory; the latter would put `--app-dir` first.
    own = {"PYTHONSAFEPATH": "1", "UVICORN_APP_DIR": sysconfig.get_path("stdlib")}
    # A session of its own: Ctrl-C then reaches this process alone, which ends the others in order.
    child = subprocess.Popen(
        [sys.executable, "-c", DIE_WITH_PARENT, str(os.getpid()), *command],
        env=dict(environment) | own,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    log = _Log(child, mask)
    try:
        if not _wait_for_health(probe_url, child, stopping, log):
            return True
        log.show()
        introduce()
        while child.poll() is None:
            if stopping.wait(POLL_S):
                return True
        return False
    finally:
        _end(child)
        for number, handler in before.items():
            signal.signal(number, handler)


class _Log:
    """MLflow's output: kept while it starts, passed on to stderr afterwards."""

    KEPT_LINES = 200

    def __init__(self, child: subprocess.Popen[str], mask: Callable[[str], str]) -> None:
        self._kept: deque[str] = deque(maxlen=self.KEPT_LINES)
        self._shown = False
        self._mask = mask
        self._child = child
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for line in self._child.stdout or ():
            line = self._mask(line)
            self._kept.append(line)
            if self._shown:
                sys.stderr.write(line)
                sys.stderr.flush()

    def show(self) -> None:
        self._shown = True

    def reason(self) -> str:
        """The line that tells best why MLflow ended."""
        self._thread.join(timeout=1.0)
        lines = [line.strip() for line in self._kept if line.strip()]
        errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b.*: |Error: ", line)]
        return (errors or lines or ["it said nothing"])[-1][:300]


def _wait_for_health(probe_url: str, child: subprocess.Popen[str], stopping: threading.Event, log: _Log) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy does not know this machine
    limit = time.monotonic() + START_S
    while not stopping.wait(POLL_S):
        if child.poll() is not None:
            raise UserError(f"MLflow did not start ({log.reason().rstrip('.')}); mend that and start again")
        try:
            with opener.open(f"{probe_url}/health", timeout=2):
                return True
        except OSError:
            if time.monotonic() > limit:
                raise UserError(
                    f"MLflow did not answer within {START_S:.0f} s ({log.reason().rstrip('.')}); is the machine "
                    "overloaded, or the database far away?"
                ) from None
    return False


def _introduce(settings: ServerSettings, mask: Callable[[str], str], say: Callable[[str], None]) -> None:
    say(f"MLflow answers at {settings.client_url}")
    say(f"store      {mask(settings.store)}")
    say(f"artifacts  {mask(settings.artifacts)}, served through the server")
    if settings.auth_file is not None:
        say(f"logins     {settings.auth_file}; clients export MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")
    say(f"clients    export MLFLOW_TRACKING_URI={settings.client_url}")
    say(f"stop       Ctrl-C, or: kill {os.getpid()}")


def _end(child: subprocess.Popen[str]) -> None:
    """End the whole group: MLflow passes SIGTERM on to its workers; what is left after a while is killed."""
    if child.poll() is None:
        child.terminate()
    limit = time.monotonic() + STOP_S
    while _alive(child) and time.monotonic() < limit:
        time.sleep(POLL_S / 2)
    if _alive(child):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _alive(child: subprocess.Popen[str]) -> bool:
    """Whether the group has a process; ended ones that nobody reaped (a container without init) do not count."""
    child.poll()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # ended just now
            continue
        if int(group) == child.pid and state != "Z":
            return True
    return False


def _make_mask(settings: ServerSettings) -> Callable[[str], str]:
    """Takes passwords out of a text: those inside URLs, and the ones of these settings wherever they stand."""
    found = [os.environ.get("MLFLOW_AUTH_ADMIN_PASSWORD", ""), os.environ.get("PGPASSWORD", "")]
    addresses = [settings.store, settings.artifacts]
    if settings.auth_file is not None and settings.auth_file.is_file():
        section = read_auth_file(settings.auth_file)
        found.append(section.get("admin_password", ""))
        addresses.append(section.get("database_uri", ""))
    for address in addresses:
        found += re.findall(r"://[^:/@\s]*:(.*)@", address) + re.findall(r"[?&]passw(?:or)?d=([^&\s]+)", address)
    passwords = {form for word in found if word for form in (word, unquote(word), quote(word, safe=""))}

    def mask(text: str) -> str:
        for password in sorted(passwords, key=len, reverse=True):
            text = text.replace(password, "***")
        return redact(text)

    return mask
