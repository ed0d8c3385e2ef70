"""Runs of L2G alone on one split, for benchmarks that compare its settings on validation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import l2g_ray as l2g
from benchmarks.measure import Options
from l2g_ray.data.sources.official import find_folder
from l2g_ray.tasks.catalogue import find_tasks

TASKS = ("uci/splice_junction", "gue/mouse_2", "mpra/yeast_native_promoters")
# What makes a run of a minute, to see that a benchmark runs.
QUICK: dict[str, Any] = {
    "finetune.trials": 3,
    "finetune.epochs": 2,
    "finetune.initial_random_trials": 3,
    "align.epochs": 2,
    "align.task_only_epochs": 1,
}


def has_data(name: str, options: Options) -> bool:
    """Return whether the files of BENCH/TASK are there."""
    bench, _, task = name.partition("/")
    return find_folder(find_tasks(bench, [task])[0], options.data_dir) is not None


def run_l2g(name: str, label: str, settings: Mapping[str, Any], options: Options) -> dict[str, Any]:
    """Return what `stages.json` of the run has: trials of fine-tuning with their epochs, CPU seconds by stage.

    Runs in `--out` share finished stages. Scores are of the given validation split.
    """
    found = l2g.run(
        name,
        settings={"folds": 0, **settings},
        arms=["l2g"],
        language_model="minilm",
        data_dir=options.data_dir,
        out=options.out / "runs",
        name=f"{name.replace('/', '-')}-{label}",
        replace=True,
        cpus=options.threads,
        quiet=True,
    )
    content: dict[str, Any] = json.loads((Path(found.folder) / name.partition("/")[2] / "stages.json").read_text())
    return content
