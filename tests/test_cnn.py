"""The small CNN, and averaged weights in the training loop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from toys import make_data, make_task, plant, tiny_settings

from l2g_ray import counts
from l2g_ray.config import OneCycleSettings
from l2g_ray.models.baselines import SmallCNN, SmallCNNConfig
from l2g_ray.models.l2g import load_model, save_model
from l2g_ray.sequence import N_CODE
from l2g_ray.stages.cnn import build_cnn, train_cnn
from l2g_ray.stages.context import predict_source
from l2g_ray.stages.loop import Runtime, swap_weights, update_average

pytestmark = pytest.mark.usefixtures("single_thread")
RUNTIME = Runtime()


def set_epochs(monkeypatch: pytest.MonkeyPatch, epochs: int) -> None:
    """Of the network that is read out by mean and max."""
    schedule = counts.CNN_SCHEDULES[False].model_copy(update={"epochs": epochs})
    monkeypatch.setitem(counts.CNN_SCHEDULES, False, schedule)


def test_epochs_follow_the_rows_within_their_limits() -> None:
    stage = OneCycleSettings(batch_size=10, steps=100, epochs=(2, 8))
    assert [stage.count_epochs(n) for n in (50, 200, 10_000)] == [8, 5, 2]
    assert [stage.model_copy(update={"epochs": 3}).count_epochs(n) for n in (50, 200, 10_000)] == [3, 3, 3]


@pytest.mark.parametrize("by_position", [False, True])
def test_a_number_of_steps_shortens_training(by_position: bool) -> None:
    usual = counts.choose_cnn_schedule(tiny_settings(baselines__cnn_steps=None), by_position)
    short = counts.choose_cnn_schedule(tiny_settings(baselines__cnn_steps=100), by_position)
    n_rows = 100 * short.batch_size
    assert short.count_epochs(n_rows) == 1
    assert usual.count_epochs(n_rows) >= 8


@pytest.mark.parametrize("by_position", [False, True])
@pytest.mark.parametrize("length_bp", [7, 60, 1500])
def test_padding_changes_nothing(by_position: bool, length_bp: int) -> None:
    torch.manual_seed(0)
    net = SmallCNN(SmallCNNConfig(length_bp, 3, by_position)).eval()
    codes = torch.randint(0, 4, (4, length_bp), dtype=torch.uint8)
    lengths = torch.tensor([length_bp, length_bp, length_bp - 2, 3])
    codes[2, -2:], codes[3, 3:] = N_CODE, N_CODE
    wider = nn.functional.pad(codes, (0, 9), value=N_CODE)
    outputs = net(codes, lengths)
    assert outputs.shape == (4, 3)
    torch.testing.assert_close(net(wider, lengths), outputs)
    torch.testing.assert_close(net(codes[3:, :3], lengths[3:]), outputs[3:], rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in net.parameters()) < 1_500_000  # however long the sequences


@pytest.mark.parametrize("by_position", [False, True])
def test_rows_of_full_length_give_the_same_with_and_without_a_mask(by_position: bool) -> None:
    torch.manual_seed(0)
    net = SmallCNN(SmallCNNConfig(40, 2, by_position)).eval()
    x = nn.functional.one_hot(torch.randint(0, 4, (3, 40)), 4).float().transpose(1, 2).contiguous()
    torch.testing.assert_close(net.forward_one_hot(x, torch.ones(3, 1, 40)), net.forward_one_hot(x))


def test_learns_a_motif_anywhere_and_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_epochs(monkeypatch, 6)
    data = make_data(make_task(), plant(600), plant(100, seed=1))
    training = train_cnn(data, tiny_settings(), RUNTIME, 0)
    assert training.best_epoch == 5
    assert training.best_score > 0.7
    net = build_cnn(data, tiny_settings(), 0)
    net.load_state_dict(training.best_state)
    save_model(net, tmp_path)
    before, after = (predict_source(m, data.valid, data.task, RUNTIME)[0] for m in (net, load_model(tmp_path)))
    np.testing.assert_array_equal(before, after)


def test_only_the_last_epoch_is_validated_where_it_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_epochs(monkeypatch, 3)
    data = make_data(make_task(), plant(80), plant(40, seed=1))
    state = tmp_path / "state.pt"
    told: list[dict[str, float]] = []
    training = train_cnn(data, tiny_settings(), replace(RUNTIME, report=told.append, state_path=state), 0)
    scores = [row["score"] for row in training.history]
    assert scores[:2] == [-np.inf, -np.inf]
    assert np.isfinite(scores[2])
    assert training.best_score == scores[2]
    assert told == training.history
    told.clear()
    assert (
        train_cnn(data, tiny_settings(), replace(RUNTIME, report=told.append, state_path=state), 0).best_score
        == scores[2]
    )
    assert told == training.history


def test_a_strand_specific_task_is_read_by_position() -> None:
    for strand_specific in (True, False):
        data = make_data(make_task(strand_specific=strand_specific), plant(40), plant(40, seed=1))
        assert build_cnn(data, tiny_settings(), 0).config.by_position is strand_specific


def test_stop_and_resume_equals_no_stop_with_averaged_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_epochs(monkeypatch, 3)
    data = make_data(make_task(), plant(80), plant(40, seed=1))
    whole = train_cnn(data, tiny_settings(), RUNTIME, 0)

    class Stopped(Exception):
        pass

    def stop(row: dict[str, float]) -> None:
        if row["epoch"] == 1:
            raise Stopped

    with pytest.raises(Stopped):
        train_cnn(data, tiny_settings(), replace(RUNTIME, report=stop, state_path=tmp_path / "state.pt"), 0)
    resumed = train_cnn(data, tiny_settings(), replace(RUNTIME, state_path=tmp_path / "state.pt"), 0)
    for name, value in whole.best_state.items():
        assert torch.equal(value, resumed.best_state[name]), name


def test_an_average_of_statistics_follows_them_and_whole_numbers_are_the_newest() -> None:
    model = nn.BatchNorm1d(2)
    average: dict[str, torch.Tensor] = {}
    means = []
    for step in range(3):
        model(torch.randn(8, 2))
        means.append(model.running_mean.clone())
        update_average(average, model, 1 / (step + 1))
    torch.testing.assert_close(average["running_mean"], torch.stack(means).mean(0))
    assert int(average["num_batches_tracked"]) == 3
    assert average["running_mean"].data_ptr() != model.running_mean.data_ptr()


def test_an_average_begins_as_the_weights_and_follows_them() -> None:
    model = nn.Linear(1, 1, bias=False)
    average: dict[str, torch.Tensor] = {}
    for step, value in enumerate((1.0, 3.0, 5.0)):
        nn.init.constant_(model.weight, value)
        update_average(average, model, 1 / (step + 1))
    assert float(average["weight"]) == pytest.approx(3.0)  # the mean of all so far
    before = swap_weights(model, average)
    assert float(model.weight) == pytest.approx(3.0)
    swap_weights(model, before)
    assert float(model.weight) == 5.0
