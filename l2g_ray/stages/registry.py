"""The stages: what keys, plan, progress and Ray must know of each, without what computes it.

A new stage is an entry here, a module with its function, and a line in `orchestrate.pipeline` that says when it runs.
Kept free of torch and Ray: drivers and pipelines read it.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from l2g_ray.errors import UserError, nearest

if TYPE_CHECKING:
    from l2g_ray.stages.context import Context

    Run = Callable[[Context, dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Stage:
    """Everything of a stage but its computation.

    Parameters
    ----------
    name : in keys, folders of the store, events and files.
    version : part of every key; raise it when a change of code changes the stage's results.
    run : `module:function` of what computes it from a `stages.context.Context` and the job's arguments; empty where the
        pipeline makes the result from those of another stage.
    count : `module:function` of what a plan counts: (`plan.plan.Sizer`, `plan.plan.Variant`, the stage's name) to amounts by
        the names that are shown, none where it does not run. Empty: it takes next to nothing.
    tuned : its jobs are trials of Ray Tune, but for those of a fold, which choose nothing; otherwise they are Ray tasks.
    teamed : with several workers a trial, all of them train one model; otherwise one process does.
    beside : only `evaluate` waits for it, so it runs at the same time as other stages.
    arm : its models are members of an arm, and predict the rows that they are held out from.
    pretrained : it uses the language model after continued pre-training, where there was any.
    kind : jobs of all stages of one kind need the same memory; the name if empty.
    shown : its name in plans and costs; the name if empty.
    """

    name: str
    version: int
    run: str = ""
    count: str = ""
    tuned: bool = False
    teamed: bool = True
    beside: bool = False
    arm: bool = False
    pretrained: bool = False
    kind: str = ""
    shown: str = ""

    def load(self) -> Run:
        """Import and return the stage's function."""
        return pkgutil.resolve_name(self.run)  # type: ignore[no-any-return]


_SIZER = "l2g_ray.plan.plan:Sizer"
# In the order of a plan.
_ALL = (
    Stage("precision", 1),  # a choice for all tasks of a run: `orchestrate.precision`
    Stage("pretrain", 1, "l2g_ray.stages.pretrain:run", f"{_SIZER}.count_pretrain", teamed=False),
    Stage("reference", 2, "l2g_ray.stages.reference:run", f"{_SIZER}.count_reference", teamed=False, pretrained=True),
    Stage("select", 2, "l2g_ray.stages.select:run", f"{_SIZER}.count_select", tuned=True),
    Stage("search", 2, "l2g_ray.stages.search:run", f"{_SIZER}.count_search", tuned=True),
    Stage("warmup", 2, "l2g_ray.stages.align:run_warmup", f"{_SIZER}.count_warmup", tuned=True),
    Stage("align", 2, "l2g_ray.stages.align:run", f"{_SIZER}.count_align", tuned=True),
    Stage(
        "embedder_only", 3, "l2g_ray.stages.embedder_only:run", f"{_SIZER}.count_embedder_arm", beside=True, arm=True
    ),
    Stage("baseline", 4, "l2g_ray.stages.baseline:run", f"{_SIZER}.count_arms", teamed=False, beside=True, arm=True),
    Stage(
        "trial", 2, "l2g_ray.stages.finetune:run_trial", f"{_SIZER}.count_trials", tuned=True, pretrained=True,
        kind="finetune", shown="trials",
    ),
    Stage("finetune", 2, shown="trials"),  # the search as a whole: what its trials take
    Stage(
        "refit", 2, "l2g_ray.stages.finetune:run_refit", f"{_SIZER}.count_refit", arm=True, pretrained=True,
        kind="finetune",
    ),
    Stage("evaluate", 3, "l2g_ray.stages.evaluate:run", f"{_SIZER}.count_evaluate", teamed=False),
)  # fmt: skip
STAGES: dict[str, Stage] = {stage.name: stage for stage in _ALL}


def find_stage(name: str) -> Stage:
    """Return a registered stage. Raises UserError for an unknown name."""
    if name not in STAGES:
        raise UserError(f"unknown stage '{name}': {nearest(name, STAGES)}; register it in l2g_ray/stages/registry.py")
    return STAGES[name]


def show_stage(name: str) -> str:
    """Return the name that plans and costs have for a stage; other names, such as a baseline's, as they are."""
    return (STAGES[name].shown if name in STAGES else "") or name


def find_shown(shown: str) -> Stage:
    """Return the stage that plans and costs call `shown`. Baselines go by names that are no stage's."""
    return next((stage for stage in STAGES.values() if show_stage(stage.name) == shown), STAGES["baseline"])


def list_versions() -> dict[str, int]:
    """Return by name the versions of all stages that have results of a task."""
    return {stage.name: stage.version for stage in STAGES.values() if stage.run or stage.shown}
