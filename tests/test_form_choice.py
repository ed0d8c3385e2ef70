"""The measured choice of a mixed convolution's form: what it keeps, what it leaves alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from toys import tiny_reference, tiny_settings, toy_data

from l2g_ray.models import form_choice
from l2g_ray.models.form_choice import MARGIN, choose_forms
from l2g_ray.models.mixed_conv import MixedConv1d, OperationSet
from l2g_ray.stages.loop import Runtime
from l2g_ray.stages.search import search_architecture

SET = OperationSet((3, 5), (1, 2))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = MixedConv1d(4, 8, SET)
        self.norm = nn.BatchNorm1d(8)
        self.pool = nn.MaxPool1d(2)
        self.second = MixedConv1d(8, 8, SET, groups=8)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.pool(self.norm(self.first(x))))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("L2G_RAY_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(form_choice, "_chosen", {})
    return tmp_path / "cache"


def choose(net: Net) -> dict[str, str]:
    x = torch.zeros(1, 4, 50)
    return choose_forms(net, lambda: net(x), batch_size=4)


def test_a_choice_is_kept_and_nothing_else_changes(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net()
    before, state = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    found = choose(net)
    assert torch.equal(torch.get_rng_state(), state), "measuring drew from the random state"
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    assert net.training
    assert found == {"first": net.first.form, "second": net.second.form}
    kept = json.loads((own_cache / "forms.json").read_text())
    assert sorted(kept.values()) == sorted(found.values())
    assert {"4x50", "4x25"} == {word for key in kept for word in key.split() if word.startswith("4x")}

    # Another process of this machine: what is kept holds, even where it is not the fastest.
    (own_cache / "forms.json").write_text(json.dumps(dict.fromkeys(kept, "dense")))
    monkeypatch.setattr(form_choice, "_chosen", {})
    monkeypatch.setattr(form_choice, "_measure", lambda *_: pytest.fail("measured again"))
    assert choose(net) == {"first": "dense", "second": "dense"}


@pytest.mark.parametrize(("gain", "expected"), [(MARGIN * 1.05, "dense"), (MARGIN * 0.95, "by_dilation")])
def test_a_form_must_be_clearly_faster(gain: float, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    seconds = {"by_dilation": 1.0, "dense": 1.0 / gain, "fft": 9.0}
    forward, calls = MixedConv1d.forward, []

    def slow(self: MixedConv1d, x: Tensor) -> Tensor:
        clock[0] += seconds[self.form]
        calls.append(self.form)
        return forward(self, x)

    monkeypatch.setattr(form_choice.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(MixedConv1d, "forward", slow)
    layer = MixedConv1d(4, 8, SET)
    choose_forms(nn.Sequential(layer), lambda: layer(torch.zeros(1, 4, 20)), batch_size=2)
    assert layer.form == expected
    assert calls.count("fft") == 1, "a hopeless form was measured again"


def test_a_cache_that_cannot_be_kept_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("L2G_RAY_CACHE_DIR", str(blocked))
    assert set(choose(Net())) == {"first", "second"}


def test_the_form_changes_rounding_only() -> None:
    """The search of a whole embedder in each form: the same losses, the same architecture."""
    data, results = toy_data(64), {}
    for form in ("naive", "by_dilation", "dense", "fft", "blocks"):
        settings = tiny_settings(search__form=form, search__epochs=2)
        found = search_architecture(data, settings, tiny_reference(), Runtime(), backbone="resnet", seed=0)
        assert set(found.forms.values()) == {form}
        results[form] = found
    reference = results.pop("naive")
    losses = torch.tensor([row["train_loss"] for row in reference.training.history])
    for form, found in results.items():
        own = torch.tensor([row["train_loss"] for row in found.training.history])
        assert torch.allclose(own, losses, rtol=1e-4), form
        assert found.architecture == reference.architecture, form
