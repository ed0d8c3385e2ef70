"""Parts of batches: micro-batches with the effect of the whole batch, where memory does not suffice, and parts without rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from toys import (
    freeze_norms,
    make_data,
    make_task,
    mixed_lengths,
    precision,
    tiny_config,
    tiny_reference,
    tiny_settings,
)

from l2g_ray.config import OptimSettings
from l2g_ray.data.batches import Part, fill_steps, iter_batches
from l2g_ray.errors import UserError
from l2g_ray.models.l2g import L2GModel
from l2g_ray.models.team import ALONE, Team
from l2g_ray.stages.align import make_joint_losses
from l2g_ray.stages.context import TaskData, build_net, count_rows, make_losses, make_validate, with_dropout
from l2g_ray.stages.distances import SampleDistance, mmd
from l2g_ray.stages.finetune import build_model
from l2g_ray.stages.loop import LoopSettings, Runtime, TrainResult, train
from l2g_ray.stages.optim import make_optimizer, make_schedule

pytestmark = pytest.mark.usefixtures("single_thread")


def binary() -> TaskData:
    return make_data(make_task(), mixed_lengths(45), mixed_lengths(21, 9))


class SmallMemory(nn.Module):
    """A model that takes at most `limit` rows at once."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.limit = limit
        self.embed = nn.Embedding(5, 8)
        self.linear = nn.Linear(8, 2)
        self.register_buffer("passes", torch.zeros(()))
        self.widest = 0

    def forward(self, codes: torch.Tensor, lengths_bp: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.passes += 1
        if len(codes) > self.limit:
            raise torch.OutOfMemoryError(f"{len(codes)} rows")
        self.widest = max(self.widest, len(codes))
        return self.linear(self.embed(codes.long()).mean(1))


def train_small(limit: int, state_path: Path | None = None, team: Team = ALONE) -> tuple[TrainResult, SmallMemory]:
    model, data = SmallMemory(limit), binary()
    optim = OptimSettings(optimizer="sgd", lr=0.1, decay="none", warmup_fraction=0.0)
    runtime = Runtime(state_path=state_path, team=team)
    result = train(
        model,
        make_optimizer(optim, [(model.parameters(), optim.lr)]),
        make_schedule(optim, 2, 3),
        LoopSettings(2, 3, 0),
        runtime,
        batches=lambda e: iter_batches(data.train.tables(), kind="binary", batch_size=16, seed=0, epoch=e),
        losses=make_losses(data.task, data.label_scale),
        validate=make_validate(model, data, runtime),
    )
    return result, model


def test_batches_that_do_not_fit_are_cut_and_keep_their_effect(tmp_path: Path) -> None:
    """Same losses, weights and scores as with enough memory. Validation is cut as well."""
    enough, _ = train_small(100)
    assert "micro_batches" not in enough.history[0]
    short, model = train_small(5, tmp_path / "state.pt")
    assert model.widest <= 5
    assert [row["micro_batches"] for row in short.history] == [4, 4]
    for name in ("train_loss", "score"):
        assert [row[name] for row in short.history] == pytest.approx([row[name] for row in enough.history], rel=1e-5)
    for name, value in enough.best_state.items():
        if name != "passes":
            torch.testing.assert_close(short.best_state[name], value, rtol=1e-5, atol=1e-7)
    # Four micro-batches a step: what a failed attempt did to buffers is undone.
    assert float(short.best_state["passes"]) == 3 * 4 * (short.best_epoch + 1)


def test_memory_for_less_than_two_rows_is_the_users_matter() -> None:
    with pytest.raises(UserError, match="memory does not suffice even for 2 rows"):
        train_small(1)


def test_a_team_that_runs_out_of_memory_starts_again_in_smaller_parts(tmp_path: Path) -> None:
    """A worker cannot change the step while the others wait in it: it leaves a note and fails."""
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            train_small(5, tmp_path / "state.pt", FakeTeam(0, 2))
    result, _ = train_small(5, tmp_path / "state.pt")
    assert result.history[0]["micro_batches"] == 4


class FakeTeam(Team):
    """A worker whose others are not there."""

    def wrap(self, model: nn.Module) -> nn.Module:
        """Nobody to average with."""
        return model

    def gather_numbers(self, x: torch.Tensor) -> torch.Tensor:
        """The others have nothing."""
        return torch.stack([x, torch.zeros_like(x)])


def test_micro_batches_of_fewer_rows_than_there_are_of_them() -> None:
    batch = next(iter_batches([mixed_lengths(3)], kind="binary", batch_size=16, seed=0, epoch=0))
    pieces = batch.split(4)
    assert [piece.n_own for piece in pieces] == [1, 1, 1, 0]
    assert count_rows(pieces) == count_rows([batch]) == 3
    assert torch.equal(torch.cat([piece.codes[: piece.n_own] for piece in pieces]), batch.codes)


def test_a_worker_whose_rows_are_used_up_has_batches_without_rows() -> None:
    found = list(fill_steps(iter_batches([mixed_lengths(5)], kind="binary", batch_size=4, seed=0, epoch=0), 4))
    assert [batch.n_own for batch in found] == [4, 1, 0, 0]
    assert found[3].lengths_bp.tolist() == [0]
    with pytest.raises(ValueError, match="fewer workers"):
        list(fill_steps([], 2))


def test_a_worker_without_rows_takes_the_same_steps(tiny_lm: Path) -> None:
    """The last batch may have fewer rows than there are workers: their gradients are zeros, not missing."""
    batch = next(iter_batches(binary().train.tables(), kind="binary", batch_size=3, seed=0, epoch=0))
    batch = batch.take(0, 0, Part(0, (3, 0), 3))
    model = whole_model(tiny_lm).train()
    (compute,) = make_losses(make_task(), torch.ones(2))(model, [batch], 0)
    loss = compute()
    assert float(loss.detach()) == 0
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)


def whole_model(language_model: Path) -> L2GModel:
    """A fresh model for `binary`."""
    data, settings = binary(), tiny_settings(language_model)
    config = tiny_config(data, settings)
    state = build_net(config, data, tiny_reference(), 5).state_dict()
    return build_model(data, settings, tiny_reference(), config=config, embedder_state=state, seed=0)


def test_micro_batches_drop_the_same_elements_in_both_passes() -> None:
    """MMD's gradient is that of the tokens which get it, with dropout as well."""
    with precision(torch.float64):
        data, settings = binary(), tiny_settings(align__task_only_epochs=0)
        net = build_net(with_dropout(tiny_config(data, settings), 0.3), data, tiny_reference(), 0).train()
        pieces = next(iter_batches(data.train.tables(), kind="binary", batch_size=16, seed=0, epoch=0)).split(2)
        pooled, seen = [], []
        forward = net.forward

        def watched(*args: Any, **options: Any) -> Any:
            found = forward(*args, **options)
            (pooled if torch.is_grad_enabled() else seen).append(found[1].detach())
            return found

        net.forward = watched  # type: ignore[method-assign]
        distance = SampleDistance(mmd, tiny_reference().features)
        for compute in make_joint_losses(data, distance, settings.align, torch.ones(2), 1.0)(
            freeze_norms(net), pieces, 1
        ):
            compute()
    assert len(seen) == len(pooled) == 2
    assert all(torch.equal(*pair) for pair in zip(seen, pooled, strict=True))
