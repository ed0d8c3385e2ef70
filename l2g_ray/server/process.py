"""MLflow's server as a child process; its health, the page of its newest run, and back-ups of an SQLite store."""

from __future__ import annotations

import base64
import contextlib
import ctypes
import http.client
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import sysconfig
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from l2g_ray.errors import UserError
from l2g_ray.places import sqlite_file
from l2g_ray.redaction import redact
from l2g_ray.server.settings import resolve_store
from l2g_ray.tracking.store import KEY_TAG, runs_page, split_login

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
        # A separate session: Ctrl-C then reaches this process alone, which ends the others in order.
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
    """Return the line that best explains why MLflow ended."""
    lines = [line.strip() for line in said if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b.*: |Error: ", line)]
    return (errors or lines or ["it said nothing"])[-1][:300].rstrip(".")


TIMEOUT_S = 5.0
MOST_EXPERIMENTS = 1000


def check_health(url: str) -> tuple[bool, str]:
    """Ask `/health` and `/version`; return whether the server is well, and one line about it.

    A login is taken from the URL, else from MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD. Raises UserError for
    what is no http(s) URL.
    """
    if not url.startswith(("http://", "https://")):
        raise UserError(f"{redact(url)}: not the address of a server; give one such as http://127.0.0.1:5000")
    url, shown = url.rstrip("/"), redact(url.rstrip("/"))
    try:
        _ask(f"{url}/health")
        return True, f"{shown} is well: MLflow {_ask(f'{url}/version')[:200]}"
    except urllib.error.HTTPError as error:
        if error.url.endswith("/version"):
            return True, f"{shown} is well: version unknown (status {error.code})"
        return False, f"{shown} does not answer ({error})"
    except (OSError, ValueError, http.client.HTTPException) as error:
        return False, f"{shown} does not answer ({redact(str(getattr(error, 'reason', error)))})"


def find_runs_page(server: str) -> str:
    """Return the address, without a login, of the table with the newest run of this program on a server; the server's
    own where there is none, or where it does not answer."""
    shown = split_login(server)[0].rstrip("/")
    try:
        found = {e["experiment_id"]: e for e in _search(server, "experiments", {"max_results": MOST_EXPERIMENTS})}
        query = {
            "experiment_ids": list(found),
            "filter": f"tags.`{KEY_TAG}` LIKE '%'",
            "order_by": ["attributes.start_time DESC"],
            "max_results": 1,
        }
        runs = _search(server, "runs", query) if found else []
        if not runs:
            return shown
        newest = runs[0]["info"]["experiment_id"]
        return runs_page(shown, newest, [tag["key"] for tag in found[newest].get("tags", [])])
    except (OSError, ValueError, KeyError, http.client.HTTPException):
        return shown


def back_up(store: str, artifacts: str, target: Path) -> tuple[int, int]:
    """Copy an SQLite store and then its artifacts into the new folder `target`, while the server runs.

    In this order every artifact that the copied tables name is in the copy, unless somebody deletes runs meanwhile.
    The folder appears when it is complete. Returns the bytes of the database and the number of artifact files. Raises
    UserError for a PostgreSQL store, artifacts in an object store, a target that exists, and a copy that failed.
    """
    source = sqlite_file(resolve_store(store))
    if source is None:
        raise UserError(
            f"the store {redact(store)} is backed up by its own tool: pg_dump --format=custom --file=mlflow.dump DATABASE"
        )
    if not source.is_file():
        raise UserError(f"{source}: no such store; give the server's own --store")
    if "://" in artifacts:
        raise UserError(f"--artifacts {redact(artifacts)}: an object store is copied by its own tool; give a folder")
    if target.exists():
        raise UserError(f"{target} exists already; give the name of a new folder")
    work = target.with_name(f".{target.name}.part")
    try:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        with (
            closing(sqlite3.connect(source, timeout=30)) as origin,
            closing(sqlite3.connect(work / "mlflow.db")) as copy,
        ):
            origin.backup(copy)
        if Path(artifacts).is_dir():
            shutil.copytree(artifacts, work / "artifacts")
        files = sum(len(names) for _, _, names in os.walk(work / "artifacts"))
        size = (work / "mlflow.db").stat().st_size
        work.rename(target)
    except (OSError, shutil.Error, sqlite3.Error) as error:
        shutil.rmtree(work, ignore_errors=True)
        reason = getattr(error, "strerror", None) or str(error)[:200]
        raise UserError(f"{target}: the back-up failed ({reason}); nothing was left there, try again") from None
    return size, files


def _search(server: str, what: str, query: dict[str, object]) -> list[dict[str, Any]]:
    answer = _ask(f"{server.rstrip('/')}/api/2.0/mlflow/{what}/search", json.dumps(query))
    return list(json.loads(answer).get(what, []))


def _ask(url: str, body: str | None = None) -> str:
    """Return what a server answers to GET, or to POST where there is a `body`, which is JSON; the login as in `check_health`."""
    url, user, password = split_login(url)
    if not user:
        user, password = (os.environ.get(f"MLFLOW_TRACKING_{name}", "") for name in ("USERNAME", "PASSWORD"))
    request = urllib.request.Request(url, body.encode() if body else None)
    if body:
        request.add_header("Content-Type", "application/json")
    if user:
        request.add_header("Authorization", "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode())
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        return answer.read().decode(errors="replace").strip()
