"""What ASHA and HyperOpt bring to fine-tuning: validation reached against epochs spent, beside random search to the end.

Each side searches the settings of fine-tuning on one split with the same number of trials, in trial order as a slot would run
them: `random` trains every trial to the end, `asha` stops the worse ones, `asha_hyperopt` also draws what it tries by what it saw.
Backbone and alignment before it are shared. Nothing is chosen by a test score. Results are appended to `tuning.jsonl` in `--out` as
they come, and what is there is not measured again; `tuning.png` shows the curves.
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
TRIALS, EPOCHS, INITIAL = 24, 8, 8
METHODS: dict[str, dict[str, int]] = {
    "random": {"finetune.grace_epochs": EPOCHS, "finetune.initial_random_trials": TRIALS},
    "asha": {"finetune.grace_epochs": 1, "finetune.initial_random_trials": TRIALS},
    "asha_hyperopt": {"finetune.grace_epochs": 1, "finetune.initial_random_trials": INITIAL},
}
# Ranges wider than those of `fast`, which need little search, and a small model: this is about the search.
SPACE: dict[str, Any] = {
    "model.language_model_layers": 1,
    "model.target_tokens": 8,
    "finetune.lr_embedder": [1e-5, 1e-2],
    "finetune.lr_language_model": [1e-6, 1e-3],
    "finetune.dropout": [0.0, 0.05, 0.2],
    "finetune.train_layers": ["all", "top_half"],
}
WITHIN = 0.005


def run(options: Options) -> list[dict[str, Any]]:
    """Return one row a task and method: best validation score and epochs spent, means over seeds, and the share of
    what `random` spends at which the score of `random`, less half a point, is reached.
    """
    kept = Kept("tuning", options)
    tasks, seeds = (TASKS[:1], SEEDS[:1]) if options.quick else (TASKS, SEEDS)
    for seed in seeds:
        for name in tasks:
            if not has_data(name, options):
                continue
            for method in METHODS:
                case = {"task": name, "seed": seed, "method": method}
                if not kept.has(case):
                    kept.add(case | search(name, method, seed, options))
    if not kept.rows:
        return []
    if not options.quick:
        draw(kept.rows, options.out / "tuning.png")
    return summarise(kept.rows)


def search(name: str, method: str, seed: int, options: Options) -> dict[str, Any]:
    """Return the epochs and best score of each trial, in order, and what the search cost."""
    given = {"seed": seed, "finetune.trials": TRIALS, "finetune.epochs": EPOCHS, **SPACE, **METHODS[method]}
    if options.quick:
        grace = min(QUICK["finetune.epochs"], METHODS[method]["finetune.grace_epochs"])
        given |= QUICK | {"finetune.grace_epochs": grace}
    trials = run_l2g(name, f"{method}-{seed}", given, options)["trials"]
    return {
        "epochs": [trial["epochs"] for trial in trials],
        "scores": [[round(epoch["best_score"], 4) for epoch in trial["history"]] for trial in trials],
        "cpu_s": round(sum(trial["cpu_s"] for trial in trials), 1),
    }


def follow(row: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Epochs spent and the best score until then, both (n,): trials one after the other."""
    scores = np.concatenate([np.asarray(one, float) for one in row["scores"] if one])
    return np.arange(1, len(scores) + 1), np.maximum.accumulate(scores)


def summarise(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds of each task and method."""
    by_case = {(row["task"], row["seed"], row["method"]): row for row in rows}
    table = []
    for task in dict.fromkeys(row["task"] for row in rows):
        for method in METHODS:
            mine = [row for (t, _, m), row in by_case.items() if (t, m) == (task, method)]
            shares = [
                share
                for row in mine
                if (other := by_case.get((task, row["seed"], "random"))) is not None
                and (share := find_share(row, other)) is not None
            ]
            best = [float(follow(row)[1][-1]) for row in mine]
            table.append(
                {
                    "task": task,
                    "method": method,
                    "seeds": len(mine),
                    "best": round(float(np.mean(best)), 4) if best else None,
                    "sd": round(float(np.std(best)), 4) if best else None,
                    "epochs": round(float(np.mean([len(follow(row)[0]) for row in mine])), 1) if mine else None,
                    "cpu_s": round(float(np.mean([row["cpu_s"] for row in mine])), 1) if mine else None,
                    "reach random's score": f"{len(shares)} of {len(mine)}",
                    "at a share of its epochs": round(float(np.mean(shares)), 2) if shares else None,
                }
            )
    return table


def find_share(row: dict[str, Any], random: dict[str, Any]) -> float | None:
    """Epochs at which a search comes within half a point of what `random` ends at, against all that `random` spends."""
    spent, best = follow(row)
    wanted = follow(random)[1][-1] - WITHIN
    return float(spent[int(np.argmax(best >= wanted))] / len(follow(random)[0])) if best[-1] >= wanted else None


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw a panel a task: best validation score against epochs spent, the mean over seeds and each seed."""
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure = Figure(figsize=(4 * len(tasks), 3.2), layout="constrained")
    for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
        for method, colour in zip(METHODS, ("0.45", "tab:orange", "tab:blue"), strict=True):
            curves = [follow(row) for row in rows if (row["task"], row["method"]) == (task, method)]
            for spent, best in curves:
                axes.step(spent, best, where="post", color=colour, alpha=0.25, linewidth=1)
            if curves:
                longest = np.arange(1, max(len(spent) for spent, _ in curves) + 1)
                mean = np.mean([np.interp(longest, spent, best) for spent, best in curves], 0)
                axes.step(longest, mean, where="post", color=colour, label=method.replace("_", " + "), linewidth=2)
        axes.set(title=task, xlabel="epochs spent", ylabel="best validation score")
        axes.set_ylim(bottom=float(np.quantile([follow(row)[1][2] for row in rows if row["task"] == task], 0.1)))
        axes.legend(loc="lower right")
    figure.savefig(path, dpi=110)
