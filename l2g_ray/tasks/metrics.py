"""The table of metrics: of each its name, direction, kinds of task and function. Nothing else asks which way is better.

A new metric is an entry in `METRICS` and its function: of counts (confusion matrices) or of one column of labels and
outputs. The kind of task says what a column is: an output of a regression, a label of a multilabel task, a class against the
rest. All agree with scikit-learn and SciPy to 1e-9 where those are defined; each function says what it returns where they are
not. scikit-learn and SciPy's statistics are imported where they are used: they double the start of a worker process.
Which metric a task has follows the L2G code (MCC, mean F1, accuracy; mean Pearson r; macro AUROC), with F1 over all
classes instead of the first two.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from l2g_ray.errors import UserError, nearest

Array = NDArray[Any]
Item = TypeVar("Item")


def _leave_to_stage(*_: Any) -> float:
    raise TypeError("a stage computes this metric itself, not from labels and outputs")


@dataclass(frozen=True)
class Metric:
    """A metric's direction, the kinds of task that can be selected and reported by it, and its function.

    `function` takes one column, labels and outputs (n,), and returns a number, NaN where it is undefined; the metric is the
    mean over the columns where it is defined. With `of_counts` it takes confusion matrices (..., C, C), true class by row,
    and returns (...), for a bootstrap over counts. The name is the key of `METRICS`: `<function>_mean` where each output is
    reported too, as `<function>[output]`. A metric of a stage alone has neither kinds nor function.
    """

    higher_is_better: bool
    kinds: tuple[str, ...] = ()
    function: Callable[..., Any] = _leave_to_stage
    of_counts: bool = False

    @property
    def sign(self) -> float:
        """1 or -1: what a value is multiplied by so that higher is better."""
        return 1.0 if self.higher_is_better else -1.0

    def is_better(self, value: float, other: float) -> bool:
        """Return whether a value is strictly better than another."""
        return self.sign * value > self.sign * other

    def best(self, items: Iterable[Item], value: Callable[[Item], float | None]) -> Item | None:
        """Return the item with the best value, the first of equals; None where no value is known."""
        known = [(item, found) for item in items if (found := value(item)) is not None and not np.isnan(found)]
        return max(known, key=lambda pair: self.sign * pair[1], default=(None, 0.0))[0]


def confusion_matrix(labels: ArrayLike, predictions: ArrayLike, n_classes: int) -> Array:
    """Return counts (n_classes, n_classes), true class by row; ValueError for classes outside 0..n_classes-1."""
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


def pearson(labels: Array, predictions: Array) -> float:
    """Pearson r of two vectors; 0 if one is constant, NaN for fewer than two values."""
    return _correlate(lambda a, b: float(np.corrcoef(a, b)[0, 1]), labels, predictions)


def spearman(labels: Array, predictions: Array) -> float:
    """Spearman rho of two vectors; 0 if one is constant, NaN for fewer than two values."""
    from scipy import stats

    return _correlate(lambda a, b: float(stats.spearmanr(a, b).statistic), labels, predictions)


def mean_squared_error(labels: Array, predictions: Array) -> float:
    """Return mean squared error of two vectors; NaN if they are empty."""
    return float(np.square(labels - predictions).mean()) if len(labels) else float("nan")


def auroc(labels: Array, scores: Array) -> float:
    """Area under the ROC curve of labels 0 and 1; NaN without both of them."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, scores)) if _has_both(labels) else float("nan")


def auprc(labels: Array, scores: Array) -> float:
    """Average precision of labels 0 and 1; NaN without both of them."""
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(labels, scores)) if _has_both(labels) else float("nan")


_CLASSES = ("binary", "multiclass")
_RANKED = (*_CLASSES, "multilabel")
# The first of a kind is what a task of that kind has where it names none.
METRICS: dict[str, Metric] = {
    "mcc": Metric(True, _CLASSES, mcc, of_counts=True),
    "accuracy": Metric(True, _CLASSES, accuracy, of_counts=True),
    "f1_macro": Metric(True, _CLASSES, lambda confusion: f1(confusion).mean(-1), of_counts=True),
    "f1_positive": Metric(True, ("binary",), lambda confusion: f1(confusion)[..., 1], of_counts=True),
    "auroc": Metric(True, _RANKED, auroc),
    "auprc": Metric(True, _RANKED, auprc),
    "pearson_mean": Metric(True, ("regression",), pearson),
    "spearman_mean": Metric(True, ("regression",), spearman),
    "mse_mean": Metric(False, ("regression",), mean_squared_error),
}
# What a stage is scored by when it is not the task's metric.
STAGE_METRICS: dict[str, str] = {"pretrain": "masked_loss"}
_OF_STAGES: dict[str, Metric] = {"masked_loss": Metric(False)}


def find_metric(name: str) -> Metric:
    """Return the metric of a name. Raises UserError for an unknown one, naming the nearest."""
    found = METRICS.get(name) or _OF_STAGES.get(name)
    if found is None:
        raise UserError(f"unknown metric '{name}': {nearest(name, METRICS)}")
    return found


def metrics_of(kind: str) -> list[str]:
    """Return names of the metrics of a kind of task, the default first."""
    return [name for name, metric in METRICS.items() if kind in metric.kinds]


def name_stage_metric(stage: str, task_metric: str) -> str:
    """Return what the score of a stage is: the task's metric, or the stage's own."""
    return STAGE_METRICS.get(stage, task_metric)


def compute_metrics(
    kind: str, labels: ArrayLike, outputs: ArrayLike, names: Sequence[str] | None = None
) -> dict[str, float]:
    """Return all metrics of a task as one flat dict: "mcc", "pearson_mean", "pearson[developmental]", "auroc[name]".

    Parameters
    ----------
    kind : "binary", "multiclass", "multilabel" or "regression".
    labels : class numbers (n,); or (n, C), or (n,) for C = 1, with NaN where a label is missing: that entry is left out.
        0 or 1 in a multilabel task.
    outputs : (n, C). Probabilities of classes; the prediction is the most probable class, the lower one of equals. Any
        scores in a multilabel task, whose metrics depend on ranks only. Values in a regression.
    names : of the C classes or outputs; "0", "1", ... without.

    AUROC and AUPRC of classes are those of class 1 when C = 2, else means over one-vs-rest classes; F1 is over all C declared
    classes. Means are over the columns where a metric is defined, NaN where it is in none. Raises ValueError for an
    unknown kind, other shapes, classes or values, names of another number than C, and outputs that are not finite (in
    training, `score` treats these as the worst score).
    """
    values = np.asarray(outputs)
    known = metrics_of(_check_kind(kind))
    if not np.isfinite(values).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(values))} of {values.size} outputs are not finite")
    rows = _Rows(kind, labels, values)
    if names is not None and len(names) != rows.outputs.shape[1]:
        raise ValueError(f"got {len(names)} names for {rows.outputs.shape[1]} columns")
    means: dict[str, float] = {}
    columns: dict[str, float] = {}
    for name in known:
        means[name], each = rows.apply(METRICS[name])
        if kind not in _CLASSES:
            stem = name.removesuffix("_mean")
            columns |= {f"{stem}[{c}]": v for c, v in zip(names or range(len(each)), each, strict=True)}
    return means | columns


def score(kind: str, metric_name: str, labels: ArrayLike, outputs: ArrayLike) -> float:
    """Return one aggregate metric, computed alone: the value that selects epochs, trials and backbones.

    If an output is not finite or the metric is undefined (NaN), the worst value: -inf, or inf for a metric
    where lower is better. Raises ValueError for a metric that the kind does not have.
    """
    known = metrics_of(_check_kind(kind))
    if metric_name not in known:
        raise ValueError(f"a {kind} task has no metric {metric_name!r}; choose one of {', '.join(known)}")
    metric, values = METRICS[metric_name], np.asarray(outputs)
    value = _Rows(kind, labels, values).apply(metric)[0] if np.isfinite(values).all() else float("nan")
    return -metric.sign * float("inf") if np.isnan(value) else value


def signed_score(kind: str, metric_name: str, labels: ArrayLike, outputs: ArrayLike) -> float:
    """`score`, negated where lower is better: what choices maximise."""
    return find_metric(metric_name).sign * score(kind, metric_name, labels, outputs)


class _Rows:
    """Labels and outputs of a task, checked once, as metrics take them: as counts, or column by column."""

    def __init__(self, kind: str, labels: ArrayLike, outputs: Array) -> None:
        self.of_classes = kind in _CLASSES
        if kind == "binary" and outputs.shape[1:] != (2,):
            raise ValueError(f"a binary task needs probabilities (n, 2), got shape {outputs.shape}")
        check = _check_classification if self.of_classes else _check_columns
        self.labels, self.outputs = check(labels, outputs)
        if kind == "multilabel" and not np.isin(self.labels[~np.isnan(self.labels)], (0, 1)).all():
            raise ValueError("multilabel labels must be 0, 1 or NaN")

    @cached_property
    def confusion(self) -> Array:
        return confusion_matrix(self.labels, self.outputs.argmax(1), self.outputs.shape[1])

    @cached_property
    def columns(self) -> list[tuple[Array, Array]]:
        true, values = self.labels, self.outputs
        if self.of_classes:
            first = 1 if values.shape[1] == 2 else 0  # two classes: class 1 only
            true = (true[:, None] == np.arange(values.shape[1])).astype(np.float64)[:, first:]
            values = values[:, first:]
        return [(true[keep, i], values[keep, i]) for i, keep in enumerate(~np.isnan(true).T)]

    def apply(self, metric: Metric) -> tuple[float, list[float]]:
        """Return the metric, and its value in each column."""
        if metric.of_counts:
            return float(metric.function(self.confusion)), []
        each = [metric.function(*column) for column in self.columns]
        defined = [value for value in each if not np.isnan(value)]
        return float(np.mean(defined)) if defined else float("nan"), each


def _check_kind(kind: str) -> str:
    known = list(dict.fromkeys(kind for metric in METRICS.values() for kind in metric.kinds))
    if kind not in known:
        raise ValueError(f"unknown task kind {kind!r}; choose one of {', '.join(known)}")
    return kind


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


def _check_columns(labels: ArrayLike, outputs: ArrayLike) -> tuple[Array, Array]:
    true, values = np.asarray(labels, dtype=np.float64), np.asarray(outputs, dtype=np.float64)
    if true.shape != values.shape or true.ndim not in (1, 2) or not true.size:
        raise ValueError(f"labels and outputs must both be (n, C), n >= 1; got {true.shape} and {values.shape}")
    return true.reshape(len(true), -1), values.reshape(len(true), -1)


def _has_both(labels: Array) -> bool:
    return bool(0 < labels.sum() < len(labels))


def _correlate(correlation: Callable[[Array, Array], float], labels: Array, predictions: Array) -> float:
    if len(labels) < 2:
        return float("nan")
    if (labels == labels[0]).all() or (predictions == predictions[0]).all():
        return 0.0
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # nearly constant input
        value = correlation(labels.astype(np.float64), predictions.astype(np.float64))
    return value if np.isfinite(value) else 0.0  # spread below the smallest float: constant as far as one can tell
