"""Which task starts first, and how many run at once, so that slots stay busy to the end.

Long tasks first, by the plan's own estimate: what starts last should be short, or slots wait for it at the end. Ray
decides which trial gets a slot; nothing here does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from l2g_ray.config import Settings
from l2g_ray.counts import list_candidates
from l2g_ray.plan.costs import Found, StagePlan
from l2g_ray.plan.encoder import read_shape
from l2g_ray.plan.plan import plan_task
from l2g_ray.plan.rows import Rows
from l2g_ray.stages.registry import find_shown
from l2g_ray.tasks.schema import Task

FEWEST_TO_PLAN = 4  # up to three tasks start together or nearly so, and a plan takes seconds


@dataclass(frozen=True)
class Length:
    """Of one task, in FLOP: `work` is that of all trials, `chain` that of the stages one after the other, with as many
    slots as they can use. `work / chain` slots are busy on average when it runs alone."""

    work: float
    chain: float


def estimate_length(task: Task, settings: Settings, rows: Rows, on_gpu: bool) -> Length:
    """From the plan, for the first candidate of `select`."""
    first = list_candidates(settings.select)[0]
    found = Found(first.backbone, tuple(first.architecture))
    plan = plan_task(task, settings, rows, read_shape(settings.model.language_model), on_gpu=on_gpu, found=found)
    chain = [_chain(stage, settings) for stage in plan.stages if not find_shown(stage.stage).beside]
    return Length(plan.total("expected").flops, sum(chain))


def _chain(stage: StagePlan, settings: Settings) -> float:
    wide = settings.finetune.parallel_trials if stage.stage == "trials" else stage.expected.trials
    return stage.expected.flops / max(1, min(wide, stage.expected.trials))


def order_tasks(lengths: Mapping[str, Length]) -> list[str]:
    """Return names, the longest first; equals in the order given."""
    return sorted(lengths, key=lambda name: -lengths[name].work)


def count_at_once(lengths: Mapping[str, Length], slots: int) -> int:
    """Return how many tasks to run at once.

    Slots + 1, so that a stage of one trial leaves no slot idle. If the longest chain takes longer than all work would on
    these slots: the number that fills the slots on average, + 1. Trials of more tasks would be queued before those of the
    longest task, which ends last.
    """
    work, chains = sum(one.work for one in lengths.values()), sum(one.chain for one in lengths.values())
    longest = max((one.chain for one in lengths.values()), default=0.0)
    if chains <= 0 or longest <= work / slots:
        return slots + 1
    return math.ceil(slots * chains / work) + 1
