"""Every metric that a score can be of: whether higher is better, and for which kinds of task.

`stages.metrics` computes them; tables, figures and choices read the direction from here.
"""

from __future__ import annotations

from dataclasses import dataclass

from l2g_ray.errors import UserError, nearest


@dataclass(frozen=True)
class Metric:
    """A metric's direction, and the kinds of task that can be selected and reported by it; none for a stage's own."""

    higher_is_better: bool
    kinds: tuple[str, ...] = ()

    @property
    def sign(self) -> float:
        """1 or -1: what a value is multiplied by so that higher is better."""
        return 1.0 if self.higher_is_better else -1.0

    def is_better(self, value: float, other: float) -> bool:
        """Whether a value is strictly better than another."""
        return self.sign * value > self.sign * other


_CLASSES = ("binary", "multiclass")
METRICS: dict[str, Metric] = {
    "mcc": Metric(True, _CLASSES),
    "accuracy": Metric(True, _CLASSES),
    "f1_macro": Metric(True, _CLASSES),
    "f1_positive": Metric(True, ("binary",)),
    "auroc": Metric(True, (*_CLASSES, "multilabel")),
    "auprc": Metric(True, (*_CLASSES, "multilabel")),
    "pearson_mean": Metric(True, ("regression",)),
    "spearman_mean": Metric(True, ("regression",)),
    "mse_mean": Metric(False, ("regression",)),
}
# What a stage is scored by when it is not the task's metric.
STAGE_METRICS: dict[str, str] = {"pretrain": "masked_loss"}
_OF_STAGES: dict[str, Metric] = {"masked_loss": Metric(False)}


def find_metric(name: str) -> Metric:
    """The metric of a name. Raises UserError for an unknown one, naming the nearest."""
    found = METRICS.get(name) or _OF_STAGES.get(name)
    if found is None:
        raise UserError(f"unknown metric '{name}': {nearest(name, METRICS)}")
    return found


def metrics_of(kind: str) -> list[str]:
    """Names of the metrics of a kind of task."""
    return [name for name, metric in METRICS.items() if kind in metric.kinds]


def name_stage_metric(stage: str, task_metric: str) -> str:
    """What the score of a stage is: the task's metric, or the stage's own."""
    return STAGE_METRICS.get(stage, task_metric)
