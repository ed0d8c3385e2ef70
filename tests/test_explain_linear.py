"""Contributions to linear k-mer models: they add up to the model's own output, and each base's is what a slow count says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from l2g_ray.explain.linear import LinearOutput, attribute_linear, is_linear
from l2g_ray.models.baselines import Baseline, BaselineConfig
from l2g_ray.models.ensemble import AverageModel
from l2g_ray.models.kmers import GAPPED, POSITIONAL
from l2g_ray.sequence import encode, reverse_complement

LENGTH_BP = 60
WEIGHTS = torch.tensor([-1.0, 1.0])
KINDS = [("gapped", False), ("gapped", True), ("tfidf", False), ("tfidf", True), ("places", False)]


def make_codes(seed: int = 0, n: int = 9, longest_bp: int = LENGTH_BP) -> tuple[np.ndarray, np.ndarray]:
    """Random sequences of several lengths, one with Ns, one too short for any word, one of a single letter."""
    rng = np.random.default_rng(seed)
    texts = ["".join(rng.choice(list("ACGT"), longest_bp - 7 * (i % 3))) for i in range(n)]
    texts[0] = f"{texts[0][:20]}NNN{texts[0][23:]}"
    texts[1], texts[2] = "A" * longest_bp, "C"
    return encode(texts)


def make_model(features: str, canonical: bool, seed: int = 0, length_bp: int = LENGTH_BP) -> Baseline:
    """Random weights; document frequencies, and the words that are kept, of random rows."""
    model = Baseline(BaselineConfig("linear", features, 2, length_bp, k=4, canonical=canonical))
    rows, _ = make_codes(seed + 100, 40, length_bp)
    model.features.fit(model.features.count(torch.from_numpy(rows)))
    generator = torch.Generator().manual_seed(seed)
    model.weight = torch.randn(2, model.features.n_features, generator=generator)
    model.bias.copy_(torch.randn(2, generator=generator))
    return model


def run(model: nn.Module, codes: np.ndarray, lengths_bp: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return (model(torch.from_numpy(codes), torch.from_numpy(lengths_bp)).double() @ WEIGHTS.double()).numpy()


@pytest.mark.parametrize(("features", "canonical"), KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_bias_and_contributions_are_the_models_own_output(features: str, canonical: bool, seed: int) -> None:
    model = make_model(features, canonical, seed)
    codes, lengths_bp = make_codes(seed)
    found = attribute_linear(LinearOutput(model, WEIGHTS), codes, lengths_bp)
    own = run(model, codes, lengths_bp)
    np.testing.assert_allclose(found.values, own, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.contributions.sum(1, dtype=float) + found.reference_values, own, atol=2e-5)
    np.testing.assert_allclose(found.reference_values, float(model.bias.double() @ WEIGHTS.double()))
    assert found.completeness_errors.max() < 1e-9
    assert np.abs(found.values - found.reference_values).max() > 0.01
    # Only observed bases, and none at N or padding.
    assert (found.hypothetical[found.one_hot == 0] == 0).all()
    assert found.observed_only
    assert (found.contributions[codes == 4] == 0).all()
    assert found.contributions[2].sum() == pytest.approx(own[2] - found.reference_values[2], abs=1e-6)


def split_slowly(model: Baseline, codes: np.ndarray) -> np.ndarray:
    """One sequence, word by word: each feature's part over all places where it is read."""
    features, config = model.features, model.config
    x = features(torch.from_numpy(codes[None]))
    slope = (WEIGHTS.double() @ model.weight.double()).numpy()
    readings: dict[int, list[list[int]]] = {}
    kept = {int(raw): i for i, raw in enumerate(features.columns)}
    if config.features == "gapped":
        first = 0
        for pattern in GAPPED:
            own = pattern.canonical if config.canonical and pattern.is_symmetric else np.arange(pattern.n_kmers)
            for start in range(len(codes) - pattern.span + 1):
                bases = [start + offset for offset in pattern.offsets]
                number = int("".join(str(codes[b]) for b in bases), 4)
                readings.setdefault(first + int(own[number]), []).append(bases)
                if config.canonical and not pattern.is_symmetric:
                    # In the reverse complement, the window that covers the same span reads the mirrored bases.
                    mirrored = [start + pattern.offsets[-1] - offset for offset in pattern.offsets]
                    number = int("".join(str(3 - codes[b]) for b in mirrored), 4)
                    readings.setdefault(first + number, []).append(mirrored)
            first += pattern.count_features(config.canonical)
    else:
        first, n_places = 0, config.length_bp
        for k, reach in POSITIONAL.items():
            for start in range(len(codes) - k + 1):
                bases = list(range(start, start + k))
                number = int("".join(str(codes[b]) for b in bases), 4)
                for place in range(max(0, start - reach), min(n_places, start + reach + 1)):
                    readings.setdefault(first + place * 4**k + number, []).append(bases)
            first += 4**k * n_places
    found = np.zeros(len(codes))
    values = dict(zip(x.indices.tolist(), x.data.tolist(), strict=True))
    for raw, places in readings.items():
        if raw in kept:
            for bases in places:
                found[bases] += values[kept[raw]] * slope[kept[raw]] / len(places) / len(bases)
    return found


@pytest.mark.parametrize(("features", "canonical"), [kind for kind in KINDS if kind[0] != "tfidf"])
def test_a_base_has_its_share_of_every_word_that_reads_it(features: str, canonical: bool) -> None:
    model = make_model(features, canonical, 5)
    codes, _ = encode(["".join(np.random.default_rng(1).choice(list("ACGT"), 40)), "ACACACACACTTTTTTTTACACACAC"])
    found = LinearOutput(model, WEIGHTS).split(codes)
    np.testing.assert_allclose(found[0], split_slowly(model, codes[0]), atol=1e-6)
    np.testing.assert_allclose(found[1][:26], split_slowly(model, codes[1][:26]), atol=1e-6)


def test_a_place_of_several_bases() -> None:
    """Long sequences: two windows may be one feature, whose part they share."""
    model = make_model("places", False, length_bp=2500)
    codes, lengths_bp = make_codes(longest_bp=2500)
    found = attribute_linear(LinearOutput(model, WEIGHTS), codes, lengths_bp)
    own = run(model, codes, lengths_bp)
    np.testing.assert_allclose(found.contributions.sum(1, dtype=float) + found.reference_values, own, atol=1e-4)


@pytest.mark.parametrize("kind", ["binary", "regression"])
def test_of_fold_models_it_is_the_mean_of_their_outputs(kind: str) -> None:
    """Each with its own words and document frequencies."""
    members = [make_model("gapped", True, seed) for seed in (0, 1)]
    assert members[0].features.n_features != members[1].features.n_features
    average = AverageModel(kind, members)
    codes, lengths_bp = make_codes()
    found = attribute_linear(LinearOutput(average, WEIGHTS), codes, lengths_bp)
    outputs = np.mean([run(member, codes, lengths_bp) for member in members], 0)
    np.testing.assert_allclose(found.values, outputs, rtol=1e-5, atol=1e-5)
    alone = [attribute_linear(LinearOutput(member, WEIGHTS), codes, lengths_bp).contributions for member in members]
    np.testing.assert_allclose(found.contributions, np.mean(alone, 0), atol=1e-6)
    assert found.completeness_errors.max() < 1e-9
    own = run(average, codes, lengths_bp)
    if kind == "regression":
        np.testing.assert_allclose(found.values, own, rtol=1e-5, atol=1e-5)
    else:  # the arm's own output is of the mean probability, which is another number
        assert np.abs(found.values - own).max() > 1e-3


def test_both_strands() -> None:
    codes, lengths_bp = make_codes()
    turned = reverse_complement(torch.from_numpy(codes), torch.from_numpy(lengths_bp)).numpy()
    merged = LinearOutput(make_model("gapped", True), WEIGHTS)
    one, both = (attribute_linear(merged, codes, lengths_bp, rc_average=average) for average in (False, True))
    np.testing.assert_allclose(one.contributions, both.contributions, atol=1e-6)
    model = make_model("places", False)
    found = attribute_linear(LinearOutput(model, WEIGHTS), codes, lengths_bp, rc_average=True)
    np.testing.assert_allclose(
        found.values, (run(model, codes, lengths_bp) + run(model, turned, lengths_bp)) / 2, rtol=1e-5, atol=1e-5
    )
    assert found.completeness_errors.max() < 1e-9
    other = attribute_linear(LinearOutput(model, WEIGHTS), turned, lengths_bp, rc_average=True)
    for row, length_bp in enumerate(lengths_bp):
        own = found.contributions[row, :length_bp]
        np.testing.assert_allclose(own, other.contributions[row, :length_bp][::-1], atol=1e-6)


def test_what_is_linear() -> None:
    gapped, places = make_model("gapped", True), make_model("places", False)
    assert is_linear(gapped)
    assert is_linear(AverageModel("binary", [gapped, make_model("gapped", True, 1)]))
    others = [
        nn.Linear(2, 2),
        Baseline(BaselineConfig("constant", "none", 2, LENGTH_BP)),
        Baseline(BaselineConfig("boosting", "short", 2, LENGTH_BP)),
        Baseline(BaselineConfig("linear", "one_hot", 2, LENGTH_BP)),
        AverageModel("binary", [gapped, places]),
        AverageModel("binary", [gapped, nn.Linear(2, 2)]),
    ]
    assert not any(map(is_linear, others))
