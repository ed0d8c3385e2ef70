"""A thin MLflow logger: a tree of runs (suite, task, stage or trial) that can be written twice without harm.

Every run has a stable `key`, stored as a tag. A suite that was killed and is started again finds its runs by
their keys and continues them; a run that is FINISHED does not change. Ray's own callback makes flat, noisy runs,
and an SQLite store survives one initialising process only: so the driver alone holds a `Tracker`, and workers
report to the driver.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

from l2g_ray.errors import UserError
from l2g_ray.names import safe_name
from l2g_ray.redaction import redact, without_secrets
from l2g_ray.tracking.store import (
    KEY_TAG,
    MODEL_TAG,
    MODELS,
    open_store,
    prepare_view,
    register_model,
    runs_page,
    speaking_to,
    split_login,
    upload_model,
)

NAME_TAG = "mlflow.runName"  # of MLflow; so is the next, a run's description in Markdown
NOTE_TAG = "mlflow.note.content"
MODEL_HASH_TAG = "l2g_ray.model_sha256"
STATUSES = ("FINISHED", "FAILED", "KILLED")
# What MLflow 3 accepts, enough for the command of a run; the logged config has all values in full.
MAX_PARAM_CHARS = 6000
MAX_TAG_CHARS = 5000
MAX_KEY_CHARS = 250
# MLflow's limits for one request, and of a data set's digest.
BATCH_PARAMS = 100
BATCH_METRICS = 1000
DIGEST_CHARS = 36


@dataclass
class _Run:
    run_id: str
    finished: bool
    fresh: bool
    params: set[str] = field(default_factory=set)
    tags: dict[str, str] = field(default_factory=dict)
    # Name of a metric to the last (step, value) in the store.
    last: dict[str, tuple[int, float]] = field(default_factory=dict)


class Tracker:
    """Runs of one MLflow experiment, addressed by key. Safe to use from several threads of one process."""

    def __init__(self, uri: str | None, experiment: str, home: Path) -> None:
        """Open the store, and make it when it is not there.

        Parameters
        ----------
        uri : MLflow's tracking URI. None: MLFLOW_TRACKING_URI of the environment, else SQLite in `home`.
        experiment : name of the MLflow experiment; created when missing.
        home : folder of the default store `mlflow.db` and of the artifacts of every store without a server.

        Raises
        ------
        UserError : a server that does not answer (within 5 s), or a store that cannot be opened.
        """
        self._lock = threading.RLock()
        self._runs: dict[str, _Run] = {}
        self.experiment = experiment
        self.uri, self._client, self.experiment_id = open_store(uri, experiment, home)

    def prepare_view(self, metrics: Iterable[str], tags: Iterable[str]) -> None:
        """Have MLflow's table of runs show these metrics and tags to whoever follows `link`, and that page be the first.

        A store that refuses is no failure: the table then has the columns of MLflow's choice.
        """
        columns = ["attributes.`Models`", *(f"tags.`{name}`" for name in tags)]
        columns += [f"metrics.`{_safe_name(name)}`" for name in metrics]
        with contextlib.suppress(UserError), speaking_to(self.uri):
            prepare_view(self._client, self.experiment_id, columns)

    @property
    def link(self) -> str:
        """Where the table of runs is in the browser, without a login; empty for a store without a server."""
        if not self.uri.startswith(("http://", "https://")):
            return ""
        with speaking_to(self.uri):
            tags = self._client.get_experiment(self.experiment_id).tags
        return runs_page(split_login(self.uri)[0], self.experiment_id, tags)

    def start(
        self,
        key: str,
        name: str,
        parent_key: str | None = None,
        tags: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
        at_ms: int | None = None,
    ) -> str:
        """Find the run of `key` or create it; a found run that is not FINISHED is RUNNING again.

        `parent_key` names a started run. `at_ms` is when a new run began, in milliseconds since 1970; now, when None.
        `params` may be nested (logged with dotted names); those already
        there are not logged again, since MLflow refuses another value. Keys that name a secret are dropped
        from tags and params. Returns the run id.
        """
        labels = _flatten(tags or {}, MAX_TAG_CHARS)
        with self._lock, speaking_to(self.uri):
            parent = {"mlflow.parentRunId": self._get(parent_key).run_id} if parent_key is not None else {}
            run = self._runs.get(key) or self._find(key)
            if run is None:
                labels |= {**parent, KEY_TAG: key, "mlflow.source.name": "l2g-ray"}
                created = self._client.create_run(self.experiment_id, at_ms, tags=labels, run_name=name)
                run = _Run(created.info.run_id, finished=False, fresh=True, tags=labels)
            elif not run.finished:
                self._client.update_run(run.run_id, status="RUNNING", name=name)
                self._set_tags(run, labels | parent)
            else:  # as it is, but below the present parent: the one from before may have been deleted
                self._set_tags(run, parent)
            self._runs[key] = run
            if not run.finished:
                self._log_params(run, params or {})
            return run.run_id

    def mark(self, key: str, tags: Mapping[str, Any], name: str | None = None) -> None:
        """Set tags of a started run, and another name: what is known late, also of a run that is FINISHED."""
        labels = _flatten(tags, MAX_TAG_CHARS)
        with self._lock, speaking_to(self.uri):
            run = self._get(key)
            self._set_tags(run, labels)
            if name is not None and run.tags.get(NAME_TAG) != name:
                self._client.update_run(run.run_id, name=name)
                run.tags[NAME_TAG] = name

    def resume(self, key: str) -> bool:
        """Open the run of `key` that an earlier process started; False when the store has none."""
        with self._lock, speaking_to(self.uri):
            run = self._runs.get(key) or self._find(key)
            if run is not None:
                self._runs[key] = run
            return run is not None

    def is_finished(self, key: str) -> bool:
        """Return whether the store holds a FINISHED run of this key."""
        with self._lock, speaking_to(self.uri):
            run = self._runs.get(key) or self._find(key)
            return run is not None and run.finished

    def log_metrics(
        self, key: str, metrics: Mapping[str, Any], step: int | None = None, at_ms: int | None = None
    ) -> None:
        """Log the finite numbers among `metrics` (booleans, text, NaN and infinities are skipped).

        A step (usually an epoch) that the store already has for a metric is skipped, so a stage that resumes
        from a checkpoint may report its last epochs again. Without a step the value is a summary: it gets the last
        step of its metric, and is logged only when it differs. `at_ms` is the time of the numbers, in
        milliseconds since 1970; now, when None.
        """
        from mlflow.entities import Metric

        now = int(time.time() * 1000) if at_ms is None else at_ms
        with self._lock, speaking_to(self.uri):
            run = self._get(key)
            if run.finished:
                return
            batch = []
            for raw_name, raw_value in metrics.items():
                if not isinstance(raw_value, Real) or isinstance(raw_value, bool) or not math.isfinite(raw_value):
                    continue
                name, value = _safe_name(raw_name), float(raw_value)
                last_step, last_value = self._last_logged(run, name)
                if (step is not None and step <= last_step) or (step is None and value == last_value):
                    continue
                at = max(last_step, 0) if step is None else step
                batch.append(Metric(name, value, now, at))
            if not batch:
                return
            # A failed request may have arrived: the next call reads the last values from the store.
            fresh, run.fresh = run.fresh, False
            for metric in batch:
                run.last.pop(metric.key, None)
            for i in range(0, len(batch), BATCH_METRICS):
                self._client.log_batch(run.run_id, metrics=batch[i : i + BATCH_METRICS])
            run.fresh = fresh
            run.last |= {metric.key: (metric.step, metric.value) for metric in batch}

    def log_data(self, key: str, data: Sequence[Mapping[str, Any]]) -> None:
        """Name the data sets that a run used.

        Parameters
        ----------
        data : one mapping a data set: `name`, `digest` (MLflow keeps its first 36 characters), `context` ('training',
            ...), `source` (a path or URI), `rows`, and `columns`.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = []
        for one in data:
            columns = [{"name": name, "type": "string", "required": True} for name in one["columns"]]
            source_type = one["source"].partition("://")[0] if "://" in one["source"] else "local"
            dataset = Dataset(
                one["name"],
                one["digest"][:DIGEST_CHARS],
                source_type,
                json.dumps({"uri": redact(one["source"])}),
                json.dumps({"mlflow_colspec": columns}),
                json.dumps({"num_rows": one["rows"], "sha256": one["digest"]}),
            )
            inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", one["context"])]))
        with self._lock, speaking_to(self.uri):
            run = self._get(key)
            if not run.finished:
                self._client.log_inputs(run.run_id, inputs)

    def log_text(self, key: str, text: str, artifact_file: str) -> None:
        """Store text as the run's artifact `artifact_file`, a path with '/'."""
        with self._lock, speaking_to(self.uri):
            run = self._get(key)
            if not run.finished:
                self._client.log_text(run.run_id, redact(text), artifact_file)

    def log_dict(self, key: str, obj: Mapping[str, Any], artifact_file: str) -> None:
        """Store a mapping as JSON (`.json`) or YAML (`.yaml`), without its secrets."""
        with self._lock, speaking_to(self.uri):
            run = self._get(key)
            if not run.finished:
                self._client.log_dict(run.run_id, without_secrets(obj), artifact_file)

    def log_artifacts(self, key: str, path: Path, artifact_path: str | None = None) -> None:
        """Store a file, or all files of a folder, below the run's artifact folder `artifact_path`."""
        with self._lock, speaking_to(self.uri):
            run = self._get(key)
            if run.finished:
                return
            log = self._client.log_artifacts if Path(path).is_dir() else self._client.log_artifact
            log(run.run_id, str(path), artifact_path)

    def replace_artifacts(self, key: str, paths: Mapping[Path, str | None]) -> bool:
        """Store files, or all files of folders, again in a run that may have ended long ago: what is made of it later.

        `paths` maps each to its artifact folder. False, and nothing done, when the store has no run of this key.
        """
        with self._lock, speaking_to(self.uri):
            run = self._find(key)
            if run is None:
                return False
            for path, artifact_path in paths.items():
                log = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
                log(run.run_id, str(path), artifact_path)
            return True

    def log_model(
        self,
        key: str,
        model_folder: Path,
        registered_name: str | None = None,
        metrics: Mapping[str, float] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> str:
        """Store a model folder as an MLflow pyfunc model of this run, and register it when a name is given.

        The same folder is not stored or registered twice.

        Parameters
        ----------
        metrics : the scores of this very model, logged as summaries of the run and of the model.
        about : what else MLflow shows of the model, all optional: `name`, `tags` (also the run's and the registered
            version's), `example` (a few sequences), `outputs` (name and MLflow type of each output column), and `data`
            (the first word of a metric, to name and digest of the data set that it was measured on; see `log_data`).

        Returns
        -------
        `models:/<id>`, which `mlflow.pyfunc.load_model` opens where the tracking URI is this store's.

        Raises
        ------
        UserError : the folder is missing.
        """
        about = about or {}
        if not Path(model_folder).is_dir():
            raise UserError(f"the model folder {model_folder} does not exist; run the task again to make it")
        digest = _hash_folder(Path(model_folder))
        with self._lock, speaking_to(self.uri):
            run = self._get(key)
            uri, tags = run.tags.get(MODEL_TAG), _flatten(about.get("tags", {}), MAX_TAG_CHARS)
            missing = uri is None or run.tags.get(MODEL_HASH_TAG) != digest
            if uri is None or missing:
                uri = upload_model(self._client, self.experiment_id, run.run_id, Path(model_folder), about)
            if missing or not tags.items() <= run.tags.items():  # the latter: stored by an earlier version
                self._log_scores(run, uri, metrics or {}, about.get("data", {}))
                self._set_tags(run, tags | {MODEL_TAG: uri, MODEL_HASH_TAG: digest})
            if registered_name:
                register_model(self._client, self.uri, registered_name, uri, run.run_id, about.get("tags", {}))
            return uri

    def _log_scores(
        self, run: _Run, model_uri: str, metrics: Mapping[str, float], data: Mapping[str, Sequence[str]]
    ) -> None:
        from mlflow.entities import Metric

        now, batch = int(time.time() * 1000), []
        for name, value in metrics.items():
            if not math.isfinite(value):
                continue
            dataset, digest = data.get(name.partition("_")[0]) or (None, None)
            digest = digest and digest[:DIGEST_CHARS]
            model_id = model_uri.removeprefix(MODELS)
            batch.append(Metric(_safe_name(name), value, now, 0, model_id, dataset, digest, run.run_id))
        for i in range(0, len(batch), BATCH_METRICS):
            self._client.log_batch(run.run_id, metrics=batch[i : i + BATCH_METRICS])

    def end(self, key: str, status: str = "FINISHED", at_ms: int | None = None) -> None:
        """Close an open run as FINISHED, FAILED or KILLED; a run that is not open stays as it is.

        `at_ms` is when it ended, in milliseconds since 1970; now, when None.
        """
        if status not in STATUSES:
            raise ValueError(f"status must be one of {', '.join(STATUSES)}, not {status!r}")
        with self._lock, speaking_to(self.uri):
            run = self._runs.get(key)
            if run is None or run.finished:
                return
            self._client.set_terminated(run.run_id, status, at_ms)
            run.finished = status == "FINISHED"
            if not run.finished:
                del self._runs[key]

    def close_open_runs(self, status: str = "KILLED") -> None:
        """End every run that this process started and did not end: for interrupts and failures."""
        with self._lock:
            for key in [key for key, run in self._runs.items() if not run.finished]:
                self.end(key, status)

    def _get(self, key: str) -> _Run:
        if key not in self._runs:
            raise ValueError(f"run {key!r} is not open; call start() first")
        return self._runs[key]

    def _find(self, key: str) -> _Run | None:
        if "'" in key:
            raise ValueError(f"a run's key must not hold a quote: {key!r}")
        found = self._client.search_runs(
            [self.experiment_id],
            f"tags.`{KEY_TAG}` = '{key}'",
            max_results=1,
            order_by=["attributes.start_time ASC"],
        )
        if not found:
            return None
        data, info = found[0].data, found[0].info
        return _Run(info.run_id, info.status == "FINISHED", fresh=False, params=set(data.params), tags=dict(data.tags))

    def _last_logged(self, run: _Run, name: str) -> tuple[int, float]:
        if name not in run.last:
            history = [] if run.fresh else self._client.get_metric_history(run.run_id, name)
            newest = max(history, key=lambda m: (m.step, m.timestamp), default=None)
            run.last[name] = (newest.step, newest.value) if newest else (-1, math.nan)
        return run.last[name]

    def _set_tags(self, run: _Run, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        changed = {name: value for name, value in tags.items() if run.tags.get(name) != value}
        if changed:
            self._client.log_batch(run.run_id, tags=[RunTag(*item) for item in changed.items()])
            run.tags |= changed

    def _log_params(self, run: _Run, params: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        flat = _flatten(params, MAX_PARAM_CHARS)
        missing = [Param(name, value) for name, value in flat.items() if name not in run.params]
        for i in range(0, len(missing), BATCH_PARAMS):
            self._client.log_batch(run.run_id, params=missing[i : i + BATCH_PARAMS])
        run.params |= set(flat)


def _flatten(nested: Mapping[str, Any], max_chars: int) -> dict[str, str]:
    """Dotted names to text, cut to MLflow's limits, without secrets."""
    flat: dict[str, str] = {}

    def visit(node: Mapping[str, Any], prefix: str) -> None:
        for key, value in node.items():
            if isinstance(value, Mapping) and value:
                visit(value, f"{prefix}{key}.")
                continue
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            flat[_safe_name(f"{prefix}{key}")] = text if len(text) <= max_chars else text[: max_chars - 3] + "..."

    visit(without_secrets(nested), "")
    return flat


def _safe_name(name: str) -> str:
    # MLflow allows no brackets, and our metrics have them: pearson[housekeeping].
    return safe_name(name.replace("[", ".").replace("]", ""), r"\w\-. :/", most=MAX_KEY_CHARS)


def _hash_folder(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(os.fsencode(path.relative_to(folder)) + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
