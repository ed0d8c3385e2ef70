"""What a task is, as data: nothing in the program asks for a task by name."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Kind = Literal["binary", "multiclass", "multilabel", "regression"]

# The metric that a kind is selected and reported by when the task names none.
DEFAULT_METRIC: dict[str, str] = {
    "binary": "mcc",
    "multiclass": "mcc",
    "multilabel": "auroc",
    "regression": "pearson_mean",
}
_CLASS_METRICS = ("mcc", "accuracy", "f1_macro", "auroc", "auprc")
METRICS: dict[str, tuple[str, ...]] = {
    "binary": (*_CLASS_METRICS, "f1_positive"),
    "multiclass": _CLASS_METRICS,
    "multilabel": ("auroc", "auprc"),
    "regression": ("pearson_mean", "spearman_mean", "mse_mean"),
}
NAME_PATTERN = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*$")


class Task(BaseModel):
    """One prediction task.

    `labels` are the class names in the order of their codes (binary, multiclass), or the names of the outputs
    (multilabel, regression). `label_columns` name the columns of the source that hold them.
    `strand_specific`: the label belongs to the strand that is given, so no reverse-complement augmentation and no
    strand averaging. `overrides` maps a preset's name (or `all`) to settings that this task wants there.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    bench: str
    name: str
    kind: Kind
    labels: tuple[str, ...] = Field(min_length=1)
    label_columns: tuple[str, ...] = ("label",)
    sequence_column: str = "sequence"
    metric: str
    length_bp: int | None = Field(default=None, gt=0)
    strand_specific: bool = False
    synthetic: bool = False
    comparable: bool = False
    title: str = ""
    description: str = ""
    source: str = ""
    licence: str = ""
    folder: str | None = None
    notes: tuple[str, ...] = ()
    overrides: dict[str, dict[str, Any]] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _fill_metric(cls, values: dict[str, Any]) -> dict[str, Any]:
        if isinstance(values, dict) and not values.get("metric"):
            values = {**values, "metric": DEFAULT_METRIC.get(values.get("kind", ""), "mcc")}
        return values

    @model_validator(mode="before")
    @classmethod
    def _fill_label_columns(cls, values: dict[str, Any]) -> dict[str, Any]:
        # Several outputs without columns of their own: each output's column has its name.
        if isinstance(values, dict) and not values.get("label_columns"):
            labels, kind = values.get("labels") or (), values.get("kind")
            if kind in ("multilabel", "regression") and len(labels) > 1:
                values = {**values, "label_columns": labels}
        return values

    @model_validator(mode="after")
    def _fits_kind(self) -> Task:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels must differ from each other")
        if self.kind == "binary" and len(self.labels) != 2:
            raise ValueError(f"kind binary needs two labels, not {len(self.labels)}")
        if self.kind == "multiclass" and len(self.labels) < 2:
            raise ValueError("kind multiclass needs at least two labels")
        columns = 1 if self.is_classification else len(self.labels)
        if len(self.label_columns) != columns:
            raise ValueError(f"label_columns must name {columns} column(s), not {len(self.label_columns)}")
        return self

    @field_validator("name", "bench")
    @classmethod
    def _safe_name(cls, value: str) -> str:
        # Names become folder names: no separators, no leading dot.
        if not NAME_PATTERN.match(value):
            raise ValueError(
                f"'{value}' may hold only letters, digits, '.', '_' and '-', and must start with a letter or digit"
            )
        return value

    @model_validator(mode="after")
    def _metric_of_kind(self) -> Task:
        if self.metric not in METRICS[self.kind]:
            raise ValueError(
                f"metric '{self.metric}' is not one of a {self.kind} task: {', '.join(METRICS[self.kind])}"
            )
        return self

    @property
    def n_outputs(self) -> int:
        """Width of the predictor: classes (binary has two), or outputs."""
        return len(self.labels)

    @property
    def is_classification(self) -> bool:
        """One class a sequence, stored as an int64 code."""
        return self.kind in ("binary", "multiclass")
