"""The one look at the test split, after everything is chosen. No other module of `stages` reads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from l2g_ray.config import Settings
from l2g_ray.data.batches import InMemorySource
from l2g_ray.data.dataset import PreparedTask
from l2g_ray.models.l2g import load_model
from l2g_ray.stages.common import predict_source, use_rc
from l2g_ray.stages.loop import Runtime
from l2g_ray.stages.metrics import compute_metrics
from l2g_ray.tasks.schema import Task


@dataclass(frozen=True)
class Contender:
    """One trained model: its arm ('l2g' or 'embedder_only'), its seed, and its folder."""

    arm: str
    seed: int
    folder: Path


def average_strands(settings: Settings, task: Task) -> bool:
    """Whether the reported predictions are means over both strands: 'auto' follows the augmentation."""
    choice = settings.evaluate.rc_average
    return choice == "on" or (choice == "auto" and use_rc(settings, task))


def evaluate(
    prepared: PreparedTask, settings: Settings, runtime: Runtime, contenders: list[Contender], out: Path
) -> dict[str, Any]:
    """Predict the test split with every contender; write `predictions.parquet`, return all metrics.

    The table has one row a test sequence, arm and seed: the reported predictions (strand-averaged where the task
    allows it) and, beside them, those of the given strand as `plain_*` columns. Metrics are computed once, on all rows.
    """
    task = prepared.task
    table = prepared.open_test()
    source = InMemorySource(table)
    both = average_strands(settings, task)
    parts, metrics = [], []
    for contender in contenders:
        model = load_model(contender.folder).to(runtime.device)
        batch_size = settings.evaluate.batch_size
        plain, labels = predict_source(model, source, task, runtime, batch_size)
        reported = predict_source(model, source, task, runtime, batch_size, rc_average=True)[0] if both else plain
        metrics.append(
            {
                "arm": contender.arm,
                "seed": contender.seed,
                "test": compute_metrics(task.kind, labels, reported, list(task.labels)),
                "test_plain": compute_metrics(task.kind, labels, plain, list(task.labels)),
            }
        )
        parts.append(_tabulate(task, table["id"], contender, labels, reported, plain if both else None))
    pq.write_table(pa.concat_tables(parts), out / "predictions.parquet", compression="zstd")
    return {"strand_averaged": both, "n_test": len(table), "metrics": metrics}


def _tabulate(
    task: Task,
    ids: pa.ChunkedArray,
    contender: Contender,
    labels: np.ndarray,
    reported: np.ndarray,
    plain: np.ndarray | None,
) -> pa.Table:
    n = len(reported)
    columns: dict[str, Any] = {
        "id": ids,
        "arm": pa.array([contender.arm] * n),
        "seed": pa.array(np.full(n, contender.seed, np.int64)),
    }
    if task.is_classification:
        columns["label"] = pa.array([task.labels[code] for code in labels])
    else:
        columns |= {f"label_{name}": labels[:, i] for i, name in enumerate(task.labels)}
    columns |= prediction_columns(task, reported)
    if plain is not None:
        columns |= {f"plain_{name}": values for name, values in prediction_columns(task, plain).items()}
    return pa.table(columns)


def prediction_columns(task: Task, outputs: np.ndarray) -> dict[str, Any]:
    """Columns of a prediction table from outputs (n, n_outputs): the class and each label's probability, or values."""
    if task.is_classification:
        named: dict[str, Any] = {"prediction": pa.array([task.labels[i] for i in outputs.argmax(1)])}
        return named | {f"probability_{name}": outputs[:, i] for i, name in enumerate(task.labels)}
    prefix = "probability" if task.kind == "multilabel" else "prediction"
    return {f"{prefix}_{name}": outputs[:, i] for i, name in enumerate(task.labels)}
