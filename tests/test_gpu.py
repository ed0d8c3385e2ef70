"""The same numbers on a GPU as on the CPU: every stage, resumed and short of memory too, predictions and contributions.

`GPU_TEST_DEVICE=cpu python -m pytest -m gpu tests/test_gpu.py` runs the tests' code without a GPU: its replacement computes
convolutions and products by other routines than oneDNN's, so that its rounding differs as well.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from every_stage import STAGES, make_rows, make_settings, record_steps, run_stage, without_dropout
from explained import LENGTH_BP, write_arms
from test_explain import make_codes, make_model, make_net, roughen
from toys import plant

from l2g_ray.config import BACKBONES
from l2g_ray.explain.attribution import ExplainedOutput, attribute, evaluate
from l2g_ray.explain.embeddings import Point, embed
from l2g_ray.explain.scores import score_sequences
from l2g_ray.models.baselines import SmallCNN, SmallCNNConfig
from l2g_ray.models.l2g import L2GModel, load_model
from l2g_ray.predict import load_predictor
from l2g_ray.sequence import encode
from l2g_ray.stages.loop import Runtime, TrainResult

DEVICE = os.environ.get("GPU_TEST_DEVICE", "cuda")
WEIGHTS = torch.tensor([-1.0, 1.0])
TESTS = Path(__file__).parent
# For cuBLAS to be deterministic; before its first call.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("single_thread", "device")]


@pytest.fixture
def device() -> Iterator[str]:
    """The GPU, in float32 that is not rounded to TF32."""
    if DEVICE == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU here")
    places = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = False
    yield DEVICE
    for place, value in zip(places, before, strict=True):
        place.allow_tf32 = value


@contextlib.contextmanager
def other_routines() -> Iterator[None]:
    with torch.backends.mkldnn.flags(enabled=DEVICE != "cpu"):
        yield


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    before = torch.backends.cudnn.deterministic
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = before


def largest_difference(one: TrainResult, other: TrainResult) -> float:
    """Of any weight or statistic, relative to the largest of its tensor (and to 0.1 where that is smaller)."""
    assert one.best_state.keys() == other.best_state.keys()
    return max(
        float((value - other.best_state[name]).abs().max() / value.abs().max().clamp(min=0.1))
        for name, value in one.best_state.items()
        if value.is_floating_point()
    )


@pytest.mark.parametrize("kind", ["binary", "regression"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_computes_what_it_does_on_the_cpu(
    stage: str, kind: str, tiny_lm: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By SGD, whose steps are linear in the gradients: losses and weights within 1e-4. Training moves weights by 4e-3 and more, and
    two routines on one CPU differ by 2e-7."""
    without_dropout(monkeypatch, "sgd")
    data, settings = make_rows(kind), make_settings(tiny_lm, "sgd")
    steps = record_steps(monkeypatch)
    expected = run_stage(stage, data, settings, Runtime())
    n = len(steps)
    with other_routines():
        found = run_stage(stage, data, settings, Runtime(device))
    values = torch.stack([step.cpu() for step in steps]).numpy()
    assert n >= 4
    np.testing.assert_allclose(values[n:], values[:n], rtol=1e-4)
    assert largest_difference(expected, found) < 1e-4
    assert [row["score"] for row in found.history] == pytest.approx(
        [row["score"] for row in expected.history], abs=0.06
    ), "a validation row may change its class"


@pytest.mark.parametrize("stage", STAGES)
def test_bf16_stays_near(stage: str, tiny_lm: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses of AdamW's steps within 5 per cent of those in float32 on the CPU; 15 in the search, whose rate is high."""
    without_dropout(monkeypatch)
    data, settings = make_rows("regression"), make_settings(tiny_lm)
    steps = record_steps(monkeypatch)
    run_stage(stage, data, settings, Runtime())
    n = len(steps)
    run_stage(stage, data, settings, Runtime(device, "bf16"))
    values = torch.stack([step.cpu() for step in steps]).numpy()
    assert (values[n:] != values[:n]).any()
    np.testing.assert_allclose(values[n:], values[:n], rtol=0.15 if stage == "search" else 0.05)


class Stopped(Exception):
    pass


@pytest.mark.parametrize("stage", ["search", "align", "embedder_only", "finetune"])
def test_a_resumed_run_is_bit_equal(stage: str, tiny_lm: Path, device: str, tmp_path: Path) -> None:
    """With dropout, AdamW's state and, of the embedder alone, averaged weights."""
    data = make_rows("binary")
    dropout = {"align__dropout": 0.1, "embedder_only__dropout": 0.1}
    settings = make_settings(tiny_lm, **(dropout | {f"{name}__epochs": 3 for name in ("search", "align", "finetune")}))

    def stop(row: dict[str, Any]) -> None:
        raise Stopped

    path = tmp_path / "state.pt"
    with deterministic():
        whole = run_stage(stage, data, settings, Runtime(device))
        with pytest.raises(Stopped):
            run_stage(stage, data, settings, Runtime(device, report=stop, state_path=path))
        torch.rand(7, device=device)  # what happens in between must not matter
        resumed = run_stage(stage, data, settings, Runtime(device, state_path=path))
    assert len(whole.history) > 1
    assert [row["train_loss"] for row in resumed.history] == [row["train_loss"] for row in whole.history]
    assert all(torch.equal(resumed.best_state[name], value) for name, value in whole.best_state.items())


def test_too_little_memory_gives_the_same_result(tiny_lm: Path, device: str) -> None:
    """The allocator has seven tenths of what the step takes: half batches, whose gradients add up to the same."""
    command = [sys.executable, str(TESTS / "gpu_memory.py"), device, str(tiny_lm)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": _path()})
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    enough, little = found["enough"], found["little"]
    assert enough["micro_batches"] == 1
    assert little["micro_batches"] in (2, 4)
    assert little["losses"] == pytest.approx(enough["losses"], rel=1e-4)
    assert little["weights"] == pytest.approx(enough["weights"], rel=1e-4)
    assert found.get("little_bytes", 0) <= found.get("limit", 0)


def _path() -> str:
    return os.pathsep.join([str(TESTS.parent), str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])


def test_two_trials_share_a_gpu(tiny_lm: Path, device: str, tmp_path: Path) -> None:
    """Side by side through Ray, at four tenths each: both train as one does alone, and neither may take more."""
    import ray

    def trial(rank: int) -> dict[str, Any]:
        from l2g_ray.orchestrate.memory import limit_memory

        if device == "cuda":
            limit_memory(0.4)
        _meet(tmp_path, "begun", rank)
        result = run_stage("finetune", make_rows("binary"), make_settings(tiny_lm, "sgd"), Runtime(device))
        found = {"loss": result.history[-1]["train_loss"], "gpus": ray.get_gpu_ids(), "refused": None}
        if device == "cuda":
            total = torch.cuda.mem_get_info()[1]
            own = torch.empty(int(0.35 * total), dtype=torch.uint8, device=device)
            _meet(tmp_path, "held", rank)
            try:
                torch.empty(int(0.1 * total), dtype=torch.uint8, device=device)
                found["refused"] = False
            except torch.OutOfMemoryError:
                found["refused"] = True
            del own
        return found

    alone = run_stage("finetune", make_rows("binary"), make_settings(tiny_lm, "sgd"), Runtime(device))
    ray.init(
        "local",
        num_cpus=2,
        num_gpus=1,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": _path()}},
    )
    try:
        remote = ray.remote(num_cpus=1, num_gpus=0.4, max_retries=0)(trial)
        found = ray.get([remote.remote(rank) for rank in range(2)], timeout=90)
    finally:
        ray.shutdown()
    for one in found:
        assert [int(gpu) for gpu in one["gpus"]] == [0]
        assert one["loss"] == pytest.approx(alone.history[-1]["train_loss"], rel=1e-4)
        assert one["refused"] is (True if device == "cuda" else None)


def _meet(folder: Path, name: str, rank: int) -> None:
    """Wait until both trials are here."""
    (folder / f"{name}-{rank}").touch()
    until = time.monotonic() + 60
    while len(list(folder.glob(f"{name}-*"))) < 2:
        assert time.monotonic() < until, "the trials did not run side by side"
        time.sleep(0.05)


@pytest.mark.parametrize("name", [*BACKBONES, "cnn", "bert", "mpnet"])
def test_contributions_add_up(name: str, device: str, tmp_path: Path) -> None:
    """DeepLIFT-SHAP on the GPU, against the model's own outputs on the CPU."""
    if name == "cnn":
        torch.manual_seed(0)
        model: Any = roughen(SmallCNN(SmallCNNConfig(60, 2, False)), 0)
    else:
        model = make_model(name, tmp_path) if name in ("bert", "mpnet") else make_net(name)
    codes, lengths_bp = make_codes()
    found = attribute(model, codes, lengths_bp, WEIGHTS, n_references=4, device=device)
    plain = evaluate(ExplainedOutput(model.cpu(), WEIGHTS), codes, lengths_bp)
    np.testing.assert_allclose(found.values, plain, rtol=1e-3, atol=1e-3)
    differences = found.values - found.reference_values
    assert np.abs(differences).max() > 0.01
    errors = np.abs(found.contributions.sum(1) - differences)
    assert errors.max() < 2e-3 * np.abs(differences).max()


@pytest.mark.parametrize("arm", ["model", "embedder_only", "best"])
def test_predictions_are_those_of_the_cpu(arm: str, tmp_path: Path, tiny_lm: Path, device: str) -> None:
    folder, sequences = write_arms(tmp_path / "planted", tiny_lm) / arm, plant(30, LENGTH_BP)["sequence"]
    both = [load_predictor(folder, name) for name in ("cpu", device)]
    assert {x.device.type for x in both[1].model.parameters()} == {device}
    one, other = (predictor.predict_array(sequences) for predictor in both)
    np.testing.assert_allclose(other, one, atol=1e-4)
    one, other = (score_sequences(p.forward, p.task, sequences.to_pylist(), both_strands=True).values for p in both)
    np.testing.assert_allclose(other, one, atol=1e-3)
    codes, lengths_bp = encode(sequences)
    one, other = (
        attribute(p.model, codes, lengths_bp, WEIGHTS, n_references=3, device=p.device).contributions for p in both
    )
    assert np.abs(one - other).max() < 1e-2 * np.abs(one).max()
    if arm == "best":
        return
    points = []
    for _ in both:
        model = load_model(folder)
        net = model.net if isinstance(model, L2GModel) else model
        points.append(Point("x", net, model.language_model if isinstance(model, L2GModel) else None))
    for layer, values in embed(points[0], sequences).items():
        found = embed(points[1], sequences, device=torch.device(device))[layer]
        np.testing.assert_allclose(found, values, atol=1e-3)
