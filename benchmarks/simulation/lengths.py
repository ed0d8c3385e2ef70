"""How long the trials of real runs were, and tasks made of them.

`python -m benchmarks.simulation.lengths RUN...` prints the JSON beside this file from finished suites' folders.
"""

from __future__ import annotations

import json
import random
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l2g_ray.config import FinetuneSettings, Settings
from l2g_ray.counts import rung_epochs, survives
from l2g_ray.presets import resolve

RECORDED = Path(__file__).with_name("recorded.json")


@dataclass(frozen=True)
class Recorded:
    """One task of a real run: CPU seconds of an epoch of each stage, by trial, and of the evaluation.

    A trial has one thread, so that on a machine of its own its wall time is little more than that. `work` and `chain`
    are what the plan says of the task, in FLOP (`plan.order.Length`).
    """

    name: str
    epochs_s: dict[str, list[list[float]]]
    evaluate_s: float
    work: float
    chain: float


def read_recorded(path: Path = RECORDED) -> list[Recorded]:
    """All tasks of the file."""
    return [Recorded(**one) for one in json.loads(path.read_text())["tasks"]]


@dataclass(frozen=True)
class Script:
    """What every trial of a task takes, in seconds, epoch by epoch; by stage, in the order of the stage's trials.

    A stage that has no line takes no time. `settings` say how many trials there are.
    """

    name: str
    settings: Settings
    stages: dict[str, list[list[float]]]
    work: float
    chain: float

    @property
    def total_s(self) -> float:
        """Seconds of all trials."""
        return sum(sum(epochs) for trials in self.stages.values() for epochs in trials)

    def trial(self, stage: str, index: int) -> list[float]:
        """Seconds of each epoch of a stage's trial; further trials than were recorded are as the recorded ones."""
        trials = self.stages.get(stage)
        return trials[index % len(trials)] if trials else [0.0]


def script_as_recorded(task: Recorded) -> Script:
    """The preset `fast`, as it was run: with as many backbones, alphas and trials as were recorded."""
    fast = resolve("fast", None, {})
    # A single backbone is not trained, so nothing of it was recorded.
    backbones = fast.select.backbones[: len(task.epochs_s.get("select", "1"))]
    counts = {"select.backbones": backbones, "align.alphas": fast.align.alphas[-len(task.epochs_s["align"]) :]}
    counts |= {"select.kernel_sizes": (), "search.enabled": "search" in task.epochs_s}
    arms = {"folds": 0, "arms": ["embedder_only", "l2g"]}
    settings = resolve("fast", None, {"finetune.trials": len(task.epochs_s["trials"]), **counts, **arms})
    stages = task.epochs_s | {"evaluate": [[task.evaluate_s]]}
    return Script(task.name, settings, stages, task.work, task.chain)


def script_paper(task: Recorded, seed: int = 0) -> Script:
    """The shape of the preset `paper` (3 seeds, 24 trials by ASHA) with the recorded seconds of an epoch.

    ASHA's rule decides on random scores which trials continue.
    """
    settings = resolve("paper", None, {})
    mean = {stage: _mean(trials) for stage, trials in task.epochs_s.items()}
    aligning = settings.align.epochs - settings.align.task_only_epochs
    epochs = {
        "select": [settings.select.epochs] * len(settings.select.backbones),
        "search": [settings.search.epochs],
        "warmup": [settings.align.task_only_epochs],
        "align": [aligning],
        "embedder_only": [settings.embedder_only.count_epochs(1)],
        "trials": _draw_epochs(settings.finetune, random.Random(f"{task.name} {seed}")),
        "refit": [settings.finetune.epochs],
    }
    stages = {stage: [[mean[stage]] * n for n in counts] for stage, counts in epochs.items()}
    stages["evaluate"] = [[task.evaluate_s * settings.seeds]]
    works = {stage: sum(map(sum, trials)) for stage, trials in stages.items()}
    works |= {stage: settings.seeds * works[stage] for stage in ("warmup", "align", "embedder_only", "refit")}
    beside = works.pop("embedder_only")
    chain = sum(works.values()) - works["trials"] * (1 - 1 / settings.finetune.parallel_trials)
    # The plan knows the order of the tasks, which is what counts, from the run that was recorded.
    share = task.work / sum(sum(map(sum, trials)) for trials in task.epochs_s.values())
    return Script(task.name, settings, stages, share * (sum(works.values()) + beside), share * chain)


def _mean(trials: list[list[float]]) -> float:
    every = [seconds for epochs in trials for seconds in epochs]
    return sum(every) / len(every)


def _draw_epochs(stage: FinetuneSettings, generator: random.Random) -> list[int]:
    rungs = rung_epochs(stage.grace_epochs, stage.epochs, stage.reduction_factor)
    recorded: list[dict[int, float]] = [{} for _ in rungs]
    drawn = []
    for trial in range(stage.trials):
        score, reached = generator.random(), stage.epochs
        for rung, scores in zip(rungs, recorded, strict=True):
            peers = [s for other, s in scores.items() if other <= trial - stage.parallel_trials]
            scores[trial] = score
            if not survives(score, peers, stage.reduction_factor):
                reached = rung
                break
        drawn.append(reached)
    return drawn


def record(runs: list[Path]) -> dict[str, Any]:
    """What the JSON file holds, of the tasks of finished suites."""
    from l2g_ray.plan.finished import read_settings
    from l2g_ray.plan.order import estimate_length
    from l2g_ray.plan.rows import rows_of_manifest
    from l2g_ray.tasks.schema import Task

    tasks, origins = [], []
    for run in runs:
        suite = json.loads((run / "suite.json").read_text())
        origins.append({key: suite[key] for key in ("git_revision", "started", "machine")})
        # Folders of the machine say nothing.
        origins[-1]["command"] = re.sub(r"--(data-dir|out) \S+", r"--\1 DIR", suite["command"])
        for name, raw in suite["settings"].items():
            settings = read_settings(raw)
            folder = run / name
            stages, manifest = (json.loads((folder / f"{file}.json").read_text()) for file in ("stages", "task"))
            fields = {key: value for key, value in manifest["task"].items() if key in Task.model_fields}
            rows = rows_of_manifest(manifest["splits"], "prepared data")
            length = estimate_length(Task.model_validate(fields), settings, rows, False)
            epochs: dict[str, list[list[float]]] = {}
            for key, history in stages["histories"].items():
                stage = key.partition("/")[0]
                own = history[settings.align.task_only_epochs :] if stage == "align" else history
                stage = {"finetune": "trials"}.get(stage, stage)
                epochs.setdefault(stage, []).append([round(row["cpu_s"], 2) for row in own])
            evaluate = next((s["cpu_s"] for s in stages.get("spent", []) if s["stage"] == "evaluate"), None)
            one = {"name": f"{manifest['task']['bench']}/{name} {run.name}", "epochs_s": epochs}
            tasks.append(one | {"evaluate_s": evaluate, "work": length.work, "chain": length.chain})
    # Runs of earlier versions did not time the evaluation: what the others took, of the order of their tests.
    known = [task["evaluate_s"] for task in tasks if task["evaluate_s"] is not None]
    for task in tasks:
        task["evaluate_s"] = round(task["evaluate_s"] or sum(known) / len(known), 2)
    return {"origins": origins, "tasks": tasks}


if __name__ == "__main__":
    print(json.dumps(record([Path(argument) for argument in sys.argv[1:]]), indent=1))
