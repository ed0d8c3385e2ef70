"""What runs inside a Tune trial's process. Kept apart from `tuning`, so that a worker imports no search library."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import tune

from l2g_ray.orchestrate.board import make_tune_result
from l2g_ray.orchestrate.cluster import Slots
from l2g_ray.orchestrate.job import Job
from l2g_ray.orchestrate.memory import Measured, limit_memory, memory_key
from l2g_ray.orchestrate.residence import Held, open_held
from l2g_ray.orchestrate.trial_logs import note_logs

NEXT_TO_NOTHING = tune.PlacementGroupFactory([{"memory": 1}])  # Tune refuses a trial that asks for nothing


def make_trainable(specs: list[dict[str, Any]], runner: str, slots: Slots, held: Held) -> Callable[..., Any]:
    """A Tune trainable whose config {'index': i} runs job i of a list, on rows that `held` refers to."""

    def trial(config: dict[str, Any], held: Held) -> None:
        run_reporting(specs[config["index"]], runner, slots, held)

    def share(config: dict[str, Any]) -> float:
        return Measured(Path(specs[0]["root"])).share(specs[config["index"]]["kind"])

    return _finish(trial, runner, slots, held, share)


def draw_job(base: Job, config: dict[str, Any]) -> Job:
    """The job of one set of hyper-parameters."""
    drawn = {name: value.item() if hasattr(value, "item") else value for name, value in config.items()}
    return Job(base.stage, base.label, base.args | {"trial": drawn}, base.inputs, base.parts)


def make_search_trainable(
    base: Job, common: dict[str, Any], runner: str, slots: Slots, held: Held
) -> Callable[..., Any]:
    """A Tune trainable whose config is a set of hyper-parameters for `base`."""

    def trial(config: dict[str, Any], held: Held) -> None:
        job = draw_job(base, config)
        named = {"label": job.label, "params": job.args["trial"], "kind": memory_key(job)}
        run_reporting(job.spec(common) | named, runner, slots, held)

    def share(config: dict[str, Any]) -> float:
        return Measured(Path(common["root"])).share(memory_key(draw_job(base, config)))

    return _finish(trial, runner, slots, held, share)


def _finish(
    trial: Callable[..., Any], runner: str, slots: Slots, held: Held, share: Callable[[dict[str, Any]], float]
) -> Callable[..., Any]:
    # Tune registers functions by name, for all pipelines of a Ray job together: the same name would mix them up.
    trial.__name__ = trial.__qualname__ = f"trial_{uuid.uuid4().hex}"
    # A Train run reserves its worker's resources itself; the trial that waits for it takes no slot.
    own: Any = {"cpu": float(slots.cpus), "gpu": slots.gpus}
    if slots.packed:  # asked anew for each trial, when Tune makes it

        def own(config: dict[str, Any]) -> tune.PlacementGroupFactory:
            return tune.PlacementGroupFactory([{"CPU": float(slots.cpus), "GPU": share(config)}])

    # As a parameter, not in the closure: references in a pickled function are never let go.
    return tune.with_resources(tune.with_parameters(trial, held=held), NEXT_TO_NOTHING if runner == "train" else own)


def run_reporting(spec: dict[str, Any], runner: str, slots: Slots, held: Held) -> None:
    """Run one job, in this process or as a Ray Train run, and report its epochs to Tune."""
    fixed = {"label": spec["label"], "params": spec["params"], "key": spec["key"], "stage": spec["stage"]}
    spec = spec | {"note": tune.get_context().get_trial_id()}
    note_logs(spec)
    total, measured = 0.0, Measured(Path(spec["root"]))
    packed = slots.packed and runner != "train"
    if packed:
        gpus = float(tune.get_context().get_trial_resources().required_resources["GPU"])
        limit_memory(gpus)
        spec, fixed = spec | {"gpus": gpus}, fixed | {"gpus": gpus}

    def report(row: dict[str, Any]) -> None:
        nonlocal total
        total += row["cpu_s"]
        if packed:
            measured.record(spec["kind"], row, spec["gpus"])
        tune.report(make_tune_result(row, fixed, total))

    if runner == "train":
        from l2g_ray.orchestrate.train_run import run_in_train

        run_in_train(spec, slots, fixed)
    else:
        from l2g_ray.orchestrate.jobs import run_job  # with torch, which the pipeline that sends this has no use for

        sources = open_held(held)
        run_job(spec, report, sources.get("train"), sources.get("valid"))
