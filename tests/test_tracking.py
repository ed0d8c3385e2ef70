"""The MLflow tree, written and read back through a real store (SQLite) and a second process."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from l2g_ray.errors import UserError
from l2g_ray.redaction import without_secrets
from l2g_ray.tracking.runs import KEY_TAG, Tracker


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mlflow")


@pytest.fixture(scope="module")
def no_environment_uri() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.delenv("MLFLOW_TRACKING_URI", raising=False)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def tracker(home: Path, no_environment_uri: None) -> Tracker:
    return Tracker(None, "l2g", home)


def _reopen(tracker: Tracker, home: Path) -> Tracker:
    return Tracker(tracker.uri, tracker.experiment, home)


def _client(tracker: Tracker) -> MlflowClient:
    return MlflowClient(tracker.uri, tracker.uri)


def test_default_store_is_sqlite_in_home(tracker: Tracker, home: Path) -> None:
    assert tracker.uri == f"sqlite:///{home}/mlflow.db"
    assert (home / "mlflow.db").exists()
    assert _client(tracker).get_experiment_by_name("l2g").artifact_location == (home / "mlartifacts").as_uri()
    # A fluent call would have exported the URI, and the next Tracker would have taken it for the user's.
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_tree_is_read_back_by_parent(tracker: Tracker) -> None:
    suite = tracker.start("tree", "demo", tags={"bench": "demo"}, params={"preset": "smoke"})
    task = tracker.start("tree/splice", "splice", parent_key="tree")
    trial = tracker.start("tree/splice/t0", "trial 0", parent_key="tree/splice", params={"optim": {"lr": 1e-3}})
    for epoch in range(3):
        tracker.log_metrics("tree/splice/t0", {"valid_mcc": 0.1 * epoch, "pearson[house]": 0.5}, step=epoch)
    tracker.log_dict("tree", {"preset": "smoke"}, "settings.json")
    tracker.log_text("tree", "| task |", "leaderboard.md")
    for key in ("tree/splice/t0", "tree/splice", "tree"):
        tracker.end(key)

    client = _client(tracker)

    def children(run_id: str) -> list[str]:
        found = client.search_runs([tracker.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'")
        return [run.info.run_id for run in found]

    assert children(suite) == [task]
    assert children(task) == [trial]
    run = client.get_run(trial)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "trial 0"
    assert run.data.params == {"optim.lr": "0.001"}
    assert [(m.step, m.value) for m in client.get_metric_history(trial, "valid_mcc")] == [
        (0, 0),
        (1, 0.1),
        (2, 0.2),
    ]
    assert run.data.metrics["pearson.house"] == 0.5
    assert {a.path for a in client.list_artifacts(suite)} == {"settings.json", "leaderboard.md"}


def test_killed_run_goes_on_where_it_was(tracker: Tracker, home: Path) -> None:
    first = tracker.start("killed", "trial", params={"lr": 1, "depth": 2})
    tracker.log_metrics("killed", {"loss": 3.0}, step=0)
    tracker.log_metrics("killed", {"loss": 2.0}, step=1)

    again = _reopen(tracker, home)
    assert not again.is_finished("killed")
    assert again.start("killed", "trial", params={"lr": 99, "batch_size": 8}) == first
    for epoch, loss in enumerate([3.5, 2.5, 1.0]):
        again.log_metrics("killed", {"loss": loss, "late": loss}, step=epoch)
    again.log_metrics("killed", {"best": 0.9})
    again.log_metrics("killed", {"best": 0.9})
    again.end("killed")

    client = _client(tracker)
    assert [m.value for m in client.get_metric_history(first, "loss")] == [3.0, 2.0, 1.0]
    assert len(client.get_metric_history(first, "late")) == 3
    assert len(client.get_metric_history(first, "best")) == 1
    assert client.get_run(first).data.params == {"lr": "1", "depth": "2", "batch_size": "8"}
    assert len(client.search_runs([tracker.experiment_id], f"tags.`{KEY_TAG}` = 'killed'")) == 1


def test_finished_run_is_left_untouched(tracker: Tracker, home: Path, tmp_path: Path) -> None:
    run_id = tracker.start("done", "task")
    tracker.log_metrics("done", {"mcc": 0.5}, step=0)
    tracker.end("done")
    before = _client(tracker).get_run(run_id)

    again = _reopen(tracker, home)
    assert again.is_finished("done")
    assert not again.is_finished("never started")
    assert again.start("done", "task", tags={"new": 1}, params={"new": 1}) == run_id
    again.log_metrics("done", {"mcc": 0.9}, step=7)
    again.log_text("done", "x", "x.txt")
    again.log_artifacts("done", tmp_path)
    again.end("done", "FAILED")

    after = _client(tracker).get_run(run_id)
    assert after.to_dictionary() == before.to_dictionary()


def test_failed_and_interrupted_runs_run_again(tracker: Tracker, home: Path) -> None:
    failed, open_run = tracker.start("failed", "a"), tracker.start("open", "b")
    tracker.end("failed", "FAILED")
    tracker.close_open_runs("KILLED")
    tracker.end("open", "FAILED")
    client = _client(tracker)
    assert [client.get_run(r).info.status for r in (failed, open_run)] == ["FAILED", "KILLED"]

    assert tracker.start("failed", "a") == failed
    assert client.get_run(failed).info.status == "RUNNING"
    tracker.end("failed")
    with pytest.raises(ValueError, match="call start"):
        tracker.log_metrics("open", {"x": 1})
    with pytest.raises(ValueError, match="status"):
        tracker.end("failed", "DONE")


def test_only_finite_numbers_are_metrics(tracker: Tracker) -> None:
    run_id = tracker.start("numbers", "a")
    values = {"a": np.float32(1.5), "b": math.nan, "c": math.inf, "d": "text", "e": None, "f": True, "g": 3}
    tracker.log_metrics("numbers", values, step=0)
    assert _client(tracker).get_run(run_id).data.metrics == {"a": 1.5, "g": 3.0}


def test_params_are_flat_short_many_and_without_secrets(tracker: Tracker) -> None:
    params = {
        "long": "x" * 10_000,
        "model": {"target_tokens": 32, "hf_token": "abc", "tokenizer": "wordpiece", "kernel_sizes": (3, 5)},
        "API_KEY": "abc",
        "db": "postgresql://me:abc@host/x",
        "many": {f"p{i}": i for i in range(150)},
    }
    run_id = tracker.start("params", "a", params=params, tags={"password": "abc", "ok": "yes"})
    data = _client(tracker).get_run(run_id).data
    assert len(data.params["long"]) == 6000
    assert data.params["model.kernel_sizes"] == "[3, 5]"
    assert data.params["model.target_tokens"] == "32"
    assert data.params["model.tokenizer"] == "wordpiece"
    assert data.params["many.p149"] == "149"
    assert "abc" not in json.dumps(data.params) + json.dumps(data.tags)


def test_secrets_are_dropped_at_any_depth() -> None:
    dirty = {
        "a": [{"github_token": 1, "b": "http://u:p@h"}],
        "aws_secret_access_key": 1,
        "tokens": 2,
        "c": {"apiKey": 1},
    }
    assert without_secrets(dirty) == {"a": [{"b": "http://***@h"}], "tokens": 2, "c": {}}


def test_model_predicts_from_strings_in_another_process(tracker: Tracker, home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "motif.txt").write_text("TATA")
    run_id = tracker.start("model", "task")
    data = [
        {
            "name": "t test",
            "digest": "d" * 64,
            "context": "test",
            "source": "/t.csv",
            "rows": 2,
            "columns": ["sequence"],
        }
    ]
    about = {
        "name": "t/1.0",
        "tags": {"l2g_ray.chosen_arm": "average"},
        "example": ["ACGT", "GGGG"],
        "outputs": [["prediction", "string"], ["probability_1", "double"]],
        "data": {"test": ["t test", "d" * 64]},
    }
    tracker.log_data("model", data)
    metrics = {"test_mcc": 0.5, "test_auroc": math.nan, "valid_mcc": 0.25}
    uri = tracker.log_model("model", folder, "demo-tata", metrics, about)
    again = _reopen(tracker, home)
    again.start("model", "task")
    again.log_data("model", data)
    assert again.log_model("model", folder, "demo-tata", metrics, about) == uri
    client = _client(tracker)
    run, model = client.get_run(run_id), client.get_logged_model(uri.removeprefix("models:/"))
    assert run.data.metrics == {"test_mcc": 0.5, "valid_mcc": 0.25}
    assert {m.key: (m.value, m.dataset_name) for m in model.metrics} == {
        "test_mcc": (0.5, "t test"),
        "valid_mcc": (0.25, None),
    }
    assert (model.name, model.tags["l2g_ray.chosen_arm"]) == ("t_1_0", "average")
    assert run.data.tags["l2g_ray.chosen_arm"] == "average"
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest, used.dataset.source) == ("t test", "d" * 36, '{"uri": "/t.csv"}')
    assert json.loads(used.dataset.profile)["num_rows"] == 2
    assert [(tag.key, tag.value) for tag in used.tags] == [("mlflow.data.context", "test")]
    (version,) = client.search_model_versions("name='demo-tata'")
    assert version.tags == {"l2g_ray.model_uri": uri, "l2g_ray.chosen_arm": "average"}
    assert [m.model_id for m in client.get_run(run_id).outputs.model_outputs] == [uri.removeprefix("models:/")]

    script = """
import json, sys, types
import numpy as np, pandas as pd
stub = types.ModuleType("l2g_ray.predict")
class Predictor:
    def __init__(self, folder, device, batch_size): self.motif = (folder / "motif.txt").read_text()
    def predict(self, sequences): return pd.DataFrame({"prediction": [self.motif in s for s in sequences]})
stub.load_predictor = Predictor
sys.modules["l2g_ray.predict"] = stub
import io, mlflow
from mlflow.pyfunc.scoring_server import _parse_json_data, parse_csv_input
dna = ["GGTATAGG", "CCCC"]
out = []
for uri in sys.argv[1:]:
    model = mlflow.pyfunc.load_model(uri)
    for given in (dna, np.array(dna), pd.Series(dna), pd.DataFrame({"sequence": dna})):
        out.append(model.predict(given)["prediction"].tolist())
    for given in (dna[0], pd.DataFrame({"id": [1, 2], "sequence": dna})):
        out.append(model.predict(given)["prediction"].tolist())
    # As `mlflow models serve` reads requests.
    table = {"columns": ["id", "sequence"], "data": [["a", dna[0]], ["b", dna[1]]]}
    for request in ({"dataframe_split": table}, {"inputs": dna}, {"inputs": {"sequence": dna}}):
        schema = model.metadata.get_input_schema()
        given = _parse_json_data(json.dumps(request), model.metadata, schema).data
        out.append(model.predict(given)["prediction"].tolist())
    given = parse_csv_input(io.StringIO("sequence,id\\n" + dna[0] + ",1\\n" + dna[1] + ",2"), schema)
    out.append(model.predict(given)["prediction"].tolist())
example = model.input_example["sequence"].tolist()
shapes = [model.metadata.get_input_schema().input_names(), model.metadata.get_output_schema().input_names(), example]
try: model.predict(pd.DataFrame({"dna": dna}))
except Exception as error: out.append(str(error))
print(json.dumps([shapes, *out]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, uri, "models:/demo-tata/1"],
        check=False,
        env={**os.environ, "MLFLOW_TRACKING_URI": tracker.uri},
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    assert done.returncode == 0, done.stderr
    shapes, *predictions, message = json.loads(done.stdout.splitlines()[-1])
    assert predictions == 2 * [*[[True, False]] * 4, [True], *[[True, False]] * 5]
    assert shapes == [[0, "sequence"], ["prediction", "probability_1"], about["example"]]
    assert "no column 'sequence'" in message
    said = [line for line in done.stderr.splitlines() if line.strip()]
    assert all("Found extra inputs" in line for line in said), "loading must be quiet"
    assert "['dna']" in said[-1]


def test_missing_model_folder_is_one_sentence(tracker: Tracker, tmp_path: Path) -> None:
    tracker.start("no model", "a")
    with pytest.raises(UserError, match=r"does not exist"):
        tracker.log_model("no model", tmp_path / "gone", None)


def test_unreachable_server_is_one_sentence(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=r"does not answer .*MLFLOW_TRACKING_URI") as caught:
            Tracker(f"http://me:abc@127.0.0.1:{port}", "l2g", tmp_path)
    assert "abc" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sick_server_is_refused(tmp_path: Path) -> None:
    class Sick(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(503)

        def log_message(self, format: str, *args: object) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Sick)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(UserError, match="status 503"):
            Tracker(f"http://127.0.0.1:{server.server_port}", "l2g", tmp_path)
    finally:
        server.shutdown()
        server.server_close()


def test_store_that_cannot_be_opened_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to"):
        Tracker(f"sqlite:///{tmp_path}/m.db", "l2g", tmp_path / "file")
    with pytest.raises(UserError, match="cannot open the MLflow store"):
        Tracker(f"file://{tmp_path}/mlruns", "l2g", tmp_path)


def test_threads_share_one_tracker(tracker: Tracker) -> None:
    def log(name: str) -> None:
        tracker.start(f"thread/{name}", name)
        for step in range(5):
            tracker.log_metrics(f"thread/{name}", {"loss": step}, step=step)
        tracker.end(f"thread/{name}")

    threads = [threading.Thread(target=log, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(tracker.is_finished(f"thread/{name}") for name in "abc")


def test_import_does_not_load_mlflow() -> None:
    code = "import sys, l2g_ray.tracking.runs; assert 'mlflow' not in sys.modules and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)
