"""A job as a Ray Train run: one worker or several, fed by Ray Data streams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from l2g_ray.orchestrate.cluster import MAX_FAILURES, Slots

# Workers that wait for the first one may do so for long: it may wait for another suite that makes the same result. One
# that died is noticed at once, by its broken connection and by Ray.
COLLECTIVE_TIMEOUT_S = 24 * 3600


def run_in_train(spec: dict[str, Any], slots: Slots, fixed: dict[str, Any], board: Any = None) -> None:
    """Run a job in Ray Train workers. Its epochs go to the event board; without one, this is a Tune trial, and they
    reach Tune through `TuneReportCallback`.

    Each of `slots.workers` reads all rows and keeps its share of every batch, since a batch is drawn from a window of
    rows. The first worker keeps the state in the job's work folder: workers that die are restarted by Ray Train, all of
    them together, and go on from the last epoch; no Train checkpoint travels.
    """
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    from l2g_ray.data.dataset import open_prepared
    from l2g_ray.data.stream import make_ray_dataset
    from l2g_ray.stages.loop import read_micro_batches

    prepared = open_prepared(spec["prepared"])
    datasets = {split: make_ray_dataset(prepared, split) for split in ("train", "valid")}
    state = Path(spec["root"]) / spec["stage"] / f"{spec['key']}.work" / "state.pt"
    while True:
        before = read_micro_batches(state)
        trainer = TorchTrainer(
            _train_worker,
            train_loop_config={
                "spec": spec,
                "fixed": fixed,
                "board": board,
                # Each worker passes over the whole set by itself: no processes that part it among workers.
                "datasets": datasets,
                "rows": {s: prepared.n_rows(s) for s in datasets},
            },
            torch_config=TorchConfig(timeout_s=COLLECTIVE_TIMEOUT_S),
            scaling_config=ray.train.ScalingConfig(
                num_workers=slots.workers,
                use_gpu=slots.gpus > 0,
                resources_per_worker={"CPU": slots.cpus} | ({"GPU": slots.gpus} if slots.gpus else {}),
            ),
            run_config=ray.train.RunConfig(
                name=f"train-{spec['key']}",
                storage_path=str(Path(spec["scratch"]).resolve()),
                callbacks=[TuneReportCallback()] if board is None else [],
                failure_config=ray.train.FailureConfig(max_failures=MAX_FAILURES),
            ),
        )
        try:
            trainer.fit()
            return
        except ray.train.WorkerGroupError:
            # A team that ran out of memory ends so; with smaller micro-batches it may well succeed.
            if read_micro_batches(state) == before:
                raise


def _train_worker(config: dict[str, Any]) -> None:
    import ray
    import ray.train
    import torch
    from ray.train.torch import get_device

    from l2g_ray.data.stream import RayDataSource
    from l2g_ray.models.team import Team
    from l2g_ray.orchestrate.board import make_trial_event, make_tune_result
    from l2g_ray.orchestrate.jobs import run_job
    from l2g_ray.orchestrate.trial_logs import note_logs

    note_logs(config["spec"])  # it computes here, not in the trial's own process
    board, team, device = config["board"], Team.joined(), get_device()
    if device.type == "cuda":  # workers of one machine see all of its GPUs
        torch.cuda.set_device(device)
    sources = {split: RayDataSource(config["datasets"][split], n) for split, n in config["rows"].items()}
    total = 0.0

    def report(row: dict[str, Any]) -> None:
        nonlocal total
        total += row["cpu_s"]
        if board is not None and team.is_first:
            ray.get(board.put.remote(make_trial_event(config["spec"], row)))
        ray.train.report(make_tune_result(row, config["fixed"], total))

    run_job(config["spec"], report, sources["train"], sources["valid"], team)
