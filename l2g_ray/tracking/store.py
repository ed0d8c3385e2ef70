"""The MLflow store of a run: which one, in what state, and put right where its folder was moved."""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import logging
import os
import re
import shlex
import sqlite3
import tempfile
import threading
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from l2g_ray.errors import UserError
from l2g_ray.places import ARTIFACT_FOLDER, STORE_FILE, sqlite_file, sqlite_uri
from l2g_ray.redaction import redact
from l2g_ray.tracking.mlflow_private import KIND_TAG, TRAINING, VIEW, VIEW_TAG, find_model_files

if TYPE_CHECKING:
    from mlflow import MlflowClient

COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def follow_folder(store: Path) -> int:
    """Point the store `mlflow.db` at the artifacts beside it; returns the number of changed rows.

    Experiments that `l2g-ray` made keep their artifacts in `mlartifacts` beside the store. Where one names a folder of
    that name elsewhere, the experiment is changed, and with it each run and model whose files are in the folder here,
    or are not in the folder there.
    """
    here = (store.absolute().parent / ARTIFACT_FOLDER).as_uri()
    changed = 0
    with closing(sqlite3.connect(f"{store.absolute().as_uri()}?mode=rw", uri=True, timeout=30)) as database, database:
        for old in _find_old_roots(database, here):
            for table, column in COLUMNS:
                for row, place in _find_below(database, table, column, old):
                    new = here + place[len(old) :]
                    if table == "experiments" or _path(new).exists() or not _path(place).exists():
                        database.execute(f'UPDATE "{table}" SET "{column}" = ? WHERE rowid = ?', (new, row))
                        changed += 1
    return changed


def _find_old_roots(database: sqlite3.Connection, here: str) -> list[str]:
    found = {place for _, place in _find_below(database, "experiments", "artifact_location", "file:")}
    return sorted(
        place for place in found if place.endswith(f"/{ARTIFACT_FOLDER}") and place != here and not _same(place, here)
    )


def _find_below(database: sqlite3.Connection, table: str, column: str, start: str) -> list[tuple[int, str]]:
    """Return rows of a table whose column begins with `start`; none where the store has no such column."""
    columns = {name for _, name, *_ in database.execute(f'PRAGMA table_info("{table}")')}
    if column not in columns:
        return []
    query = f'SELECT rowid, "{column}" FROM "{table}" WHERE substr("{column}", 1, ?) = ?'
    return database.execute(query, (len(start), start)).fetchall()


def _same(place: str, other: str) -> bool:
    try:
        return _path(place).samefile(_path(other))
    except OSError:
        return False


def _path(uri: str) -> Path:
    return Path(unquote(urlsplit(uri).path))


KEY_TAG = "l2g_ray.key"
MODEL_TAG = "l2g_ray.model_uri"
MODELS = "models:/"
PROBE_SECONDS = 4.0
# Only where the user set nothing. MLflow's own (120 s, 7 retries) hang for minutes on a server that went away.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
MODEL_REQUIREMENTS = (
    "l2g-ray",
    "mlflow",
    "torch",
    "transformers",
    "safetensors",
    "numpy",
    "pandas",
    "pyarrow",
    "pydantic",
)
# What MLflow answers when a request did not come through, or when its database did not take it.
OUTAGES = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "RESOURCE_EXHAUSTED"}
_opening = threading.Lock()


class StoreUnavailable(UserError):
    """The store does not answer, or cannot write at the moment: the same request may succeed later."""


@contextmanager
def speaking_to(uri: str) -> Iterator[None]:
    """Turn MLflow's exceptions into StoreUnavailable, or into UserError where the request itself was refused."""
    from mlflow.exceptions import MlflowException
    from requests import HTTPError, RequestException

    try:
        yield
    except FileNotFoundError:
        raise  # the caller's own file, not the store
    except (MlflowException, RequestException, OSError) as error:
        refused = isinstance(error, MlflowException) and error.error_code not in OUTAGES
        if isinstance(error, HTTPError) and error.response is not None:
            refused = error.response.status_code < 500 and error.response.status_code != 429
        if refused:
            raise UserError(
                f"the MLflow store {redact(uri)} refused a request ({_first_line(error)}); mend it and run "
                "the same command again: what is finished is not repeated"
            ) from error
        raise StoreUnavailable(f"the MLflow store {redact(uri)} does not answer ({_first_line(error)})") from error


def resolve_uri(uri: str | None, home: Path) -> str:
    """`uri`, else MLFLOW_TRACKING_URI of the environment, else the SQLite file in `home`."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(Path(home) / STORE_FILE)


def is_own_store(uri: str, home: Path) -> bool:
    """Return whether a store is the SQLite file in `home`, which moves with that folder."""
    file = sqlite_file(uri)
    return file is not None and file.absolute() == Path(home).absolute() / STORE_FILE


def is_file_store(uri: str) -> bool:
    """Return whether a store is a file, and no server or database."""
    return uri.partition(":")[0] in ("sqlite", "sqlite+pysqlite", "file")


def refuse_file_store(uri: str, alive_nodes: int) -> None:
    """Refuse a store that is a file when the cluster has more than one node.

    SQLite over a network file system loses its locks, and nobody on another machine could browse it.

    Raises
    ------
    UserError : `uri` is not a server or database, and `alive_nodes` is above 1; the message says what to use.
    """
    if alive_nodes > 1 and is_file_store(uri):
        raise UserError(
            f"the cluster has {alive_nodes} machines, but the MLflow store {redact(uri)} is a file on one of them; "
            "start `l2g-ray server` on the head node and export MLFLOW_TRACKING_URI=http://HEAD:5000"
        )


def open_store(uri: str | None, experiment: str, home: Path) -> tuple[str, MlflowClient, str]:
    """Return the resolved URI, a client and the experiment's id; parameters and errors: see `Tracker`."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    home = Path(home).absolute()
    uri = resolve_uri(uri, home)
    if uri.startswith(("http://", "https://")):
        _probe_server(uri)

    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # This logger repeats raised errors with a traceback; the writer reports them in one line.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    try:
        with _initialising(home):
            if is_own_store(uri, home) and (home / STORE_FILE).exists():
                follow_folder(home / STORE_FILE)
            client = MlflowClient(uri, uri)
            return uri, client, _find_experiment(client, uri, experiment, home)
    except OSError as error:
        raise UserError(f"cannot write to {home} ({error.strerror}); name another output folder (--out)") from None
    except (MlflowException, SQLAlchemyError, sqlite3.Error) as error:
        reason = redact(str(error).strip().splitlines()[0])
        raise UserError(
            f"cannot open the MLflow store {redact(uri)} ({reason}); name another with MLFLOW_TRACKING_URI, "
            "or unset it for a local one"
        ) from error


def prepare_view(client: MlflowClient, experiment_id: str, columns: list[str]) -> None:
    """Have MLflow show an experiment as one of training, unless a person has chosen generative AI, and keep a view of its
    table of runs with these columns and those that it has already."""
    tags = client.get_experiment(experiment_id).tags
    try:
        kept = list(json.loads(tags.get(VIEW_TAG, "{}")).get("selectedColumns", []))
    except (ValueError, AttributeError, TypeError):  # not ours
        kept = []
    view = json.dumps({"selectedColumns": list(dict.fromkeys([*kept, *columns]))})
    wanted = {KIND_TAG: tags.get(KIND_TAG, TRAINING), VIEW_TAG: view}
    for name, value in wanted.items():
        if tags.get(name) != value:
            client.set_experiment_tag(experiment_id, name, value)


def runs_page(server: str, experiment_id: str, tags: Iterable[str]) -> str:
    """Return the address of an experiment's table of runs on a server; `tags` are the names of the experiment's."""
    view = f"&viewStateShareKey={VIEW}" if VIEW_TAG in tags else ""
    return f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs?workflowType=machine_learning{view}"


def upload_model(client: MlflowClient, experiment_id: str, run_id: str, folder: Path, about: Mapping[str, Any]) -> str:
    """Store a folder as the pyfunc model of a run; returns `models:/<id>`. `Tracker.log_model` describes `about`.

    Only the client is used: MLflow's fluent calls set a global URI and export it to the environment, where
    the next `Tracker` of this process would take it for the user's.
    """
    import mlflow
    import pandas as pd
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus
    from mlflow.models import Model
    from mlflow.models.signature import ModelSignature
    from mlflow.types import ColSpec, Schema

    from l2g_ray import pyfunc

    name = re.sub(r"[/:.%\"']", "_", about.get("name", "")) or "model"  # as MLflow wants it
    tags = {key: str(value) for key, value in about.get("tags", {}).items()}
    logged = client.create_logged_model(experiment_id, name, run_id, tags)
    example = pd.DataFrame({"sequence": about["example"]}) if about.get("example") else None
    outputs = [ColSpec(kind, column) for column, kind in about.get("outputs", ())]
    # MLflow makes a list or an array into a table whose one column is the number 0, and drops columns that a signature
    # with names does not name. A number counts as a name in the first place only. One of the two is there.
    inputs = [ColSpec("string", column, required=False) for column in (0, "sequence")]
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # without an example MLflow asks for one
        target = Path(scratch) / "model"
        mlflow.pyfunc.save_model(
            target,
            python_model=str(Path(pyfunc.__file__)),
            artifacts={"model": str(folder.absolute())},
            signature=ModelSignature(Schema(inputs), Schema(outputs) if outputs else None),
            # With a signature given, MLflow stores the example, and does not run the model on it.
            input_example=example,
            pip_requirements=list(_pin_requirements()),
            mlflow_model=Model(run_id=run_id, model_id=logged.model_id, model_uuid=logged.model_id),
        )
        client.log_model_artifacts(logged.model_id, str(target))
    client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
    client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    return f"{MODELS}{logged.model_id}"


def download_model(uri: str, folder: Path, home: Path) -> Path:
    """Copy a model that `upload_model` stored into `folder`, and return the model's own folder there.

    `uri` is models:/NAME/VERSION, models:/NAME@ALIAS or models:/ID, in the store that `resolve_uri` finds.

    Raises UserError where there is no such store or model, or a model that is not one of l2g_ray.
    """
    import mlflow
    import yaml
    from mlflow import MlflowClient

    store = resolve_uri(None, home)
    file = sqlite_file(store)
    if file is not None and not file.is_file():
        raise UserError(f"{uri}: {file} is no MLflow store; set MLFLOW_TRACKING_URI to the store that has the model")
    with speaking_to(store):
        files = find_model_files(MlflowClient(store, store), uri)
        copy = Path(mlflow.artifacts.download_artifacts(files, dst_path=str(folder), tracking_uri=store))
    try:
        flavours = yaml.safe_load((copy / "MLmodel").read_text())["flavors"]
        return copy / flavours["python_function"]["artifacts"]["model"]["path"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        raise UserError(f"{uri}: is no model of l2g_ray; give one that a run registered") from None


def register_model(
    client: MlflowClient, uri: str, name: str, model_uri: str, run_id: str, tags: Mapping[str, Any]
) -> None:
    """Make a version of the registered model `name` from a logged model, once."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # MLflow 3.17 does not return a version's model_id from a search of an SQL store: our tag says it.
    if any(v.tags.get(MODEL_TAG) == model_uri for v in client.search_model_versions(f"name='{name}'")):
        return
    model_id = model_uri.removeprefix(MODELS)
    # A server resolves models:/; without one, MLflow would look the id up at the global URI.
    is_server = uri.startswith(("http://", "https://"))
    source = model_uri if is_server else client.get_logged_model(model_id).artifact_location
    tags = {**{key: str(value) for key, value in tags.items()}, MODEL_TAG: model_uri}
    client.create_model_version(name, source=source, run_id=run_id, tags=tags, model_id=model_id)


def _first_line(error: Exception) -> str:
    return redact(str(error).strip().splitlines()[0][:300]) if str(error).strip() else type(error).__name__


def split_login(url: str) -> tuple[str, str, str]:
    """Return a URL without its login, which urllib does not understand; user and password, or empty texts."""
    scheme, _, rest = url.partition("://")
    login, at, place = rest.rpartition("@")
    user, _, password = login.partition(":")
    return (f"{scheme}://{place}", unquote(user), unquote(password)) if at else (url, "", "")


def _probe_server(uri: str) -> None:
    outcome: list[str] = ["no answer"]

    def ask() -> None:
        try:
            with urllib.request.urlopen(f"{split_login(uri)[0].rstrip('/')}/health", timeout=PROBE_SECONDS - 1):
                outcome[0] = ""
        except urllib.error.HTTPError as error:
            # A managed server may not know /health or may want a login first: it is there all the same.
            outcome[0] = "" if error.code < 500 else f"status {error.code}"
        except (OSError, ValueError) as error:
            outcome[0] = str(getattr(error, "reason", error))

    # In a thread, since a timeout does not cover the look-up of the host's name.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    if outcome[0]:
        raise UserError(
            f"the MLflow server {redact(uri)} does not answer ({outcome[0]}); start it, correct "
            "MLFLOW_TRACKING_URI, or unset it for a local store"
        )


@contextmanager
def _initialising(home: Path) -> Iterator[None]:
    # Two processes (or threads) that make the tables of one SQLite file at once break each other.
    home.mkdir(parents=True, exist_ok=True)
    with _opening, (home / ".mlflow.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _find_experiment(client: MlflowClient, uri: str, name: str, home: Path) -> str:
    from mlflow.exceptions import MlflowException

    for _ in range(2):
        found = client.get_experiment_by_name(name)
        if found is not None and found.lifecycle_stage == "deleted":
            restore = f"mlflow experiments restore --experiment-id {found.experiment_id}"
            raise UserError(
                f"the MLflow experiment '{name}' of {redact(uri)} was deleted; restore it with "
                f"`MLFLOW_TRACKING_URI={shlex.quote(redact(uri))} {restore}`, or log to another one with --experiment NAME "
                "or MLFLOW_EXPERIMENT_NAME"
            )
        if found is not None:
            return found.experiment_id
        # A server keeps artifacts itself; without one, MLflow's default would be the working directory.
        is_remote = uri.startswith(("http://", "https://", "databricks"))
        location = None if is_remote else (home / ARTIFACT_FOLDER).as_uri()
        try:
            return client.create_experiment(name, artifact_location=location)
        except MlflowException as error:
            # Another client of the server was faster: take its experiment.
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
    raise UserError(f"the MLflow experiment '{name}' can neither be found nor created; choose another name")


def _pin_requirements() -> Iterator[str]:
    for name in MODEL_REQUIREMENTS:
        try:
            # A local version (+cpu) is on no index.
            yield f"{name}=={importlib.metadata.version(name).partition('+')[0]}"
        except importlib.metadata.PackageNotFoundError:
            continue
