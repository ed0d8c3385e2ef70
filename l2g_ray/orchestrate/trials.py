"""Jobs as Ray Tune trials: a list of them side by side, or a search by ASHA with HyperOpt."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import Callback

from l2g_ray.config import FinetuneSettings
from l2g_ray.errors import UserError
from l2g_ray.orchestrate.asha import OrderedASHA, OrderedSearch
from l2g_ray.orchestrate.board import Emit
from l2g_ray.orchestrate.cluster import Slots
from l2g_ray.orchestrate.jobs import Job
from l2g_ray.orchestrate.residence import Held
from l2g_ray.orchestrate.store import StageResult, Store
from l2g_ray.orchestrate.worker import make_search_trainable, make_trainable

MAX_FAILURES = 2
Histories = dict[str, list[dict[str, Any]]]


class StageFailed(Exception):
    """A trial ended with an error that is no user's mistake."""


@dataclass(frozen=True)
class Place:
    """Where a task's jobs run: the common part of every spec, the slots, the event sink, a scratch folder, and
    references to the task's rows where they are in the object store."""

    task: str
    store: Store
    common: dict[str, Any]
    slots: Slots
    emit: Emit
    scratch: Path
    held: Held = field(default_factory=dict)

    @contextlib.contextmanager
    def experiment(self, stage: str) -> Iterator[tuple[tune.RunConfig, Histories]]:
        """A quiet Tune run whose own files are gone afterwards (results live in the store), and its trials' epochs."""
        histories: Histories = {}
        name = f"{self.task}-{stage}"
        shutil.rmtree(self.scratch / name, ignore_errors=True)
        try:
            config = tune.RunConfig(
                name=name,
                storage_path=str(self.scratch.resolve()),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
                callbacks=[_EmitRows(self, histories)],
            )
            yield config, histories
        finally:
            shutil.rmtree(self.scratch / name, ignore_errors=True)


class _EmitRows(Callback):
    """Passes each trial's epochs on as events, and keeps them by the job's key."""

    def __init__(self, place: Place, histories: Histories) -> None:
        self.place, self.histories = place, histories

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """One epoch of one trial."""
        if "label" in result:
            row = {k: v for k, v in result.items() if k in ROW_KEYS}
            rows = self.histories.setdefault(result["key"], [])
            if len(rows) > row["epoch"]:  # a trial that was restarted tells its first epochs again
                return
            rows.append(row)
            emit_row(self.place, result["stage"], result["label"], result["key"], row, result.get("params"))


ROW_KEYS = frozenset({"epoch", "train_loss", "score", "best_score", "best_epoch", "lr", "wall_s", "cpu_s"})


def emit_row(place: Place, stage: str, label: str, key: str, row: dict[str, Any], params: Any = None) -> None:
    """Send one epoch of a trial to the board."""
    place.emit(
        {"type": "trial", "task": place.task, "stage": stage, "trial": label, "key": key, "row": row, "params": params}
    )


def run_jobs(place: Place, stage: str, jobs: list[Job], runner: str = "process") -> list[StageResult]:
    """Results of all jobs, in order; those that the store has are not run again, the others run as parallel trials.

    `runner` 'train' runs each job as a Ray Train run fed by Ray Data, 'process' in the trial's own process.

    Raises UserError or StageFailed when a job fails for good.
    """
    missing = [job for job in jobs if place.store.find(job.stage, job.key) is None]
    for job in jobs:
        if job not in missing:
            _emit_history(place, job)
    if missing:
        place.emit({"type": "stage", "task": place.task, "stage": stage, "state": "running", "trials": len(missing)})
        specs = [job.spec(place.common) | {"label": job.label, "params": job.args} for job in missing]
        with place.experiment(stage) as (run_config, _):
            results = tune.Tuner(
                make_trainable(specs, runner, place.slots, place.held),
                param_space={"index": tune.grid_search(list(range(len(specs))))},
                tune_config=tune.TuneConfig(
                    max_concurrent_trials=min(len(specs), place.slots.count), reuse_actors=True
                ),
                run_config=run_config,
            ).fit()
        _raise_first_error(results, place.task, stage)
    found = [place.store.find(job.stage, job.key) for job in jobs]
    place.emit({"type": "stage", "task": place.task, "stage": stage, "state": "done", "cached": not missing})
    return [result for result in found if result is not None]


def run_search(
    place: Place, settings: FinetuneSettings, base: Job, space: dict[str, Any], seed: int, runner: str
) -> list[dict[str, Any]]:
    """ASHA over `space`; `base.args['trial']` is replaced by each drawn config. Returns one dict a trial, in order:
    'trial' (the config), 'best_score', 'epochs', 'cpu_s', 'wall_s', 'gpu_s', 'error', 'history'.

    A trial that fails is a trial that lost; only when all fail does the stage fail.
    """
    place.emit(
        {"type": "stage", "task": place.task, "stage": "finetune", "state": "running", "trials": settings.trials}
    )
    search = OrderedSearch(space, settings.parallel_trials, settings.initial_random_trials, seed)
    with place.experiment("finetune") as (run_config, histories):
        results = tune.Tuner(
            make_search_trainable(base, place.common, runner, place.slots, place.held),
            tune_config=tune.TuneConfig(
                search_alg=search,
                scheduler=OrderedASHA(search, settings.grace_epochs, settings.epochs, settings.reduction_factor),
                num_samples=settings.trials,
                max_concurrent_trials=min(settings.parallel_trials, place.slots.count),
                reuse_actors=True,
            ),
            run_config=run_config,
        ).fit()
    if results.num_errors == len(results):
        _raise_first_error(results, place.task, "finetune")
    by_id = {
        result.metrics["trial_id"]: result for result in results if result.metrics and "trial_id" in result.metrics
    }
    ordered: list[dict[str, Any]] = []
    for trial_id in search.order:
        result = by_id.get(trial_id)
        if result is None or result.metrics is None or "best_score" not in result.metrics:
            ordered.append(
                {
                    "trial": None,
                    "best_score": float("-inf"),
                    "epochs": 0,
                    "cpu_s": 0.0,
                    "wall_s": 0.0,
                    "gpu_s": 0.0,
                    "error": "failed",
                    "history": [],
                }
            )
            continue
        metrics = result.metrics
        history = histories.get(metrics["key"], [])
        wall_s = sum(float(row["wall_s"]) for row in history)
        ordered.append(
            {
                "trial": metrics["params"],
                "key": metrics["key"],
                "best_score": metrics["best_score"],
                "epochs": int(metrics["epoch"]) + 1,
                "cpu_s": metrics["cpu_s_total"],
                "wall_s": wall_s,
                "gpu_s": wall_s * place.slots.gpus,
                "error": str(result.error) if result.error else "",
                "history": history,
            }
        )
    return ordered


def _emit_history(place: Place, job: Job) -> None:
    result = place.store.find(job.stage, job.key)
    for row in result.values.get("history", []) if result else []:
        emit_row(place, job.stage, job.label, job.key, row, job.args)


def _raise_first_error(results: Any, task: str, stage: str) -> None:
    for error in results.errors:
        cause: BaseException | None = error
        while cause is not None:
            inner = getattr(cause, "cause", None) or cause.__cause__
            if isinstance(cause, UserError):
                raise cause
            if inner is None or inner is cause:
                break
            cause = inner
        raise StageFailed(f"{task}, stage {stage}: {type(cause).__name__}: {cause}") from error
