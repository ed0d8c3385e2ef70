"""One unit of work in a separate process: open its inputs, call its stage's function, store the result.

A `JobSpec` is run by a Ray task, by Tune, by Ray Train, or in a test without Ray.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from l2g_ray.data.batches import Source
from l2g_ray.data.dataset import PreparedTask, ShardSource, open_prepared
from l2g_ray.data.splits import Fold, SelectedRows
from l2g_ray.errors import UserError
from l2g_ray.models.team import ALONE, Team
from l2g_ray.monitor.events import stamp_row
from l2g_ray.orchestrate.spec import JobSpec
from l2g_ray.redaction import redact
from l2g_ray.stages.context import Context, TaskData, make_label_scale, predict_held_out, read_reference
from l2g_ray.stages.loop import Report, Runtime
from l2g_ray.stages.registry import Stage, find_stage
from l2g_ray.store.guard import StallWatch, forget_stall, persist
from l2g_ray.store.results import Store


def load_data(
    prepared: PreparedTask,
    train: Source | None = None,
    valid: Source | None = None,
    fold: Fold | None = None,
    selected: bool = False,
) -> TaskData:
    """Training and validation rows, streamed from the shards unless sources are given; with a fold, the rows of the other
    folds and its own. `selected`: the sources have these rows already."""
    task = prepared.task
    outputs = prepared.manifest["splits"]["train"].get("outputs", {})
    means, sds = ([outputs.get(label, {}).get(name) for label in task.labels] for name in ("mean", "sd"))
    offset, scale = make_label_scale(task, means, sds)
    lengths = prepared.length_range()
    train = train or ShardSource(tuple(prepared.shard_paths("train")), prepared.n_rows("train"))
    valid = valid or ShardSource(tuple(prepared.shard_paths("valid")), prepared.n_rows("valid"))
    held_out = fold is not None and fold.of > 0
    if fold is not None and held_out and not selected:
        inside = fold.read(prepared) == fold.number
        train, valid = SelectedRows((train, valid), ~inside), SelectedRows((train, valid), inside)
    return TaskData(
        task=task,
        train=train,
        valid=valid,
        length_bp=lengths[1],
        fixed_length=lengths[0] == lengths[1],
        label_offset=offset,
        label_scale=scale,
        held_out=held_out,
    )


def run_job(
    spec: JobSpec,
    report: Report,
    train: Source | None = None,
    valid: Source | None = None,
    team: Team = ALONE,
) -> dict[str, Any]:
    """Run a job to its end, or resume an interrupted one, and store the result.

    A finished job only reports its history again; rows of one that runs also say when it began (`began_at`) and when
    they were reported (`at`), in seconds since 1970. All workers of a `team` call this; the first one holds the lock and
    writes the result.

    Raises UserError for a stage that is not registered.
    """
    stage, key = find_stage(spec.job.stage), spec.job.key
    store = spec.site.open_store()
    reported: set[float] = set()

    def report_once(row: dict[str, float]) -> None:
        if row["epoch"] not in reported:  # a stage that resumes reports its first epochs again
            reported.add(row["epoch"])
            report(row)

    with contextlib.ExitStack() as held:
        found = None
        if team.is_first:
            held.enter_context(store.locked(stage.name, key))
            found = store.find(stage.name, key) or store.find_unshared(stage.name, key)
        values = team.share(found.values if found else None)
        if values is None:
            try:
                if team.size > 1:  # one of several cannot restart alone: Ray Train restarts all of them
                    return _run_locked(stage, spec, report, store, train, valid, team)
                wait_s = spec.site.settings.cluster.storage_wait_s
                return persist(
                    store.root, lambda: _run_locked(stage, spec, report_once, store, train, valid, team), wait_s
                )
            except Exception as error:
                text = str(error)
                if redact(text) == text:
                    raise
                # Ray writes it to its logs.
                if isinstance(error, UserError):
                    raise UserError(redact(text)) from None
                raise RuntimeError(f"{type(error).__name__}: {redact(text)}") from None
    for row in values.get("history", []):
        report(row)
    return values


def _run_locked(
    stage: Stage,
    spec: JobSpec,
    report: Report,
    store: Store,
    train: Source | None,
    valid: Source | None,
    team: Team,
) -> dict[str, Any]:
    site, job, key = spec.site, spec.job, spec.job.key
    settings, reference = site.settings, site.reference
    torch.set_num_threads(site.threads)
    work = store.open_work(stage.name, key)
    began_at, wall, cpu = time.time(), time.perf_counter(), time.process_time()
    if team.is_first:
        forget_stall(work)
    with StallWatch(settings.cluster.stall_limit_s if team.is_first else None, work) as watch:

        def report_alive(row: dict[str, float]) -> None:
            watch.beat()
            store.save_state(stage.name, key)
            report(stamp_row(row, began_at))

        runtime = Runtime(site.device, site.precision, report_alive, work / "state.pt", team)
        pretrained = site.pretrained if stage.pretrained else None
        inputs = {name: Path(folder) for name, folder in job.inputs.items()}
        for folder in (pretrained, reference.folder if reference else None, *inputs.values()):
            if folder is not None:
                store.need(folder)
        prepared = open_prepared(site.prepared)
        fold = Fold(**job.args["fold"]) if "fold" in job.args else None
        context = Context(
            prepared,
            load_data(prepared, train, valid, fold, selected=team.size > 1),
            settings,
            read_reference(reference.folder, reference.values) if reference else None,
            runtime,
            work,
            inputs,
            pretrained,
            site.data_dir,
        )
        values = stage.load()(context, job.args)
        if fold is not None and stage.arm and team.is_first and "skipped" not in values:
            if team.size > 1:  # the first worker has but its own rows
                context = replace(context, data=load_data(prepared, fold=fold))
            predict_held_out(context)
    # A stage that trains counts its epochs itself, those before an interruption too.
    values = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu} | values
    values["gpu_s"] = values["wall_s"] * site.gpus * team.size if site.device == "cuda" else 0.0
    values |= {"began_at": began_at, "ended_at": time.time()}
    if not team.is_first:
        return values
    return store.commit(stage.name, key, values).values
