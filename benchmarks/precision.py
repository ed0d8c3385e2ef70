"""bf16 autocast beside fp32: the small CNN on real tasks, validation score of the same seeds, and CPU seconds.

Trained on train, scored on validation; no test split is opened. Each row has the gains that `precision: auto` decides by.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import Options
from l2g_ray.data.prepare import prepare
from l2g_ray.data.sources.catalogue import find_folder, find_raw
from l2g_ray.models.precision_choice import measure_gains
from l2g_ray.orchestrate.jobs import load_data
from l2g_ray.presets import resolve
from l2g_ray.stages.cnn import train_cnn
from l2g_ray.stages.loop import Runtime
from l2g_ray.tasks.catalogue import find_tasks
from l2g_ray.tasks.schema import Task

ONLY_BY_NAME = True
TASKS = ("uci/splice_junction", "gue/mouse_2", "nt/promoter_tata")
SEEDS = (0, 1, 2)


def run(options: Options) -> list[dict[str, Any]]:
    """Return a row a task: mean and standard deviation of the validation score over seeds, CPU seconds of a training."""
    torch.set_num_threads(options.threads)
    gains = {f"{name} gain": f"{gain:.2f} ×" for name, gain in measure_gains(options.threads).items()}
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for place in TASKS[:1] if options.quick else TASKS:
            bench, name = place.split("/")
            [task] = find_tasks(bench, [name])
            if find_folder(task, options.data_dir) is not None:
                rows.append(_compare(task, options, Path(scratch) / name) | gains)
    return rows


def _compare(task: Task, options: Options, scratch: Path) -> dict[str, Any]:
    settings = resolve("fast", task.overrides, {})
    data = load_data(prepare(find_raw(task, options.data_dir), scratch, settings.data))
    scores: dict[str, list[float]] = {"fp32": [], "bf16": []}
    cpu_s: dict[str, list[float]] = {"fp32": [], "bf16": []}
    for seed in SEEDS[:1] if options.quick else SEEDS:
        for precision in sorted(scores, reverse=bool(seed % 2)):  # in turn, so that neither is always first
            result = train_cnn(data, settings, Runtime(precision=precision), seed)
            scores[precision].append(result.best_score)
            cpu_s[precision].append(sum(row["cpu_s"] for row in result.history))
    row: dict[str, Any] = {"task": f"{task.bench}/{task.name}", "metric": task.metric, "seeds": len(scores["fp32"])}
    for precision, found in scores.items():
        spread = f" ± {statistics.stdev(found):.3f}" if len(found) > 1 else ""
        row[precision] = f"{statistics.mean(found):.3f}{spread}"
        row[f"CPU s {precision}"] = statistics.mean(cpu_s[precision])
        row[f"scores {precision}"] = ", ".join(f"{score:.3f}" for score in found)
    return row
