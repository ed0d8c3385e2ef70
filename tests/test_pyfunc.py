"""The MLflow model: every form of input, through MLflow's own enforcement, its server and its command line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from explained import write_ensemble, write_model
from hypothesis import given, settings
from hypothesis import strategies as st

from l2g_ray.errors import UserError

DNA = ["ACGTTGACTCATTGCA", "CCCCGGGGTTTT", "ACGT"]
IDS = [7, 8, 9]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models with a signature that names its columns: `model`, and `plain` without the optional `id`."""
    import mlflow
    from mlflow.models.signature import ModelSignature
    from mlflow.types import ColSpec, Schema
    from mlflow.types.schema import AnyType

    from l2g_ray import pyfunc

    folder = tmp_path_factory.mktemp("mlflow")
    task = write_model(folder / "task")
    columns = [ColSpec("string", "sequence"), ColSpec(AnyType(), "id", required=False)]
    for name, named in {"model": columns, "plain": columns[:1]}.items():
        mlflow.pyfunc.save_model(
            folder / name,
            python_model=str(Path(pyfunc.__file__)),
            artifacts={"model": str(task / "model")},
            signature=ModelSignature(inputs=Schema(named)),
            model_config={"device": "auto", "batch_size": 2},
            pip_requirements=["l2g-ray"],
        )
    return folder


@pytest.fixture(scope="module")
def model(stored: Path) -> Any:
    import mlflow

    return mlflow.pyfunc.load_model(str(stored / "model"))


@pytest.fixture(scope="module")
def expected(stored: Path) -> list[float]:
    from l2g_ray.predict import load_predictor

    return load_predictor(stored / "task" / "model").predict(DNA)["probability_present"].tolist()


def test_named_forms_in_any_order_with_other_columns(model: Any, expected: list[float]) -> None:
    frame = pd.DataFrame({"id": IDS, "note": ["x", "y", "z"], "sequence": DNA}, index=[5, 1, 5])
    records = frame.to_dict("records")
    for form in (frame, frame[["sequence", "id"]], frame.to_dict("list"), {"sequence": DNA, "id": IDS}, records):
        found = model.predict(form)
        assert found["id"].tolist() == IDS
        np.testing.assert_allclose(found["probability_present"], expected, atol=1e-6)
    named = [frame[["sequence"]], {"sequence": DNA}, {"sequence": np.array(DNA)}, pd.Series(DNA, name="sequence")]
    named.append([{"sequence": one} for one in DNA])
    for form in named:
        found = model.predict(form)
        assert list(found.columns) == ["prediction", "probability_absent", "probability_present"]
        np.testing.assert_allclose(found["probability_present"], expected, atol=1e-6)
    text = {"sequence": DNA, "id": ["a", "b", "c"]}
    assert model.predict(text)["id"].tolist() == text["id"]
    assert model.predict({"sequence": DNA[0]})["probability_present"].tolist() == pytest.approx(expected[:1], abs=1e-6)
    assert model.predict(frame).attrs["arm"] == "embedder_only"


def test_forms_without_names_reach_the_model_itself(model: Any, expected: list[float]) -> None:
    """MLflow refuses them before the model where the signature names columns; with an unnamed one they come through."""
    inside = model.unwrap_python_model()
    for form in (DNA, tuple(DNA), np.array(DNA), np.array(DNA)[:, None], pd.Series(DNA), pd.DataFrame(DNA)):
        np.testing.assert_allclose(inside.predict(None, form)["probability_present"], expected, atol=1e-6)
    assert len(inside.predict(None, DNA[0])) == 1


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.text("ACGT", min_size=1, max_size=5), st.integers()), min_size=1, max_size=5),
    st.permutations(["sequence", "id", "other"]),
    st.sampled_from(["frame", "mapping", "arrays", "records", "enforced"]),
)
def test_rows_and_ids_stay_together(rows: list[tuple[str, int]], order: list[str], form: str) -> None:
    from l2g_ray.pyfunc import read_table

    cells = {"sequence": [s for s, _ in rows], "id": [i for _, i in rows], "other": list(range(len(rows)))}
    columns = {name: cells[name] for name in order}
    frame = pd.DataFrame(columns)
    given_as: dict[str, Any] = {
        "frame": frame,
        "mapping": columns,
        "arrays": {name: np.array(values) for name, values in columns.items()},
        "records": frame.to_dict("records"),
        "enforced": pd.DataFrame([columns]),  # what MLflow makes of a mapping to lists of strings
    }
    table = read_table(given_as[form])
    assert list(zip(table["sequence"], table["id"], strict=True)) == rows


@pytest.mark.parametrize(
    ("given_as", "message"),
    [
        (pd.DataFrame({"dna": ["AC"]}), r"no column 'sequence' \(columns: dna\)"),
        (pd.DataFrame({"sequence": ["AC", None]}), "row 2: the sequence is missing"),
        ({"sequence": ["AC", "GT"], "id": [1]}, "the columns make no table"),
        (["AC", float("nan")], "row 2: the sequence is missing"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(given_as: Any, message: str) -> None:
    from l2g_ray.pyfunc import read_table

    with pytest.raises(UserError, match=message):
        read_table(given_as)


def test_a_server_takes_all_of_mlflows_json_and_csv(model: Any, expected: list[float]) -> None:
    """The application that `mlflow models serve` runs, without a network."""
    from mlflow.pyfunc import scoring_server
    from starlette.testclient import TestClient

    client = TestClient(scoring_server.init(model))
    frame = pd.DataFrame({"id": IDS, "note": "n", "sequence": DNA})
    forms: list[dict[str, Any]] = [
        {"dataframe_split": frame.to_dict("split")},
        {"dataframe_records": frame.to_dict("records")},
        {"inputs": {"sequence": DNA, "id": IDS}},
        {"inputs": frame.to_dict("records")},
        {"instances": frame.to_dict("records")},
    ]
    for form in forms:
        answer = client.post("/invocations", json=form)
        assert answer.status_code == 200, answer.text
        rows = answer.json()["predictions"]
        assert [row["probability_present"] for row in rows] == pytest.approx(expected, abs=1e-6)
        assert [row["id"] for row in rows] == IDS
    assert client.post("/invocations", json={"inputs": [{"dna": "AC"}]}).status_code == 400


def test_a_server_takes_csv(stored: Path, expected: list[float]) -> None:
    """MLflow 3.17 cannot parse a CSV for a signature with a column of any type, so `id` is no part of this one."""
    import mlflow
    from mlflow.pyfunc import scoring_server
    from starlette.testclient import TestClient

    client = TestClient(scoring_server.init(mlflow.pyfunc.load_model(str(stored / "plain"))))
    frame = pd.DataFrame({"id": IDS, "note": "n", "sequence": DNA})
    answer = client.post("/invocations", content=frame.to_csv(index=False), headers={"content-type": "text/csv"})
    assert answer.status_code == 200, answer.text
    assert [row["probability_present"] for row in answer.json()["predictions"]] == pytest.approx(expected, abs=1e-6)


def test_mlflow_models_predict_reads_a_csv(stored: Path, expected: list[float], tmp_path: Path) -> None:
    pd.DataFrame({"id": IDS, "sequence": DNA}).to_csv(tmp_path / "in.csv", index=False)
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "models",
        "predict",
        "-m",
        str(stored / "model"),
        "--env-manager",
        "local",
    ]
    command += ["-t", "csv", "-i", str(tmp_path / "in.csv"), "-o", str(tmp_path / "out.json")]
    # MLflow starts `python` by name.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(command, env={**os.environ, "PATH": path}, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads((tmp_path / "out.json").read_text())["predictions"]
    assert [row["probability_present"] for row in rows] == pytest.approx(expected, abs=1e-6)
    assert [row["id"] for row in rows] == IDS


def test_an_ensemble_is_served(tmp_path: Path, tiny_lm: Path) -> None:
    """Its folder has one for each arm; MLflow copies it whole."""
    import mlflow
    from mlflow.pyfunc import scoring_server
    from starlette.testclient import TestClient

    from l2g_ray import pyfunc
    from l2g_ray.predict import load_predictor

    best = write_ensemble(tmp_path / "planted", tiny_lm) / "best"
    wanted = load_predictor(best, "cpu").predict(DNA)
    mlflow.pyfunc.save_model(
        tmp_path / "model",
        python_model=str(Path(pyfunc.__file__)),
        artifacts={"model": str(best)},
        pip_requirements=["l2g-ray"],
    )
    shutil.rmtree(best)
    model = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    found = model.predict({"sequence": DNA})
    np.testing.assert_allclose(found["probability_present"], wanted["probability_present"], atol=1e-6)
    assert (found.attrs["arm"], found.attrs["ensemble_of"]) == ("ensemble", wanted.attrs["ensemble_of"])
    answer = TestClient(scoring_server.init(model)).post("/invocations", json={"inputs": {"sequence": DNA}})
    rows = answer.json()["predictions"]
    assert [row["probability_present"] for row in rows] == pytest.approx(
        wanted["probability_present"].tolist(), abs=1e-6
    )


def test_device_and_batch_size_of_a_served_model(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow
    import torch

    place = str(stored / "model")

    def load(**config: Any) -> Any:
        return mlflow.pyfunc.load_model(place, model_config=config).unwrap_python_model()._predictor

    assert load().batch_size == 2
    assert (load(batch_size=5, device="cpu").batch_size, load(device="cpu").device.type) == (5, "cpu")
    # A model that was stored without a config follows the environment.
    from types import SimpleNamespace

    from l2g_ray.pyfunc import L2GPyfunc

    plain = L2GPyfunc()
    context = SimpleNamespace(artifacts={"model": str(stored / "task" / "model")}, model_config=None)
    monkeypatch.setenv("L2G_RAY_BATCH_SIZE", "3")
    monkeypatch.setenv("L2G_RAY_DEVICE", "cpu")
    plain.load_context(context)
    assert plain._predictor.batch_size == 3
    monkeypatch.setenv("L2G_RAY_BATCH_SIZE", "many")
    with pytest.raises(UserError, match="L2G_RAY_BATCH_SIZE=many: is no number"):
        plain.load_context(context)
    if not torch.cuda.is_available():
        monkeypatch.setenv("L2G_RAY_BATCH_SIZE", "3")
        monkeypatch.setenv("L2G_RAY_DEVICE", "cuda")
        with pytest.raises(UserError, match="device 'cuda': PyTorch sees no GPU here"):
            plain.load_context(context)
