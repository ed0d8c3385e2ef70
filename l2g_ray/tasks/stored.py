"""The task of a stored model, in a file beside it."""

from __future__ import annotations

import json
from pathlib import Path

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
