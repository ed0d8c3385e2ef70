"""Training steps never wait for the device: found by their calls on a CPU, by CUDA's own watch on a GPU."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_tiny_language_model
from every_stage import STAGES, make_rows, make_settings, run_stage, without_dropout
from host_syncs import HostSync, no_host_syncs

from l2g_ray.models.layers import MaskedBatchNorm1d
from l2g_ray.stages import context as common
from l2g_ray.stages import optim as losses
from l2g_ray.stages.deepstarr import train_deepstarr
from l2g_ray.stages.loop import Runtime

pytestmark = pytest.mark.usefixtures("single_thread")
KINDS = ("binary", "regression")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stage", STAGES)
def test_a_step_reads_nothing_from_the_device(
    stage: str, kind: str, tiny_lm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_dropout(monkeypatch)
    data, settings = make_rows(kind), make_settings(tiny_lm, align__task_only_epochs=0)
    with no_host_syncs(monkeypatch) as rows:
        run_stage(stage, data, settings, Runtime())
    assert rows
    assert all(n == 64 for n in rows)


@pytest.mark.parametrize("distance", ["mmd", "coral"])
def test_micro_batches_and_bf16_read_nothing_from_the_device(
    distance: str, tiny_lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(tiny_lm, align__task_only_epochs=0, align__distance=distance)
    (tmp_path / "micro_batches.json").write_text("2")
    runtime = Runtime(precision="bf16", state_path=tmp_path / "state.pt")
    with no_host_syncs(monkeypatch):
        result = run_stage("align", make_rows("regression"), settings, runtime)
    assert result.history[0]["micro_batches"] == 2


def test_deepstarr_reads_nothing_from_the_device(tiny_lm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with no_host_syncs(monkeypatch) as rows:
        train_deepstarr(make_rows("regression"), make_settings(tiny_lm), Runtime(), 0)
    assert rows


@pytest.mark.parametrize("family", ["roberta", "mpnet"])
def test_other_language_models_are_asked_for_nothing(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(make_tiny_language_model(tmp_path, family))
    with no_host_syncs(monkeypatch):
        run_stage("finetune", make_rows("regression"), settings, Runtime())


@pytest.mark.parametrize("wait", ["item", "float", "bool", "index", "nonzero", "cpu", "numpy", "mask"])
def test_a_wait_is_found(wait: str, tiny_lm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the tests above can fail."""

    def stop(x: torch.Tensor) -> Any:
        own = x.detach()
        calls: dict[str, Any] = {
            "item": own.sum().item, "float": lambda: float(own.mean()), "bool": lambda: bool((own > 0).all()),
            "index": lambda: own[own > 0], "nonzero": lambda: (own > 0).nonzero(), "cpu": own.cpu, "numpy": own.numpy,
        }  # fmt: skip
        return calls[wait]()

    loss, forward = losses.compute_task_loss, MaskedBatchNorm1d.forward
    if wait == "mask":
        monkeypatch.setattr(
            MaskedBatchNorm1d, "forward", lambda self, x, mask: (bool(mask.any()), forward(self, x, mask))[1]
        )
    else:
        monkeypatch.setattr(
            common, "compute_task_loss", lambda kind, out, *rest: (stop(out), loss(kind, out, *rest))[1]
        )
    with no_host_syncs(monkeypatch), pytest.raises(HostSync):
        run_stage("select", make_rows("regression"), make_settings(tiny_lm), Runtime())


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stage", STAGES)
def test_a_step_on_a_gpu_waits_for_nothing(
    stage: str, kind: str, precision: str, tiny_lm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    without_dropout(monkeypatch)
    data, settings = make_rows(kind), make_settings(tiny_lm, align__task_only_epochs=0)
    with no_host_syncs(monkeypatch, "cuda") as rows:
        run_stage(stage, data, settings, Runtime("cuda", precision))
    assert all(n == 64 for n in rows)


@pytest.mark.gpu
def test_a_wait_on_a_gpu_is_found(tiny_lm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    loss = losses.compute_task_loss
    monkeypatch.setattr(
        common, "compute_task_loss", lambda kind, out, *rest: (float(out.sum()), loss(kind, out, *rest))[1]
    )
    with no_host_syncs(monkeypatch, "cuda"), pytest.raises(RuntimeError, match="synchroniz"):
        run_stage("select", make_rows("binary"), make_settings(tiny_lm), Runtime("cuda"))


def test_a_loss_that_is_not_finite_ends_the_run_after_its_epoch(tiny_lm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best earlier epoch stands."""
    data, settings = make_rows("binary"), make_settings(tiny_lm, finetune__epochs=4)
    loss, calls = losses.compute_task_loss, []

    def spoil(kind: str, outputs: torch.Tensor, *rest: Any) -> torch.Tensor:
        calls.append(None)
        return loss(kind, outputs, *rest) * (float("nan") if len(calls) == 6 else 1.0)

    monkeypatch.setattr(common, "compute_task_loss", spoil)
    result = run_stage("finetune", data, settings, Runtime())
    assert len(calls) == 8, "the second epoch runs to its end"
    assert [row["score"] for row in result.history][1:] == [-math.inf]
    assert math.isnan(result.history[1]["train_loss"])
    assert result.best_epoch == 0
    assert all(torch.isfinite(value).all() for value in result.best_state.values() if value.is_floating_point())
