"""What a task is, as data: nothing in the program asks for a task by name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from l2g_ray.tasks.metrics import metrics_of

Kind = Literal["binary", "multiclass", "multilabel", "regression"]

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


_NAMED_FIELDS = {"folder", "folders", "hub", "hub_filter"}


class Task(BaseModel):
    """One prediction task.

    `labels` are the class names in the order of their codes (binary, multiclass), or the names of the outputs
    (multilabel, regression); `{prefix: target_, count: 919}` stands for target_000 to target_918. `label_columns` name
    the columns of the source that hold them: one an output, or one column of lists.
    `folder`, then `folders`, are where the files may lie under a data folder. `hub` is a data set of the Hugging Face
    hub, `hub_filter` (column to value) says which of its rows are this task's; `url` is where to get the files
    otherwise. In these fields `{name}` stands for the task's name.
    `strand_specific`: the label belongs to the strand that is given, so no reverse-complement augmentation and no
    strand averaging. `group` is the type of task that a report takes means over. `overrides` maps a preset's name (or
    `all`) to settings that this task wants there.
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
    group: str = ""
    comparable: bool = False
    title: str = ""
    description: str = ""
    source: str = ""
    licence: str = ""
    folder: str | None = None
    folders: tuple[str, ...] = ()
    hub: str | None = None
    hub_filter: dict[str, str] = Field(default_factory=dict)
    url: str = ""
    notes: tuple[str, ...] = ()
    overrides: dict[str, dict[str, Any]] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        values = {**values, "labels": _expand_labels(values.get("labels"))}
        for field in _NAMED_FIELDS & values.keys():
            values[field] = _put_name(values[field], str(values.get("name", "")))
        if not values.get("metric"):
            values["metric"] = next(iter(metrics_of(values.get("kind", ""))), "")
        # Several outputs without named columns: each output's column has the output's name.
        several = len(values["labels"] or ()) > 1 and values.get("kind") in ("multilabel", "regression")
        if several and not values.get("label_columns"):
            values["label_columns"] = values["labels"]
        return values

    @model_validator(mode="after")
    def _fits_kind(self) -> Task:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels must differ from each other")
        if self.kind == "binary" and len(self.labels) != 2:
            raise ValueError(f"kind binary needs two labels, not {len(self.labels)}")
        if self.kind == "multiclass" and len(self.labels) < 2:
            raise ValueError("kind multiclass needs at least two labels")
        columns = {1} if self.is_classification else {1, len(self.labels)}
        if len(self.label_columns) not in columns:
            wanted = " or ".join(str(count) for count in sorted(columns))
            raise ValueError(f"label_columns must name {wanted} column(s), not {len(self.label_columns)}")
        return self

    @field_validator("name", "bench")
    @classmethod
    def _safe_name(cls, value: str) -> str:
        # Names become folder names: no separators, no leading dot.
        if not NAME_PATTERN.fullmatch(value):
            raise ValueError(
                f"'{value}' may hold only letters, digits, '.', '_' and '-', and must start with a letter or digit"
            )
        return value

    @model_validator(mode="after")
    def _metric_of_kind(self) -> Task:
        known = metrics_of(self.kind)
        if self.metric not in known:
            raise ValueError(f"metric '{self.metric}' is not one of a {self.kind} task: {', '.join(known)}")
        return self

    @property
    def n_outputs(self) -> int:
        """Width of the predictor: classes (binary has two), or outputs."""
        return len(self.labels)

    @property
    def is_classification(self) -> bool:
        """One class a sequence, stored as an int64 code."""
        return self.kind in ("binary", "multiclass")

    @property
    def source_folders(self) -> tuple[str, ...]:
        """Where the task's files may lie, relative to a data folder, in the order to look."""
        return (self.folder or f"{self.bench}/{self.name}", *self.folders)


def _expand_labels(labels: Any) -> Any:
    if not isinstance(labels, dict):
        return labels
    prefix, count = labels.get("prefix"), labels.get("count")
    if set(labels) != {"prefix", "count"} or not isinstance(prefix, str) or type(count) is not int or count < 1:
        raise ValueError("labels: give a list of names, or prefix (text) and count (at least 1)")
    width = len(str(count - 1))
    return tuple(f"{prefix}{number:0{width}d}" for number in range(count))


def _put_name(value: Any, name: str) -> Any:
    """`{name}` replaced in text, and in the values of lists and mappings."""
    if isinstance(value, str):
        return value.replace("{name}", name)
    if isinstance(value, dict):
        return {key: _put_name(item, name) for key, item in value.items()}
    return [_put_name(item, name) for item in value] if isinstance(value, list | tuple) else value


TASK_FILE = "task.json"
TASK_SCHEMA = 1


def write_task_file(folder: Path, task: Task, strand_averaged: bool, length_bp: int) -> None:
    """Beside a stored model: what its outputs mean, and how predictions are made from them."""
    content = {
        "schema": TASK_SCHEMA,
        "task": task.model_dump(mode="json", exclude={"overrides"}),
        "strand_averaged": strand_averaged,
        "length_bp": length_bp,
    }
    (folder / TASK_FILE).write_text(json.dumps(content, indent=1))


def prediction_columns(task: Task, outputs: np.ndarray) -> dict[str, Any]:
    """Return columns of a prediction table from outputs (n, n_outputs): the class and each label's probability, or
    values.
    """
    if task.is_classification:
        named: dict[str, Any] = {"prediction": pa.array([task.labels[i] for i in outputs.argmax(1)])}
        return named | {f"probability_{name}": outputs[:, i] for i, name in enumerate(task.labels)}
    prefix = "probability" if task.kind == "multilabel" else "prediction"
    return {f"{prefix}_{name}": outputs[:, i] for i, name in enumerate(task.labels)}
