"""Metrics of every task kind: ``binary``, ``multiclass``, ``multilabel`` and ``regression``.

All agree with scikit-learn and SciPy to 1e-9 where those are defined; each function says what it returns
where they are not. Counting metrics come from confusion matrices, which is fast enough for a bootstrap.
scikit-learn and SciPy's statistics are imported where they are used: they double the start of a worker process.
Metric choice by task follows the L2G code (MCC, mean F1, accuracy; mean Pearson r; macro AUROC), with F1 over
all classes instead of the first two.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from l2g_ray.tasks.metrics import find_metric

Array = NDArray[Any]


def confusion_matrix(labels: ArrayLike, predictions: ArrayLike, n_classes: int) -> Array:
    """Counts (n_classes, n_classes), true class by row; ValueError for classes outside 0..n_classes-1."""
    true = _check_classes("labels", labels, n_classes)
    predicted = _check_classes("predictions", predictions, n_classes)
    if len(true) != len(predicted):
        raise ValueError(f"got {len(true)} labels and {len(predicted)} predictions")
    counts = np.bincount(true * n_classes + predicted, minlength=n_classes**2)
    return counts.reshape(n_classes, n_classes)


def accuracy(confusion: Array) -> Array:
    """Share of correct predictions of confusion matrices (..., C, C), shape (...)."""
    share: Array = np.trace(confusion, axis1=-2, axis2=-1) / confusion.sum((-2, -1))
    return share


def mcc(confusion: Array) -> Array:
    """Matthews correlation (multi-class R_K) of confusion matrices (..., C, C), shape (...).

    0 where it is undefined: only one class among the labels, or only one among the predictions.
    """
    counts = confusion.astype(np.float64)  # fourth powers of counts overflow int64
    true, predicted, total = counts.sum(-1), counts.sum(-2), counts.sum((-2, -1))
    covariance = np.trace(counts, axis1=-2, axis2=-1) * total - (true * predicted).sum(-1)
    variances = (total**2 - (true**2).sum(-1)) * (total**2 - (predicted**2).sum(-1))
    defined = variances > 0
    return np.where(defined, covariance / np.sqrt(np.where(defined, variances, 1)), 0.0)


def f1(confusion: Array) -> Array:
    """F1 of each class of confusion matrices (..., C, C), shape (..., C); 0 for a class that never occurs."""
    occurrences = confusion.sum(-1) + confusion.sum(-2)
    values: Array = 2 * np.diagonal(confusion, axis1=-2, axis2=-1) / np.maximum(occurrences, 1)
    return values


def classification_metrics(labels: ArrayLike, probabilities: ArrayLike) -> dict[str, float]:
    """mcc, accuracy, f1_macro, auroc and auprc, and f1_positive (class 1) when C = 2.

    ``labels`` (n,) are class numbers, ``probabilities`` (n, C) in 0..1; the prediction is the most probable
    class, the lower one of equals. f1_macro is over all C declared classes. auroc and auprc are those of
    class 1 when C = 2, else the mean over one-vs-rest classes that have both outcomes; NaN if there are none
    (labels of a single class). See `mcc` for constant predictions. Raises ValueError for other shapes,
    classes or values.
    """
    true, scores = _check_classification(labels, probabilities)
    confusion = confusion_matrix(true, scores.argmax(1), scores.shape[1])
    metrics = {"mcc": float(mcc(confusion)), "accuracy": float(accuracy(confusion))}
    metrics["f1_macro"] = float(f1(confusion).mean())
    if scores.shape[1] == 2:
        metrics["f1_positive"] = float(f1(confusion)[1])
    metrics["auroc"] = _mean_of_defined(_rank_classes(true, scores, _auroc))
    metrics["auprc"] = _mean_of_defined(_rank_classes(true, scores, _auprc))
    return metrics


def multilabel_metrics(labels: ArrayLike, probabilities: ArrayLike) -> dict[str, Any]:
    """Macro auroc and auprc, and auroc_per_class and auprc_per_class (lists of C).

    ``labels`` (n, C) are 0, 1 or NaN (missing: that entry is left out). ``probabilities`` (n, C) may be any
    finite scores, since both metrics depend on ranks only. A class without both outcomes is NaN and left out
    of the mean; the mean is NaN if no class remains. Raises ValueError for other shapes or values.
    """
    true, scores = _check_multilabel(labels, probabilities)
    metrics: dict[str, Any] = {}
    for name, metric in (("auroc", _auroc), ("auprc", _auprc)):
        per_class = _rank_columns(true, scores, metric)
        metrics |= {name: _mean_of_defined(per_class), f"{name}_per_class": per_class}
    return metrics


def regression_metrics(
    labels: ArrayLike, predictions: ArrayLike, names: Sequence[str] | None = None
) -> dict[str, float]:
    """pearson, spearman and mse of each output as ``pearson[name]``, and their means as ``pearson_mean``.

    ``labels`` (n, C) with NaN = missing (that entry is left out) and ``predictions`` (n, C); vectors count as
    C = 1. ``names`` default to "0", "1", ... A correlation with constant labels or predictions is 0; with
    fewer than two labels it is NaN, as is the mse of an output without labels; means leave NaN out. Raises
    ValueError for other shapes.
    """
    true, predicted = _check_columns(labels, predictions)
    columns = _check_names(names, true.shape[1])
    metrics: dict[str, float] = {}
    for metric, function in (("pearson", pearson), ("spearman", spearman), ("mse", mean_squared_error)):
        values = [function(t, p) for t, p in _observed_columns(true, predicted)]
        metrics[f"{metric}_mean"] = _mean_of_defined(values)
        metrics |= {f"{metric}[{name}]": value for name, value in zip(columns, values, strict=True)}
    return metrics


def pearson(labels: Array, predictions: Array) -> float:
    """Pearson r of two vectors; 0 if one is constant, NaN for fewer than two values."""
    return _correlate(lambda a, b: float(np.corrcoef(a, b)[0, 1]), labels, predictions)


def spearman(labels: Array, predictions: Array) -> float:
    """Spearman rho of two vectors; 0 if one is constant, NaN for fewer than two values."""
    from scipy import stats

    return _correlate(lambda a, b: float(stats.spearmanr(a, b).statistic), labels, predictions)


def mean_squared_error(labels: Array, predictions: Array) -> float:
    """Mean squared error of two vectors; NaN if they are empty."""
    return float(np.square(labels - predictions).mean()) if len(labels) else float("nan")


def compute_metrics(
    kind: str, labels: ArrayLike, outputs: ArrayLike, names: Sequence[str] | None = None
) -> dict[str, float]:
    """All metrics of a task as one flat dict: "mcc", "pearson_mean", "pearson[developmental]", "auroc[name]".

    ``kind``: "binary" and "multiclass" (see `classification_metrics`), "multilabel" or "regression";
    ``outputs`` are probabilities or predictions (n, C), ``names`` the C classes or outputs. Raises ValueError
    for an unknown kind, names of another number than C, and outputs that are not finite (in training, `score`
    treats these as the worst score).
    """
    _check_kind(kind)
    values = np.asarray(outputs)
    if not np.isfinite(values).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(values))} of {values.size} outputs are not finite")
    if kind == "regression":
        return regression_metrics(labels, values, names)
    if kind == "multilabel":
        metrics = multilabel_metrics(labels, values)
        per_class = {name: metrics.pop(f"{name}_per_class") for name in ("auroc", "auprc")}
        columns = _check_names(names, len(per_class["auroc"]))
        for metric, column_values in per_class.items():
            metrics |= {f"{metric}[{c}]": v for c, v in zip(columns, column_values, strict=True)}
        return metrics
    if kind == "binary" and values.shape[1:] != (2,):
        raise ValueError(f"a binary task needs probabilities (n, 2), got shape {values.shape}")
    if values.ndim == 2:
        _check_names(names, values.shape[1])
    return classification_metrics(labels, values)


def score(kind: str, metric_name: str, labels: ArrayLike, outputs: ArrayLike) -> float:
    """One aggregate metric, computed alone: the value that selects epochs, trials and backbones.

    If an output is not finite or the metric is undefined (NaN), the worst value: -inf, or inf for a metric
    where lower is better (`tasks.metrics`). Raises ValueError for a metric that the kind does not have.
    """
    _check_kind(kind)
    functions = _SCORES[kind]
    if metric_name not in functions:
        raise ValueError(f"a {kind} task has no metric {metric_name!r}; choose one of {', '.join(functions)}")
    values = np.asarray(outputs)
    value = functions[metric_name](labels, values) if np.isfinite(values).all() else float("nan")
    if np.isnan(value):
        return -find_metric(metric_name).sign * float("inf")
    return value


def _check_kind(kind: str) -> None:
    if kind not in _SCORES:
        raise ValueError(f"unknown task kind {kind!r}; choose one of {', '.join(_SCORES)}")


def _check_names(names: Sequence[str] | None, n_columns: int) -> Sequence[str]:
    if names is not None and len(names) != n_columns:
        raise ValueError(f"got {len(names)} names for {n_columns} columns")
    return [str(i) for i in range(n_columns)] if names is None else names


def _check_classes(what: str, values: ArrayLike, n_classes: int) -> Array:
    classes = np.asarray(values)
    if classes.ndim != 1 or classes.dtype.kind not in "iub" or not len(classes):
        raise ValueError(f"{what} must be a vector of integers, got {classes.dtype} of shape {classes.shape}")
    if not 0 <= classes.min() <= classes.max() < n_classes:
        raise ValueError(f"{what} must be in 0..{n_classes - 1}, got {classes.min()}..{classes.max()}")
    return classes.astype(np.int64)


def _check_classification(labels: ArrayLike, probabilities: ArrayLike) -> tuple[Array, Array]:
    scores = np.asarray(probabilities, dtype=np.float64)
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise ValueError(f"probabilities must be (n, C) with C >= 2, got shape {scores.shape}")
    true = _check_classes("labels", labels, scores.shape[1])
    if len(true) != len(scores):
        raise ValueError(f"got {len(true)} labels and {len(scores)} rows of probabilities")
    # Logits would pass unnoticed, with the right argmax and a wrong AUROC.
    if scores.min() < -1e-3 or scores.max() > 1 + 1e-3:
        raise ValueError("probabilities must lie in 0..1; apply a softmax to logits first")
    return true, scores


def _check_multilabel(labels: ArrayLike, probabilities: ArrayLike) -> tuple[Array, Array]:
    true, scores = _check_columns(labels, probabilities)
    if not np.isin(true[~np.isnan(true)], (0, 1)).all():
        raise ValueError("multilabel labels must be 0, 1 or NaN")
    return true, scores


def _check_columns(labels: ArrayLike, outputs: ArrayLike) -> tuple[Array, Array]:
    true, values = np.asarray(labels, dtype=np.float64), np.asarray(outputs, dtype=np.float64)
    if true.shape != values.shape or true.ndim not in (1, 2) or not true.size:
        raise ValueError(f"labels and outputs must both be (n, C), n >= 1; got {true.shape} and {values.shape}")
    return true.reshape(len(true), -1), values.reshape(len(true), -1)


def _observed_columns(true: Array, values: Array) -> list[tuple[Array, Array]]:
    observed = ~np.isnan(true)
    return [(true[keep, i], values[keep, i]) for i, keep in enumerate(observed.T)]


def _rank_columns(true: Array, scores: Array, metric: Callable[..., float]) -> list[float]:
    return [float(metric(t, s)) if 0 < t.sum() < len(t) else float("nan") for t, s in _observed_columns(true, scores)]


def _rank_classes(true: Array, scores: Array, metric: Callable[..., float]) -> list[float]:
    classes = np.arange(scores.shape[1])
    one_vs_rest = (true[:, None] == classes).astype(np.float64)
    first = 1 if len(classes) == 2 else 0  # two classes: class 1 only
    return _rank_columns(one_vs_rest[:, first:], scores[:, first:], metric)


def _mean_of_defined(values: Sequence[float]) -> float:
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")


def _correlate(correlation: Callable[[Array, Array], float], labels: Array, predictions: Array) -> float:
    if len(labels) < 2:
        return float("nan")
    if (labels == labels[0]).all() or (predictions == predictions[0]).all():
        return 0.0
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # nearly constant input
        value = correlation(labels.astype(np.float64), predictions.astype(np.float64))
    return value if np.isfinite(value) else 0.0  # spread below the smallest float: constant as far as one can tell


def _auroc(labels: Array, scores: Array) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, scores))


def _auprc(labels: Array, scores: Array) -> float:
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(labels, scores))


def _from_confusion(metric: Callable[[Array], Array]) -> Callable[[ArrayLike, ArrayLike], float]:
    def compute(labels: ArrayLike, probabilities: ArrayLike) -> float:
        true, scores = _check_classification(labels, probabilities)
        return float(metric(confusion_matrix(true, scores.argmax(1), scores.shape[1])))

    return compute


def _from_class_ranks(metric: Callable[..., float]) -> Callable[[ArrayLike, ArrayLike], float]:
    return lambda labels, outputs: _mean_of_defined(_rank_classes(*_check_classification(labels, outputs), metric))


def _from_label_ranks(metric: Callable[..., float]) -> Callable[[ArrayLike, ArrayLike], float]:
    return lambda labels, outputs: _mean_of_defined(_rank_columns(*_check_multilabel(labels, outputs), metric))


def _from_outputs(metric: Callable[[Array, Array], float]) -> Callable[[ArrayLike, ArrayLike], float]:
    return lambda labels, outputs: _mean_of_defined(
        [metric(t, p) for t, p in _observed_columns(*_check_columns(labels, outputs))]
    )


# The metrics that depend on counts only: confusion matrices (..., C, C) to (...), for a bootstrap over counts.
CONFUSION_METRICS: dict[str, Callable[[Array], Array]] = {
    "mcc": mcc,
    "accuracy": accuracy,
    "f1_macro": lambda confusion: f1(confusion).mean(-1),
    "f1_positive": lambda confusion: f1(confusion)[..., 1],
}
_BINARY = {name: _from_confusion(metric) for name, metric in CONFUSION_METRICS.items()} | {
    "auroc": _from_class_ranks(_auroc),
    "auprc": _from_class_ranks(_auprc),
}
_SCORES: dict[str, dict[str, Callable[[ArrayLike, ArrayLike], float]]] = {
    "binary": _BINARY,
    "multiclass": {name: metric for name, metric in _BINARY.items() if name != "f1_positive"},
    "multilabel": {
        "auroc": _from_label_ranks(_auroc),
        "auprc": _from_label_ranks(_auprc),
    },
    "regression": {
        "pearson_mean": _from_outputs(pearson),
        "spearman_mean": _from_outputs(spearman),
        "mse_mean": _from_outputs(mean_squared_error),
    },
}
