"""Acceptance tests A1-A6 of the mixed convolution."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from l2g_ray.models.mixed_conv import (
    FORMS,
    MixedConv1d,
    OperationSet,
    SearchableConv1d,
    deploy_convolutions,
    replace_convolutions,
)

torch.set_num_threads(1)

SETS = {
    "nucleotide_transformer": OperationSet((3, 5, 7, 9, 11), (1, 3, 5, 7)),
    "deepsea": OperationSet((3, 7, 11, 15, 19), (1, 3, 7, 15)),
    "new_task": OperationSet((3, 5, 7, 9), (1, 3, 7, 15)),
}
LAYERS = {"input": (4, 6, 1), "dense": (6, 6, 1), "depthwise": (6, 6, 6), "grouped": (4, 6, 2)}
TOLERANCE = {torch.float32: 5e-6, torch.float64: 1e-12}


def relative_error(value: Tensor, reference: Tensor) -> float:
    """Largest absolute error over the largest absolute reference."""
    return ((value - reference).abs().max() / reference.abs().max()).item()


def make_layer(
    operation_set: OperationSet, layer: str, dtype: torch.dtype, *, causal: bool = False, seed: int = 0
) -> MixedConv1d:
    """A layer in evaluation mode with clearly different coefficients and a bias."""
    generator = torch.Generator().manual_seed(seed)
    c_in, c_out, groups = LAYERS[layer]
    mixed = MixedConv1d(c_in, c_out, operation_set, groups=groups, causal=causal, weight_std=0.1, generator=generator)
    mixed = mixed.to(dtype).eval()
    with torch.no_grad():
        mixed.logits.normal_(0, 1, generator=generator)
        assert mixed.bias is not None
        mixed.bias.normal_(0, 1, generator=generator)
    return mixed


def run_form(mixed: MixedConv1d, form: str, x: Tensor, cotangent: Tensor) -> dict[str, Tensor]:
    """Output and gradients of one form."""
    mixed.form = form
    mixed.zero_grad()
    x = x.clone().requires_grad_()
    output = mixed(x)
    (output * cotangent).sum().backward()
    gradients = {name: p.grad.clone() for name, p in mixed.named_parameters() if p.grad is not None}
    assert x.grad is not None
    return {"output": output.detach(), "input": x.grad} | gradients


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("length", [33, 128, 301])
@pytest.mark.parametrize("causal", [False, True], ids=["centred", "causal"])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", SETS)
def test_a1_all_forms_agree(name: str, layer: str, causal: bool, length: int, dtype: torch.dtype) -> None:
    mixed = make_layer(SETS[name], layer, dtype, causal=causal)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, mixed.in_channels, length, generator=generator, dtype=dtype)
    cotangent = torch.randn(3, mixed.out_channels, length, generator=generator, dtype=dtype)
    reference = run_form(mixed, "naive", x, cotangent)
    assert set(reference) == {"output", "input", "weight", "logits", "bias"}
    for form in FORMS[:1] + FORMS[2:]:
        for quantity, value in run_form(mixed, form, x, cotangent).items():
            error = relative_error(value, reference[quantity])
            assert error <= TOLERANCE[dtype], f"{form}: {quantity} is off by {error:.1e}"


@pytest.mark.parametrize("form", FORMS)
def test_a1_masked_taps_stay_out_of_training(form: str) -> None:
    mixed = make_layer(SETS["new_task"], "dense", torch.float64)
    mask = mixed.tap_mask.t()[:, :, None, None].bool().expand_as(mixed.weight)
    x = torch.randn(2, 6, 150, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gradient = run_form(mixed, form, x, torch.ones_like(x))["weight"]
    assert not gradient[~mask].any()
    assert gradient[mask].all()
    assert not mixed.weight[~mask].any()
    before = mixed(x)
    with torch.no_grad():
        mixed.weight[~mask] = 1e6
    assert torch.equal(mixed(x), before)


@pytest.mark.parametrize("form", FORMS)
def test_a1_forms_under_autocast(form: str) -> None:
    mixed = make_layer(SETS["new_task"], "dense", torch.float32)
    x = torch.randn(2, 6, 100, generator=torch.Generator().manual_seed(0))
    exact = mixed(x)
    mixed.form = form
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = mixed(x.bfloat16())
    assert output.dtype == torch.bfloat16
    assert relative_error(output.float(), exact) <= 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", SETS)
def test_a2_one_hot_equals_conv1d_same(name: str, layer: str, form: str, dtype: torch.dtype) -> None:
    mixed = make_layer(SETS[name], layer, dtype)
    mixed.form = form
    x = torch.randn(2, mixed.in_channels, 97, generator=torch.Generator().manual_seed(2), dtype=dtype)
    for index, (kernel_size, dilation) in enumerate(mixed.operation_set.operations):
        with torch.no_grad():
            mixed.logits.fill_(-1e4)
            mixed.logits[index] = 1e4
        assert mixed.best() == (kernel_size, dilation)
        weight = mixed.operation_weight(index)
        assert weight.shape == (mixed.out_channels, mixed.in_channels // mixed.groups, kernel_size)
        expected = F.conv1d(x, weight, mixed.bias, padding="same", dilation=dilation, groups=mixed.groups)
        assert relative_error(mixed(x), expected) <= TOLERANCE[dtype]
        assert relative_error(mixed.to_conv()(x), expected) <= TOLERANCE[dtype]


@pytest.mark.parametrize("form", FORMS)
def test_a2_causal_sees_no_future(form: str) -> None:
    operation_set = OperationSet((3, 5), (1, 2))
    mixed = make_layer(operation_set, "dense", torch.float64, causal=True)
    mixed.form = form
    x = torch.randn(1, 6, 40, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    changed = x.clone()
    changed[..., 20] += 1
    touched = (mixed(x) - mixed(changed)).abs().amax((0, 1)) > 1e-9
    # Reach of the set: lags 0, 1, 2, 3, 4, 6, 8.
    assert touched.nonzero().flatten().tolist() == [20, 21, 22, 23, 24, 26, 28]


@pytest.mark.parametrize(
    ("kernel_size", "dilation", "causal"), [(8, 1, False), (8, 3, False), (5, 2, False), (5, 2, True)]
)
def test_searchable_conv_keeps_the_length(kernel_size: int, dilation: int, causal: bool) -> None:
    torch.manual_seed(0)
    conv = SearchableConv1d(3, 4, kernel_size, dilation, causal=causal)
    x = torch.randn(2, 3, 30)
    span = dilation * (kernel_size - 1)
    padding = span if causal else kernel_size // 2 * dilation
    # As official L2G: pad both sides, crop to the input's length.
    expected = F.conv1d(x, conv.weight, conv.bias, padding=padding, dilation=dilation)[..., :30]
    assert conv(x).shape == (2, 4, 30)
    assert torch.allclose(conv(x), expected, atol=1e-6)


def test_a3_coefficients() -> None:
    mixed = make_layer(SETS["new_task"], "input", torch.float64)
    state = torch.get_rng_state()
    evaluated = mixed.coefficients()
    assert torch.equal(state, torch.get_rng_state()), "evaluation drew random numbers"
    assert torch.equal(evaluated, torch.softmax(mixed.logits, 0))

    mixed.train()
    torch.manual_seed(0)
    noisy = torch.stack([mixed.coefficients() for _ in range(200)])
    assert not torch.equal(noisy[0], noisy[1]), "training drew no noise"
    for coefficients in (evaluated, *noisy):
        assert (coefficients >= 0).all()
        assert abs(coefficients.sum().item() - 1) <= 1e-12

    mixed.eval().temperature = 1e-3
    one_hot = F.one_hot(mixed.logits.argmax(), len(mixed.operation_set))
    assert torch.allclose(mixed.coefficients(), one_hot.double(), atol=1e-12)


def test_a3_gumbel_argmax_follows_the_softmax() -> None:
    mixed = make_layer(OperationSet((3, 5), (1,)), "input", torch.float64).train()
    with torch.no_grad():
        mixed.logits.copy_(torch.tensor([0.0, 1.0]))
    torch.manual_seed(0)
    first = sum(int(mixed.coefficients().argmax() == 0) for _ in range(4000)) / 4000
    # P(argmax = 0) = softmax = .2689; four standard errors are .028.
    assert abs(first - 0.2689) < 0.028


@given(
    kernel_sizes=st.lists(st.integers(0, 12).map(lambda i: 2 * i + 1), min_size=1, max_size=6, unique=True),
    dilations=st.lists(st.integers(1, 20), min_size=1, max_size=5, unique=True),
)
@settings(deadline=None)
def test_a4_discretise_round_trips(kernel_sizes: list[int], dilations: list[int]) -> None:
    operation_set = OperationSet(tuple(kernel_sizes), tuple(dilations))
    expected = list(itertools.product(kernel_sizes, dilations))  # kernel size outermost
    assert operation_set.operations == expected
    assert len(operation_set) == len(expected)
    for index, (kernel_size, dilation) in enumerate(expected):
        assert operation_set.discretise(index) == (kernel_size, dilation)
        assert operation_set.index(kernel_size, dilation) == index
        assert operation_set.fields[index] == dilation * (kernel_size - 1) + 1


def test_a4_indices_by_hand() -> None:
    operation_set = SETS["nucleotide_transformer"]
    assert operation_set.discretise(0) == (3, 1)
    assert operation_set.discretise(6) == (5, 5)
    assert operation_set.discretise(19) == (11, 7)
    assert max(operation_set.fields) == 71
    for outside in (-1, 20):
        with pytest.raises(IndexError):
            operation_set.discretise(outside)
    with pytest.raises(ValueError, match="not in list"):
        operation_set.index(4, 1)


@pytest.mark.parametrize(
    ("kernel_sizes", "dilations", "message"),
    [((3, 8), (1,), "odd"), ((), (1,), "non-empty"), ((3,), (0,), "at least 1"), ((3, 3), (1,), "distinct")],
)
def test_a4_invalid_sets(kernel_sizes: tuple[int, ...], dilations: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OperationSet(kernel_sizes, dilations)


class Toy(nn.Module):
    """Searchable layers in and out of containers, BatchNorm, and a shortcut that stays as it is."""

    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.stem = SearchableConv1d(4, 6, 8, causal=causal)
        self.block = nn.Sequential(
            nn.BatchNorm1d(6),
            nn.ReLU(),
            SearchableConv1d(6, 6, 3, causal=causal),
            nn.BatchNorm1d(6),
            nn.ReLU(),
        )
        self.shortcut = nn.Conv1d(4, 6, 1)
        self.last = SearchableConv1d(6, 2, 3, causal=causal, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.block(self.stem(x)) + self.shortcut(x))
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_a5_deployed_network_equals_one_hot_supernet(causal: bool, separable: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(4)
    toy = Toy(causal).to(dtype)
    bias = toy.stem.bias.detach().clone()  # type: ignore[union-attr]
    shortcut = toy.shortcut
    mixed = replace_convolutions(
        toy,
        SETS["new_task"],
        separable=separable,
        weight_std=None,
        generator=torch.Generator().manual_seed(0),
    )
    assert list(mixed) == ["stem", "block.2", "last"]
    assert [m.groups for m in mixed.values()] == [1, 6 if separable else 1, 1]
    assert toy.shortcut is shortcut
    assert mixed["stem"].bias is not None
    assert torch.equal(mixed["stem"].bias, bias)
    assert all(m.weight.dtype == dtype and m.causal == causal for m in mixed.values())

    x = torch.randn(8, 4, 120, dtype=dtype)
    winners = {"stem": (9, 7), "block.2": (3, 15), "last": (5, 1)}
    with torch.no_grad():
        for name, layer in mixed.items():
            layer.logits[layer.operation_set.index(*winners[name])] = 1e4
        for _ in range(3):
            toy(x)  # moves the BatchNorm statistics
    expected = toy.eval()(x)
    assert deploy_convolutions(toy) == winners
    assert not any(isinstance(m, MixedConv1d) for m in toy.modules())
    assert not toy.last.training
    assert relative_error(toy(x), expected) <= 1e-5


def test_replacement_keeps_sharing_and_refuses_nonsense() -> None:
    shared = SearchableConv1d(3, 3, 3)
    net = nn.Sequential(shared, nn.ReLU(), shared)
    replaced = replace_convolutions(net, OperationSet((3,), (1, 2)))
    assert list(replaced) == ["0"]
    assert net[0] is net[2] is replaced["0"]
    with pytest.raises(ValueError, match="no SearchableConv1d"):
        replace_convolutions(net, OperationSet((3,), (1, 2)))
    with pytest.raises(ValueError, match="itself"):
        replace_convolutions(shared, OperationSet((3,), (1, 2)))


@pytest.mark.parametrize("scale", [100.0, 10.0])
def test_a6_logit_gradient_scaling(scale: float) -> None:
    mixed = make_layer(SETS["nucleotide_transformer"], "dense", torch.float32).train()
    x = torch.randn(2, 6, 60, generator=torch.Generator().manual_seed(5))
    torch.manual_seed(5)
    mixed(x).square().sum().backward()
    assert mixed.logits.grad is not None
    direction = F.normalize(mixed.logits.grad.clone(), dim=0)
    penalised = copy.deepcopy(mixed)
    penalised.logits.grad = mixed.logits.grad.clone()

    mixed.scale_logit_gradient_(scale, penalty=0)
    assert abs(float(mixed.logits.grad.norm()) - 1 / scale) <= 1e-6
    assert torch.allclose(F.normalize(mixed.logits.grad, dim=0), direction, atol=1e-6)
    penalised.scale_logit_gradient_(scale)
    fields = torch.tensor([float(d * (k - 1) + 1) for k, d in mixed.operation_set.operations])
    assert torch.allclose(penalised.logits.grad - mixed.logits.grad, 1e-5 * fields, atol=1e-8)


def test_a6_needs_a_gradient() -> None:
    with pytest.raises(RuntimeError, match="backward"):
        make_layer(SETS["new_task"], "dense", torch.float32).scale_logit_gradient_(100)


def test_initial_values() -> None:
    operation_set = OperationSet((3, 11), (1, 3))

    def make(weight_std: float | None) -> MixedConv1d:
        generator = torch.Generator().manual_seed(0)
        return MixedConv1d(16, 32, operation_set, weight_std=weight_std, generator=generator)

    assert torch.equal(make(0.01).weight, make(0.01).weight)
    assert torch.equal(make(0.01).logits, make(0.01).logits)
    normal, uniform = make(0.01), make(None)
    assert normal.logits.abs().max().item() < 0.01
    assert normal.bias is not None
    assert not normal.bias.any()
    for index, (k, _) in enumerate(operation_set.operations):
        assert normal.operation_weight(index).std().item() == pytest.approx(0.01, rel=0.1)
        bound = (16 * k) ** -0.5  # the rule of nn.Conv1d
        assert uniform.operation_weight(index).abs().max().item() == pytest.approx(bound, rel=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"form": "winograd"}, "unknown form"), ({"temperature": 0.0}, "temperature"), ({"groups": 4}, "groups=4")],
)
def test_invalid_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MixedConv1d(6, 6, SETS["new_task"], **options)  # type: ignore[arg-type]


def test_default_forms() -> None:
    assert MixedConv1d(6, 6, SETS["new_task"]).form == "by_dilation"
    assert MixedConv1d(6, 6, SETS["new_task"], groups=6).form == "fft"
