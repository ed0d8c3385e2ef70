"""How many tokens and layers of the language model pay: validation score against CPU seconds of L2G.

A run of L2G alone for each number of tokens and layers, trained and searched as in `fast`. The score is the best trial's on
validation, which chooses nothing else here. Results are appended to `model_size.jsonl` in `--out` as they come, and what is there is not
measured again; `model_size.png` shows them, points on the front filled.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.l2g_runs import QUICK, TASKS, has_data, run_l2g
from benchmarks.measure import Kept, Options

ONLY_BY_NAME = True
SEEDS = (0, 1, 2)
TOKENS = (8, 16, 32, 64)
LAYERS = (1, 3, 6)
# Stages that L2G alone has; the choice of a backbone is the same for all.
STAGES = ("reference", "warmup", "align", "finetune")


def run(options: Options) -> list[dict[str, Any]]:
    """Return one row a task, tokens and layers: mean and spread of the score, CPU seconds, and whether nothing is
    better for less.
    """
    kept = Kept("model_size", options)
    tasks, seeds, tokens = (TASKS[:1], SEEDS[:1], TOKENS[:2]) if options.quick else (TASKS, SEEDS, TOKENS)
    for seed in seeds:
        for name in tasks:
            if not has_data(name, options):
                continue
            for n_tokens in tokens:
                for n_layers in LAYERS[:1] if options.quick else LAYERS:
                    case = {"task": name, "seed": seed, "tokens": n_tokens, "layers": n_layers}
                    if kept.has(case):
                        continue
                    given = {"seed": seed, "model.target_tokens": n_tokens, "model.language_model_layers": n_layers}
                    given |= QUICK if options.quick else {}
                    stages = run_l2g(name, f"tokens{n_tokens}-layers{n_layers}-{seed}", given, options)
                    score = max(trial["best_score"] for trial in stages["trials"])
                    cpu_s = sum(stages["cpu_s"].get(stage, 0.0) for stage in STAGES)
                    kept.add(case | {"score": round(score, 4), "cpu_s": round(cpu_s, 1)})
    if not kept.rows:
        return []
    table = summarise(kept.rows)
    if not options.quick:
        draw(table, options.out / "model_size.png")
    return table


def summarise(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds; `front` where no other of the task scores at least as much for fewer CPU seconds."""
    table = []
    for task, tokens, layers in dict.fromkeys((row["task"], row["tokens"], row["layers"]) for row in rows):
        mine = [row for row in rows if (row["task"], row["tokens"], row["layers"]) == (task, tokens, layers)]
        scores = [row["score"] for row in mine]
        table.append(
            {
                "task": task,
                "tokens": tokens,
                "layers": layers,
                "seeds": len(mine),
                "score": round(float(np.mean(scores)), 4),
                "sd": round(float(np.std(scores)), 4),
                "cpu_s": round(float(np.mean([row["cpu_s"] for row in mine])), 1),
            }
        )
    for one in table:
        rivals = [other for other in table if other["task"] == one["task"] and other is not one]
        one["front"] = not any(o["score"] >= one["score"] and o["cpu_s"] < one["cpu_s"] for o in rivals)
    return table


def draw(table: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw a panel a task, a line a number of layers, a point a number of tokens."""
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(row["task"] for row in table))
    figure = Figure(figsize=(4 * len(tasks), 3.2), layout="constrained")
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        for layers, colour in zip(LAYERS, ("tab:blue", "tab:orange", "tab:green"), strict=True):
            points = [row for row in table if (row["task"], row["layers"]) == (task, layers)]
            spent, scores = [row["cpu_s"] for row in points], [row["score"] for row in points]
            axes.plot(spent, scores, color=colour, label=f"{layers} layer{'s' if layers > 1 else ''}", linewidth=1)
            for row in points:
                filled = colour if row["front"] else "white"
                axes.plot(row["cpu_s"], row["score"], "o", color=colour, markerfacecolor=filled)
                axes.annotate(str(row["tokens"]), (row["cpu_s"], row["score"]), (4, 4), textcoords="offset points")
        axes.set(title=f"{task}, by tokens", xlabel="CPU seconds of L2G", ylabel="validation score", xscale="log")
        axes.legend()
    figure.savefig(path, dpi=110)
