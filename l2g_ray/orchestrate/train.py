"""What runs inside a trial's process: a job, directly or as a Ray Train run fed by Ray Data."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ray import tune

from l2g_ray.data.dataset import PreparedTask, cut_shards, read_shard
from l2g_ray.data.splits import Fold
from l2g_ray.monitor.trial_logs import note_logs
from l2g_ray.orchestrate.cluster import MAX_FAILURES, Slots
from l2g_ray.orchestrate.memory import Held, Measured, limit_memory, memory_key, open_held
from l2g_ray.orchestrate.spec import HyperParameters, JobSpec, Site, TuneReport
from l2g_ray.orchestrate.streamed import run_streamed
from l2g_ray.storage import Location
from l2g_ray.store.results import Job

if TYPE_CHECKING:
    import ray.data

# Shards read at once. Readers ask for no CPU, so that nothing else would bound them: Ray would start a process a shard.
READERS = 2
# Starting a pass of Ray Data takes about half a second. A worker whose rows are no more than this keeps them after the first one.
MOST_KEPT_BYTES = 256 << 20


class RayDataSource:
    """A source over a Ray Dataset, or over the shard of one that a Train worker gets.

    Parameters
    ----------
    dataset : anything with Ray's `iter_batches`; see `make_ray_dataset` and `make_shared_dataset`.
    n_rows : rows of the dataset, all workers' shards together.
    rows_per_table : how many rows come over at once.
    keep : read all rows before the first pass, and keep them. All workers or none, since a pass over shards begins when all of
        them ask for it.
    """

    def __init__(self, dataset: Any, n_rows: int, rows_per_table: int = 8192, keep: bool = False) -> None:
        self._dataset = dataset
        self._n_rows = n_rows
        self._rows_per_table = rows_per_table
        self._keep = keep
        self._kept: list[pa.Table] | None = None

    @property
    def n_rows(self) -> int:
        """Rows of the dataset."""
        return self._n_rows

    def tables(self) -> Iterator[pa.Table]:
        """Yield one pass over the rows, in order; without those that fill up a shard."""
        if self._keep and self._kept is None:
            self._kept = list(self._read())
        yield from self._read() if self._kept is None else self._kept

    def _read(self) -> Iterator[pa.Table]:
        for table in self._dataset.iter_batches(batch_size=self._rows_per_table, batch_format="pyarrow"):
            numbered = "row_index" in table.column_names
            yield table.filter(pc.greater_equal(table["row_index"], 0)) if numbered else table


def make_ray_dataset(prepared: PreparedTask, split: str) -> Any:
    """Return a Ray Dataset (columns sequence and label) of train or valid, in the shards' order. Raises ValueError
    for test.

    Ray must be initialised. Reading asks for no CPU: Train workers may hold them all while they wait for these very
    rows, and `ray.data.read_parquet` would wait for one, if only to look at the files. `preserve_order` is set on this
    dataset's own context, not on the process's.
    """
    return _make_dataset([{"path": str(path)} for path in prepared.shard_paths(split)])


def make_shared_dataset(prepared: PreparedTask, split: str, fold: Fold | None, n_workers: int) -> tuple[Any, int]:
    """Return the Ray Dataset of train or valid that workers share, and its rows; with a fold, train is the other
    folds' rows.

    It has the column row_index too, each row's number. Workers get equal shards (`streaming_split` would drop rows
    otherwise): up to n_workers - 1 rows of number -1 fill them up.
    """
    splits = ("train", "valid") if fold is not None and fold.of else (split,)
    sizes = np.concatenate([np.diff(cut_shards(prepared.n_rows(s), len(prepared.shard_paths(s)))) for s in splits])
    paths = [path for s in splits for path in prepared.shard_paths(s)]
    wanted = np.ones(sizes.sum(), bool)
    if fold is not None and fold.of:
        wanted = (fold.read(prepared) == fold.number) == (split == "valid")
    items, start, first = [], 0, 0
    for path, size in zip(paths, sizes, strict=True):
        rows = np.flatnonzero(wanted[start : start + size])
        if len(rows):
            items.append({"path": str(path), "rows": rows.tolist(), "first": first, "fill": 0})
        start, first = start + size, first + len(rows)
    items[-1]["fill"] = -first % n_workers
    return _make_dataset(items), first


def _make_dataset(shards: list[dict[str, Any]]) -> Any:
    import ray.data

    dataset = ray.data.from_items(shards, override_num_blocks=len(shards)).map_batches(
        _read_shards, batch_size=1, batch_format="pyarrow", num_cpus=0, concurrency=READERS
    )
    dataset.context.execution_options.preserve_order = True
    return dataset


def _read_shards(shards: pa.Table) -> pa.Table:
    return pa.concat_tables([_read(**shard) for shard in shards.to_pylist()])


def _read(path: str, rows: list[int] | None = None, first: int = 0, fill: int = 0) -> pa.Table:
    table = read_shard(Location(path), ["sequence", "label"])
    if rows is None:
        return table
    index = np.concatenate([np.arange(first, first + len(rows)), np.full(fill, -1)])
    return table.take([*rows, *rows[:1] * fill]).append_column("row_index", pa.array(index))


@dataclass(frozen=True)
class _Worker:
    """What each worker of a Train run gets; without a board its epochs go to Tune. `shared`: it reads its shard of the datasets
    that the run has, otherwise all rows of `datasets`. `keep`: as of `RayDataSource`."""

    spec: JobSpec
    board: Any
    datasets: dict[str, ray.data.Dataset]
    rows: dict[str, int]
    shared: bool
    keep: bool


def run_in_train(spec: JobSpec, slots: Slots, board: Any = None) -> None:
    """Run a job in Ray Train workers. Its epochs go to the event board; without one, this is a Tune trial, and they
    reach Tune through `TuneReportCallback`.

    Each of several workers reads its share of the rows. The first worker keeps the state in the job's work folder. If a worker
    dies, Ray Train restarts all of them, and they resume from the last epoch; no Train checkpoint is sent.
    """
    import ray.data
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    from l2g_ray.data.dataset import open_prepared
    from l2g_ray.models.team import COLLECTIVE_TIMEOUT
    from l2g_ray.stages.loop import read_micro_batches

    key = spec.job.key
    prepared = open_prepared(spec.site.prepared)
    shared, splits = slots.workers > 1, ("train", "valid")
    if shared:
        fold = Fold(**spec.job.args["fold"]) if "fold" in spec.job.args else None
        made = {split: make_shared_dataset(prepared, split, fold, slots.workers) for split in splits}
    else:
        made = {split: (make_ray_dataset(prepared, split), prepared.n_rows(split)) for split in splits}
    datasets, rows = ({split: found[i] for split, found in made.items()} for i in range(2))
    # The longest sequence counts for all, so that what is kept is never more.
    keep = sum(rows.values()) * prepared.length_range()[1] / slots.workers <= MOST_KEPT_BYTES
    state = spec.site.open_store().work_folder(spec.job.stage, key) / "state.pt"
    while True:
        before = read_micro_batches(state)
        trainer = TorchTrainer(
            _train_worker,
            # A single worker iterates over the whole set directly, without a process that splits it among workers.
            train_loop_config={"worker": _Worker(spec, board, {} if shared else datasets, rows, shared, keep)},
            datasets=datasets if shared else {},
            # In the same order each time, so that a worker's rows are the same in each epoch.
            dataset_config=ray.train.DataConfig(
                execution_options=ray.data.ExecutionOptions(preserve_order=True), enable_shard_locality=False
            ),
            torch_config=TorchConfig(timeout_s=int(COLLECTIVE_TIMEOUT.total_seconds())),
            scaling_config=ray.train.ScalingConfig(
                num_workers=slots.workers,
                use_gpu=slots.gpus > 0,
                resources_per_worker={"CPU": slots.cpus} | ({"GPU": slots.gpus} if slots.gpus else {}),
            ),
            run_config=ray.train.RunConfig(
                name=f"train-{key}",
                storage_path=str(spec.site.scratch.resolve()),
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


def _train_worker(config: dict[str, _Worker]) -> None:
    import ray
    import ray.train
    import torch
    from ray.train.torch import get_device, prepare_model

    from l2g_ray.models.team import Team
    from l2g_ray.monitor.events import Epoch
    from l2g_ray.monitor.trial_logs import note_logs
    from l2g_ray.orchestrate.jobs import run_job

    def prepare(model: torch.nn.Module, **options: Any) -> torch.nn.Module:
        return prepare_model(model, parallel_strategy_kwargs=options)

    worker, team, device = config["worker"], Team.joined(prepare), get_device()
    spec, name = worker.spec, worker.spec.name
    note_logs(spec.site.scratch, spec.note or name.key, name)  # it computes here, not in the trial's own process
    if device.type == "cuda":  # workers of one machine see all of its GPUs
        torch.cuda.set_device(device)
    datasets = (
        {split: ray.train.get_dataset_shard(split) for split in worker.rows} if worker.shared else worker.datasets
    )
    sources = {split: RayDataSource(datasets[split], n, keep=worker.keep) for split, n in worker.rows.items()}
    total = 0.0

    def report(row: dict[str, float]) -> None:
        nonlocal total
        total += row["cpu_s"]
        if worker.board is not None and team.is_first:
            ray.get(worker.board.put.remote(Epoch.from_row(name, row)))
        ray.train.report(TuneReport(name, row, total).to_tune())

    run_job(spec, report, sources["train"], sources["valid"], team)


NEXT_TO_NOTHING = tune.PlacementGroupFactory([{"memory": 1}])  # Tune refuses a trial that asks for nothing


def make_trainable(site: Site, jobs: list[Job], runner: str, slots: Slots, held: Held) -> Callable[..., Any]:
    """Return a Tune trainable whose config {'index': i} runs job i of a list, on rows that `held` refers to."""

    def trial(config: dict[str, int], held: Held) -> None:
        run_reporting(JobSpec(site, jobs[config["index"]]), runner, slots, held)

    def share(config: dict[str, int]) -> float:
        return Measured(site.root).share(memory_key(jobs[config["index"]]))

    return _finish(trial, runner, slots, held, share)


def draw_job(base: Job, config: HyperParameters) -> Job:
    """Return the job of one set of hyper-parameters."""
    drawn = {name: value.item() if hasattr(value, "item") else value for name, value in config.items()}
    return Job(base.stage, base.label, base.args | {"trial": drawn}, base.inputs, base.parts)


def make_search_trainable(site: Site, base: Job, runner: str, slots: Slots, held: Held) -> Callable[..., Any]:
    """Return a Tune trainable whose config is a set of hyper-parameters for `base`."""

    def trial(config: HyperParameters, held: Held) -> None:
        job = draw_job(base, config)
        run_reporting(JobSpec(site, job, job.args["trial"]), runner, slots, held)

    def share(config: HyperParameters) -> float:
        return Measured(site.root).share(memory_key(draw_job(base, config)))

    return _finish(trial, runner, slots, held, share)


def _finish(
    trial: Callable[..., Any], runner: str, slots: Slots, held: Held, share: Callable[[Any], float]
) -> Callable[..., Any]:
    # Tune registers functions by name, for all pipelines of a Ray job together: the same name would mix them up.
    trial.__name__ = trial.__qualname__ = f"trial_{uuid.uuid4().hex}"
    # A Train run and a warm process ask for the slot themselves; the trial that waits for them takes none.
    own: Any = {"cpu": float(slots.cpus), "gpu": slots.gpus}
    if slots.packed:  # asked again for each trial, when Tune makes it

        def own(config: Any) -> tune.PlacementGroupFactory:
            return tune.PlacementGroupFactory([{"CPU": float(slots.cpus), "GPU": share(config)}])

    # As a parameter, not in the closure: references in a pickled function are never let go.
    return tune.with_resources(
        tune.with_parameters(trial, held=held), NEXT_TO_NOTHING if runner == "train" or not slots.gpus else own
    )


def run_reporting(spec: JobSpec, runner: str, slots: Slots, held: Held) -> None:
    """Run one job, in a warm process, on a GPU in this one, or as a Ray Train run, and report its epochs to Tune."""
    spec, name = replace(spec, note=tune.get_context().get_trial_id()), spec.name
    note_logs(spec.site.scratch, spec.note, name)
    total, measured, kind = 0.0, Measured(spec.site.root), memory_key(spec.job)
    gpus: float | None = None
    if slots.packed and runner != "train":
        gpus = float(tune.get_context().get_trial_resources().required_resources["GPU"])
        limit_memory(gpus)
        spec = replace(spec, site=replace(spec.site, gpus=gpus))

    def report(row: dict[str, float]) -> None:
        nonlocal total
        total += row["cpu_s"]
        if gpus is not None:
            measured.record(kind, row, gpus)
        tune.report(TuneReport(name, row, total, gpus).to_tune())

    if runner == "train":
        run_in_train(spec, slots)
    elif not slots.gpus:
        with contextlib.closing(run_streamed(spec, slots, held)) as rows:
            for row in rows:
                report(row)
    else:  # a process stays with the GPU that it first saw
        from l2g_ray.orchestrate.jobs import run_job  # with torch, which the pipeline that sends this has no use for

        sources = open_held(held)
        run_job(spec, report, sources.get("train"), sources.get("valid"))
