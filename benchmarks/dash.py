"""DASH's architectures beside uniform and random ones of the same size, each trained from new weights in the same way.

DASH sees training rows only. Every architecture is then trained as `embedder_only` is and scored on validation, which
chooses nothing. Rows of training beyond `MOST_ROWS` join validation. Results are appended to `dash.jsonl` in `--out` as they
come, and what is there is not measured again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks.measure import Kept, Options
from l2g_ray.config import Settings
from l2g_ray.data.batches import InMemorySource
from l2g_ray.data.prepare import prepare
from l2g_ray.data.sources.official import find_folder, find_raw
from l2g_ray.models.mixed_conv import OperationSet
from l2g_ray.orchestrate.jobs import load_data
from l2g_ray.presets import resolve
from l2g_ray.stages.context import Reference, TaskData, make_embedder_config
from l2g_ray.stages.embedder_only import train_embedder_only
from l2g_ray.stages.loop import Runtime
from l2g_ray.stages.search import search_architecture
from l2g_ray.tasks.catalogue import find_tasks

ONLY_BY_NAME = True
TASKS = ("gue/mouse_2", "gue/mouse_0", "nt/promoter_tata", "nt/H3", "uci/splice_junction")
SEEDS = (0, 1, 2)
UNIFORM = (3, 7, 11)
RANDOM = 2
MOST_ROWS, MOST_VALID = 4_000, 2_000
BACKBONE = "resnet"
# Shape and LayerNorm of MiniLM's embeddings; without alignment nothing else of a language model matters.
REFERENCE = Reference(384, 512, 1e-12, torch.ones(384), torch.zeros(384), torch.zeros(1, 384))

Architecture = list[tuple[int, int]]


def run(options: Options) -> list[dict[str, Any]]:
    """Return one row a task and one of all tasks: mean validation scores over seeds, and how often DASH is above the
    others.
    """
    torch.set_num_threads(options.threads)
    kept = Kept("dash", options)
    tasks, seeds = (TASKS[-1:], SEEDS[:1]) if options.quick else (TASKS, SEEDS)
    for seed in seeds:
        for name in tasks:
            done = {row["net"]: row for row in kept.rows if (row["task"], row["seed"]) == (name, seed)}
            for row in measure(name, seed, options, done):
                kept.add({"task": name, "seed": seed} | row)
    return summarise(kept.rows) if kept.rows else []


def measure(name: str, seed: int, options: Options, done: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Search once, then train every architecture that is not `done`; one mapping each."""
    bench, _, task_name = name.partition("/")
    task = find_tasks(bench, [task_name])[0]
    if find_folder(task, options.data_dir) is None:
        return
    quick = {"search.epochs": 2, "embedder_only.epochs": 1} if options.quick else {}
    settings = resolve("fast", task.overrides, quick).for_task(task.strand_specific)
    data = load_rows(name, settings, options)
    runtime = Runtime(precision="bf16")
    if "search" not in done:
        begun = time.process_time()
        found = search_architecture(data, settings, REFERENCE, runtime, backbone=BACKBONE, seed=seed)
        score = round(found.training.history[-1]["score"], 4)
        cpu_s = round(time.process_time() - begun, 1)
        done["search"] = {"net": "search", "score": score, "cpu_s": cpu_s, "architecture": found.architecture}
        yield done["search"]
    searched = [(int(k), int(d)) for k, d in done["search"]["architecture"]]
    nets = {"dash": searched} | {f"uniform {k}x1": [(k, 1)] * len(searched) for k in UNIFORM}
    drawn = draw_architectures(settings, data, searched, seed)
    nets |= {f"random {i}": architecture for i, architecture in enumerate(drawn)}
    for net, architecture in nets.items():
        if net not in done:
            config = make_embedder_config(settings, data, REFERENCE, BACKBONE, architecture)
            begun = time.process_time()
            trained = train_embedder_only(data, settings, REFERENCE, runtime, config=config, seed=seed)
            cpu_s = round(time.process_time() - begun, 1)
            score = round(trained.history[-1]["score"], 4)
            yield {"net": net, "score": score, "cpu_s": cpu_s, "architecture": architecture}


def load_rows(name: str, settings: Settings, options: Options) -> TaskData:
    """Training and validation rows as a run has them, cut to `MOST_ROWS` and `MOST_VALID`."""
    bench, _, task_name = name.partition("/")
    task = find_tasks(bench, [task_name])[0]
    folder = Path(options.out) / "prepared" / bench / task_name
    data = load_data(prepare(find_raw(task, options.data_dir), folder, settings.data))
    train, valid = (pa.concat_tables(source.tables()).combine_chunks() for source in (data.train, data.valid))
    order = np.random.default_rng(0).permutation(len(train))
    most = 200 if options.quick else min(MOST_ROWS, 2 * (len(train) + len(valid)) // 3)
    kept, spare = train.take(order[:most]), train.take(order[most:])
    rows = pa.concat_tables([valid, spare]).combine_chunks().slice(0, 200 if options.quick else MOST_VALID)
    return replace(data, train=InMemorySource(kept), valid=InMemorySource(rows))


def draw_architectures(settings: Settings, data: TaskData, searched: Architecture, seed: int) -> list[Architecture]:
    """Return, of 400 random architectures of the operation set the `RANDOM` whose number of weights is nearest to the
    found one's.
    """
    channels = make_embedder_config(settings, data, REFERENCE, BACKBONE).channels
    widths = [settings.data.channels] + [c for c in channels for _ in range(len(searched) // len(channels))]

    def count(architecture: Architecture) -> int:
        return sum(k * widths[i] * widths[i + 1] for i, (k, _) in enumerate(architecture))

    operations = OperationSet(settings.search.kernel_sizes, settings.search.dilations).operations
    generator = np.random.default_rng([seed, data.length_bp])
    drawn = [[operations[i] for i in generator.integers(len(operations), size=len(searched))] for _ in range(400)]
    others = [architecture for architecture in drawn if architecture != searched]
    return sorted(others, key=lambda one: abs(count(one) - count(searched)))[:RANDOM]


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return mean scores a task; in the last row those of all tasks, and under each net how many pairs DASH wins and
    loses against it with the two-sided p of the sign test.
    """
    nets = [net for net in dict.fromkeys(row["net"] for row in rows) if net != "search"]
    scores = {(row["task"], row["seed"], row["net"]): row["score"] for row in rows}
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    table = []
    for label, chosen in [*((task, [task]) for task in tasks), ("all", tasks)]:
        means = {net: [s for (t, _, n), s in scores.items() if n == net and t in chosen] for net in nets}
        table.append({"task": label} | {net: round(float(np.mean(found)), 4) for net, found in means.items() if found})
    signs: dict[str, Any] = {"task": "DASH wins : loses (p)"}
    for net in nets:
        differences = [scores[t, s, "dash"] - x for (t, s, n), x in scores.items() if n == net != "dash"]
        wins, losses = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
        signs[net] = f"{wins} : {losses} ({sign_test(wins, losses):.2f})" if differences else ""
    return [*table, signs]


def sign_test(wins: int, losses: int) -> float:
    """Return two-sided p that a fair coin is at least as uneven; ties count for neither."""
    n = wins + losses
    return min(1.0, 2 * sum(comb(n, k) for k in range(max(wins, losses), n + 1)) / 2**n) if n else 1.0
