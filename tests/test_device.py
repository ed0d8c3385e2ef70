"""Where a model computes and how many rows at once: device, batches cut on out-of-memory, the same numbers on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from explained import LENGTH_BP, make_net, write_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from toys import make_task, plant

from l2g_ray.errors import UserError
from l2g_ray.explain.attribution import attribute
from l2g_ray.explain.embeddings import Point, embed
from l2g_ray.explain.scores import score_sequences
from l2g_ray.models.embedder import EmbedderNet
from l2g_ray.predict import Predictor, choose_device, load_predictor
from l2g_ray.run_folder import Arm
from l2g_ray.sequence import encode
from l2g_ray.stages.parts import RowsAtOnce

WEIGHTS = torch.tensor([-1.0, 1.0])
SEQUENCES = plant(30, LENGTH_BP)["sequence"]
pytestmark = pytest.mark.usefixtures("single_thread")


def small_memory(net: EmbedderNet, limit: int) -> tuple[EmbedderNet, list[int]]:
    """Return the model, which takes at most `limit` rows at once, and the list of the rows of each call."""
    seen: list[int] = []

    def check(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if len(args[0]) > limit:
            raise torch.OutOfMemoryError(f"{len(args[0])} rows")
        seen.append(len(args[0]))

    net.embedder.register_forward_pre_hook(check)
    return net, seen


@settings(max_examples=100, deadline=None)
@given(n=st.integers(1, 60), size=st.integers(1, 70), limit=st.integers(1, 70))
def test_halving_keeps_every_row(n: int, size: int, limit: int) -> None:
    at_once, seen = RowsAtOnce(size), []

    def double(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if len(x) > limit:
            raise torch.OutOfMemoryError
        seen.append(len(x))
        return x + y

    rows = torch.arange(n)
    assert torch.equal(at_once.map(double, rows, rows), 2 * rows)
    assert max(seen) <= min(size, limit, n)
    # It does not try the larger batch again.
    assert at_once.size <= max(size if n <= limit else limit, 1)


def test_predictions_go_through_in_smaller_batches() -> None:
    predictors = [Predictor(make_net(2), make_task(), True, LENGTH_BP, Arm("x", Path())) for _ in range(2)]
    expected = predictors[0].predict_array(SEQUENCES)
    predictors[1].model, seen = small_memory(make_net(2), 7)
    np.testing.assert_allclose(predictors[1].predict_array(SEQUENCES), expected, atol=1e-6)
    assert max(seen) <= 7
    assert predictors[1].batch_size <= 7
    scores = [
        score_sequences(one.forward, one.task, SEQUENCES.to_pylist(), both_strands=True, batch_size=one.batch_size)
        for one in predictors
    ]
    np.testing.assert_allclose(scores[1].values, scores[0].values, atol=1e-6)


@pytest.mark.parametrize("method", ["deeplift-shap", "integrated-gradients", "mutagenesis"])
def test_contributions_go_through_in_smaller_batches(method: str) -> None:
    codes, lengths_bp = encode(SEQUENCES.slice(0, 4))
    options: dict[str, Any] = {"method": method, "n_references": 3, "steps": 5}
    expected = attribute(make_net(2), codes, lengths_bp, WEIGHTS, **options)
    net, seen = small_memory(make_net(2), 8)
    found = attribute(net, codes, lengths_bp, WEIGHTS, **options)
    np.testing.assert_allclose(found.hypothetical, expected.hypothetical, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-5)
    assert max(seen) <= 8
    net, seen = small_memory(make_net(2), 1000)
    attribute(net, codes, lengths_bp, WEIGHTS, batch_size=2, **options)
    assert max(seen) <= 4  # DeepLIFT computes sequence and reference together


def test_embeddings_go_through_in_smaller_batches() -> None:
    expected = embed(Point("x", make_net(2), None), SEQUENCES)
    net, seen = small_memory(make_net(2), 7)
    progress: list[int] = []
    found = embed(Point("x", net, None), SEQUENCES, progress=progress.append)
    assert max(seen) <= 7
    assert progress[-1] == len(SEQUENCES)
    for layer, values in expected.items():
        np.testing.assert_allclose(found[layer], values, atol=1e-5)


def test_a_sequence_that_does_not_fit_is_one_sentence() -> None:
    net, _ = small_memory(make_net(2), 0)
    predictor = Predictor(net, make_task(), True, LENGTH_BP, Arm("x", Path()))
    message = f"a single sequence of {LENGTH_BP} bp does not fit into the memory of cpu"
    with pytest.raises(UserError, match=message):
        predictor.predict_array(SEQUENCES)
    with pytest.raises(UserError, match=message):
        attribute(net, *encode(SEQUENCES), WEIGHTS, n_references=2)
    with pytest.raises(UserError, match=message):
        embed(Point("x", net, None), SEQUENCES)


def test_model_and_rows_are_on_the_device_that_was_asked_for(tmp_path: Path) -> None:
    """The device `meta` replaces a GPU: the model's inputs and weights are on it."""
    predictor = load_predictor(write_model(tmp_path / "task") / "model", torch.device("meta"))
    assert {x.device.type for x in (*predictor.model.parameters(), *predictor.model.buffers())} == {"meta"}
    places: list[str] = []

    class Seen(nn.Module):
        def forward(self, codes: torch.Tensor, lengths_bp: torch.Tensor) -> torch.Tensor:
            places.extend([codes.device.type, lengths_bp.device.type])
            return torch.zeros(len(codes), 2)

    predictor.model = Seen()
    assert predictor.predict_array(SEQUENCES).shape == (30, 2)
    assert set(places) == {"meta"}


def test_devices_by_name() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("gpu", "CPU", "cuda:x", "cpu:1", ""):
        with pytest.raises(UserError, match=f"^device '{name}': no such device; choose one of auto, cpu, cuda$"):
            choose_device(name)
    with pytest.raises(
        UserError, match=r"^device 'cuda:99': PyTorch sees (no GPU|only \d+ GPUs) here; choose cpu or auto"
    ):
        choose_device("cuda:99")


def test_an_empty_input_has_no_predictions() -> None:
    predictor = Predictor(make_net(2), make_task(), True, LENGTH_BP, Arm("x", Path()))
    assert predictor.predict_array(pa.array([], pa.large_string())).shape == (0, 2)
