"""The one look at the test split, after everything is chosen. No other module of `stages` reads it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from l2g_ray.config import Settings
from l2g_ray.counts import average_strands
from l2g_ray.data.batches import InMemorySource
from l2g_ray.data.dataset import PreparedTask
from l2g_ray.models.l2g import load_model
from l2g_ray.stages.common import predict_source
from l2g_ray.stages.loop import Runtime
from l2g_ray.stages.metrics import compute_metrics, score
from l2g_ray.tasks.metrics import find_metric
from l2g_ray.tasks.schema import Task

# Arm and seed to predictions (n, n_outputs): those reported, and those of the given strand.
Outputs = dict[tuple[str, int], tuple[np.ndarray, np.ndarray]]
# What a user may get, the cheapest first.
CANDIDATES = ("embedder_only", "l2g", "average")


@dataclass(frozen=True)
class Contender:
    """One trained model: its arm ('l2g', 'embedder_only', or a baseline's name), its seed, and its folder."""

    arm: str
    seed: int
    folder: Path


def evaluate(
    prepared: PreparedTask, settings: Settings, runtime: Runtime, contenders: list[Contender], out: Path
) -> dict[str, Any]:
    """Predict the test split with every contender; write `predictions.parquet`, return all metrics.

    Which of L2G, the embedder alone and the mean of their predictions is best is told by validation first
    (`choose_arm`); the mean is one more arm, `average`. The table has one row a test sequence, arm and seed: the reported predictions (strand-averaged where the task
    allows it) and, beside them, those of the given strand as `plain_*` columns. Metrics are computed once, on all rows.
    """
    task = prepared.task
    both = average_strands(settings, task)

    def predict(table: pa.Table) -> tuple[Outputs, np.ndarray]:
        source, outputs, labels = InMemorySource(table), {}, np.empty(0)
        for contender in contenders:
            model = load_model(contender.folder).to(runtime.device)
            size = settings.evaluate.batch_size
            plain, labels = predict_source(model, source, task, runtime, size)
            reported = predict_source(model, source, task, runtime, size, rc_average=True)[0] if both else plain
            outputs[contender.arm, contender.seed] = reported, plain
        return add_average(outputs), labels

    choice = choose_arm(task, *predict(prepared.table("valid")))  # before the test split is opened
    table = prepared.open_test()
    outputs, labels = predict(table)
    parts, metrics = [], []
    for (arm, seed), (reported, plain) in outputs.items():
        metrics.append(
            {
                "arm": arm,
                "seed": seed,
                "test": compute_metrics(task.kind, labels, reported, list(task.labels)),
                "test_plain": compute_metrics(task.kind, labels, plain, list(task.labels)),
            }
        )
        parts.append(_tabulate(task, table["id"], arm, seed, labels, reported, plain if both else None))
    pq.write_table(pa.concat_tables(parts), out / "predictions.parquet", compression="zstd")
    return {"strand_averaged": both, "n_test": len(table), "metrics": metrics, "choice": choice}


def add_average(outputs: Outputs) -> Outputs:
    """With the arm `average` for every seed that has both L2G and the embedder alone: the mean of their predictions."""
    added = dict(outputs)
    for arm, seed in outputs:
        if arm == "l2g" and ("embedder_only", seed) in outputs:
            pair = zip(outputs[arm, seed], outputs["embedder_only", seed], strict=True)
            reported, plain = ((one + other) / 2 for one, other in pair)
            added["average", seed] = reported, plain
    return added


def choose_arm(task: Task, outputs: Outputs, labels: np.ndarray) -> dict[str, Any]:
    """The arm to predict with, by the task's metric on validation: `arm`, and the mean `validation` score of each.

    Of equal scores the cheaper arm wins: the embedder alone, then L2G, then their average. Baselines do not stand for
    election, they are what the others must beat.
    """
    sign = find_metric(task.metric).sign
    scores: dict[str, float] = {}
    for arm in CANDIDATES:
        values = [
            score(task.kind, task.metric, labels, reported) for (of, _), (reported, _) in outputs.items() if of == arm
        ]
        if values:
            scores[arm] = float(np.mean(values))
    known = {arm: sign * value for arm, value in scores.items() if np.isfinite(value)}
    best = max(known, key=lambda arm: known[arm], default=next(iter(scores), ""))
    return {"arm": best, "validation": scores}


def read_evaluated_rows(prepared: PreparedTask) -> pa.Table:
    """The test rows (id, sequence, label) for a picture of a model that is finished; nothing may be chosen by it."""
    return prepared.open_test()


def _tabulate(
    task: Task,
    ids: pa.ChunkedArray,
    arm: str,
    seed: int,
    labels: np.ndarray,
    reported: np.ndarray,
    plain: np.ndarray | None,
) -> pa.Table:
    n = len(reported)
    columns: dict[str, Any] = {
        "id": ids,
        "arm": pa.array([arm] * n),
        "seed": pa.array(np.full(n, seed, np.int64)),
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
