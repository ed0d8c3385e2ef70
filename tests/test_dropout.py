"""The fast dropout and attention with it, beside torch's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from l2g_ray.models import language_model
from l2g_ray.models.language_model import LanguageModel, load_transformer
from l2g_ray.models.layers import Dropout, drop


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5])
def test_rate_scale_and_gradient(p: float) -> None:
    torch.manual_seed(0)
    x = torch.rand(301, 333) + 1
    x.requires_grad_()
    y = drop(x, p)
    kept = y != 0
    n = x.numel()
    assert abs((~kept).sum().item() - p * n) < 5 * (p * (1 - p) * n) ** 0.5
    assert torch.allclose(y[kept], x[kept] / (1 - p), rtol=1e-4)
    y.sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, kept / (1 - p), rtol=1e-4)
    # No row, column or neighbour decides for another.
    share = kept.float()
    assert (share.mean(0) - (1 - p)).abs().max() < 6 * (p * (1 - p) / 301) ** 0.5
    both = (share[:, 1:] * share[:, :-1]).mean().item()
    assert abs(both - (1 - p) ** 2) < 0.01


def test_seeded_and_off_in_evaluation() -> None:
    layer, x = Dropout(0.3), torch.randn(50, 7)
    torch.manual_seed(3)
    first, second = layer(x), layer(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first)
    assert not torch.equal(first, second)
    assert torch.equal(layer.eval()(x), x)
    layer.train().p = 0.0
    assert torch.equal(layer(x), x)
    assert not drop(x, 1.0).any()


def test_attention_with_dropout_is_attention(tiny_lm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = LanguageModel(load_transformer(str(tiny_lm)))
    tokens = torch.randn(3, 9, 16, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(3, 9)
    mask[1, 5:] = 0
    model.set_dropout(0.4)
    calls: list[float] = []

    def keep(x: torch.Tensor, p: float) -> torch.Tensor:
        calls.append(p)
        return x

    for given in (None, mask):
        expected = model.eval()(tokens, given)
        torch.manual_seed(0)
        model.train()
        assert not torch.allclose(model(tokens, given), expected, atol=1e-3), "nothing was dropped"
        # The same path without its random part is SDPA.
        calls.clear()
        with monkeypatch.context() as patch:
            patch.setattr(language_model, "drop", keep)
            patch.setattr(Dropout, "forward", lambda self, x: x)
            assert torch.allclose(model(tokens, given), expected, atol=1e-5)
        assert calls == [0.4, 0.4]


def test_every_dropout_of_the_language_model_is_the_fast_one(tiny_lm: Path) -> None:
    model = LanguageModel(load_transformer(str(tiny_lm)), "lm")
    found = [m for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    assert found
    assert all(isinstance(m, Dropout) for m in found)
