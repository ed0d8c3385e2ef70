"""Which precision 'auto' is, where it is kept, and what stays fp32 under bf16 autocast."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import Cli
from torch import nn
from toys import make_data, make_task, plant, tiny_settings

from l2g_ray.config import resolve_precision
from l2g_ray.data.prepare import prepare
from l2g_ray.data.raw import SourceOptions
from l2g_ray.data.sources import open_source
from l2g_ray.models import precision_choice
from l2g_ray.models.baselines import SmallCNN, SmallCNNConfig
from l2g_ray.models.layers import MaskedBatchNorm1d
from l2g_ray.models.precision_choice import MARGIN, choose_cpu_precision, recall_cpu_precision
from l2g_ray.orchestrate.keys import make_baseline_job
from l2g_ray.orchestrate.precision import keep_cpu_precision
from l2g_ray.stages.context import make_batches, make_losses, predict_source
from l2g_ray.stages.distances import mmd
from l2g_ray.stages.loop import Runtime
from l2g_ray.stages.optim import compute_task_loss
from l2g_ray.store.results import Store

PLAN = ("plan", "demo/splice_junction", "--language-model", "minilm", "--machine", "cpu")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("L2G_RAY_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(precision_choice, "read_processor_flags", lambda: frozenset({"avx512_bf16"}))
    return tmp_path / "cache"


def refuse(threads: int) -> Any:
    pytest.fail("measured")


@pytest.mark.parametrize(
    ("convolution", "product", "expected"),
    [(1.05, 1.05, "bf16"), (0.95, 3.0, "fp32"), (3.0, 0.95, "fp32")],
)
def test_bf16_only_where_all_of_a_step_is_clearly_faster(
    convolution: float, product: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that only the two layers move: in fp32 by `MARGIN` times the given factor, under autocast by 1."""
    clock, calls = [0.0], {nn.Conv1d: 0, nn.Linear: 0}
    for kind, factor in ((nn.Conv1d, convolution), (nn.Linear, product)):
        forward = kind.forward

        def timed(self: Any, x: torch.Tensor, forward: Any = forward, kind: Any = kind, f: float = factor) -> Any:
            calls[kind] += 1
            slowed = 10.0 if calls[kind] in (1, 2, 5, 8) else 1.0  # first calls and a busy machine: not the shortest
            clock[0] += slowed * 0.01 * (1.0 if torch.is_autocast_enabled("cpu") else f * MARGIN)
            return forward(self, x)

        monkeypatch.setattr(kind, "forward", timed)
    monkeypatch.setattr(precision_choice.time, "perf_counter", lambda: clock[0])
    assert choose_cpu_precision(1) == expected


def test_a_choice_is_kept_and_nothing_else_changes(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    other = threads + 1
    assert recall_cpu_precision(other) is None, "not measured yet"
    chosen = choose_cpu_precision(other)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    [(key, kept)] = json.loads((own_cache / "precision.json").read_text()).items()
    assert kept == chosen
    assert f", {other} |" in key

    # Another process of this machine: what is kept holds, even where it is not the fastest.
    monkeypatch.setattr(precision_choice, "measure_gains", refuse)
    for name in ("fp32", "bf16"):
        (own_cache / "precision.json").write_text(json.dumps({key: name}))
        assert choose_cpu_precision(other) == recall_cpu_precision(other) == name


def test_without_the_instructions_nothing_is_measured(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision_choice, "read_processor_flags", lambda: frozenset({"avx2"}))
    monkeypatch.setattr(precision_choice, "measure_gains", refuse)
    assert choose_cpu_precision(1) == recall_cpu_precision(1) == "fp32"
    assert not own_cache.exists()


def test_runs_that_share_stages_share_a_precision(tmp_path: Path) -> None:
    store = Store(tmp_path / "stages")
    assert keep_cpu_precision(store, 1, lambda threads: "bf16") == "bf16"
    assert keep_cpu_precision(store, 1, refuse) == "bf16", "another machine that resumes"
    assert keep_cpu_precision(store, 2, lambda threads: "fp32") == "fp32"
    assert keep_cpu_precision(Store(tmp_path / "other"), 1, lambda threads: "fp32") == "fp32"


@pytest.mark.parametrize(
    ("name", "device", "on_cpu", "expected"),
    [
        ("fp32", "cpu", "bf16", "fp32"),
        ("bf16", "cpu", "fp32", "bf16"),
        ("fp32", "cuda", "bf16", "fp32"),
        ("auto", "cuda", "fp32", "bf16"),
        ("auto", "cpu", "bf16", "bf16"),
        ("auto", "cpu", "fp32", "fp32"),
    ],
)
def test_what_was_measured_counts_for_auto_on_a_cpu_only(name: str, device: str, on_cpu: str, expected: str) -> None:
    assert resolve_precision(name, device, on_cpu) == expected


def test_a_plan_shows_the_precision_of_the_first_run(cli: Cli, own_cache: Path) -> None:
    said = cli(*PLAN)
    assert "fp32" in said.out
    assert "planned in fp32: with precision=auto, the first run" in " ".join(said.out.split())
    choose_cpu_precision(1)
    path = own_cache / "precision.json"
    [key] = json.loads(path.read_text())
    path.write_text(json.dumps({key: "bf16"}))
    said = cli(*PLAN)
    assert "bf16" in said.out
    assert "planned in" not in said.out
    assert json.loads(cli(*PLAN, "--json").out)["tasks"][0]["precision"] == "bf16"
    assert json.loads(cli(*PLAN, "--json", "--set", "precision=fp32").out)["tasks"][0]["precision"] == "fp32"


def test_the_key_of_a_trained_baseline_has_its_precision(tmp_path: Path) -> None:
    for name, rows in (("train", 40), ("test", 10)):
        frame = plant(rows, seed=rows).to_pandas()
        frame.to_csv(tmp_path / f"{name}.csv", index=False)
    settings = tiny_settings()
    prepared = prepare(open_source([tmp_path], SourceOptions()), tmp_path / "prepared", settings.data)
    for name, trained in (("cnn", True), ("deepstarr", True), ("kmer_linear", False)):
        keys = {make_baseline_job(prepared, settings, name, precision=precision).key for precision in ("fp32", "bf16")}
        assert (len(keys) == 2) is trained, name


# What stays fp32 under autocast.


@pytest.fixture
def rounded() -> torch.Tensor:
    """Values (64, 3) float32 that bf16 holds exactly."""
    return torch.randn(64, 3, generator=torch.Generator().manual_seed(0)).bfloat16().float()


def test_mmd_is_computed_in_fp32(rounded: torch.Tensor) -> None:
    expected = mmd(rounded[:32], rounded[32:])
    with torch.autocast("cpu", torch.bfloat16):
        found = mmd(rounded[:32].bfloat16(), rounded[32:].bfloat16())
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel", "regression"])
def test_losses_are_computed_in_fp32(kind: str, rounded: torch.Tensor) -> None:
    classes = kind in ("binary", "multiclass")
    labels = torch.arange(64) % 3 if classes else torch.rand(64, 3)
    if kind == "multilabel":
        labels = labels.round()
    scale = torch.tensor([1.0, 2.0, 3.0])
    expected = compute_task_loss(kind, rounded, labels, scale)
    with torch.autocast("cpu", torch.bfloat16):
        found = compute_task_loss(kind, rounded.bfloat16(), labels, scale)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("masked", [False, True])
def test_batch_norm_statistics_are_computed_in_fp32(masked: bool) -> None:
    x = (5 + torch.randn(16, 4, 300, generator=torch.Generator().manual_seed(1))).bfloat16()
    mask = torch.ones(16, 1, 300)
    if masked:
        mask[:, :, 200:] = 0
    norm = MaskedBatchNorm1d(4, momentum=1.0)
    with torch.autocast("cpu", torch.bfloat16):
        norm(x, mask if masked else None)
    real = x.double()[:, :, : 200 if masked else 300]
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.running_mean.dtype == torch.float32
    torch.testing.assert_close(norm.running_mean.double(), real.mean((0, 2)), rtol=1e-5, atol=0)
    torch.testing.assert_close(norm.running_var.double(), real.var((0, 2)), rtol=1e-5, atol=0)


@pytest.mark.parametrize("strand_specific", [False, True])
def test_training_under_autocast_keeps_weights_losses_and_predictions_in_fp32(strand_specific: bool) -> None:
    """The products are bf16, else this would show nothing; what is learned from and scored is not rounded to 8 bits."""
    data = make_data(make_task(strand_specific=strand_specific), plant(64), plant(200, seed=1))
    torch.manual_seed(0)
    net = SmallCNN(SmallCNNConfig(data.length_bp, 2, strand_specific))
    seen: list[torch.dtype] = []
    net.units[1].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    runtime = Runtime(precision="bf16")
    predictions, _ = predict_source(net, data.valid, data.task, runtime)
    assert seen == [torch.bfloat16]
    assert predictions.dtype == np.float32
    assert not torch.equal(torch.from_numpy(predictions).bfloat16().float(), torch.from_numpy(predictions))
    batch = next(make_batches(tiny_settings(), data, 16, 0)(0))
    with runtime.autocast():
        [part] = make_losses(data.task, data.label_scale)(net, [batch], 0)
        loss = part()
    loss.backward()
    assert loss.dtype == torch.float32
    assert {p.grad.dtype for p in net.parameters() if p.grad is not None} == {torch.float32}
    assert {b.dtype for b in net.buffers() if b.is_floating_point()} == {torch.float32}
