"""Acceptance tests B1-B10 of the maximum mean discrepancy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from l2g_ray.stages.distances import mmd, sample_rows

torch.set_num_threads(1)


def draw(n: int, m: int, d: int, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Two samples of clearly different distributions."""
    generator = torch.Generator().manual_seed(seed)
    source = torch.randn(n, d, generator=generator, dtype=torch.float64)
    target = 1.5 * torch.randn(m, d, generator=generator, dtype=torch.float64) + 0.3
    return source.to(dtype), target.to(dtype)


def mmd_by_loops(source: Tensor, target: Tensor, *, biased: bool = True, bandwidth: float | None = None) -> float:
    """Definition in NumPy, float64, one pair at a time."""
    x, y = source.double().numpy(), target.double().numpy()
    pool = np.concatenate([x, y])
    if bandwidth is None:
        total = sum(((u - v) ** 2).sum() for u in pool for v in pool)
        bandwidth = total / (len(pool) ** 2 - len(pool))

    def kernel(u: Any, v: Any) -> float:
        d2 = ((u - v) ** 2).sum()
        return float(sum(np.exp(-d2 / (bandwidth * 2.0 ** (i - 2))) for i in range(5)))

    def within(rows: Any) -> float:
        values = [kernel(u, v) for i, u in enumerate(rows) for j, v in enumerate(rows) if biased or i != j]
        return sum(values) / len(values)

    return within(x) + within(y) - 2 * float(np.mean([kernel(u, v) for u in x for v in y]))


def mmd_expanded(source: Tensor, target: Tensor) -> Tensor:
    """The published form: an (N, N, D) tensor of differences."""
    pool, n = torch.cat([source, target]), len(source)
    d2 = (pool[:, None] - pool[None]).square().sum(2)
    base = d2.detach().sum() / (len(pool) ** 2 - len(pool))
    k = torch.stack([torch.exp(-d2 / (base * 2.0 ** (i - 2))) for i in range(5)]).sum(0)
    return k[:n, :n].mean() + k[n:, n:].mean() - k[:n, n:].mean() - k[n:, :n].mean()


@pytest.mark.parametrize("offset", [0.0, 10.0])
def test_b1_identical_sets(offset: float) -> None:
    source, _ = draw(150, 1, 64)
    source = source + offset
    permuted = source[torch.randperm(150, generator=torch.Generator().manual_seed(0))]
    assert abs(float(mmd(source, source))) <= 1e-6
    assert abs(float(mmd(source, permuted))) <= 1e-6


@pytest.mark.parametrize("biased", [True, False])
def test_b2_symmetric(biased: bool) -> None:
    source, target = draw(80, 50, 16)
    assert abs(float(mmd(source, target, biased=biased) - mmd(target, source, biased=biased))) <= 1e-6


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("bandwidth", [None, 7.0])
@pytest.mark.parametrize(("n", "m", "d"), [(20, 20, 8), (31, 12, 5), (10, 25, 64)])
def test_b3_equals_double_loop(n: int, m: int, d: int, bandwidth: float | None, biased: bool) -> None:
    expected = mmd_by_loops(*draw(n, m, d), biased=biased, bandwidth=bandwidth)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        source, target = draw(n, m, d, dtype=torch.float32)
        value = float(mmd(source.to(dtype), target.to(dtype), biased=biased, bandwidth=bandwidth))
        assert abs(value - expected) <= tolerance * abs(expected)


def test_b4_invariances() -> None:
    source, target = draw(60, 40, 16)
    value = float(mmd(source, target))
    assert abs(float(mmd(source + 10, target + 10)) - value) <= 1e-5
    for factor in (1e-3, 1e3):
        assert abs(float(mmd(source * factor, target * factor)) - value) <= 1e-5
    # A fixed bandwidth is not scale-invariant, else the test above would show nothing.
    assert abs(float(mmd(source * 3, target * 3, bandwidth=30.0) - mmd(source, target, bandwidth=30.0))) > 1e-2


@given(
    n=st.integers(1, 30),
    m=st.integers(1, 30),
    d=st.integers(1, 20),
    scale=st.floats(0, 3),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=60)
def test_b5_biased_is_not_negative(n: int, m: int, d: int, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    source = torch.randn(n, d, generator=generator)
    target = scale * torch.randn(m, d, generator=generator)
    value = float(mmd(source, target))
    assert -1e-6 <= value <= 10


def test_b6_closed_form_for_gaussians() -> None:
    n, d, s1, s2, b = 6000, 4, 1.0, 1.5, 6.0
    mean = torch.tensor([1.0, 0.5, 0.0, -0.5])
    generator = torch.Generator().manual_seed(0)
    source = s1**0.5 * torch.randn(n, d, generator=generator)
    target = s2**0.5 * torch.randn(n, d, generator=generator) + mean

    def expect(v: float, m2: float) -> float:
        return float((1 + 2 * v / b) ** (-d / 2) * np.exp(-m2 / (b + 2 * v)))

    closed = expect(2 * s1, 0) + expect(2 * s2, 0) - 2 * expect(s1 + s2, float(mean.square().sum()))
    # v is the variance of a difference's coordinate; the exponent of exp(-d2 / b) has no factor 2.
    assert closed > 0.05
    assert float(mmd(source, target, n_kernels=1, bandwidth=b, biased=False)) == pytest.approx(closed, rel=0.03)


def test_b7_unbiased_is_zero_on_average() -> None:
    generator = torch.Generator().manual_seed(0)
    unbiased, biased = [], []
    for _ in range(50):
        source, target = torch.randn(2, 100, 8, generator=generator).double()
        unbiased.append(float(mmd(source, target, biased=False)))
        biased.append(float(mmd(source, target)))
    assert abs(np.mean(unbiased)) <= 3 * np.std(unbiased, ddof=1) / 50**0.5
    # The V-statistic has a positive floor; the test can tell the two apart.
    assert np.mean(biased) > 3 * np.std(biased, ddof=1) / 50**0.5


@pytest.mark.parametrize("biased", [True, False])
def test_b8_gradients(biased: bool) -> None:
    source, target = (t.requires_grad_() for t in draw(6, 5, 3, dtype=torch.float64))

    def fixed(x: Tensor, y: Tensor) -> Tensor:
        return mmd(x, y, bandwidth=4.0, biased=biased)

    assert torch.autograd.gradcheck(fixed, (source, target))


def test_b8_no_gradient_through_the_bandwidth() -> None:
    source, target = draw(12, 9, 4, dtype=torch.float64)
    target.requires_grad_()
    pool = torch.cat([source, target.detach()])
    bandwidth = (torch.cdist(pool, pool).square().sum() / (21 * 20)).requires_grad_()
    (driven,) = torch.autograd.grad(mmd(source, target), target)
    held, through = torch.autograd.grad(
        mmd(source, target, bandwidth=bandwidth), (target, bandwidth), allow_unused=True
    )
    assert through is None
    assert torch.allclose(driven, held, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, -1234.567])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_b9_equal_rows(value: float, dtype: torch.dtype) -> None:
    source = torch.full((37, 50), value, dtype=dtype)
    target = torch.full((21, 50), value, dtype=dtype, requires_grad=True)
    loss = mmd(source, target)
    loss.backward()
    assert abs(loss.item()) <= 1e-6
    assert target.grad is not None
    assert torch.isfinite(target.grad).all()
    assert float(target.grad.abs().max()) <= 1e-3


def test_b9_equal_random_rows_and_duplicates() -> None:
    row = torch.randn(1, 768, generator=torch.Generator().manual_seed(0))
    target = row.repeat(64, 1).requires_grad_()
    mmd(row.repeat(64, 1), target).backward()
    assert target.grad is not None
    assert float(target.grad.abs().max()) <= 1e-3
    # Many duplicates beside different rows: distances of 0 must not give NaN.
    source, other = draw(10, 10, 8)
    other = other[torch.zeros(10, dtype=torch.long)].requires_grad_()
    mmd(source, other).backward()
    assert other.grad is not None
    assert torch.isfinite(other.grad).all()
    # Rounding must not make a squared distance negative: exp would overflow at a small bandwidth.
    assert 0 <= float(mmd(source, source + 1, bandwidth=1e-9)) <= 10


def test_b10_gram_equals_expanded() -> None:
    source, target = draw(64, 64, 48)
    target.requires_grad_()
    expanded = mmd_expanded(source, target)
    (expected,) = torch.autograd.grad(expanded, target)
    value = mmd(source, target)
    (gradient,) = torch.autograd.grad(value, target)
    assert (value - expanded).abs().item() <= 1e-4 * expanded.item()
    assert float((gradient - expected).abs().max() / expected.abs().max()) <= 1e-4


class LargestTensor(TorchDispatchMode):
    """Records the largest number of elements that an operation returns, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        self.numel = max(self.numel, *sizes, 0) if sizes else self.numel
        return output


def test_b10_memory_is_quadratic() -> None:
    n, d = 96, 64
    source, target = (t.requires_grad_() for t in draw(n, n, d))
    with LargestTensor() as largest:
        mmd(source, target).backward()
    assert n * n <= largest.numel <= (2 * n) ** 2
    with LargestTensor() as largest:  # the counter does see the published form's cube
        mmd_expanded(source, target).backward()
    assert largest.numel == (2 * n) ** 2 * d


def test_autocast_keeps_float32() -> None:
    source, target = draw(40, 40, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = mmd(source, target)
    assert value.dtype == torch.float32
    assert torch.equal(value, mmd(source, target))
    assert mmd(source.bfloat16(), target.bfloat16()).dtype == torch.float32


def test_sample_rows() -> None:
    reference = torch.arange(5.0)[:, None].repeat(1, 3)
    rows = sample_rows(reference, 5000, torch.Generator().manual_seed(1))
    assert rows.shape == (5000, 3)
    assert rows.dtype == reference.dtype
    assert torch.equal(rows, sample_rows(reference, 5000, torch.Generator().manual_seed(1)))
    assert not torch.equal(rows, sample_rows(reference, 5000, torch.Generator().manual_seed(2)))
    counts = torch.bincount(rows[:, 0].long(), minlength=5)
    assert ((counts - 1000).abs() < 120).all()  # four standard deviations
    with pytest.raises(ValueError, match="without rows"):
        sample_rows(reference[:0], 3, torch.Generator())


@pytest.mark.parametrize(
    ("source", "target", "options", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(3, 4), {}, "expected"),
        (torch.zeros(3, 2, 2), torch.zeros(3, 2, 2), {}, "expected"),
        (torch.zeros(0, 2), torch.zeros(3, 2), {}, "at least 1 rows"),
        (torch.zeros(1, 2), torch.zeros(3, 2), {"biased": False}, "at least 2 rows"),
        (torch.zeros(3, 2), torch.zeros(3, 2), {"bandwidth": 0.0}, "positive"),
        (torch.zeros(3, 2), torch.zeros(3, 2), {"n_kernels": 0}, "positive"),
    ],
)
def test_invalid_inputs(source: Tensor, target: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mmd(source, target, **options)
