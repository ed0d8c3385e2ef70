"""The candidates of `select`, and how DASH's weights and logits train."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import make_pipeline, tiny_config, tiny_reference, tiny_settings, toy_data

from l2g_ray.config import SelectSettings
from l2g_ray.counts import list_candidates
from l2g_ray.models.embedder import EmbedderNet
from l2g_ray.presets import resolve
from l2g_ray.stages.loop import Runtime
from l2g_ray.stages.optim import make_schedule
from l2g_ray.stages.search import build_supernet, find_temperature, make_search_optimizer, search_architecture

pytestmark = pytest.mark.usefixtures("single_thread")


def test_the_search_trains_the_logits_after_the_warm_epochs_only(tmp_path: Path) -> None:
    """Up to the last warm epoch all operations weigh the same; the next one moves every layer's logits."""
    data = toy_data()
    settings = tiny_settings(search__epochs=4, search__warm_fraction=0.5, search__last_temperature=0.5)

    def logits_after(epochs: int) -> dict[str, torch.Tensor]:
        def stop(row: dict[str, Any]) -> None:
            if row["epoch"] == epochs - 1:
                raise InterruptedError

        runtime = Runtime(report=stop, state_path=tmp_path / f"{epochs}.pt")
        with pytest.raises(InterruptedError):
            search_architecture(data, settings, tiny_reference(), runtime, backbone="resnet", seed=0)
        model = torch.load(tmp_path / f"{epochs}.pt", weights_only=True)["model"]
        return {name: value for name, value in model.items() if name.endswith("logits")}

    warm, moved = logits_after(2), logits_after(3)
    assert len(warm) == 9
    for name, logits in warm.items():
        assert float(logits.abs().max()) < 0.01, "as drawn: 1e-3 N(0, 1)"
        assert float((moved[name] - logits).abs().max()) > 0.01
    temperatures = [find_temperature(settings.search, epoch) for epoch in range(4)]
    assert temperatures == [math.inf, math.inf, 1.0, 0.5]


def test_paper_searches_with_the_papers_optimiser() -> None:
    stage = resolve("paper").search
    net = EmbedderNet(tiny_config(toy_data(), tiny_settings()))
    mixed = build_supernet(net, resolve("paper"), 0)
    optimizer = make_search_optimizer(net, mixed, stage)
    assert isinstance(optimizer, torch.optim.SGD)
    rates = [(g["lr"], g["momentum"], g["nesterov"], g["weight_decay"]) for g in optimizer.param_groups]
    assert rates == [(0.1, 0.9, True, 5e-4), (0.05, 0.9, True, 5e-4)]
    schedule = make_schedule(stage.optim, stage.epochs, 10)
    assert [schedule(10 * epoch) for epoch in (0, 30, 31, 61)] == pytest.approx([1.0, 1.0, 0.2, 0.04])
    assert {find_temperature(stage, epoch) for epoch in range(stage.epochs)} == {1.0}


def test_the_candidates_of_select() -> None:
    assert [c.name for c in list_candidates(resolve("paper").select)] == ["resnet", "unet"]
    named = list_candidates(SelectSettings(backbones=("deepsea", "orca"), kernel_sizes=(7, 11)))
    assert [(c.name, c.architecture) for c in named] == [
        ("deepsea 7x1", [(7, 1)] * 3),
        ("deepsea 11x1", [(11, 1)] * 3),
        ("orca", []),
    ]


def test_without_a_search_the_selected_net_is_deployed() -> None:
    pipeline = make_pipeline(tiny_settings(search__enabled=False))
    net, _ = list_candidates(SelectSettings(kernel_sizes=(7, 11)))[:2]
    assert pipeline._search(net) == ([(7, 1)] * 9, "uniform 7x1")
    assert pipeline._search(list_candidates(SelectSettings(backbones=("orca",)))[0]) == ([], "none")


def test_the_search_of_fast_learns_where_a_motif_is_planted() -> None:
    small = {"model.resnet_channels": [8, 8, 16], "model.target_tokens": 8, "search.form": "by_dilation"}
    found = search_architecture(
        toy_data(rows=600), resolve("fast", None, small), tiny_reference(), Runtime(), backbone="resnet", seed=1
    )
    assert found.training.best_score > 0.7  # chance is 0, where SGD with a rate of 0.1 stayed
    assert len(found.architecture) == 9
