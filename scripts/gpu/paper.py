"""What the language model's weights are worth at the paper's size: L2G pre-trained, L2G from random weights, and the embedder alone.

`python scripts/gpu/paper.py --out paper.json` (phase `paper` of `run.sh`) trains, for each task and seed:
the embedder on its own (`embedder`), the same again from another seed (`embedder_2`) and for as long as a whole L2G takes
(`embedder_long`); then stage 2 once, and from it `l2g` and `l2g_random`, which differ in the language model's weights alone.
The rate of the language model is chosen for each of the two by the first seed's validation score. No other choice is made;
test rows are predicted once, at a model's end. Processes share the GPU, a task begins where time is left for it, and every
finished model is a line of `models.jsonl` and a file of predictions, so that a run that is stopped keeps what it has. Told are
scores, and paired differences over rows and seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch

from l2g_ray.config import Settings
from l2g_ray.counts import average_strands
from l2g_ray.data.batches import InMemorySource
from l2g_ray.data.dataset import PreparedTask
from l2g_ray.data.prepare import prepare
from l2g_ray.data.sources.official import find_raw
from l2g_ray.models.corpus import find_corpus
from l2g_ray.models.embedder import EmbedderNet
from l2g_ray.models.language_model import load_transformer
from l2g_ray.orchestrate.jobs import load_data
from l2g_ray.presets import resolve
from l2g_ray.results.intervals import PairedDifference, Score, paired_difference
from l2g_ray.stages.align import train_aligned
from l2g_ray.stages.context import Reference, TaskData, make_embedder_config, predict_source, read_reference
from l2g_ray.stages.embedder_only import train_embedder_only
from l2g_ray.stages.finetune import FinetuneTrial, build_model, finetune
from l2g_ray.stages.loop import Runtime, TrainResult
from l2g_ray.stages.reference import write_reference
from l2g_ray.tasks.catalogue import find_tasks
from l2g_ray.tasks.metrics import score, signed_score

# The largest training sets first, but for H3 (500 bp), where a first study saw the language model gain.
TASKS = ("gue/tf_0", "nt/H3", "gue/prom_core_all", "gue/tf_1")
SMOKE_TASKS = ("demo/splice_junction",)
SEEDS = (0, 1, 2)
BACKBONE, ARCHITECTURE = "resnet", ((7, 1),) * 9
RATES = (5e-5, 1.5e-4)
ALPHA = 1.0
LONGEST = 12  # `embedder_long` trains at most this multiple of the embedder's epochs
SETTINGS: dict[str, Any] = {
    "model.language_model_layers": None,
    "model.target_tokens": 512,
    "model.resnet_tokens": "full",
    "model.combine": "lm_only",
    "embedder_only.batch_size": 64,
    "embedder_only.epochs": [8, 12],
    "align.epochs": 6,
    "align.task_only_epochs": 4,
    "align.batch_size": 64,
    "finetune.epochs": 4,
    "finetune.batch_size": [128],
}
SMOKE: dict[str, Any] = {
    "model.target_tokens": 4,
    "model.resnet_tokens": "strided",
    "embedder_only.epochs": 1,
    "align.epochs": 2,
    "align.task_only_epochs": 1,
    "finetune.epochs": 1,
}
# (first, second): are the probabilities of the first, or the means of several, better than the second's?
QUESTIONS = (
    (("l2g",), ("l2g_random",)),
    (("l2g",), ("embedder",)),
    (("l2g",), ("embedder_long",)),
    (("embedder", "l2g"), ("embedder", "embedder_2")),
    (("embedder", "l2g"), ("embedder", "embedder_long")),
    (("embedder", "l2g"), ("embedder", "l2g_random")),
)


@dataclass(frozen=True)
class Place:
    """What every process knows: folders, and whether this is a rehearsal."""

    data_dir: Path | None
    out: Path
    language_model: str
    smoke: bool

    @property
    def device(self) -> str:
        """Where it computes."""
        return "cuda" if torch.cuda.is_available() else "cpu"

    def resolve(self, name: str) -> Settings:
        """The settings of a task."""
        task = find_tasks(*_split(name))[0]
        changed = SETTINGS | {"model.language_model": self.language_model} | (SMOKE if self.smoke else {})
        return resolve("fast", task.overrides, changed).for_task(task.strand_specific)

    def prepare(self, name: str) -> PreparedTask:
        """The task's rows as a run has them."""
        raw = find_raw(find_tasks(*_split(name))[0], self.data_dir)
        return prepare(raw, self.out / "prepared" / name, self.resolve(name).data)

    def write_reference(self) -> None:
        """What the CNN stages need of the language model."""
        folder = self.out / "reference"
        folder.mkdir(parents=True, exist_ok=True)
        align = resolve("fast").align
        corpus, _ = find_corpus("auto" if self.data_dir else "vocabulary", None, self.data_dir)
        facts = write_reference(
            folder, load_transformer(self.language_model), self.language_model, corpus, align.per_class, 0
        )
        (folder / "facts.json").write_text(json.dumps(facts))

    def read_reference(self) -> Reference:
        """What `write_reference` wrote."""
        folder = self.out / "reference"
        return read_reference(folder, json.loads((folder / "facts.json").read_text()))


@cache
def _load(place: Place, name: str) -> tuple[TaskData, InMemorySource]:
    """Training and validation rows, and the test rows, which only `_finish` predicts."""
    prepared = place.prepare(name)
    tables = [prepared.table("train"), prepared.table("valid"), prepared.open_test()]
    if place.smoke:
        tables = [table.take(np.random.default_rng(0).permutation(len(table))[:200]) for table in tables]
    train, valid, test = map(InMemorySource, tables)
    return load_data(prepared, train, valid), test


def _split(name: str) -> tuple[str, list[str]]:
    bench, _, task = name.partition("/")
    return bench, [task]


def train_embedder(place: Place, name: str, seed: int, arm: str, times: float = 1.0) -> dict[str, Any]:
    """The embedder with its own predictor, `times` the epochs of the settings."""
    (data, _), settings, reference = _load(place, name), place.resolve(name), place.read_reference()
    stage = settings.embedder_only
    epochs = max(1, round(times * stage.count_epochs(data.train.n_rows)))
    settings = settings.model_copy(update={"embedder_only": stage.model_copy(update={"epochs": epochs})})
    config = make_embedder_config(settings, data, reference, BACKBONE, ARCHITECTURE)
    begun = time.perf_counter()
    drawn = seed + (1_000 if arm == "embedder_2" else 0)
    found = train_embedder_only(data, settings, reference, _runtime(place), config=config, seed=drawn)
    row = {"seed": seed, "arm": arm, "epochs": epochs, "wall_s": time.perf_counter() - begun}
    return _finish(place, name, settings, EmbedderNet(config), found, row)


def align(place: Place, name: str, seed: int) -> float:
    """Stage 2; its weights stay in a file. Returns wall seconds."""
    (data, _), settings, reference = _load(place, name), place.resolve(name), place.read_reference()
    config = make_embedder_config(settings, data, reference, BACKBONE, ARCHITECTURE)
    begun = time.perf_counter()
    found = train_aligned(data, settings, reference, _runtime(place), config=config, alpha=ALPHA, seed=seed)
    file = _aligned(place, name, seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(found.best_state, file)
    return time.perf_counter() - begun


def train_l2g(place: Place, name: str, seed: int, arm: str, rate: float) -> dict[str, Any]:
    """Stage 3 from the aligned embedder, with the language model's own weights or random ones."""
    (data, _), settings, reference = _load(place, name), place.resolve(name), place.read_reference()
    init = "random" if arm == "l2g_random" else "pretrained"
    model_settings = settings.model_copy(
        update={"model": settings.model.model_copy(update={"language_model_init": init})}
    )
    config = make_embedder_config(settings, data, reference, BACKBONE, ARCHITECTURE)
    state = torch.load(_aligned(place, name, seed), weights_only=True)
    trial = FinetuneTrial(5e-4, rate, 1e-2, 0.1, settings.finetune.batch_size[0], "all", ALPHA)
    begun = time.perf_counter()
    given = {"config": config, "embedder_state": state, "seed": seed}
    found = finetune(data, model_settings, reference, _runtime(place), trial=trial, **given)
    row = {"seed": seed, "arm": arm, "rate": rate, "epochs": len(found.history), "wall_s": time.perf_counter() - begun}
    return _finish(place, name, model_settings, build_model(data, model_settings, reference, **given), found, row)


def _finish(
    place: Place, name: str, settings: Settings, model: torch.nn.Module, found: TrainResult, row: dict[str, Any]
) -> dict[str, Any]:
    """Score a finished model on validation and test, and keep its predictions of both."""
    data, test = _load(place, name)
    kept: dict[str, Any] = {"test": None, "valid": None}
    row = {
        "task": name,
        **row,
        "train_loss": found.history[-1]["train_loss"],
        "peak_bytes": found.history[-1].get("peak_bytes"),
    }
    if found.best_state:
        model.load_state_dict(found.best_state)
    model.to(place.device)
    both = average_strands(settings, data.task)
    for split, source in (("valid", data.valid), ("test", test)):
        predictions, labels = predict_source(model, source, data.task, _runtime(place), rc_average=both)
        row[split] = round(signed_score(data.task.kind, data.task.metric, labels, predictions), 4)
        kept |= {split: predictions.astype(np.float16), f"{split}_labels": labels}
    file = _predictions(place.out, row)
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(file, **kept)
    with (place.out / "models.jsonl").open("a") as stream:
        stream.write(json.dumps(row) + "\n")
    return row


def _runtime(place: Place) -> Runtime:
    return Runtime(place.device, "bf16" if place.device == "cuda" else "fp32")


def _aligned(place: Place, name: str, seed: int) -> Path:
    return place.out / "aligned" / name / f"{seed}.pt"


def _predictions(out: Path, row: Mapping[str, Any]) -> Path:
    rate = f"-{row['rate']:g}" if "rate" in row else ""
    return out / "predictions" / f"{row['task'].replace('/', '-')}-{row['arm']}{rate}-{row['seed']}.npz"


def run_task(pool: ProcessPoolExecutor, place: Place, name: str, ends: float, turn: Lock) -> None:
    """All models of a task, as many at once as the pool has processes; the next task's come after them."""
    with turn:
        jobs = _submit(pool, place, name, ends)
    _wait(jobs, ends)


def _submit(pool: ProcessPoolExecutor, place: Place, name: str, ends: float) -> list[Future[Any]]:
    """Choose the rates, and leave what is then to be trained to the pool."""
    first = [pool.submit(align, place, name, seed) for seed in SEEDS]
    alone = {
        (seed, arm): pool.submit(train_embedder, place, name, seed, arm)
        for arm in ("embedder", "embedder_2")
        for seed in SEEDS
    }
    stage_2_s = _wait(first, ends)
    tried = {
        (arm, rate): pool.submit(train_l2g, place, name, SEEDS[0], arm, rate)
        for arm in ("l2g", "l2g_random")
        for rate in RATES
    }
    rows = dict(zip(tried, _wait(list(tried.values()), ends), strict=True))
    rates = {}
    for arm in ("l2g", "l2g_random"):
        valid = {rate: rows[arm, rate]["valid"] for rate in RATES}
        rates[arm] = max(RATES, key=valid.__getitem__)
    later = [pool.submit(train_l2g, place, name, seed, arm, rates[arm]) for seed in SEEDS[1:] for arm in rates]
    base_s = _wait([alone[SEEDS[0], "embedder"]], ends)[0]["wall_s"]
    times = min(LONGEST, max(1.0, (stage_2_s[0] + rows["l2g", rates["l2g"]]["wall_s"]) / base_s))
    later += [pool.submit(train_embedder, place, name, seed, "embedder_long", times) for seed in SEEDS]
    return [*alone.values(), *later]


def _wait(jobs: Sequence[Future[Any]], ends: float) -> list[Any]:
    return [job.result(timeout=max(0.0, ends - time.monotonic())) for job in jobs]


def _warm(place: Place) -> None:
    torch.set_num_threads(1)
    if place.device == "cuda":
        torch.zeros(1, device="cuda")


def tabulate(out: Path) -> dict[str, Any]:
    """Scores of each task and arm, and the answers to `QUESTIONS` where all seeds of both sides are there."""
    rows = [json.loads(line) for line in (out / "models.jsonl").read_text().splitlines()]
    tasks, found = list(dict.fromkeys(row["task"] for row in rows)), []
    for name in tasks:
        task = find_tasks(*_split(name))[0]
        arms = _take_arms([row for row in rows if row["task"] == name])
        kept = {arm: [dict(np.load(_predictions(out, row))) for row in mine] for arm, mine in arms.items()}
        answers = []
        for first, second in QUESTIONS:
            if all(len(kept.get(arm, ())) == len(SEEDS) for arm in {*first, *second}):
                answers.append({"first": first, "second": second} | _compare(task, kept, first, second))
        scores = {
            arm: {
                key: [row[key] for row in mine]
                for key in ("valid", "test", "wall_s", "epochs", "rate")
                if key in mine[0]
            }
            for arm, mine in arms.items()
        }
        found.append({"task": name, "metric": task.metric, "arms": scores, "differences": answers})
    return {"tasks": found, "rows": rows}


def _take_arms(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Each arm's rows by seed, of the rate that the first seed's validation chose."""
    arms: dict[str, list[Mapping[str, Any]]] = {}
    for arm in dict.fromkeys(row["arm"] for row in rows):
        mine = [row for row in rows if row["arm"] == arm]
        firsts = [row for row in mine if row["seed"] == SEEDS[0]]
        rate = max(firsts, key=lambda row: row["valid"]).get("rate") if firsts else None
        arms[arm] = sorted((row for row in mine if row.get("rate") == rate), key=lambda row: row["seed"])
    return arms


def _compare(task: Any, kept: Mapping[str, Any], first: Sequence[str], second: Sequence[str]) -> PairedDifference:
    labels = kept[first[0]][0]["test_labels"]

    def make_score(predictions: np.ndarray) -> Score:
        return lambda rows: score(task.kind, task.metric, labels[rows], predictions[rows])

    def scores(arms: Sequence[str]) -> list[Score]:
        means = [np.mean([kept[arm][i]["test"].astype(np.float64) for arm in arms], axis=0) for i in range(len(SEEDS))]
        return [make_score(predictions) for predictions in means]

    return paired_difference(scores(first), scores(second), len(labels), resamples=500)


def main() -> None:
    """Train until the time limit; or only report what an earlier run has found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    home = Path(os.environ.get("GPU_HOME", "/tmp/l2g-gpu"))
    parser.add_argument("--out", type=Path, required=True, help="JSON file; predictions are written next to it")
    parser.add_argument("--limit-s", type=float, default=290)
    parser.add_argument("--cpu-smoke", action="store_true", help="tiny: that it works")
    parser.add_argument("--data-dir", type=Path, default=home / "data")
    parser.add_argument("--language-model", help="hub id or folder; by default that of the kit")
    parser.add_argument("--work", type=Path, default=home / "paper", help="folder of what it trains")
    parser.add_argument("--tasks")
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--tell", action="store_true", help="train nothing")
    options = parser.parse_args()
    ends = time.monotonic() + options.limit_s
    smoke = options.cpu_smoke
    if not options.tell:
        folder = home / ("minilm" if smoke else "mpnet")
        language_model = options.language_model or (folder if folder.exists() else "minilm")
        tasks = tuple(options.tasks.split(",")) if options.tasks else SMOKE_TASKS if smoke else TASKS
        place = Place(options.data_dir if options.data_dir.exists() else None, options.work, str(language_model), smoke)
        stopped = train_all(place, tasks, 1 if smoke else options.processes, ends - 15)
        print(f"not finished: {stopped}" if stopped else "all models trained", flush=True)
    found = tabulate(options.work)
    options.out.write_text(json.dumps(found) + "\n")
    shutil.make_archive(str(options.out.with_suffix("")), "zip", options.work / "predictions")
    print(f"{len(found['rows'])} models", flush=True)
    sys.stdout.flush()
    os._exit(0 if found["rows"] else 1)  # processes that still train would be waited for


def train_all(place: Place, tasks: Sequence[str], processes: int, ends: float) -> list[str]:
    """Train the models of all tasks; returns what stopped a task before its end."""
    place.out.mkdir(parents=True, exist_ok=True)
    (place.out / "models.jsonl").touch()
    place.write_reference()
    for name in tasks:
        place.prepare(name)
    print(f"prepared {len(tasks)} tasks", flush=True)
    pool, turn = ProcessPoolExecutor(processes, get_context("spawn"), _warm, (place,)), Lock()
    with ThreadPoolExecutor(len(tasks)) as side:
        running = [side.submit(run_task, pool, place, name, ends, turn) for name in tasks]
        stopped = [f"{name}: {job.exception()!r}" for name, job in zip(tasks, running, strict=True) if job.exception()]
    for process in list(pool._processes.values()):
        process.kill()
    return stopped


if __name__ == "__main__":
    main()
