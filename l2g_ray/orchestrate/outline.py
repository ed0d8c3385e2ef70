"""The outline of a task: its stages in order, with the plan's estimate of each."""

from __future__ import annotations

from l2g_ray.arms import ARMS
from l2g_ray.config import Settings
from l2g_ray.counts import list_candidates
from l2g_ray.data.dataset import PreparedTask
from l2g_ray.monitor.outline import Step
from l2g_ray.plan.costs import Found, StagePlan, find_machine, read_known
from l2g_ray.plan.encoder import read_shape
from l2g_ray.plan.plan import plan_task
from l2g_ray.plan.rows import rows_of_manifest

# Only the ratio of stages counts, so any GPU will do.
_GPU = "RTX A6000"
# Names in the plan that differ from those in events.
_PLANNED = {"finetune": "trials", "embedder": "embedder_only"}


def outline_task(prepared: PreparedTask, settings: Settings, on_gpu: bool, precision: str) -> list[Step]:
    """Return the steps of a task. They have no estimates where there is no plan."""
    rows = rows_of_manifest(prepared.manifest["splits"], "prepared data")
    first = list_candidates(settings.select)[0]
    found = Found(first.backbone, tuple(first.architecture))
    try:
        shape = read_shape(settings.model.language_model)
        plan = plan_task(prepared.task, settings, rows, shape, precision=precision, on_gpu=on_gpu, found=found)
    except Exception:  # an estimate must not end a run
        return [Step(name, epochs) for name, epochs in list_stages(settings)]
    stages = {stage.stage: stage for stage in plan.stages}
    steps = []
    for name, epochs in list_stages(settings):
        own = [stages[arm] for arm in settings.arms if name == "arms" and arm in stages and arm != "embedder_only"]
        if (planned := stages.get(_PLANNED.get(name, name))) is not None:
            own.append(planned)
        if epochs is None and name in ("arms", "embedder"):
            counted = [round(one.expected.epochs / one.expected.trials) for one in own if one.expected.epochs]
            epochs = max(counted, default=None)
        seconds = sum(_seconds(one, on_gpu, precision) for one in own)
        steps.append(Step(name, epochs, _share_align(settings, seconds) if name == "align" else (seconds,)))
    return steps


def list_stages(settings: Settings) -> list[tuple[str, int | None]]:
    """Return the stages by the names of their events, and the most epochs of a trial where settings say it.

    The order is that of the pipeline, but that stages which run in parallel with others come before them.
    """
    arms, align = settings.arms, settings.align
    embeds, candidates = any(ARMS[arm].embeds for arm in arms), list_candidates(settings.select)
    simple = [arm for arm in arms if not ARMS[arm].embeds]
    warms_up = align.enabled and 0 < align.task_only_epochs < align.epochs
    l2g = "l2g" in arms
    stages: list[tuple[bool, str, int | None]] = [
        (settings.pretrain.enabled, "pretrain", settings.pretrain.epochs),
        (True, "reference", None),
        (embeds and len(candidates) > 1, "select", settings.select.epochs),
        (
            embeds and settings.search.enabled and any(c.architecture for c in candidates),
            "search",
            settings.search.epochs,
        ),
        (bool(settings.baselines.names or any(ARMS[arm].tuned for arm in simple)), "baseline", None),
        (bool(simple), "arms", None),
        ("embedder_only" in arms, "embedder", None),
        (l2g and warms_up, "warmup", align.task_only_epochs),
        (l2g, "align", align.epochs),
        (l2g, "finetune", settings.finetune.epochs),
        (l2g, "refit", settings.finetune.epochs),
        (True, "evaluate", None),
    ]
    return [(name, epochs) for runs, name, epochs in stages if runs]


def _seconds(stage: StagePlan, on_gpu: bool, precision: str) -> float:
    machine, amount = find_machine(_GPU if on_gpu else "cpu"), stage.expected
    return 3600 * machine.hours(amount.flops, precision, read_known().utilisation) + amount.start_s


def _share_align(settings: Settings, seconds: float) -> tuple[float, ...]:
    """Split the planned seconds of `align` into its runs: every alpha on the given split, then every seed and fold."""
    align = settings.align
    shared = align.task_only_epochs if 0 < align.task_only_epochs < align.epochs else 0
    choice = len(align.alphas) * (align.epochs - shared)
    members = settings.seeds * max(settings.folds, 1) - (0 if settings.folds else 1)
    again = members * align.epochs
    if not again:
        return (seconds,)
    return seconds * choice / (choice + again), seconds * again / (choice + again)
