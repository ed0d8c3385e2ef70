"""How many folds an ensemble wants, and whether a stack or a mean of its arms is better, on rows that none of it has seen.

Folds are dealt out of the training rows alone; the validation split of a run stands for the test and chooses nothing. 1 fold is a
model of all training rows, without held-out rows and so without a stack. Results are appended to `folds.jsonl` in `--out`
as they come, and what is there is not measured again.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks.measure import Kept, Options
from l2g_ray.config import Settings
from l2g_ray.counts import average_strands
from l2g_ray.data.batches import InMemorySource
from l2g_ray.data.prepare import prepare
from l2g_ray.data.sources.official import find_folder, find_raw
from l2g_ray.data.splits import assign_folds
from l2g_ray.models.ensemble import to_predictions
from l2g_ray.orchestrate.jobs import load_data
from l2g_ray.presets import resolve
from l2g_ray.stages.baseline import fit_baseline
from l2g_ray.stages.cnn import build_cnn, train_cnn
from l2g_ray.stages.context import TaskData, predict_source
from l2g_ray.stages.evaluate import Stacker
from l2g_ray.stages.loop import Runtime
from l2g_ray.tasks.catalogue import find_tasks
from l2g_ray.tasks.metrics import score

ONLY_BY_NAME = True
TASKS = ("gue/mouse_2", "uci/splice_junction", "gue/mouse_0")
SEEDS = (0, 1, 2)
FOLDS = (1, 2, 3, 5)
ARMS = ("gapped_kmer", "kmer_boosting", "cnn")
MOST_ROWS, MOST_VALID = 6_000, 4_000
RUNTIME = Runtime()


def run(options: Options) -> list[dict[str, Any]]:
    """Return one row a task and number of folds: mean validation scores over seeds, and CPU seconds of all models."""
    torch.set_num_threads(options.threads)
    kept = Kept("folds", options)
    seeds, numbers, tasks = (SEEDS[:1], FOLDS[:2], TASKS[1:2]) if options.quick else (SEEDS, FOLDS, TASKS)
    for seed in seeds:
        for name in tasks:
            for n_folds in numbers:
                case = {"task": name, "seed": seed, "folds": n_folds}
                if not kept.has(case) and _is_there(name, options):
                    kept.add(case | measure(name, seed, n_folds, options))
    return summarise(kept.rows)


def measure(name: str, seed: int, n_folds: int, options: Options) -> dict[str, Any]:
    """Train every arm on all folds but one, or on all rows; scores of the means over folds, and of what combines them."""
    data, settings, groups = load_rows(name, options)
    train, task = data.train, data.task
    assert isinstance(train, InMemorySource)
    labels = np.array(train.table["label"].to_pylist())
    fold = np.zeros(train.n_rows, np.int8)
    if n_folds > 1:
        fold = assign_folds(groups, labels if task.is_classification else None, n_folds, seed, name)
    both, row, known = average_strands(settings, task), {}, None
    held: dict[str, np.ndarray] = {}
    bags: dict[str, np.ndarray] = {}
    for arm in ARMS:
        begun, found = time.process_time(), []
        held[arm] = np.zeros((train.n_rows, task.n_outputs), np.float32)
        for number in range(n_folds):
            inside = np.flatnonzero(fold == number)
            rest = np.flatnonzero(fold != number) if n_folds > 1 else inside
            own = replace(data, train=InMemorySource(train.table.take(rest)), held_out=True)
            # What a model is scored by while it trains plays no part, so a few rows do.
            own = replace(own, valid=InMemorySource(train.table.take(inside[:64])))
            model = train_arm(arm, own, settings, seed * 100 + number)
            predictions, known = predict_source(model, data.valid, task, RUNTIME, rc_average=both)
            found.append(predictions)
            if n_folds > 1:
                source = InMemorySource(train.table.take(inside))
                held[arm][inside] = predict_source(model, source, task, RUNTIME, rc_average=both)[0]
        bags[arm] = np.mean(found, axis=0)
        row[f"{arm} cpu_s"] = round(time.process_time() - begun, 1)
    every = bags | {"mean": np.mean(list(bags.values()), axis=0)}
    if n_folds > 1:
        stacker = Stacker(task.kind, held, labels, data.label_offset, data.label_scale)
        inputs = {arm: torch.from_numpy(p) for arm, p in bags.items()}
        for how in ("stack", "greedy"):
            outputs = stacker.fit(how).combine(inputs)
            every[how] = to_predictions(task.kind, outputs).numpy()
    assert known is not None
    return row | {arm: round(float(score(task.kind, task.metric, known, p)), 4) for arm, p in every.items()}


def train_arm(arm: str, data: TaskData, settings: Settings, seed: int) -> torch.nn.Module:
    """Return a model of an arm, as a run trains it."""
    if arm != "cnn":
        return fit_baseline(arm, data, settings, RUNTIME, seed).model
    net = build_cnn(data, settings, seed)
    net.load_state_dict(train_cnn(data, settings, RUNTIME, seed).best_state)
    return net


def load_rows(name: str, options: Options) -> tuple[TaskData, Settings, np.ndarray]:
    """Training and validation rows as a run has them, the former cut to `MOST_ROWS`; settings; groups of training rows."""
    bench, _, task_name = name.partition("/")
    task = find_tasks(bench, [task_name])[0]
    settings = resolve("fast", task.overrides, {}).for_task(task.strand_specific)
    if options.quick:
        few = {"cnn_steps": 20, "boosting_rounds": 5}
        settings = settings.model_copy(update={"baselines": settings.baselines.model_copy(update=few)})
    prepared = prepare(
        find_raw(task, options.data_dir), Path(options.out) / "prepared" / bench / task_name, settings.data
    )
    data = load_data(prepared)
    train, valid = (pa.concat_tables(source.tables()).combine_chunks() for source in (data.train, data.valid))
    kept = np.random.default_rng(0).permutation(len(train))[: 300 if options.quick else MOST_ROWS]
    data = replace(data, train=InMemorySource(train.take(kept)), valid=InMemorySource(valid.slice(0, MOST_VALID)))
    return data, settings, prepared.row_groups()[: len(train)][kept]


def _is_there(name: str, options: Options) -> bool:
    bench, _, task_name = name.partition("/")
    return find_folder(find_tasks(bench, [task_name])[0], options.data_dir) is not None


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over the seeds that are there, a row a task and number of folds; and over tasks of what all folds have."""
    table = []
    for case in dict.fromkeys((row["task"], row["folds"]) for row in sorted(rows, key=lambda row: row["folds"])):
        mine = [row for row in rows if (row["task"], row["folds"]) == case]
        names = [name for name in mine[0] if name not in ("task", "seed", "folds")]
        means = {name: round(float(np.mean([row[name] for row in mine])), 4) for name in names}
        columns = [*ARMS, "mean", "stack", "greedy"]
        cpu_s = round(sum(means[f"{arm} cpu_s"] for arm in ARMS), 1)
        table.append(
            {"task": case[0], "folds": case[1], "seeds": len(mine)}
            | {name: means.get(name, "") for name in columns}
            | {"cpu_s": cpu_s}
        )
    return sorted(table, key=lambda row: (row["task"], row["folds"]))
