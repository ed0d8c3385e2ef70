"""A job as a Ray Train run whose worker is fed by a Ray Data stream."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from l2g_ray.orchestrate.cluster import Slots

MAX_FAILURES = 2


def run_in_train(spec: dict[str, Any], slots: Slots, fixed: dict[str, Any], board: Any = None) -> None:
    """Run a job in a Ray Train worker. Its epochs go to the event board; without one, this is a Tune trial, and they
    reach Tune through `TuneReportCallback`.

    The worker keeps its own state in the job's work folder, so a worker that dies is restarted by Ray Train and goes on
    from the last epoch; no Train checkpoint travels.
    """
    import ray.train
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    from l2g_ray.data.dataset import open_prepared
    from l2g_ray.data.stream import make_ray_dataset

    prepared = open_prepared(spec["prepared"])
    datasets = {split: make_ray_dataset(prepared, split) for split in ("train", "valid")}
    TorchTrainer(
        _train_worker,
        train_loop_config={
            "spec": spec,
            "fixed": fixed,
            "board": board,
            # One worker passes over the whole set by itself: no processes that part it among workers.
            "datasets": datasets,
            "rows": {s: prepared.n_rows(s) for s in datasets},
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=1,
            use_gpu=slots.gpus > 0,
            resources_per_worker={"CPU": slots.cpus} | ({"GPU": slots.gpus} if slots.gpus else {}),
        ),
        run_config=ray.train.RunConfig(
            name=f"train-{spec['key']}",
            storage_path=str(Path(spec["scratch"]).resolve()),
            callbacks=[TuneReportCallback()] if board is None else [],
            failure_config=ray.train.FailureConfig(max_failures=MAX_FAILURES),
        ),
    ).fit()


def _train_worker(config: dict[str, Any]) -> None:
    import ray
    import ray.train

    from l2g_ray.data.stream import RayDataSource
    from l2g_ray.orchestrate.board import make_trial_event
    from l2g_ray.orchestrate.jobs import run_job
    from l2g_ray.orchestrate.trial_logs import note_logs

    note_logs(config["spec"])  # it computes here, not in the trial's own process
    board = config["board"]
    sources = {split: RayDataSource(config["datasets"][split], n) for split, n in config["rows"].items()}
    total = 0.0

    def report(row: dict[str, Any]) -> None:
        nonlocal total
        total += row["cpu_s"]
        if board is not None:
            ray.get(board.put.remote(make_trial_event(config["spec"], row)))
        ray.train.report(row | config["fixed"] | {"cpu_s_total": total})

    run_job(config["spec"], report, sources["train"], sources["valid"])
