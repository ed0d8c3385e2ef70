"""What shifts and the read-out bring: the small CNN and the embedder as shipped, and with one thing changed, on validation.

Each is trained on training rows and scored on the given validation split, which chooses nothing. Results are appended to
`ingredients.jsonl` in `--out` as they come, and what is there is not measured again.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from benchmarks.dash import BACKBONE, REFERENCE, load_rows
from benchmarks.measure import Kept, Options
from l2g_ray.config import Settings
from l2g_ray.counts import default_architecture
from l2g_ray.data.sources.official import find_folder
from l2g_ray.presets import resolve
from l2g_ray.stages.cnn import train_cnn
from l2g_ray.stages.context import TaskData, make_embedder_config
from l2g_ray.stages.embedder_only import train_embedder_only
from l2g_ray.stages.loop import Runtime
from l2g_ray.tasks.catalogue import find_tasks

ONLY_BY_NAME = True
TASKS = ("uci/splice_junction", "gue/mouse_2", "nt/promoter_tata")
SEEDS = (0, 1, 2)
SHIFTS_BP = (0, 3)
POOLINGS = ("mean", "mean_max", "by_position")
RUNTIME = Runtime()


def run(options: Options) -> list[dict[str, Any]]:
    """Return one row a task and change: mean and spread of validation scores over seeds, beside those of what is
    shipped.
    """
    torch.set_num_threads(options.threads)
    kept = Kept("ingredients", options)
    seeds, tasks = (SEEDS[:1], TASKS[:1]) if options.quick else (SEEDS, TASKS)
    changes = [("cnn", "data.shift_bp", value) for value in SHIFTS_BP]
    changes += [("embedder", "model.pooling", value) for value in POOLINGS]
    for seed in seeds:
        for name in tasks:
            bench, _, task_name = name.partition("/")
            task = find_tasks(bench, [task_name])[0]
            if find_folder(task, options.data_dir) is None:
                continue
            for arm, key, value in changes:
                case = {"task": name, "seed": seed, "arm": arm, "setting": key, "value": value}
                if kept.has(case):
                    continue
                quick = {"embedder_only.epochs": 1, "baselines.cnn_steps": 20} if options.quick else {}
                shipped = resolve("fast", task.overrides, quick).for_task(task.strand_specific)
                settings = resolve("fast", task.overrides, quick | {key: value}).for_task(task.strand_specific)
                begun = time.process_time()
                score = train_and_score(arm, load_rows(name, settings, options), settings, seed)
                section, field = key.split(".")
                row = {"score": round(score, 4), "cpu_s": round(time.process_time() - begun, 1)}
                kept.add(case | row | {"shipped": getattr(getattr(shipped, section), field) == value})
    return summarise(kept.rows)


def train_and_score(arm: str, data: TaskData, settings: Settings, seed: int) -> float:
    """Return validation score after the last epoch of a model that is trained as a run trains it."""
    if arm == "cnn":
        return float(train_cnn(data, settings, RUNTIME, seed).history[-1]["score"])
    kernel_size = settings.select.kernel_sizes[0]
    architecture = [(kernel_size, 1)] * len(default_architecture(BACKBONE))
    config = make_embedder_config(settings, data, REFERENCE, BACKBONE, architecture)
    trained = train_embedder_only(data, settings, REFERENCE, RUNTIME, config=config, seed=seed)
    return float(trained.history[-1]["score"])


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return mean and standard deviation over the seeds that are there, and the mean difference from what is shipped."""
    table = []
    for task, arm, key, value in dict.fromkeys((r["task"], r["arm"], r["setting"], r["value"]) for r in rows):
        mine = {r["seed"]: r["score"] for r in rows if (r["task"], r["arm"], r["value"]) == (task, arm, value)}
        base = {r["seed"]: r["score"] for r in rows if (r["task"], r["arm"]) == (task, arm) and r["shipped"]}
        scores = list(mine.values())
        gains = [score - base[seed] for seed, score in mine.items() if seed in base]
        table.append(
            {"task": task, "arm": arm, "setting": f"{key}={value}", "seeds": len(scores)}
            | {"score": round(float(np.mean(scores)), 4), "sd": round(float(np.std(scores)), 4)}
            | {"against shipped": round(float(np.mean(gains)), 4) if gains else ""}
        )
    return table
