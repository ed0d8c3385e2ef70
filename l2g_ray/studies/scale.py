"""Scaling of fine-tuning, measured: Ray Train runs of several workers, strong and weak, and trials side by side.

The measured runs are the very jobs of a suite (`orchestrate.tasks.run_jobs`), on random sequences and an embedder that has learned
nothing: time depends on shapes, not on what the numbers mean. `record_scaling` writes what was found to files and MLflow.
"""

from __future__ import annotations

import shutil
import statistics
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow.csv import write_csv

from l2g_ray.atomic import write_json
from l2g_ray.config import Settings, resolve_precision
from l2g_ray.data.dataset import PreparedTask
from l2g_ray.data.prepare import prepare
from l2g_ray.data.raw import SourceOptions
from l2g_ray.data.sources import open_source
from l2g_ray.errors import UserError
from l2g_ray.models.l2g import save_model
from l2g_ray.monitor.environment import describe_environment, hash_content
from l2g_ray.monitor.events import Board
from l2g_ray.orchestrate.cluster import Slots, connect, measure_slots
from l2g_ray.orchestrate.jobs import load_data, run_job
from l2g_ray.orchestrate.precision import find_cpu_precision
from l2g_ray.orchestrate.spec import JobSpec, Site
from l2g_ray.request import EXPERIMENT
from l2g_ray.results.comparison import KINDS, plot_scaling, write_markdown
from l2g_ray.results.figures import save
from l2g_ray.stages.context import build_net, make_embedder_config, read_reference
from l2g_ray.store.results import Job, StageResult
from l2g_ray.tracking.runs import Tracker

N_VALID, N_TEST = 64, 2
Say = Callable[[str], None]


@dataclass(frozen=True)
class ScaleRequest:
    """What to measure. `rows` and `batch_size` are those of one worker; strong scaling keeps them, weak scaling
    multiplies both by the workers. `slots`: how many trials at once, each of one worker, `trials` in all."""

    workers: tuple[int, ...]
    slots: tuple[int, ...]
    trials: int
    rows: int
    length_bp: int
    batch_size: int
    epochs: int
    settings: Settings
    out: Path
    name: str
    gpus_per_worker: float | None = None
    cpus: int | None = None
    verbose: bool = False
    command: str = ""


@dataclass(frozen=True)
class TrainRun:
    """One measured Ray Train run. `epochs_s`: without the first epoch, of which `epoch_s` is the median; `start_s`: what it
    took beside its epochs; `train_loss`: of every epoch."""

    workers: int
    rows: int
    batch_size: int
    epoch_s: float
    epochs_s: list[float]
    rows_per_s: float
    start_s: float
    train_loss: list[float]


@dataclass(frozen=True)
class TrialsRun:
    """The same trials, `slots` at once."""

    slots: int
    trials: int
    wall_s: float
    trials_per_min: float


def measure_scaling(request: ScaleRequest, say: Say) -> dict[str, Any]:
    """Run all measurements and return them as plain numbers, the form of `scaling.json`.

    Raises
    ------
    UserError : a batch that is smaller than the workers, a folder that cannot be written, or a cluster without room for
        the largest team or for as many trials at once; nothing is measured then.
    """
    if request.batch_size < max(request.workers):
        raise UserError(
            f"--batch-size {request.batch_size} is less than {max(request.workers)} workers; give each a row at least"
        )
    if request.epochs < 2:
        raise UserError("--epochs: at least 2, since the first one warms up and is not counted")
    ray = connect(request.verbose, request.cpus)
    gpus = _find_room(ray, request)
    folder = request.out / request.name
    scratch = (request.out / "tune" / f"{request.name}-{uuid.uuid4().hex[:8]}").resolve()
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); name another output folder (--out)") from None
    bench = _Bench(request, gpus, scratch, ray.remote(num_cpus=0)(Board).remote(), say)
    try:
        strong = [bench.train(workers, request.rows, request.batch_size, "strong") for workers in request.workers]
        weak = [
            bench.train(workers, request.rows * workers, request.batch_size * workers, "weak")
            for workers in request.workers
        ]
        trials = [bench.run_trials(slots) for slots in request.slots]
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    found = {
        "schema": 1,
        "command": request.command,
        "shape": {
            "rows": request.rows,
            "length_bp": request.length_bp,
            "batch_size": request.batch_size,
            "epochs": request.epochs,
            "language_model": request.settings.model.language_model,
            "gpus_per_worker": gpus,
            "precision": bench.precision,
        },
        "settings": request.settings.model_dump(mode="json"),
        **describe_environment(ray),
        **compare(strong, weak, trials),
    }
    write_json(folder / "scaling.json", found)
    return found


def compare(strong: list[TrainRun], weak: list[TrainRun], trials: list[TrialsRun]) -> dict[str, list[dict[str, Any]]]:
    """Return the measurements as rows of `scaling.json`, with speed-up and efficiency of each against the first of
    its kind.

    Strong: n workers that are n times as fast have efficiency 1. Weak: n workers that take n times the rows in the same
    time have efficiency 1. Trials: n slots with n times the trials a minute have efficiency 1.
    """

    def against(first: TrainRun | TrialsRun, run: TrainRun | TrialsRun, kind: str) -> dict[str, float]:
        more, faster = (getattr(run, name) / getattr(first, name) for name in KINDS[kind][1:])
        return {"speedup": faster, "efficiency": faster / more}

    measured: dict[str, Sequence[TrainRun | TrialsRun]] = {"strong": strong, "weak": weak, "trials": trials}
    return {kind: [asdict(run) | against(runs[0], run, kind) for run in runs] for kind, runs in measured.items()}


def record_scaling(found: dict[str, Any], home: Path, folder: Path, experiment: str = EXPERIMENT) -> str:
    """Write `scaling.md`, `.svg` and `.png` beside `scaling.json`, and all of it to MLflow, as one run whose steps are
    numbers of workers or slots. Returns the store's URI; raises UserError where the store does not answer."""
    (folder / "scaling.md").write_text(write_markdown(found))
    save(plot_scaling(found), folder / "scaling")
    tracker = Tracker(None, experiment, home)
    key = f"scale-{hash_content(found)}-{time.time_ns()}"
    tags = {"l2g_ray.level": "scale", "git_revision": found["git_revision"] or ""}
    tracker.start(key, folder.name, tags=tags, params={"command": found["command"], **found["shape"]})
    for kind, (_, size, speed) in KINDS.items():
        for one in found[kind]:
            metrics = {f"{kind}_{name}": one[name] for name in (speed, "speedup", "efficiency")}
            tracker.log_metrics(key, metrics, step=one[size])
    for suffix in ("json", "md", "svg", "png"):
        tracker.log_artifacts(key, folder / f"scaling.{suffix}")
    tracker.end(key)
    return tracker.uri


def _find_room(ray: Any, request: ScaleRequest) -> float:
    """GPUs of a worker. Raises UserError where the largest measurement does not fit."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = request.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if any(node.get("GPU", 0) >= 1 for node in nodes) else 0.0
    room = measure_slots(nodes, 1, gpus).count
    for flag, sizes in (("--workers", request.workers), ("--slots", request.slots)):
        if max(sizes) > room:
            raise UserError(
                f"{flag} {max(sizes)}: the cluster has room for {room} workers of 1 CPU and {gpus:g} GPU; give smaller "
                "numbers, or add machines"
            )
    return gpus


class _Bench:
    """The common ground of all measurements: data, reference, an untrained embedder."""

    def __init__(self, request: ScaleRequest, gpus: float, scratch: Path, board: Any, say: Say) -> None:
        self.request, self.gpus, self.scratch, self.board, self.say = request, gpus, scratch, board, say
        self.device = "cuda" if gpus else "cpu"
        on_cpu = find_cpu_precision([request.settings], Slots(1, 1, gpus), scratch / "choices", None)
        self.precision = resolve_precision(request.settings.precision, self.device, on_cpu)
        self.prepared: dict[int, PreparedTask] = {}
        self.trained: dict[tuple[int, int, int], TrainRun] = {}

    def train(self, workers: int, rows: int, batch_size: int, kind: str) -> TrainRun:
        """Return a Ray Train run of `workers` workers. Its first epoch warms up and is not counted; equal runs are reused."""
        size = (workers, rows, batch_size)
        if size not in self.trained:
            self.trained[size] = self._train(workers, rows, batch_size, kind)
        return self.trained[size]

    def _train(self, workers: int, rows: int, batch_size: int, kind: str) -> TrainRun:
        self.say(f"{kind} scaling: {workers} worker{'s' if workers > 1 else ''}, {rows} rows, batch {batch_size}")
        job, site = self._job(f"{kind}-{workers}", rows, batch_size, seed=0)
        begun = time.perf_counter()
        history = self._run([job], site, Slots(1, 1, self.gpus, workers), "train")[0].values["history"]
        wall_s = time.perf_counter() - begun
        epochs_s = [row["train_s"] for row in history[1:]]
        seen = rows - 1 if rows % batch_size == 1 else rows
        epoch_s = statistics.median(epochs_s)
        return TrainRun(
            workers=workers,
            rows=rows,
            batch_size=batch_size,
            epoch_s=epoch_s,
            epochs_s=epochs_s,
            rows_per_s=seen / epoch_s,
            start_s=wall_s - sum(row["wall_s"] for row in history),
            train_loss=[row["train_loss"] for row in history],
        )

    def run_trials(self, slots: int) -> TrialsRun:
        """Run the same trials, `slots` at once."""
        request = self.request
        self.say(f"throughput: {request.trials} trials, {slots} at once")
        made = [self._job(f"slots-{slots}", request.rows, request.batch_size, seed) for seed in range(request.trials)]
        _, site = made[0]
        begun = time.perf_counter()
        self._run([job for job, _ in made], site, Slots(slots, 1, self.gpus), "process")
        wall_s = time.perf_counter() - begun
        return TrialsRun(slots, request.trials, wall_s, 60 * request.trials / wall_s)

    def _run(self, jobs: list[Job], site: Site, slots: Slots, runner: str) -> list[StageResult]:
        from l2g_ray.orchestrate.place import Place
        from l2g_ray.orchestrate.tasks import run_jobs

        place = Place(site, site.open_store(), slots, self.board, lambda event: None)
        return run_jobs(place, jobs[0].parts["scale"], jobs, runner)

    def _job(self, kind: str, rows: int, batch_size: int, seed: int) -> tuple[Job, Site]:
        """Return a refit in a separate store, so that no measurement finds another's result."""
        prepared = self._prepare(rows)
        settings = self.request.settings
        settings = settings.model_copy(
            update={"finetune": settings.finetune.model_copy(update={"epochs": self.request.epochs})}
        )
        reference = self._reference(prepared, settings)
        trial = {
            "lr_embedder": 1e-4,
            "lr_language_model": 1e-5,
            "weight_decay": 1e-3,
            "dropout": 0.1,
            "batch_size": batch_size,
            "train_layers": "all",
            "alpha": 0.0,
        }
        job = Job("refit", kind, {"trial": trial, "seed": seed}, {"align:0.0": str(reference.folder)}, {"scale": kind})
        site = replace(
            self._site(prepared, settings, kind),
            device=self.device,
            gpus=self.gpus,
            precision=self.precision,
            reference=reference,
        )
        return job, site

    def _site(self, prepared: PreparedTask, settings: Settings, folder: str) -> Site:
        return Site("scale", str(prepared.folder), settings, self.scratch / folder, self.scratch)

    def _prepare(self, rows: int) -> PreparedTask:
        if rows not in self.prepared:
            source, rng = self.scratch / f"rows-{rows}", np.random.default_rng(0)
            source.mkdir()
            for split, n in (("train", rows), ("valid", N_VALID), ("test", N_TEST)):
                letters = rng.choice(list("ACGT"), (n, self.request.length_bp))
                table = pa.table({"sequence": ["".join(row) for row in letters], "label": np.arange(n) % 2})
                write_csv(table, source / f"{split}.csv")
            raw = open_source([source], SourceOptions())
            self.prepared[rows] = prepare(raw, self.scratch / f"prepared-{rows}", self.request.settings.data)
            if self.prepared[rows].n_rows("train") != rows:
                raise UserError(f"--length-bp {self.request.length_bp}: random sequences repeat; give longer ones")
        return self.prepared[rows]

    def _reference(self, prepared: PreparedTask, settings: Settings) -> StageResult:
        """Return the language model's reference and, in its folder, an untrained embedder, as stage 2 leaves one."""
        key = hash_content(settings.model.model_dump(mode="json"))
        job = Job("reference", settings.model.language_model, {}, {}, {"key": key})
        site = self._site(prepared, settings, "reference")
        facts = run_job(JobSpec(site, job), lambda row: None)
        made = StageResult("reference", job.key, site.open_store().folder("reference", job.key), facts)
        if not (made.folder / "config.json").exists():
            reference, data = read_reference(made.folder, facts), load_data(prepared)
            config = make_embedder_config(settings, data, reference, settings.select.backbones[0])
            save_model(build_net(config, data, reference, 0), made.folder)
        return made
