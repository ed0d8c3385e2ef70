"""Attributions: they add up on every family and backbone, and point at what was planted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_tiny_language_model
from torch import nn
from toys import narrow

from l2g_ray.config import BACKBONES
from l2g_ray.errors import UserError
from l2g_ray.explain.attribution import (
    METHODS,
    Attributions,
    ExplainedOutput,
    attribute,
    choose_output,
    evaluate,
    make_weights,
)
from l2g_ray.explain.rules import apply_rules, extra_rules, shuffle_dinucleotides
from l2g_ray.models.baselines import Baseline, BaselineConfig, SmallCNN, SmallCNNConfig
from l2g_ray.models.embedder import EmbedderConfig, EmbedderNet
from l2g_ray.models.ensemble import AverageModel, MeanOutputs
from l2g_ray.models.l2g import L2GConfig, L2GModel
from l2g_ray.models.language_model import LanguageModel, load_transformer
from l2g_ray.models.layers import MaskedMax
from l2g_ray.sequence import N_CODE, encode, reverse_complement
from l2g_ray.tasks.schema import Task

WEIGHTS = torch.tensor([-1.0, 1.0])
pytestmark = pytest.mark.usefixtures("single_thread")


def make_net(backbone: str = "resnet", seed: int = 0, **changes: object) -> EmbedderNet:
    torch.manual_seed(seed)
    options = {"target_tokens": 8, "predictor_reads": "tokens", **changes}
    config = EmbedderConfig(backbone, (8,) * len(narrow(backbone)), 60, 16, 64, 2, **options)  # type: ignore[arg-type]
    return roughen(EmbedderNet(config), seed)


def roughen(model: nn.Module, seed: int) -> Any:
    """Weights large enough to be far from linear, and batch norms that have seen data."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.running_mean.normal_(0, 0.5, generator=generator)
                module.running_var.uniform_(0.2, 2, generator=generator)
            elif isinstance(module, nn.Linear | nn.Conv1d):
                module.weight.mul_(3)
        for name, module in model.named_modules():
            if name.endswith("head.linear"):
                module.weight.normal_(0, 1, generator=generator)
    return model.eval()


def make_model(family: str, folder: Path, pooling: str = "mean", **changes: object) -> L2GModel:
    transformer = load_transformer(str(make_tiny_language_model(folder, family)))
    net = make_net(pooling=pooling)
    language_model = LanguageModel(transformer, str(changes.get("positions", "none")))
    config = L2GConfig(net.config, str(changes.get("combine", "skip")))
    return roughen(L2GModel(config, net, language_model), 1)


def make_codes(n: int = 6, seed: int = 0, lengths: tuple[int, ...] = (60, 57, 41)) -> tuple[np.ndarray, np.ndarray]:
    """Sequences of several lengths, one with Ns inside."""
    rng = np.random.default_rng(seed)
    texts = ["".join(rng.choice(list("ACGT"), lengths[i % len(lengths)])) for i in range(n)]
    texts[0] = texts[0][:20] + "NNN" + texts[0][23:]
    return encode(texts)


def explain(model: nn.Module, n: int = 6, **options: object) -> Attributions:
    codes, lengths_bp = make_codes(n)
    return attribute(model, codes, lengths_bp, WEIGHTS, **{"n_references": 4, **options})  # type: ignore[arg-type]


def check_adds_up(found: Attributions, model: nn.Module, limit: float = 1e-3) -> None:
    """Against the model's own forward, not through anything of the attribution."""
    plain = evaluate(ExplainedOutput(model, WEIGHTS), found.codes, found.lengths_bp)
    with torch.no_grad():
        direct = model(torch.from_numpy(found.codes), torch.from_numpy(found.lengths_bp)) @ WEIGHTS
    np.testing.assert_allclose(plain, direct.numpy(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.values, plain, rtol=1e-4, atol=1e-4)
    assert np.abs(found.values - found.reference_values).max() > 0.01
    assert np.median(found.completeness_errors) < limit
    errors = np.abs(found.contributions.sum(1) - (found.values - found.reference_values))
    assert errors.max() < limit * np.abs(found.values - found.reference_values).max()


@pytest.mark.parametrize("backbone", sorted(BACKBONES))
@pytest.mark.parametrize(
    "read",
    [
        {},
        {"predictor_reads": "backbone"},
        {"pooling": "mean_max"},
        {"predictor_reads": "backbone", "pooling": "mean_max"},
        {"pooling": "by_position"},
    ],
    ids=lambda r: "-".join(r.values()),
)
def test_e4_adds_up_on_every_backbone(backbone: str, read: dict[str, str]) -> None:
    model = make_net(backbone, **read)
    if not BACKBONES[backbone].n_layers and "predictor_reads" in read:
        pytest.skip("it reads how often each base occurs, which the shuffled references keep")
    if model.predictor.places is not None:
        torch.nn.init.normal_(model.predictor.places)
    check_adds_up(explain(model), model)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("bert", {}),
        ("bert", {"positions": "lm", "combine": "lm_only", "pooling": "mean_max"}),
        ("roberta", {"positions": "lm"}),
        ("mpnet", {}),
        ("mpnet", {"positions": "lm", "combine": "lm_only"}),
    ],
)
def test_adds_up_on_every_family(family: str, changes: dict[str, str], tmp_path: Path) -> None:
    model = make_model(family, tmp_path, **changes)
    check_adds_up(explain(model), model)


@pytest.mark.parametrize("kind", ["binary", "multilabel", "regression"])
@pytest.mark.parametrize("rc_average", [False, True])
def test_average_adds_up(kind: str, rc_average: bool, tmp_path: Path) -> None:
    """The mean of probabilities is no sum of the members' logits, and yet its own output is what adds up."""
    members = [make_model("bert", tmp_path), make_net(seed=5)]
    average = AverageModel(kind, members)
    found = explain(average, rc_average=rc_average)
    if not rc_average:
        check_adds_up(found, average)
    assert found.completeness_errors.max() < 1e-3
    assert np.abs(found.values - found.reference_values).max() > 0.01
    alone = [explain(member, rc_average=rc_average).hypothetical for member in members]
    assert all(not np.allclose(found.hypothetical, one, atol=1e-2) for one in alone)
    if kind == "regression":
        np.testing.assert_allclose(found.hypothetical, np.mean(alone, 0), rtol=1e-3, atol=1e-4)


def make_cnn(by_position: bool, seed: int = 0) -> SmallCNN:
    torch.manual_seed(seed)
    return roughen(SmallCNN(SmallCNNConfig(60, 2, by_position)), seed)


@pytest.mark.parametrize("by_position", [False, True])
@pytest.mark.parametrize("n_members", [1, 3])
def test_small_cnns_and_their_average_add_up(by_position: bool, n_members: int) -> None:
    members = [make_cnn(by_position, seed) for seed in range(n_members)]
    model = members[0] if n_members == 1 else AverageModel("binary", members)
    check_adds_up(explain(model), model)


def test_the_change_of_a_max_goes_to_the_place_of_the_larger_one() -> None:
    from tangermeme.deep_lift_shap import deep_lift_shap

    class HighestValue(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.highest = MaskedMax()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            values = (x * torch.arange(1.0, 5.0)[:, None]).sum(1, keepdim=True)
            return self.highest(values * torch.tensor([1.0, 5.0, 2.0]))

    # Values 1, 15, 8 against 4, 5, 8.
    x, r = (torch.eye(4)[torch.tensor([codes])].transpose(1, 2) for codes in ([0, 2, 3], [3, 0, 3]))
    model = HighestValue()
    for one, other, difference in ((x, r, 7), (r, x, -7)):
        found = deep_lift_shap(
            model, one, references=other[:, None], additional_nonlinear_ops=extra_rules(model), device="cpu"
        )
        np.testing.assert_allclose(found.sum(1)[0].numpy(), [0, difference, 0], atol=1e-5)


def test_fold_models_that_are_sure_add_up() -> None:
    """Of the logit of their mean probability the rules lose track; of the mean of their logits not."""
    members = [make_net(seed=seed) for seed in (0, 5)]
    with torch.no_grad():
        for member in members:
            outputs = member(*map(torch.from_numpy, make_codes())) @ WEIGHTS
            member.predictor.linear.weight.mul_(40 / float(outputs.max() - outputs.min()))
    check_adds_up(explain(MeanOutputs(members)), MeanOutputs(members))
    alone = [explain(member).contributions for member in members]
    np.testing.assert_allclose(explain(MeanOutputs(members)).contributions, np.mean(alone, 0), rtol=1e-3, atol=1e-3)
    assert explain(AverageModel("binary", members)).completeness_errors.max() > 0.01


@pytest.mark.parametrize("method", ["integrated-gradients", "mutagenesis"])
def test_other_methods_take_an_average(method: str) -> None:
    average = AverageModel("binary", [make_net(), make_net(seed=5)])
    found, best = (explain(average, method=one, steps=100, n=2) for one in (method, "deeplift-shap"))
    np.testing.assert_allclose(found.values, best.values, rtol=1e-5)
    if method == "integrated-gradients":
        assert np.median(found.completeness_errors) < 0.05


def test_a_model_that_does_not_read_bases_is_refused() -> None:
    baseline = Baseline(BaselineConfig("constant", "none", 2, 60))
    for model in (baseline, AverageModel("binary", [make_net(), baseline])):
        with pytest.raises(UserError, match="has no contributions of bases; explain an arm that reads one-hot"):
            explain(model)


def test_ruled_copy_computes_the_same(tmp_path: Path) -> None:
    codes, lengths_bp = map(torch.from_numpy, make_codes())
    for family in ("bert", "mpnet"):
        model = make_model(family, tmp_path / family)
        with torch.no_grad():
            torch.testing.assert_close(
                apply_rules(model)(codes, lengths_bp), model(codes, lengths_bp), rtol=1e-5, atol=1e-5
            )


def test_five_channels_and_causal_and_uneven_kernels() -> None:
    model = make_net(in_channels=5, causal=True, pool=2, architecture=((4, 1), (5, 2), (3, 3)) * 3)
    check_adds_up(explain(model), model)


def test_refuses_what_has_no_rule_by_name(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sin()

    model = make_model("bert", tmp_path)
    model.language_model.transformer.encoder.layer[1].intermediate.intermediate_act_fn = Odd()
    with pytest.raises(UserError, match=r"encoder\.layer\.1\.intermediate\.intermediate_act_fn' \(Odd\).*integrated"):
        explain(model)
    net = make_net()
    net.embedder.norm = nn.GroupNorm(2, 16)
    with pytest.raises(UserError, match=r"embedder\.norm' \(GroupNorm\)"):
        explain(net)


def test_hypothetical_contributions_project_onto_the_bases() -> None:
    """tangermeme's own projection, one sequence at a time and without a mask."""
    from tangermeme.deep_lift_shap import deep_lift_shap

    model = make_net()
    codes, lengths_bp = make_codes(3, lengths=(60,))
    codes, lengths_bp = codes[1:], lengths_bp[1:]  # without N
    found = attribute(model, codes, lengths_bp, WEIGHTS, n_references=4, seed=3)
    references = shuffle_dinucleotides(codes, lengths_bp, 4, 3)
    r = torch.eye(5, 4)[torch.from_numpy(references.astype(np.int64))].transpose(2, 3)
    x = torch.from_numpy(found.one_hot).transpose(1, 2)
    plain = deep_lift_shap(ExplainedOutput(apply_rules(model), WEIGHTS), x, references=r, device="cpu")
    np.testing.assert_allclose(plain.sum(1).numpy(), found.contributions, rtol=1e-4, atol=1e-5)
    hypothetical = deep_lift_shap(
        ExplainedOutput(apply_rules(model), WEIGHTS), x, references=r, device="cpu", hypothetical=True
    )
    np.testing.assert_allclose(hypothetical.transpose(1, 2).numpy(), found.hypothetical, rtol=1e-4, atol=1e-5)


def test_rows_do_not_depend_on_their_neighbours() -> None:
    model = make_net()
    codes, lengths_bp = make_codes(40)
    together = attribute(model, codes, lengths_bp, WEIGHTS, n_references=3)
    assert np.array_equal(
        together.hypothetical, attribute(model, codes, lengths_bp, WEIGHTS, n_references=3).hypothetical
    )
    # The first row alone: its number, and so its references, are the same; it is padded less.
    alone = attribute(model, codes[:1], lengths_bp[:1], WEIGHTS, n_references=3)
    np.testing.assert_allclose(alone.hypothetical[0], together.hypothetical[0], rtol=1e-3, atol=1e-5)
    other = attribute(model, codes[:1], lengths_bp[:1], WEIGHTS, n_references=3, seed=1)
    assert not np.allclose(other.hypothetical, alone.hypothetical, atol=1e-3)


def test_both_strands_give_one_answer() -> None:
    """Averaged over strands, a sequence and its reverse complement have the same contributions, read backwards."""
    model = make_net()
    codes, lengths_bp = make_codes(3)
    found = explain(model, rc_average=True, n=3)
    check = np.median(found.completeness_errors)
    assert check < 1e-3
    turned = reverse_complement(torch.from_numpy(codes), torch.from_numpy(lengths_bp))
    with torch.no_grad():
        forward, backward = (
            model(c, torch.from_numpy(lengths_bp)) @ WEIGHTS for c in (torch.from_numpy(codes), turned)
        )
    np.testing.assert_allclose(found.values, ((forward + backward) / 2).numpy(), rtol=1e-4, atol=1e-5)
    # Not the given strand's alone.
    assert not np.allclose(found.contributions, explain(model, n=3).contributions, atol=1e-2)


@pytest.mark.parametrize("method", METHODS[1:])
def test_other_methods(method: str, tmp_path: Path) -> None:
    model = make_model("bert", tmp_path)
    found = explain(model, 2, method=method, steps=20)
    best = explain(model, 2)
    np.testing.assert_allclose(found.values, best.values)
    assert np.abs(found.contributions).max() > 0
    error = np.median(found.completeness_errors)
    if method == "integrated-gradients":  # exact in the limit
        finer = explain(model, 2, method=method, steps=200)
        assert np.median(finer.completeness_errors) < error
    else:  # captum has no rule for LayerNorm, GELU, softmax and the products of attention
        assert error > 1e-3


def test_mutagenesis_is_what_a_changed_base_does() -> None:
    model = make_net()
    codes, lengths_bp = make_codes(2)
    found = attribute(model, codes, lengths_bp, WEIGHTS, n_references=2, method="mutagenesis")
    for base in range(4):
        changed = codes[1:2].copy()
        changed[0, 11] = base
        with torch.no_grad():
            value = float(model(torch.from_numpy(changed), torch.from_numpy(lengths_bp[1:2])) @ WEIGHTS)
        own = found.hypothetical[1, 11, base] - found.contributions[1, 11]
        assert own == pytest.approx(value - found.values[1], abs=1e-4)


def test_e3_shuffles_keep_dinucleotides_and_ends() -> None:
    codes, lengths_bp = make_codes(9, seed=5)
    shuffled = shuffle_dinucleotides(codes, lengths_bp, 5, seed=2)
    assert shuffled.shape == (9, 5, 60)

    def count(row: np.ndarray) -> np.ndarray:
        table = np.zeros((5, 5), int)
        np.add.at(table, (row[:-1], row[1:]), 1)
        return table

    for row, length_bp in enumerate(lengths_bp):
        own = codes[row, :length_bp]
        for other in shuffled[row]:
            assert np.array_equal(count(own), count(other[:length_bp]))
            assert (other[0], other[length_bp - 1]) == (own[0], own[-1])
            assert (other[length_bp:] == N_CODE).all()
            assert np.array_equal(other[:length_bp] == N_CODE, own == N_CODE)
        assert len({other.tobytes() for other in shuffled[row]}) == 5
    assert np.array_equal(shuffled, shuffle_dinucleotides(codes, lengths_bp, 5, seed=2))
    assert not np.array_equal(shuffled, shuffle_dinucleotides(codes, lengths_bp, 5, seed=3))


def test_a_sequence_with_one_order_is_no_crash() -> None:
    codes, lengths_bp = encode(["A" * 60, "ACG", "N" * 30])
    found = attribute(make_net(), codes, lengths_bp, WEIGHTS, n_references=2)
    assert np.isfinite(found.hypothetical).all()
    np.testing.assert_allclose(found.contributions, 0, atol=1e-6)
    np.testing.assert_allclose(found.values, found.reference_values, atol=1e-5)


def test_choosing_an_output() -> None:
    def make(kind: str, labels: tuple[str, ...]) -> Task:
        return Task.model_validate({"bench": "b", "name": "t", "kind": kind, "labels": labels, "label_columns": ["y"]})

    enhancers = make("regression", ("developmental", "housekeeping"))
    assert choose_output(enhancers, "dev") == [0]
    assert choose_output(enhancers, None) == [0, 1]
    assert choose_output(make("binary", ("no", "yes")), None) == [1]
    with pytest.raises(UserError, match="'x' is no output"):
        choose_output(enhancers, "x")
    with pytest.raises(UserError, match="means aa, ab"):
        choose_output(make("multiclass", ("aa", "ab", "b")), "a")
    with pytest.raises(UserError, match="has 9 outputs; choose one"):
        choose_output(make("multilabel", tuple("abcdefghi")), None)
    np.testing.assert_allclose(make_weights(make("multiclass", ("a", "b", "c")), 1), [-0.5, 1, -0.5])
    np.testing.assert_allclose(make_weights(make("binary", ("a", "b")), 1), [-1, 1])
    np.testing.assert_allclose(make_weights(enhancers, 1), [0, 1])
