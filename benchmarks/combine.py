"""How arms are combined, on held-out rows of finished runs: weights fitted to single fold models, applied to bags of seeds.

A run predicts with means of fold models, but its weights are fitted to predictions of single ones. Where a run has several seeds,
the mean of an arm's seeds for a held-out row stands for such a bag. Weights are fitted to one seed's rows of the other folds;
`on bags` fits them to the bags themselves. `--out` is a folder of finished runs; no test row is read.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.measure import Options
from l2g_ray.arms import ENSEMBLE, WITHOUT
from l2g_ray.models.ensemble import Combination, to_predictions
from l2g_ray.results.intervals import read_outputs
from l2g_ray.stages.evaluate import Stacker
from l2g_ray.tasks.catalogue import find_tasks
from l2g_ray.tasks.metrics import score
from l2g_ray.tasks.schema import Task

ONLY_BY_NAME = True
# Share of equal weights that is mixed into the fitted ones.
SHRINKAGE = 0.5

Fit = Callable[[Stacker, np.ndarray], Combination]


def run(options: Options) -> list[dict[str, Any]]:
    """Return one row a task of every run: the metric of the bags combined each way, mean over the seeds that weights
    were fitted to.
    """
    torch.set_num_threads(options.threads)
    table = []
    for path in sorted(options.out.glob("*/*/oof.parquet")):
        bench = _find_bench(path)
        task = find_tasks(bench, [path.parent.name])[0]
        rows = pd.read_parquet(path)
        if rows["seed"].nunique() > 1:
            table.append({"task": f"{bench}/{task.name}", "metric": task.metric, **compare(task, rows)})
    return table


def compare(task: Task, rows: pd.DataFrame) -> dict[str, Any]:
    """Return the metric of single arms, of their bags (as the best one), and of the bags combined each way."""
    arms = [arm for arm in rows["arm"].unique() if arm != ENSEMBLE and not arm.startswith(WITHOUT)]
    seeds = sorted(rows["seed"].unique())
    found = {(a, s): read_outputs(task, part.sort_values("id")) for (a, s), part in rows.groupby(["arm", "seed"])}
    labels = found[arms[0], seeds[0]][0]
    fold = rows[(rows["arm"] == arms[0]) & (rows["seed"] == seeds[0])].sort_values("id")["fold"].to_numpy()
    offset, scale = torch.zeros(task.n_outputs), torch.ones(task.n_outputs)
    if task.kind == "regression":
        offset, scale = torch.from_numpy(np.nanmean(labels, 0)), torch.from_numpy(np.nanstd(labels, 0))
    bags = {arm: np.mean([found[arm, seed][1] for seed in seeds], axis=0) for arm in arms}
    bagged = Stacker(task.kind, bags, labels, offset, scale)

    def combine(single: Stacker, fit: Fit) -> float:
        outputs = torch.zeros_like(bagged.evidence[0])
        for one in np.unique(fold):
            inside = fold == one
            combination = fit(single, ~inside)
            outputs[inside] = combination.combine({a: bagged.predictions[a][inside] for a in combination.arms})
        return float(score(task.kind, task.metric, labels, to_predictions(task.kind, outputs).numpy()))

    ways: dict[str, Fit] = {how: lambda s, rows, how=how: s.fit(how, rows=rows) for how in ("stack", "greedy", "mean")}  # type: ignore[misc]
    ways[f"stack, {SHRINKAGE:.0%} equal"] = _shrink
    singles = [Stacker(task.kind, {a: found[a, s][1] for a in arms}, labels, offset, scale) for s in seeds]
    single = {arm: np.mean([score(task.kind, task.metric, labels, found[arm, s][1]) for s in seeds]) for arm in arms}
    bag = {arm: score(task.kind, task.metric, labels, bags[arm]) for arm in arms}
    best = max(bag, key=lambda arm: bag[arm])
    row: dict[str, Any] = {"best arm": best, "single": round(float(single[best]), 4), "bag": round(float(bag[best]), 4)}
    for name, fit in ways.items():
        row[name] = round(float(np.mean([combine(one, fit) for one in singles])), 4)
    return row | {"stack on bags": round(combine(bagged, ways["stack"]), 4)}


def _shrink(stacker: Stacker, rows: np.ndarray) -> Combination:
    fitted = stacker.fit("stack", rows=rows)
    equal = sum(fitted.weights) / len(fitted.weights)
    return replace(fitted, weights=tuple((1 - SHRINKAGE) * weight + SHRINKAGE * equal for weight in fitted.weights))


def _find_bench(path: Path) -> str:
    return str(json.loads((path.parents[1] / "suite.json").read_text())["bench"])
