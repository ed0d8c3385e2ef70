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
    """One task of a real run: epochs and CPU seconds of every trial, by stage, simple arms under their own names, in the
    order in which the run asked for them; of the evaluation, the seconds for one seed.

    A trial has one thread, so that on a machine of its own its wall time is little more than that. `work` and `chain`
    are what the plan says of the task with one seed, in FLOP (`plan.order.Length`).
    """

    name: str
    arms: list[str]
    seeds: int
    trials: dict[str, list[tuple[int, float]]]
    evaluate_s: float
    work: float
    chain: float

    @property
    def total_s(self) -> float:
        """CPU seconds of all trials."""
        return self.evaluate_s + sum(seconds for trials in self.trials.values() for _, seconds in trials)


def read_recorded(path: Path = RECORDED) -> list[Recorded]:
    """Return all tasks of the file."""
    return [Recorded(**one) for one in json.loads(path.read_text())["tasks"]]


@dataclass(frozen=True)
class Script:
    """What every trial of a task takes, in seconds; by stage, in the order in which the pipeline asks for the trials.

    A stage that has no line takes no time. `settings` say how many trials there are.
    """

    name: str
    settings: Settings
    stages: dict[str, list[float]]
    work: float
    chain: float

    def trial(self, stage: str, index: int) -> float:
        """Return seconds of a stage's trial; further trials than were recorded are as the recorded ones."""
        trials = self.stages.get(stage)
        return trials[index % len(trials)] if trials else 0.0


def script_as_recorded(task: Recorded, seeds: int = 1) -> Script:
    """Return the preset `fast` with the arms of the run and its first seeds, whose members come first in the record."""
    settings = resolve("fast", None, {"arms": task.arms, "seeds": seeds})
    stages = {stage: [seconds for _, seconds in trials] for stage, trials in task.trials.items()}
    return Script(task.name, settings, stages | {"evaluate": [task.evaluate_s * seeds]}, task.work, task.chain)


def script_paper(task: Recorded, seed: int = 0) -> Script:
    """Return the shape of the preset `paper` (3 seeds, 24 trials by ASHA) with the recorded mean seconds of an epoch.

    ASHA's rule decides on random scores which trials continue. Simple arms and baselines take what they took.
    """
    settings = resolve("paper", None, {})
    epochs_s = {stage: _mean_epoch(trials) for stage, trials in task.trials.items()}
    align, later_seeds = settings.align, settings.seeds - 1
    epochs = {
        "select": [settings.select.epochs] * len(settings.select.backbones),
        # The recorded runs have no search; its epoch is more than that of a fixed network, by how much is not recorded.
        "search": [settings.search.epochs],
        "warmup": [align.task_only_epochs],
        "align": [align.epochs - align.task_only_epochs, *[align.epochs] * later_seeds],
        "embedder_only": [settings.embedder_only.count_epochs(1)],
        "trials": _draw_epochs(settings.finetune, random.Random(f"{task.name} {seed}")),
        "refit": [settings.finetune.epochs],
    }
    known = epochs_s | {"search": epochs_s["warmup"]}
    stages = {stage: [known[stage] * n for n in counts] for stage, counts in epochs.items()}
    stages["evaluate"] = [task.evaluate_s * settings.seeds]
    works = {stage: sum(trials) for stage, trials in stages.items()}
    works |= {stage: settings.seeds * works[stage] for stage in ("embedder_only", "refit")}
    beside = works.pop("embedder_only")
    chain = sum(works.values()) - works["trials"] * (1 - 1 / settings.finetune.parallel_trials)
    # The plan knows the order of the tasks, which is what counts, from the run that was recorded.
    share = task.work / task.total_s
    return Script(task.name, settings, stages, share * (sum(works.values()) + beside), share * chain)


def _mean_epoch(trials: list[tuple[int, float]]) -> float:
    return sum(seconds for _, seconds in trials) / max(1, sum(epochs for epochs, _ in trials))


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
    """Return what the JSON file holds, of the tasks of finished suites."""
    from l2g_ray.plan.finished import read_settings, read_spent
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
            manifest = json.loads((run / name / "task.json").read_text())
            fields = {key: value for key, value in manifest["task"].items() if key in Task.model_fields}
            rows = rows_of_manifest(manifest["splits"], "prepared data")
            one_seed = settings.model_copy(update={"seeds": 1})
            length = estimate_length(Task.model_validate(fields), one_seed, rows, False)
            trials: dict[str, list[tuple[int, float]]] = {}
            for one in read_spent(run / name):
                trials.setdefault(one.stage, []).append((one.epochs, round(one.cpu_s or 0.0, 2)))
            trials.pop("reference", None)  # of the run, not of the task
            [(_, evaluate_s)] = trials.pop("evaluate")
            tasks.append(
                {
                    "name": f"{manifest['task']['bench']}/{name}",
                    "arms": list(settings.arms),
                    "seeds": settings.seeds,
                    "trials": trials,
                    "evaluate_s": round(evaluate_s / settings.seeds, 2),
                    "work": length.work,
                    "chain": length.chain,
                }
            )
    return {"origins": origins, "tasks": tasks}


if __name__ == "__main__":
    print(json.dumps(record([Path(argument) for argument in sys.argv[1:]])))
