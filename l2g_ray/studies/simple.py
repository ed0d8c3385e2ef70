"""Simple models alone, without the method beside them: fitted, evaluated and compared in this process, without Ray."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
from rich.console import Console

from l2g_ray.config import Settings, resolve_precision
from l2g_ray.data.dataset import PreparedTask
from l2g_ray.models.precision_choice import choose_cpu_precision
from l2g_ray.monitor.environment import hash_content
from l2g_ray.orchestrate.identity import prepare_task, refuse_other_study, resolve_task
from l2g_ray.orchestrate.jobs import run_job
from l2g_ray.orchestrate.keys import make_baseline_job
from l2g_ray.orchestrate.precision import keep_cpu_precision
from l2g_ray.orchestrate.spec import JobSpec, Site
from l2g_ray.request import SuiteRequest
from l2g_ray.results.comparison import Compared, StudyFile, write_study
from l2g_ray.results.intervals import ArmScores
from l2g_ray.store.results import Job, StageResult
from l2g_ray.store.shared import push
from l2g_ray.studies.study import Study, correct, describe_study
from l2g_ray.tasks.metrics import find_metric
from l2g_ray.tasks.schema import Task


def run_simple(request: SuiteRequest, names: list[str], console: Console) -> StudyFile:
    """Fit and evaluate simple models on every task of `request`; the study as `study.json` holds it.

    Results go into the store of the output folder, under the keys that a suite's baselines have. `study.*` and each
    task's `predictions.parquet` go into `<out>/<name>`. The first name is what the others are compared with.

    Raises UserError for rows that cannot be used.
    """
    folder = request.out / request.name
    compared: list[Compared] = []
    every = {task.name: resolve_task(request, task) for task in request.tasks}
    rows = {task.name: prepare_task(request, task, every[task.name], console) for task in request.tasks}
    key = hash_content(
        {
            "baselines": names,
            "settings": {name: one.model_dump(mode="json", exclude={"cluster"}) for name, one in every.items()},
            "data": {name: [p.fingerprint(s) for s in ("train", "valid", "test")] for name, p in rows.items()},
        }
    )
    refuse_other_study(request, key)
    for task in request.tasks:
        compared += _run_task(request, task, every[task.name], rows[task.name], names, folder, console)
    study = Study("baseline", "simple models", {name: {} for name in names})
    described: StudyFile = {**describe_study(study, correct(compared), request), "key": key}
    write_study(folder, described)
    if request.remote is not None:
        push(folder, request.remote / request.name, every[request.tasks[0].name].cluster.storage_wait_s)
    return described


def _run_task(
    request: SuiteRequest,
    task: Task,
    settings: Settings,
    prepared: PreparedTask,
    names: list[str],
    folder: Path,
    console: Console,
) -> list[Compared]:
    out = request.out.resolve()
    site = Site(
        task=task.name,
        prepared=str(prepared.folder.absolute()),
        settings=settings,
        root=out / "stages",
        scratch=out / "tune",
        threads=request.cpus or 1,
        precision=resolve_precision(settings.precision, "cpu"),
        remote=str(request.remote / "stages") if request.remote else None,
    )
    if settings.precision == "auto":
        site = replace(site, precision=keep_cpu_precision(site.open_store(), site.threads, choose_cpu_precision))
    results: dict[str, StageResult] = {}
    for name in names:
        result = _run(site, make_baseline_job(prepared, settings, name, precision=site.precision))
        if "skipped" in result.values:
            console.print(f"{task.name}: {result.values['skipped']}", soft_wrap=True)
            continue
        results[name] = result
        console.print(f"{task.name}: {name} fitted, {result.values['cpu_s']:.1f} CPU s", soft_wrap=True)
    if not results:
        return []
    seed = settings.seed
    parts = {
        "task": task.model_dump(mode="json", include={"kind", "labels", "metric", "strand_specific"}),
        "settings": settings.model_dump(mode="json")["evaluate"],
        "rc_augment": settings.data.rc_augment,
        "inputs": {name: result.key for name, result in results.items()},
        "test": prepared.fingerprint("test"),
    }
    args = {"contenders": {name: {"arm": name, "seed": seed} for name in results}, "folds": None}
    inputs = {name: str(result.folder) for name, result in results.items()}
    evaluation = _run(site, Job("evaluate", "test", args, inputs, parts))
    target = folder / task.name
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(evaluation.folder / "predictions.parquet", target / "predictions.parquet")
    arms = ArmScores(
        task,
        pd.read_parquet(target / "predictions.parquet"),
        settings.evaluate.bootstrap_resamples,
        seed,
    )
    sign = find_metric(task.metric).sign
    first = next(iter(results))
    return [
        Compared(
            task=task.name,
            arm=name,
            metric=task.metric,
            test=arms.summarise(name),
            validation=sign * float(result.values["score"]),
            difference=arms.subtract(name, first) if name != first else None,
            cpu_s=float(result.values["cpu_s"]),
        )
        for name, result in results.items()
    ]


def _run(site: Site, job: Job) -> StageResult:
    run_job(JobSpec(site, job), lambda row: None)
    found = site.open_store().find(job.stage, job.key)
    assert found is not None
    return found
