"""`l2g-ray server`: real processes on free ports; SQLite, PostgreSQL, logins, refusals, back-up."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import shlex
import signal
import socket
import sqlite3
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from commands import Cli
from servers import Served, free_port, postgres, serving, start_server

from l2g_ray.cli.server import server as server_command
from l2g_ray.errors import UserError
from l2g_ray.redaction import redact
from l2g_ray.server.settings import ServerSettings, prepare_store, split_hosts
from l2g_ray.tracking.runs import Tracker
from l2g_ray.tracking.store import refuse_file_store

PASSWORD = "pa@ss/w%rd"  # all that an address has to encode
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _no_server_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("MLFLOW_TRACKING", "MLFLOW_BACKEND", "MLFLOW_ARTIFACTS", "PGPASS")):
            monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with the default store in its working directory, for the name mlflow.lab."""
    folder = tmp_path_factory.mktemp("lab")
    with serving(folder, "--host", "0.0.0.0", "--allowed-hosts", "mlflow.lab") as served:
        yield served


def get(url: str, host: str | None = None, login: str | None = None) -> int:
    request = urllib.request.Request(url, headers={"Host": host} if host else {})
    if login:
        request.add_header("Authorization", "Basic " + base64.b64encode(login.encode()).decode())
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def one_sentence(result: tuple[int, str, str], *parts: str) -> None:
    code, out, err = result
    assert (code, out) == (2, ""), result
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err
    for part in parts:
        assert part in err


# ---- a server with SQLite --------------------------------------------------------------------------------------------


def test_says_where_it_is_and_how_to_stop(lab: Served) -> None:
    lines = lab.out.read_text().splitlines()
    folder = lab.out.parent
    assert lines == [
        f"MLflow answers at http://mlflow.lab:{lab.port}",
        f"store      sqlite:///{folder}/mlflow-server/mlflow.db",
        f"artifacts  {folder}/mlflow-server/artifacts, served through the server",
        f"clients    export MLFLOW_TRACKING_URI=http://mlflow.lab:{lab.port}",
        f"stop       Ctrl-C, or: kill {lab.process.pid}",
    ]


def test_takes_runs_files_and_models_from_clients(lab: Served, tmp_path: Path) -> None:
    tracker = Tracker(lab.url, "l2g", tmp_path / "client")
    run_id = tracker.start("served", "task", params={"lr": 0.1})
    tracker.log_metrics("served", {"loss": 0.5}, step=0)
    tracker.log_text("served", "hello", "notes.txt")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("x")
    uri = tracker.log_model("served", tmp_path / "model", registered_name="served-model")
    tracker.end("served")
    assert Tracker(lab.url, "l2g", tmp_path / "other").is_finished("served")
    assert uri.startswith("models:/")
    artifacts = lab.out.parent / "mlflow-server" / "artifacts"
    assert [path.read_text() for path in artifacts.rglob(f"{run_id}/**/notes.txt")] == ["hello"]


def test_answers_to_its_own_names_only(lab: Served) -> None:
    page = f"{lab.url}/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default"
    port = lab.port
    assert {host: get(page, host) for host in (f"mlflow.lab:{port}", f"localhost:{port}", "evil.example")} == {
        f"mlflow.lab:{port}": 200,
        f"localhost:{port}": 200,
        "evil.example": 403,
    }


def test_health(lab: Served, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = cli("server", "health", lab.url)
    assert code == 0
    assert re.search(r"is well: MLflow 3\.\d+", out)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", lab.url)
    assert cli("server", "health")[0] == 0
    code, out, err = cli("server", "health", f"http://me:{PASSWORD}@127.0.0.1:{free_port()}")
    assert (code, err) == (1, "")
    assert "does not answer" in out
    assert PASSWORD not in out
    one_sentence(cli("server", "health", "sqlite:///x.db"), "not the address of a server")


def test_back_up_while_it_runs(lab: Served, cli: Cli, tmp_path: Path) -> None:
    tracker = Tracker(lab.url, "backed-up", tmp_path / "client")
    run_id = tracker.start("kept", "task")
    tracker.log_text("kept", "kept", "kept.txt")
    home = lab.out.parent / "mlflow-server"
    options = ["--store", f"sqlite:///{home}/mlflow.db", "--artifacts", home / "artifacts"]
    code, out, err = cli("server", "backup", *options, tmp_path / "copy")
    assert (code, err) == (0, "")
    assert "mlflow.db" in out
    with sqlite3.connect(tmp_path / "copy" / "mlflow.db") as copy:
        assert copy.execute("select count(*) from runs where run_uuid = ?", (run_id,)).fetchone() == (1,)
        assert copy.execute("pragma integrity_check").fetchone() == ("ok",)
    assert [p.read_text() for p in (tmp_path / "copy" / "artifacts").rglob("kept.txt")] == ["kept"]
    prepare_store(f"sqlite:///{tmp_path}/copy/mlflow.db")  # a server would start on it

    one_sentence(cli("server", "backup", *options, tmp_path / "copy"), "exists already")
    one_sentence(cli("server", "backup", "--store", f"sqlite:///{tmp_path}/no.db", tmp_path / "c2"), "no such store")
    one_sentence(cli("server", "backup", "--store", f"postgresql://me:{PASSWORD}@h/d", tmp_path / "c2"), "pg_dump")
    assert not (tmp_path / "c2").exists()


def test_port_in_use(lab: Served, cli: Cli) -> None:
    one_sentence(cli("server", "--port", lab.port), f"127.0.0.1:{lab.port}", "address already in use", "--port")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signals_stop_it_and_leave_nothing(tmp_path: Path, number: int) -> None:
    served = start_server(tmp_path)
    family = served.family()
    assert len(family) >= 3
    if number == signal.SIGKILL:
        assert served.stop(number) == -number
        wait_until_gone(family)
    else:
        assert served.stop(number) == 0
        assert served.out.read_text().splitlines()[-1] == "MLflow stopped"
    assert not [pid for pid in family if _is_alive(pid)]
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", served.port))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_ui_answers_on_a_runs_store_and_leaves_nothing(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    tracker = Tracker(None, "l2g", tmp_path)
    tracker.start("suite-1", "demo")
    tracker.prepare_view(["test_mcc"], ["l2g_ray.stopped"])
    opened = tmp_path / "opened.txt"
    browser = tmp_path / "browser"
    browser.write_text(f"#!/bin/sh\necho $1 > {opened}\n")
    browser.chmod(0o700)
    served = start_server(
        tmp_path, ".", "--open", command="ui", ready="Ctrl-C stops it", env={"BROWSER": f"{browser} %s"}
    )
    page = f"{served.url}/#/experiments/{tracker.experiment_id}/runs?workflowType=machine_learning&viewStateShareKey=l2g-ray"
    assert f"MLflow UI: {page} (Ctrl-C stops it)" in served.out.read_text()
    limit = time.monotonic() + 10
    while not (opened.exists() and opened.read_text()) and time.monotonic() < limit:  # the browser is another process
        time.sleep(0.1)
    assert opened.read_text().strip() == page
    assert Tracker(served.url, "l2g", tmp_path / "client").link == page
    monkeypatch.setenv("MLFLOW_TRACKING_URI", served.url)
    assert f"is an MLflow server, see its UI: {page}" in cli("ui", tmp_path).out
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert get(served.url) == 200
    one_sentence(cli("ui", tmp_path, "--port", served.port), f"127.0.0.1:{served.port}", "address already in use")
    family = served.family()
    assert len(family) >= 3
    assert served.stop(number) == (0 if number == signal.SIGINT else -number)
    wait_until_gone(family)
    assert not [pid for pid in family if _is_alive(pid)]


def wait_until_gone(family: list[int]) -> None:
    limit = time.monotonic() + 60
    while any(_is_alive(pid) for pid in family) and time.monotonic() < limit:
        time.sleep(0.1)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_other_machines_need_allowed_hosts(cli: Cli) -> None:
    one_sentence(cli("server", "--host", "0.0.0.0"), "--allowed-hosts", socket.gethostname())
    one_sentence(cli("server", "--allowed-hosts", "http://mlflow.lab/"), "is not a host")
    one_sentence(cli("server", "--host", "no.such.host.invalid", "--allowed-hosts", "x"), "no such name")
    one_sentence(cli("server", "--port", "0"), "--port")


def test_hosts_stand_with_their_ports() -> None:
    given = ServerSettings("sqlite:////x", "/a", "0.0.0.0", 5001, split_hosts("mlflow.lab, 10.0.0.5:80"))
    assert given.client_url == "http://mlflow.lab:5001"
    options = given.options()
    allowed = options[options.index("--allowed-hosts") + 1].split(",")
    assert allowed[:3] == ["mlflow.lab", "mlflow.lab:*", "10.0.0.5:80"]
    assert "localhost:*" in allowed
    assert "https://mlflow.lab" in options[options.index("--cors-allowed-origins") + 1]
    assert options[options.index("--workers") + 1] == "1"
    options = ServerSettings("postgresql://h/d", "/a", "127.0.0.1", 1).options()
    assert options[options.index("--workers") + 1] == "4"


@pytest.mark.parametrize(
    ("store", "part"),
    [
        ("mysql://me:{p}@h/d", "must be sqlite:///PATH or postgresql://"),
        ("postgres://me:{p}@h/d", "must be"),
        ("mlflow.db", "must be"),
        ("sqlite://", "must be"),
        ("sqlite:////proc/none/mlflow.db", "cannot be written"),
        ("postgresql+nodriver://me:{p}@h/d", "is not installed"),
        ("postgresql://me:{p}@127.0.0.1:{port}/d", "does not answer"),
        ("postgresql://127.0.0.1:{port}/d?password={p}&user=me", "does not answer"),
    ],
)
def test_stores_that_cannot_be(cli: Cli, tmp_path: Path, store: str, part: str) -> None:
    password = "pa%40ss%2Fw%25rd"
    store = store.format(p=password, port=free_port())
    result = cli("server", "start", "--port", free_port(), "--store", store, "--artifacts", tmp_path / "a")
    result = (result[0], result[1], re.sub(r"^note: .*\n", "", result[2]))
    one_sentence(result, part)
    assert not {password, PASSWORD, "w%rd", "w%25rd"} & set(re.split(r"[\s:()'\"]", result[2]))
    assert password not in result[2]
    assert PASSWORD not in result[2]


def test_a_store_of_something_else_or_another_version(cli: Cli, tmp_path: Path) -> None:
    def start(path: Path, *options: str) -> tuple[int, str, str]:
        return cli(
            "server", "--port", free_port(), "--store", f"sqlite:///{path}", "--artifacts", tmp_path / "a", *options
        )

    (tmp_path / "text.db").write_text("this is no database, and longer than its header\n" * 10)
    one_sentence(start(tmp_path / "text.db"), "does not answer", "not a database")
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("create table mine (x int)")
    one_sentence(start(tmp_path / "other.db"), "not MLflow's (mine)")
    prepare_store(f"sqlite:///{tmp_path}/new.db")
    with sqlite3.connect(tmp_path / "new.db") as new:
        new.execute("update alembic_version set version_num = 'ffffffffffff'")
    one_sentence(start(tmp_path / "new.db"), "another version", "--upgrade")
    one_sentence(start(tmp_path / "new.db", "--upgrade"), "cannot be brought up to date")


def test_upgrade_brings_old_tables_up_to_date(tmp_path: Path) -> None:
    from alembic import command
    from alembic.config import Config
    from mlflow.store import db_migrations
    from sqlalchemy import create_engine

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    prepare_store(uri)
    latest = _revision(tmp_path / "mlflow.db")
    config = Config()
    config.set_main_option("script_location", db_migrations.__path__[0])
    engine = create_engine(uri)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "-1")
    engine.dispose()
    assert _revision(tmp_path / "mlflow.db") != latest
    with pytest.raises(UserError, match="--upgrade"):
        prepare_store(uri)
    prepare_store(uri, upgrade=True)
    assert _revision(tmp_path / "mlflow.db") == latest


def _revision(path: Path) -> str:
    with sqlite3.connect(path) as store:
        return store.execute("select version_num from alembic_version").fetchone()[0]


def test_artifacts_that_cannot_be_written(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = f"sqlite:///{tmp_path}/mlflow.db"
    result = cli("server", "--port", free_port(), "--store", store, "--artifacts", tmp_path / "file" / "a")
    one_sentence(result, "--artifacts", "cannot be written")


def test_redact_takes_what_sqlalchemy_takes() -> None:
    for password in ("secret", "se/cret", "s@cret"):
        masked = redact(f"cannot open postgresql://me:{password}@host:5432/db (no answer)")
        assert masked == "cannot open postgresql://***@host:5432/db (no answer)"
    assert redact("postgresql://h/d?password=abc&x=1") == "postgresql://h/d?password=***&x=1"
    assert redact("see http://host:5000/a and mail me@host") == "see http://host:5000/a and mail me@host"


def test_a_file_store_is_refused_on_several_machines() -> None:
    refuse_file_store("sqlite:////x/mlflow.db", 1)
    refuse_file_store("http://head:5000", 3)
    refuse_file_store("postgresql://me@head/mlflow", 3)
    with pytest.raises(UserError, match=r"3 machines.*l2g-ray server.*MLFLOW_TRACKING_URI"):
        refuse_file_store("sqlite:////x/mlflow.db", 3)


# ---- logins ----------------------------------------------------------------------------------------------------------


def _write_auth(folder: Path, extra: str = "") -> Path:
    path = folder / "auth.ini"
    path.write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{folder}/auth.db\nadmin_username = admin\n"
        f"authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n{extra}"
    )
    path.chmod(0o600)
    return path


def test_no_password_of_the_settings_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "pg-word")
    auth = _write_auth(tmp_path, "admin_password = admins own\n")
    store = "postgresql://user:a%2Fb@host/db"
    settings = ServerSettings(store, "s3://bucket/x?password=short", "127.0.0.1", 5000, auth_file=auth)
    said = settings.mask(f"bad dsn a/b, a%2Fb, {store}; admins own; admins%20own; short; pg-word; port 5000")
    assert said == "bad dsn ***, ***, postgresql://***@host/db; ***; ***; ***; ***; port 5000"


@pytest.mark.slow
def test_logins(tmp_path: Path, cli: Cli) -> None:
    auth = _write_auth(tmp_path)
    password = "a-Long-Password-42"
    with serving(
        tmp_path, "--basic-auth", str(auth), "--workers", "2", env={"MLFLOW_AUTH_ADMIN_PASSWORD": password}
    ) as served:
        page = f"{served.url}/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default"
        assert get(page) == 401
        assert get(page, login="admin:wrong") == 401
        assert get(page, login=f"admin:{password}") == 200
        assert cli("server", "health", served.url)[0] == 0
        assert Tracker(served.url.replace("://", f"://admin:{password}@"), "l2g", tmp_path / "home").experiment_id
    said = served.out.read_text() + served.err.read_text()
    assert password not in said
    assert str(auth) in said


def test_login_files_that_cannot_work(tmp_path: Path, cli: Cli) -> None:
    def start(path: Path) -> tuple[int, str, str]:
        store = f"sqlite:///{tmp_path}/mlflow.db"
        options = ["--store", store, "--artifacts", tmp_path / "a", "--basic-auth", path]
        return cli("server", "--port", free_port(), *options)

    one_sentence(start(tmp_path / "none.ini"), "cannot be used (No such file")
    (tmp_path / "bad.ini").write_text("admin = me\n")
    one_sentence(start(tmp_path / "bad.ini"), "no section [mlflow]")
    (tmp_path / "rel.ini").write_text("[mlflow]\ndatabase_uri = sqlite:///basic_auth.db\n")
    one_sentence(start(tmp_path / "rel.ini"), "ABSOLUTE")
    shown = _write_auth(tmp_path, "admin_password = a-Long-Password-42\n")
    shown.chmod(0o644)
    one_sentence(start(shown), "chmod 600")
    # Nobody named a password: MLflow itself ends, and its reason is passed on.
    one_sentence(start(_write_auth(tmp_path)), "MLflow did not start", "MLFLOW_AUTH_ADMIN_PASSWORD")


# ---- PostgreSQL ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_postgresql(tmp_path: Path) -> None:
    with postgres(PASSWORD) as (uri, programs):
        # Servers that start at once make the tables one after the other.
        options, env = ("--artifacts", "files", "--workers", "2"), {"MLFLOW_BACKEND_STORE_URI": uri}
        with contextlib.ExitStack() as stack, ThreadPoolExecutor() as pool:
            waiting = [pool.submit(start_server, tmp_path / name, *options, env=env) for name in ("a", "b")]
            for future in waiting:
                stack.callback(future.result().stop)
            served = waiting[0].result()
            encoded = re.search(r"me:(.*)@127", uri)
            assert encoded is not None
            titles = [Path(f"/proc/{pid}/cmdline").read_bytes().decode() for pid in served.family()]
            assert len(titles) >= 4
            assert not [title for title in titles if PASSWORD in title or encoded[1] in title]
            trackers = [Tracker(served.url, "l2g", tmp_path / "client") for _ in range(2)]
            run_id = trackers[0].start("pg", "task", params={"lr": 0.1})
            for step in range(5):
                trackers[0].log_metrics("pg", {"loss": 1 / (step + 1)}, step=step)
            trackers[0].log_text("pg", "hello", "notes.txt")
            trackers[0].end("pg")
            assert trackers[1].is_finished("pg")
            dump = tmp_path / "mlflow.dump"
            subprocess.run(
                [str(programs / "pg_dump"), "--format=custom", f"--file={dump}", f"--dbname={uri}"],
                check=True,
                timeout=120,
            )
            assert dump.read_bytes().startswith(b"PGDMP")
        said = served.out.read_text() + served.err.read_text()
        assert "postgresql://***@127.0.0.1" in said
        assert PASSWORD not in said
        assert encoded[1] not in said
        # A suite may also use the database without a server.
        direct = Tracker(uri, "l2g", tmp_path / "direct")
        assert direct.start("pg", "task") == run_id
        with pytest.raises(UserError) as caught:
            prepare_store(uri.replace("/mlflow", "/none"))
        assert encoded[1] not in str(caught.value)


# ---- the page --------------------------------------------------------------------------------------------------------


def test_commands_of_the_page_are_right() -> None:
    text = (ROOT / "docs" / "server.md").read_text()
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.S)).replace("\\\n", " ")
    lines = [line.partition(" #")[0] for line in blocks.splitlines() if "l2g-ray server" in line]
    assert len(lines) >= 8
    for line in lines:
        words = shlex.split(line.replace("$(hostname)", "head"))
        arguments = words[words.index("server") + 1 :]
        context = server_command.make_context("server", list(arguments))
        name, command, rest = server_command.resolve_command(context, [*context._protected_args, *context.args])
        assert command is not None
        command.make_context(name, rest).close()
