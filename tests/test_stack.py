"""Combinations of arms against scikit-learn and against answers that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from l2g_ray.models.ensemble import LEAST_PROBABILITY, AverageModel, Combination, Ensemble
from l2g_ray.sequence import reverse_complement
from l2g_ray.stages.evaluate import ENSEMBLES, RIDGE_C, Stacker
from l2g_ray.tasks.metrics import score

ZERO, ONE = torch.zeros(2), torch.ones(2)


def softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


def classes(rows: int = 400, n_classes: int = 2, seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Two arms that know half of the answer each, and one that knows nothing."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n_classes, rows)
    truth = np.eye(n_classes)[labels]
    arms = {name: softmax(strength * truth + rng.normal(0, 1, truth.shape)) for name, strength in
            (("good", 2.0), ("other", 1.5), ("useless", 0.0))}  # fmt: skip
    return arms, labels


def make(kind: str, predictions: dict[str, np.ndarray], labels: np.ndarray) -> Stacker:
    n = next(iter(predictions.values())).shape[1]
    return Stacker(kind, predictions, labels, torch.zeros(n), torch.ones(n))


def weigh(found: Combination) -> dict[str, float]:
    return dict(zip(found.arms, found.weights, strict=True))


def test_a_stack_of_two_classes_is_ridge_logistic_regression() -> None:
    arms, labels = classes()
    del arms["useless"]
    found = make("binary", arms, labels).fit("stack")
    # Centred log-probabilities of two classes are plus and minus half of the log-odds.
    clipped = [np.clip(p, LEAST_PROBABILITY, 1 - LEAST_PROBABILITY) for p in arms.values()]
    odds = np.stack([np.log(p[:, 1] / p[:, 0]) for p in clipped], 1)
    # Two biases of b / 2 each have half of the ridge of one of b: scaled so that scikit-learn penalises it, too.
    with_bias = np.concatenate([odds, np.full((len(odds), 1), np.sqrt(2.0))], 1)
    expected = LogisticRegression(C=RIDGE_C, fit_intercept=False, tol=1e-10, max_iter=1000).fit(with_bias, labels)
    np.testing.assert_allclose(found.weights, expected.coef_[0, :2], atol=1e-4)
    assert found.bias[1] - found.bias[0] == pytest.approx(expected.coef_[0, 2] * np.sqrt(2), abs=1e-4)


@pytest.mark.parametrize("n_classes", [2, 5])
def test_a_useless_arm_has_no_weight(n_classes: int) -> None:
    arms, labels = classes(2000, n_classes)
    found = make("multiclass", arms, labels).fit("stack")
    assert found.arms == ("good", "other"), "a model less to run"
    assert found.weights[0] > found.weights[1] > 0
    greedy = weigh(make("multiclass", arms, labels).fit("greedy"))
    assert greedy.get("useless", 0.0) <= 0.04
    assert greedy["good"] > greedy["other"] > 0.2


@pytest.mark.parametrize("how", ENSEMBLES)
def test_constant_and_perfect_arms_are_no_trouble(how: str) -> None:
    arms, labels = classes()
    arms |= {"constant": np.full((400, 2), 0.5), "perfect": np.eye(2)[labels]}
    stacker = make("binary", arms, labels)
    found = stacker.fit(how)
    assert np.isfinite(found.weights).all()
    combined = stacker.cross_fit(how, np.arange(400) % 5)
    assert np.isfinite(combined).all()
    if how != "mean":
        assert score("binary", "mcc", labels, combined) > 0.97
        assert found.weights[found.arms.index("perfect")] == max(found.weights)


@pytest.mark.parametrize("how", ENSEMBLES)
def test_rows_that_choose_are_not_those_that_are_scored(how: str) -> None:
    arms, _ = classes(1000)
    shuffled = np.random.default_rng(5).integers(0, 2, 1000)
    combined = make("binary", arms, shuffled).cross_fit(how, np.arange(1000) % 5)
    assert abs(score("binary", "mcc", shuffled, combined)) < 0.1


def test_a_regression_is_least_squares_in_the_labels_units() -> None:
    rng = np.random.default_rng(0)
    labels = rng.normal((100.0, -3.0), (20.0, 0.1), (500, 2)).astype(np.float32)
    labels[::7, 0] = np.nan  # missing
    filled = np.nan_to_num(labels, nan=100.0)
    arms = {"good": filled + rng.normal(0, (10, 0.05), (500, 2)), "useless": rng.normal((100, -3), (20, 0.1), (500, 2))}
    offset, scale = torch.tensor([100.0, -3.0]), torch.tensor([20.0, 0.1])
    found = Stacker("regression", arms, labels, offset, scale).fit("stack")
    weights = weigh(found)
    assert weights["good"] == pytest.approx(0.8, abs=0.05)  # 1 / (1 + noise variance), which is 0.25 of the labels'
    assert weights.get("useless", 0.0) < 0.05
    combined = found.combine({name: torch.from_numpy(p) for name, p in arms.items()}).numpy()
    known = np.isfinite(labels)
    residual, before = ((np.where(known, x - labels, 0) / scale.numpy()) ** 2 for x in (combined, arms["good"]))
    assert residual.sum() < 0.9 * before.sum()


def test_missing_labels_of_a_multilabel_task_are_left_out() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (300, 3)).astype(np.float32)
    good = np.clip(labels * 0.6 + 0.2 + rng.normal(0, 0.1, labels.shape), 0.01, 0.99)
    known = labels.copy()
    known[:100] = np.nan
    spoiled = good.copy()
    spoiled[:100] = 1 - good[:100]
    arms = {"good": good, "noise": rng.uniform(0.1, 0.9, labels.shape)}
    expected = make("multilabel", {n: p[100:] for n, p in arms.items()}, labels[100:]).fit("stack")
    found = make("multilabel", arms | {"good": spoiled}, known).fit("stack")
    np.testing.assert_allclose(found.weights, expected.weights, atol=1e-5)


def test_an_arm_can_be_left_out() -> None:
    arms, labels = classes()
    stacker = make("binary", arms, labels)
    without = stacker.fit("stack", ("other", "useless"))
    assert without.arms == ("other",)
    folds = np.arange(400) % 4
    whole, less = (stacker.cross_fit("stack", folds, a) for a in (None, ("other", "useless")))
    assert score("binary", "mcc", labels, whole) > score("binary", "mcc", labels, less) + 0.05


@pytest.mark.parametrize("both", [False, True])
def test_an_ensemble_predicts_what_the_combination_says(both: bool) -> None:
    class Fixed(torch.nn.Module):
        """Logits that depend on the first letter."""

        def __init__(self, step: float) -> None:
            super().__init__()
            self.step = step

        def forward(self, codes: torch.Tensor, lengths_bp: torch.Tensor) -> torch.Tensor:
            first = codes[:, 0].float()
            return torch.stack([first * 0, self.step * (first - 1)], 1)

    combination = Combination("binary", ("one", "two"), (0.7, 0.5), (0.0, 0.1), (0.0, 0.0), (1.0, 1.0))
    fixed = [Fixed(1.0), Fixed(2.0)]
    models = {"one": AverageModel("binary", fixed), "two": Fixed(-1.0)}
    ensemble = Ensemble(combination, models, both_strands=both)
    codes, lengths = torch.tensor([[0, 1, 2], [3, 3, 1]], dtype=torch.uint8), torch.tensor([3, 3])
    flipped = reverse_complement(codes, lengths)
    strands = (codes, flipped) if both else (codes,)
    one = torch.stack([m(c, lengths).softmax(1) for m in fixed for c in strands]).mean(0)
    two = torch.stack([models["two"](c, lengths).softmax(1) for c in strands]).mean(0)
    expected = combination.combine({"one": one, "two": two})
    torch.testing.assert_close(ensemble(codes, lengths), expected.float())
    assert Combination(**combination.to_dict()).combine({"one": one, "two": one}).shape == (2, 2)
