"""Nothing that lies in a run folder is executed, and no secret leaves the environment."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import sqlite3
from collections import UserDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import torch
from commands import Cli
from faults import plant
from runs import Driver, Sources
from servers import start_server
from toys import tiny_config, tiny_reference, tiny_settings, toy_data

from l2g_ray.errors import UserError
from l2g_ray.models.embedder import EmbedderNet
from l2g_ray.models.l2g import load_model, save_model
from l2g_ray.predict import load_predictor
from l2g_ray.redaction import redact, without_secrets
from l2g_ray.stages.context import read_reference
from l2g_ray.stages.loop import Runtime
from l2g_ray.stages.select import train_backbone

# ---- pickles ---------------------------------------------------------------------------------------------------------


class Trap:
    """Unpickling it writes a file: what must not happen."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch '{self.mark}'",))


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    mark = tmp_path / "executed"
    yield mark
    assert not mark.exists(), "a planted pickle was executed"


def plain(mark: Path) -> bytes:
    return pickle.dumps(Trap(mark))


def by_torch(mark: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save({"model": Trap(mark)}, buffer)
    return buffer.getvalue()


def test_the_traps_work(tmp_path: Path) -> None:
    for make in (plain, by_torch):
        mark = tmp_path / make.__name__
        content = make(mark)
        pickle.loads(content) if make is plain else torch.load(io.BytesIO(content), weights_only=False)
        assert mark.exists()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model's folder as a run leaves it."""
    data = toy_data()
    folder = tmp_path / "model"
    folder.mkdir()
    save_model(EmbedderNet(tiny_config(data, tiny_settings())), folder)
    task = data.task.model_dump(mode="json", exclude={"overrides"})
    content = {"schema": 1, "task": task, "strand_averaged": False, "length_bp": 60}
    (folder / "task.json").write_text(json.dumps(content))
    return folder


def lay_beside(folder: Path, mark: Path) -> None:
    """Every name that some library would look for."""
    for name in ("model.pkl", "python_model.pkl", "config.pkl", "result.pkl", "trainable.pkl", "tuner.pkl"):
        (folder / name).write_bytes(plain(mark))
    for name in ("pytorch_model.bin", "state.pt", "model.pt", "data.pth", "model.ckpt"):
        (folder / name).write_bytes(by_torch(mark))


@pytest.mark.parametrize("make", [plain, by_torch])
def test_predict_reads_no_pickle(model: Path, mark: Path, tmp_path: Path, cli: Cli, make: Any) -> None:
    lay_beside(model, mark)
    lay_beside(tmp_path, mark)
    assert len(load_predictor(model).predict(["ACGT" * 15])) == 1
    (tmp_path / "in.csv").write_text("sequence,label\n" + "ACGT" * 15 + ",0\n")
    arguments = ["predict", model, "--input", tmp_path / "in.csv", "--output", tmp_path / "out.csv"]
    assert cli(*arguments).code == 0
    for name in ("model.safetensors", "config.json", "task.json"):
        before = (model / name).read_bytes()
        (model / name).write_bytes(make(mark))
        code, _, err = cli(*arguments)
        assert (code, err.count("\n")) == (2, 1), err
        (model / name).write_bytes(before)
    table = tmp_path / "in.parquet"
    table.write_bytes(make(mark))
    assert cli("predict", model, "--input", table, "--output", tmp_path / "out.csv").code == 2


def test_a_stage_reads_no_pickle_of_another(mark: Path, tmp_path: Path) -> None:
    for make in (plain, by_torch):
        for name in ("reference.safetensors", "model.safetensors"):
            (tmp_path / name).write_bytes(make(mark))
        (tmp_path / "config.json").write_text(json.dumps({"schema": 1, "form": "embedder_only", "embedder": {}}))
        with pytest.raises(UserError, match="not readable"):
            load_model(tmp_path)
        with pytest.raises(Exception, match=r"[Hh]eader"):
            read_reference(tmp_path, {"width": 1, "max_tokens": 1, "norm_eps": 1e-5})


@pytest.mark.filterwarnings("ignore:.*no readable state")
@pytest.mark.usefixtures("single_thread")
def test_a_planted_training_state_is_not_gone_on_with(mark: Path, tmp_path: Path) -> None:
    data, settings = toy_data(), tiny_settings()
    expected = train_backbone(data, settings, tiny_reference(), Runtime(), backbone="resnet", seed=0)
    for content in (plain(mark), by_torch(mark), b"", by_torch(mark)[:200]):
        state = tmp_path / "state.pt"
        state.write_bytes(content)
        found = train_backbone(data, settings, tiny_reference(), Runtime(state_path=state), backbone="resnet", seed=0)
        assert found.best_score == expected.best_score


def test_the_mlflow_model_reads_no_pickle(
    model: Path, mark: Path, tmp_path: Path, use_store: Callable[[str], None]
) -> None:
    from l2g_ray.tracking.runs import Tracker

    tracker = Tracker(None, "l2g", tmp_path / "store")
    tracker.start("run", "run")
    uri = tracker.log_model("run", model)
    (stored,) = {path.parent for path in (tmp_path / "store").rglob("MLmodel")}
    assert not [path for path in stored.rglob("*") if path.suffix in (".pkl", ".pickle", ".pt", ".pth", ".bin")]
    for folder in {path.parent for path in stored.rglob("*") if path.is_file()}:
        lay_beside(folder, mark)
    use_store(tracker.uri)
    loaded = mlflow.pyfunc.load_model(uri)
    assert isinstance(loaded.predict(["ACGT" * 15]), pd.DataFrame)
    weights = next(stored.rglob("model.safetensors"))
    weights.write_bytes(by_torch(mark))
    with pytest.raises(UserError, match="not readable"):
        mlflow.pyfunc.load_model(uri)


# ---- secrets ---------------------------------------------------------------------------------------------------------

WORD = "Xk7vQ2mP9sLw"


def test_texts_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", f"hf_{WORD}")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", f"aws/{WORD}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"https://me:pa%2F{WORD}@lab")
    monkeypatch.setenv("MY_PASSWORD", "short")
    said = redact(
        f"401 for hf_{WORD} at s3://AKIA:{WORD}@bucket/x; pa/{WORD} is wrong; aws/{WORD}; "
        f"s3://bucket/x?secret_key={WORD}&region=eu; https://me:pa%2F{WORD}@lab; a short word"
    )
    assert WORD not in said
    assert said.startswith(
        "401 for *** at s3://***@bucket/x; *** is wrong; ***; s3://bucket/x?secret_key=***&region=eu;"
    )
    assert said.endswith("a short word")
    nested = {"command": f"--set a=hf_{WORD}", "list": [{"api_key": WORD, "target_tokens": 8}]}
    assert without_secrets(nested) == {"command": "--set a=***", "list": [{"target_tokens": 8}]}


def test_an_environment_that_changes_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's telemetry removes a variable in a separate thread."""

    class Changing(UserDict[str, str]):
        def __iter__(self) -> Iterator[str]:
            return iter([*super().__iter__(), "GONE_MEANWHILE"])

    monkeypatch.setattr(os, "environ", Changing(SOME_TOKEN="hidden-away"))
    assert redact("said hidden-away") == "said ***"


@pytest.mark.cluster
@pytest.mark.slow
def test_no_secret_in_anything_that_a_run_leaves(sources: Sources, tmp_path: Path) -> None:
    """Planted where they really are, and in an error text; then everything is searched, Ray's own logs included."""
    session = Path("/tmp") / f"l2g-secrets-{os.getpid()}"
    (session / "ray").mkdir(parents=True)
    served = start_server(tmp_path / "server")
    out = tmp_path / "out"
    secrets = {
        "HF_TOKEN": f"hf_{WORD}1",
        "AWS_ACCESS_KEY_ID": f"AKIA{WORD}2",
        "AWS_SECRET_ACCESS_KEY": f"{WORD}3/x+y",
        "MLFLOW_TRACKING_URI": f"http://me:{WORD}4@127.0.0.1:{served.port}",
        "RAY_AUTH_TOKEN": f"{WORD}5{WORD}",
        "RAY_TMPDIR": str(session),
    }
    faults = plant(tmp_path, {"stage": "search", "kind": "raise", "text": "401 for {HF_TOKEN} {MLFLOW_TRACKING_URI}"})
    command = sources.command("composition", out, align__source_path=f"s3://AKIA:{WORD}6@bucket/text.txt")
    try:
        said = Driver(command, **secrets, **faults).finish(expected=1)
        served.stop()
        assert "401 for *** http://***@127.0.0.1" in said
        assert WORD not in said
        searched = 0
        for root in (out, session, tmp_path / "server"):
            for path in root.rglob("*"):
                if path.is_file() and not path.is_symlink():
                    searched += 1
                    assert WORD.encode() not in path.read_bytes(), path
        assert searched > 50
        with sqlite3.connect(tmp_path / "server" / "mlflow-server" / "mlflow.db") as store:
            logged = [row[0] for row in store.execute("select value from params where key = 'command'")]
        assert len(logged) == 1
        assert "s3://***@bucket/text.txt" in logged[0]
    finally:
        served.stop()
        shutil.rmtree(session, ignore_errors=True)


def test_ray_s_state_is_in_a_folder_of_this_user_alone(tmp_path: Path, mark: Path) -> None:
    from types import SimpleNamespace

    from l2g_ray.orchestrate.suite import _Run

    stale = tmp_path / "tune" / "mine-01234567"
    (stale / "composition-select").mkdir(parents=True)
    lay_beside(stale / "composition-select", mark)
    (tmp_path / "tune" / "mine-too-01234567").mkdir()
    request: Any = SimpleNamespace(out=tmp_path, name="mine", remote=None)
    console: Any = None
    identity: Any = SimpleNamespace(key="key")
    run = _Run(request, {}, {}, tmp_path / "mine", identity, console, 0.0)
    run._make_scratch()
    assert {path.name for path in (tmp_path / "tune").iterdir()} == {run.scratch.name, "mine-too-01234567"}
    assert (run.scratch.stat().st_mode & 0o777, run.scratch.stat().st_uid) == (0o700, os.getuid())
