"""The task of a stored model, in a file beside it, and the columns of its predictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from l2g_ray.tasks.schema import Task

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
    """Columns of a prediction table from outputs (n, n_outputs): the class and each label's probability, or values."""
    if task.is_classification:
        named: dict[str, Any] = {"prediction": pa.array([task.labels[i] for i in outputs.argmax(1)])}
        return named | {f"probability_{name}": outputs[:, i] for i, name in enumerate(task.labels)}
    prefix = "probability" if task.kind == "multilabel" else "prediction"
    return {f"{prefix}_{name}": outputs[:, i] for i, name in enumerate(task.labels)}
