"""What L2G adds to the stack, against one more embedder and against the same method with a language model of random weights.

On held-out rows of finished runs: the stack of all arms but L2G, the same with L2G, and the same with the embedder of the next seed
as one more arm. Each stack is fitted to the rows of the other folds; no test row is read. `--out` is a folder of finished
runs of two seeds or more that have L2G; those with `model.language_model_init: random` are compared with the others of their task.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.measure import Options
from l2g_ray.arms import ENSEMBLE, WITHOUT
from l2g_ray.results.intervals import ArmScores, read_outputs
from l2g_ray.stages.evaluate import Stacker
from l2g_ray.tasks.catalogue import find_tasks
from l2g_ray.tasks.schema import Task

ONLY_BY_NAME = True
RESAMPLES = 1000
# Of the leaderboard's costs, the stages that only L2G has.
L2G_STAGES = ("warmup", "align", "trials", "refit")


def run(options: Options) -> list[dict[str, Any]]:
    """Return one row a run: the metric of the stack without L2G, what each addition gains with its interval, CPU
    seconds a seed.
    """
    torch.set_num_threads(options.threads)
    table = []
    for path in sorted(options.out.glob("*/*/oof.parquet")):
        suite = json.loads((path.parents[1] / "suite.json").read_text())
        frame = pd.read_parquet(path)
        seeds = frame["seed"].nunique()
        if "l2g" not in set(frame["arm"]) or seeds < 2:
            continue
        model = suite["settings"][path.parent.name]["model"]
        spent = suite["costs"][path.parent.name]
        table.append(
            {
                "task": f"{suite['bench']}/{path.parent.name}",
                "weights": model["language_model_init"],
                "layers": model["language_model_layers"],
                "tokens": model["target_tokens"],
                "seeds": seeds,
                **compare(find_tasks(suite["bench"], [path.parent.name])[0], frame, options.quick),
                "L2G, CPU s a seed": _cost(spent, L2G_STAGES) / seeds,
                "embedder, CPU s a seed": _cost(spent, ("embedder_only",)) / seeds,
            }
        )
    return table


def compare(task: Task, frame: pd.DataFrame, quick: bool = False) -> dict[str, Any]:
    """Return the stack without L2G, L2G alone, and the differences that L2G and one more embedder make: (mean, low,
    high).
    """
    frame = frame[(frame["arm"] != ENSEMBLE) & ~frame["arm"].str.startswith(WITHOUT)]
    parts = {(a, s): part.sort_values("id").reset_index(drop=True) for (a, s), part in frame.groupby(["arm", "seed"])}
    arms, seeds = [a for a in frame["arm"].unique() if a != "l2g"], sorted(frame["seed"].unique())
    stacked = []
    for place, seed in enumerate(seeds):
        others = {arm: parts[arm, seed] for arm in arms}
        sides = {
            "without": others,
            "l2g": others | {"l2g": parts["l2g", seed]},
            "embedder": others | {"one more": parts["embedder_only", seeds[(place + 1) % len(seeds)]]},
        }
        stacked += [_stack(task, members).assign(arm=side, seed=seed) for side, members in sides.items()]
        stacked.append(parts["l2g", seed].assign(arm="l2g alone"))
    scores = ArmScores(task, pd.concat(stacked), 100 if quick else RESAMPLES, 0)
    row: dict[str, Any] = {"metric": task.metric, "stack": round(scores.summarise("without")["mean"], 4)}
    row["l2g alone"] = round(scores.summarise("l2g alone")["mean"], 4)
    for side, against in (("l2g", "without"), ("embedder", "without"), ("l2g", "embedder")):
        found = scores.subtract(side, against)
        name = f"+ {side}" if against == "without" else f"{side} over {against}"
        row[name] = [round(float(value), 4) for value in (found["mean"], *found["ci95"])]
    return row


def _stack(task: Task, members: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return the first member's rows with the outputs of the cross-fitted stack of all."""
    first = next(iter(members.values()))
    labels, _ = read_outputs(task, first)
    offset, scale = torch.zeros(task.n_outputs), torch.ones(task.n_outputs)
    if task.kind == "regression":
        offset, scale = torch.from_numpy(np.nanmean(labels, 0)), torch.from_numpy(np.nanstd(labels, 0))
    stacker = Stacker(
        task.kind, {arm: read_outputs(task, one)[1] for arm, one in members.items()}, labels, offset, scale
    )
    outputs = stacker.cross_fit("stack", first["fold"].to_numpy())
    prefix = "prediction" if task.kind == "regression" else "probability"
    changed = first.assign(**{f"{prefix}_{name}": outputs[:, i] for i, name in enumerate(task.labels)})
    return changed.assign(prediction=np.array(task.labels)[outputs.argmax(1)]) if task.is_classification else changed


def _cost(spent: Mapping[str, Mapping[str, float]], stages: tuple[str, ...]) -> float:
    return round(sum(spent[stage]["cpu_s"] for stage in stages if stage in spent), 1)
