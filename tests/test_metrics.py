"""Acceptance tests E1 and E2 of the metrics."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics as sk

from l2g_ray.errors import UserError
from l2g_ray.tasks.metrics import (
    METRICS,
    Metric,
    accuracy,
    compute_metrics,
    confusion_matrix,
    f1,
    find_metric,
    mcc,
    metrics_of,
    score,
)
from l2g_ray.tasks.schema import Kind, Task

Array = NDArray[Any]
seeds = st.integers(0, 2**32 - 1)


def close(value: float, expected: float) -> bool:
    """Equal within E1's tolerance, NaN equal to NaN."""
    return bool(np.isclose(value, expected, rtol=0, atol=1e-9, equal_nan=True))


def classification_metrics(labels: Array, probabilities: Array) -> dict[str, float]:
    return compute_metrics("binary" if probabilities.shape[1] == 2 else "multiclass", labels, probabilities)


def draw_classes(seed: int, n: int, n_classes: int, n_present: int) -> tuple[Array, Array]:
    """Labels among the first n_present classes and probabilities with many ties."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n_present, n)
    probabilities = rng.integers(1, 8, (n, n_classes)) + 2 * np.eye(n_classes)[labels] * rng.random((n, 1)).round(1)
    return labels, probabilities / probabilities.sum(1, keepdims=True)


@given(seed=seeds, n=st.integers(1, 80), n_classes=st.integers(2, 5), n_present=st.integers(1, 5))
@settings(deadline=None, max_examples=80)
def test_e1_counting_metrics_equal_sklearn(seed: int, n: int, n_classes: int, n_present: int) -> None:
    labels, probabilities = draw_classes(seed, n, n_classes, min(n_present, n_classes))
    predictions = probabilities.argmax(1)
    result = classification_metrics(labels, probabilities)
    classes = np.arange(n_classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = {
            "mcc": sk.matthews_corrcoef(labels, predictions),
            "accuracy": sk.accuracy_score(labels, predictions),
            "f1_macro": sk.f1_score(labels, predictions, labels=classes, average="macro", zero_division=0.0),
        }
        if n_classes == 2:
            expected["f1_positive"] = sk.f1_score(labels, predictions, labels=classes, zero_division=0.0)
    for name, value in expected.items():
        assert close(result[name], value), name
    assert ("f1_positive" in result) == (n_classes == 2)


@given(seed=seeds, n=st.integers(12, 80), n_classes=st.integers(2, 5), single=st.booleans())
@settings(deadline=None, max_examples=60)
def test_e1_ranking_metrics_equal_sklearn(seed: int, n: int, n_classes: int, single: bool) -> None:
    labels, probabilities = draw_classes(seed, n, n_classes, n_classes)
    labels[:n_classes] = np.arange(n_classes)  # every class is there
    if single:
        probabilities = (probabilities.astype(np.float32)).astype(np.float64)
        probabilities /= probabilities.sum(1, keepdims=True)
    result = classification_metrics(labels, probabilities)
    if n_classes == 2:
        auroc = sk.roc_auc_score(labels, probabilities[:, 1])
        auprc = sk.average_precision_score(labels, probabilities[:, 1])
    else:
        auroc = sk.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
        one_hot = np.eye(n_classes)[labels]
        auprc = sk.average_precision_score(one_hot, probabilities, average="macro")
    assert close(result["auroc"], auroc)
    assert close(result["auprc"], auprc)


def test_e1_by_hand() -> None:
    # 4 true positives, 1 false positive, 2 false negatives, 3 true negatives.
    labels = np.array([1] * 6 + [0] * 4)
    predictions = np.array([1] * 4 + [0] * 2 + [1] + [0] * 3)
    result = classification_metrics(labels, np.eye(2)[predictions])
    assert close(result["accuracy"], 0.7)
    assert close(result["f1_positive"], 8 / 11)
    assert close(result["f1_macro"], (8 / 11 + 6 / 9) / 2)
    assert close(result["mcc"], (4 * 3 - 1 * 2) / np.sqrt(5 * 6 * 4 * 5))
    assert close(result["auroc"], (4 / 6 + 3 / 4) / 2)


def test_e1_degenerate_classification() -> None:
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    one_class = classification_metrics(np.array([1, 1, 1]), probabilities)
    assert one_class["mcc"] == 0
    assert np.isnan(one_class["auroc"])
    assert np.isnan(one_class["auprc"])
    constant = classification_metrics(np.array([0, 1, 0]), np.full((3, 2), 0.5))
    assert constant["mcc"] == 0
    assert constant["auroc"] == 0.5
    assert close(constant["auprc"], 1 / 3)
    assert constant["f1_positive"] == 0  # equal probabilities predict the lower class
    # A declared class that never occurs: it lowers F1, and one-vs-rest leaves it out.
    absent = classification_metrics(np.array([0, 1, 0]), np.eye(3)[[0, 1, 0]])
    assert close(absent["f1_macro"], 2 / 3)
    assert absent["auroc"] == 1
    assert absent["mcc"] == 1


def test_e1_mcc_does_not_overflow() -> None:
    huge = np.array([[400_000_000, 100_000_000], [100_000_000, 400_000_000]])
    assert close(float(mcc(huge)), 0.6)


def test_e1_bootstrap_of_confusion_matrices() -> None:
    labels, probabilities = draw_classes(3, 60, 3, 3)
    predictions = probabilities.argmax(1)
    rows = np.random.default_rng(0).integers(0, 60, (20, 60))
    confusions = np.stack([confusion_matrix(labels[r], predictions[r], 3) for r in rows])
    for i, r in enumerate(rows):
        assert close(mcc(confusions)[i], sk.matthews_corrcoef(labels[r], predictions[r]))
        assert close(accuracy(confusions)[i], sk.accuracy_score(labels[r], predictions[r]))
        expected = sk.f1_score(labels[r], predictions[r], labels=range(3), average=None, zero_division=0.0)
        assert np.allclose(f1(confusions)[i], expected, atol=1e-9)
    stacked = {name: metric.function(confusions) for name, metric in METRICS.items() if metric.of_counts}
    assert all(values.shape == (20,) for values in stacked.values())
    assert np.allclose(stacked["f1_macro"], f1(confusions).mean(1), rtol=0, atol=1e-12)
    assert np.array_equal(stacked["f1_positive"], f1(confusions)[:, 1])


@given(seed=seeds, n=st.integers(1, 60), n_classes=st.integers(1, 5), missing=st.floats(0, 0.8))
@settings(deadline=None, max_examples=60)
def test_e1_multilabel_equals_sklearn(seed: int, n: int, n_classes: int, missing: float) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (n, n_classes)).astype(float)
    labels[rng.random(labels.shape) < missing] = np.nan
    probabilities = rng.random((n, n_classes)).round(1)
    result = compute_metrics("multilabel", labels, probabilities)
    for name, function in (("auroc", sk.roc_auc_score), ("auprc", sk.average_precision_score)):
        expected = []
        for true, scores in zip(labels.T, probabilities.T, strict=True):
            keep = ~np.isnan(true)
            both = set(true[keep]) == {0, 1}
            expected.append(function(true[keep], scores[keep]) if both else np.nan)
        found = [result[f"{name}[{i}]"] for i in range(n_classes)]
        assert np.allclose(found, expected, rtol=0, atol=1e-9, equal_nan=True)
        defined = [v for v in expected if not np.isnan(v)]
        assert close(result[name], float(np.mean(defined)) if defined else np.nan)


@given(
    seed=seeds,
    n=st.integers(3, 60),
    n_outputs=st.integers(1, 3),
    missing=st.floats(0, 0.3),
    ties=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_e1_regression_equals_scipy(seed: int, n: int, n_outputs: int, missing: float, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.normal(size=(n, n_outputs)).round(1 if ties else 6)
    predictions = (labels + rng.normal(size=labels.shape)).round(1 if ties else 6)
    gaps = rng.random(labels.shape) < missing
    gaps[:3] = False
    labels[:3] = np.arange(3)[:, None]
    labels[gaps] = np.nan
    names = ["dev", "hk", "other"][:n_outputs]
    result = compute_metrics("regression", labels, predictions, names)
    for i, name in enumerate(names):
        keep = ~gaps[:, i]
        true, predicted = labels[keep, i], predictions[keep, i]
        if np.ptp(predicted) > 0:
            assert close(result[f"pearson[{name}]"], stats.pearsonr(true, predicted).statistic)
            assert close(result[f"spearman[{name}]"], stats.spearmanr(true, predicted).statistic)
        assert close(result[f"mse[{name}]"], sk.mean_squared_error(true, predicted))
    for metric in ("pearson", "spearman", "mse"):
        assert close(result[f"{metric}_mean"], float(np.mean([result[f"{metric}[{name}]"] for name in names])))


def test_e1_degenerate_regression() -> None:
    labels = np.array([[1.0, 5.0, np.nan, np.nan], [2.0, 5.0, 3.0, np.nan], [3.0, 5.0, np.nan, np.nan]])
    predictions = np.array([[2.0, 1.0, 0.0, 0.0], [2.0, 2.0, 4.0, 0.0], [2.0, 3.0, 0.0, 0.0]])
    result = compute_metrics("regression", labels, predictions)
    assert result["pearson[0]"] == result["spearman[0]"] == 0  # constant predictions
    assert result["pearson[1]"] == result["spearman[1]"] == 0  # constant labels
    assert np.isnan(result["pearson[2]"])
    assert result["mse[2]"] == 1
    assert np.isnan(result["pearson[3]"])
    assert np.isnan(result["mse[3]"])
    assert result["pearson_mean"] == 0
    assert close(result["mse_mean"], (2 / 3 + (16 + 9 + 4) / 3 + 1) / 3)


def test_compute_metrics_is_flat_and_named() -> None:
    labels, probabilities = draw_classes(0, 30, 2, 2)
    binary = compute_metrics("binary", labels, probabilities, ["negative", "positive"])
    assert set(binary) == {"mcc", "accuracy", "f1_macro", "f1_positive", "auroc", "auprc"}
    regression = compute_metrics("regression", np.random.rand(9, 2), np.random.rand(9, 2), ["developmental", "hk"])
    assert {"pearson_mean", "mse_mean", "spearman[hk]", "pearson[developmental]"} < set(regression)
    multilabel = compute_metrics("multilabel", np.eye(4), np.eye(4), ["a", "b", "c", "d"])
    assert multilabel["auroc"] == multilabel["auprc[d]"] == 1
    assert len(multilabel) == 10
    assert all(isinstance(v, float) for m in (binary, regression, multilabel) for v in m.values())


CASES = {
    "binary": (draw_classes(1, 40, 2, 2)),
    "multiclass": (draw_classes(2, 40, 4, 4)),
    "multilabel": (
        np.where(np.arange(60).reshape(20, 3) % 7 < 3, 1.0, 0.0),
        np.sin(np.arange(60.0)).reshape(20, 3),
    ),
    "regression": (np.cos(np.arange(40.0)).reshape(20, 2), np.sin(np.arange(40.0)).reshape(20, 2)),
}


@pytest.mark.parametrize("kind", CASES)
def test_score_equals_the_full_report(kind: str) -> None:
    labels, outputs = CASES[kind]
    report = compute_metrics(kind, labels, outputs)
    aggregates = [name for name in report if "[" not in name]
    assert aggregates
    assert set(aggregates) == set(metrics_of(kind))  # declared and computed, one as the other
    for name in aggregates:
        assert score(kind, name, labels, outputs) == report[name]
        worst = -np.inf if find_metric(name).higher_is_better else np.inf
        broken = outputs.copy()
        broken[3, 1] = np.nan
        assert score(kind, name, labels, broken) == worst
    with pytest.raises(ValueError, match=r"1 of .* outputs are not finite"):
        compute_metrics(kind, labels, broken)
    with pytest.raises(ValueError, match="choose one of"):
        score(kind, "loss", labels, outputs)


def test_every_metric_is_declared_once_and_computed() -> None:
    assert set(CASES) == {kind for metric in METRICS.values() for kind in metric.kinds} == set(get_args(Kind))
    for name, metric in METRICS.items():
        assert metric.kinds
        assert not metric.of_counts or set(metric.kinds) <= {"binary", "multiclass"}, name
        assert metric.function is not find_metric("masked_loss").function, name
    with pytest.raises(UserError, match="did you mean 'mse_mean'"):
        find_metric("mse_men")


def test_the_docs_name_every_metric() -> None:
    page = (Path(__file__).parents[1] / "docs" / "own_data.md").read_text()
    (line,) = (line for line in page.splitlines() if line.startswith("metric: "))
    assert set(METRICS) == set(re.findall(r"\w+", line.partition("#")[2]))


def test_the_metric_of_a_task_that_names_none_is_the_first_of_its_kind() -> None:
    found = {kind: Task(bench="b", name="t", kind=kind, labels=("a", "b")).metric for kind in CASES}
    assert found == {"binary": "mcc", "multiclass": "mcc", "multilabel": "auroc", "regression": "pearson_mean"}


def test_the_best_of_the_known_is_the_first_of_equals() -> None:
    values = {"a": None, "b": 2.0, "c": 1.0, "d": float("nan"), "e": 2.0, "f": 1.0}
    assert (Metric(True).best(values, values.get), Metric(False).best(values, values.get)) == ("b", "c")
    assert Metric(True).best(["a", "d"], values.get) is None


def test_score_of_an_undefined_metric_is_the_worst() -> None:
    assert score("binary", "auroc", np.array([1, 1]), np.array([[0.5, 0.5], [0.1, 0.9]])) == -np.inf
    assert score("regression", "mse_mean", np.array([np.nan]), np.array([1.0])) == np.inf


@pytest.mark.parametrize(
    ("kind", "labels", "outputs", "names", "message"),
    [
        ("binary", [0, 1], np.eye(3)[:2], None, r"\(n, 2\)"),
        ("binary", [0, 1], np.array([[3.0, -2.0], [0.0, 1.0]]), None, "softmax"),
        ("binary", [0, 2], np.eye(2), None, r"0\.\.1"),
        ("binary", [0.0, 1.0], np.eye(2), None, "integers"),
        ("multiclass", [0, 1, 2], np.eye(3)[:2], None, "3 labels and 2 rows"),
        ("multiclass", [], np.zeros((0, 3)), None, "integers"),
        ("multiclass", [0, 1, 2], np.eye(3), ["a", "b"], "2 names for 3"),
        ("multilabel", np.full((2, 2), 2.0), np.eye(2), None, "0, 1 or NaN"),
        ("regression", np.zeros((2, 2)), np.zeros((2, 3)), None, r"\(2, 2\) and \(2, 3\)"),
        ("regression", np.zeros((2, 2)), np.zeros((2, 2)), ["a"], "1 names for 2"),
        ("ranking", [0, 1], np.eye(2), None, "unknown task kind"),
    ],
)
def test_invalid_inputs(kind: str, labels: Any, outputs: Any, names: list[str] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compute_metrics(kind, labels, outputs, names)
