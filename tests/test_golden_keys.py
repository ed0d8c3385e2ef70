"""The store keys of every job that the shipped presets, benches and studies make, pinned in `golden_keys.json`.

Keys decide what an --out folder of an earlier version still gives, so a key may change only together with a stage's
version, and the change log says so. Nothing is trained: pipelines run with jobs that are recorded and answered with canned
results, on made-up fingerprints, so that no key depends on this machine, its data or its libraries.

    python tests/test_golden_keys.py --write          rewrite the file
    python tests/test_golden_keys.py --show LABEL     each job of a group with all that its key holds, to compare commits
"""

from __future__ import annotations

import functools
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from l2g_ray import presets
from l2g_ray.arms import BASELINES
from l2g_ray.config import Settings, resolve_precision
from l2g_ray.data.dataset import PreparedTask
from l2g_ray.models import locate as fingerprint
from l2g_ray.models.corpus import find_corpus
from l2g_ray.orchestrate import pipeline, remote
from l2g_ray.orchestrate import tune as tuning
from l2g_ray.orchestrate.memory import memory_key
from l2g_ray.orchestrate.pipeline import Pipeline
from l2g_ray.orchestrate.spec import JobSpec, SearchTrial, Site
from l2g_ray.orchestrate.train import draw_job
from l2g_ray.request import SuiteRequest
from l2g_ray.stages.registry import STAGES
from l2g_ray.storage import as_location
from l2g_ray.store.results import Job, StageResult
from l2g_ray.studies import simple
from l2g_ray.studies.study import ARMS_OF_STUDIES, read_baseline_arms, read_studies
from l2g_ray.tasks.catalogue import load_bench
from l2g_ray.tasks.schema import Task

FILE = Path(__file__).with_name("golden_keys.json")
PRESETS = ("smoke", "fast", "paper")
# Each kind of task, on both strands and on one.
TASKS = ("demo/splice_junction", "demo/enhancer_grammar", "nt/H3", "gue/virus_covid")
WITHOUT_STUDIES = ("nt/splice_sites_all", "gue/tf_0", "deepsea/deepsea")
IN_FULL = [("nt/H3", "suite of all stages")]
GENOMIC = {"baselines.genomic_model": "some/genomic-model"}
ALL_STAGES = {"arms": "all", "seeds": 2, "search.enabled": True, "pretrain.enabled": True, "precision": "bf16"}
TRIAL = {
    "lr_embedder": 1e-3, "lr_language_model": 1e-4, "weight_decay": 1e-4, "dropout": 0.1, "batch_size": 32,
    "train_layers": "all",
}  # fmt: skip
# What jobs are answered with; later ones depend on it.
CANNED = {
    "history": [], "cpu_s": 0.0, "wall_s": 0.0, "gpu_s": 0.0, "chosen": {"C": 3.0}, "architecture": [[3, 1], [7, 3]],
    "width": 384, "max_tokens": 512, "norm_eps": 1e-12, "norm": "norm", "described": "text",
}  # fmt: skip


class _Prepared(PreparedTask):
    """A task whose rows nobody reads."""

    def row_groups(self) -> np.ndarray:
        return np.arange(9)


class _Evaluated(Exception):
    """Simple models are through: what comes after needs rows."""


class _Recorder:
    """Notes jobs, and answers for Ray and the store."""

    def __init__(self) -> None:
        self.keys: dict[str, str] = {}
        self.jobs: dict[str, Job] = {}
        self.results: dict[str, StageResult] = {}
        self.root = Path("stages")

    def note(self, job: Job, place: int = 0) -> StageResult:
        name = " ".join(dict.fromkeys(filter(None, (job.stage, job.args.get("name"), *job.label.split()))))
        assert self.keys.setdefault(name, job.key) == job.key, f"two jobs are called {name}"
        self.keys[f"memory {name}"] = memory_key(job)
        self.jobs[name] = job
        folder = Path(job.stage, job.key)
        self.results[job.key] = StageResult(job.stage, job.key, folder, CANNED | {"score": 0.5 - 0.01 * place})
        return self.results[job.key]

    def run_jobs(self, place: Any, stage: str, jobs: list[Job], runner: str | None = None) -> list[StageResult]:
        return [self.note(job, i) for i, job in enumerate(jobs)]

    def run_jobs_warm(self, specs: list[JobSpec], *others: Any) -> list[None]:
        for spec in specs:
            self.note(spec.job)
        return [None] * len(specs)

    def run_search(self, place: Any, stage: Any, base: Job, *others: Any) -> list[SearchTrial]:
        job = draw_job(base, TRIAL | {"alpha": place.alpha})
        self.note(job)
        return [SearchTrial(job.args["trial"], job.key, 0.5)]

    def run_simple(self, site: Site, job: Job) -> StageResult:
        found = self.note(job)
        if job.stage == "evaluate":
            raise _Evaluated
        return found

    # The store.
    def find(self, stage: str, key: str) -> StageResult | None:
        return self.results.get(key)

    def open_work(self, stage: str, key: str) -> None: ...

    def discard_work(self, stage: str, keys: list[str]) -> None: ...

    def commit(self, stage: str, key: str, values: dict[str, Any]) -> StageResult:
        self.keys[stage] = key
        return StageResult(stage, key, Path(stage, key), values)


def _make_prepared(task: Task) -> _Prepared:
    splits = {s: {"fingerprint": s, "rows": 9, "length_bp": {"min": 60, "max": 80}} for s in ("train", "valid", "test")}
    return _Prepared(as_location("prepared"), task, {"splits": splits})


def _run_suite(task: Task, settings: Settings, data_dir: Path) -> _Recorder:
    """What `remote.run_task` does, without a cluster."""
    recorder, prepared, precision = _Recorder(), _make_prepared(task), resolve_precision(settings.precision, "cpu")
    site = Site(task.name, "prepared", settings, Path(), Path(), precision=precision, data_dir=data_dir)
    place: Any = SimpleNamespace(
        task=task.name, store=recorder, slots=SimpleNamespace(cpus=1, workers=1, gpus=0.0), board=None, held={},
        emit=lambda event: None, site=site, alpha=settings.align.alphas[-1],
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "run_jobs", recorder.run_jobs)
        patch.setattr(remote, "run_jobs", recorder.run_jobs)
        patch.setattr(remote, "run_jobs_warm", recorder.run_jobs_warm)
        patch.setattr(tuning, "run_search", recorder.run_search)
        corpus, _ = find_corpus(settings.align.source, settings.align.source_path, data_dir)
        pretrained = remote._pretrain(place, prepared, settings)
        reference = remote._reference(place, settings, corpus, pretrained)
        Pipeline(place, prepared, settings, reference, pretrained).run()
    return recorder


def _run_simple(task: Task, settings: Settings, data_dir: Path) -> _Recorder:
    recorder = _Recorder()
    request = SuiteRequest("simple", task.bench, [task], {}, settings.preset, {}, Path("out"))
    arguments = (request, task, settings, _make_prepared(task), list(BASELINES), Path("out"), Console(quiet=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simple, "_run", recorder.run_simple)
        patch.setattr(simple, "keep_cpu_precision", lambda *_: "fp32")  # whatever this machine is best at
        with pytest.raises(_Evaluated):
            simple._run_task(*arguments)
    return recorder


@functools.cache
def _list_runs(with_studies: bool) -> dict[str, tuple[Callable[..., _Recorder], Mapping[str, Any]]]:
    """Name of a run of one task to what makes its jobs, and its settings above the preset's."""
    runs: dict[str, tuple[Callable[..., _Recorder], Mapping[str, Any]]] = {
        "suite": (_run_suite, {}),
        "suite of all stages": (_run_suite, ALL_STAGES),
        "simple": (_run_simple, GENOMIC),
    }
    if with_studies:
        arms = {"arms": ARMS_OF_STUDIES}
        for study in read_studies().values():
            runs |= {f"ablate {study.name} {arm}": (_run_suite, arms | own) for arm, own in study.arms.items()}
        beside = arms | GENOMIC | {"baselines.names": list(BASELINES)}
        runs |= {f"baseline {arm}": (_run_suite, beside | own["set"]) for arm, own in read_baseline_arms().items()}
    return runs


_load_bench, _read_preset = functools.cache(load_bench), functools.cache(presets.read_preset)


def _record(preset: str, name: str, run: str) -> _Recorder:
    bench, _, task_name = name.partition("/")
    task = _load_bench(bench).tasks[task_name]
    make, assignments = _list_runs(True)[run]
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(presets, "read_preset", _read_preset)
        settings = presets.resolve(preset, task.overrides, assignments).for_task(task.strand_specific)
        # A hub id or alias stands for itself, whatever is installed here.
        patch.setattr(fingerprint, "locate", lambda name: name)
        corpus = Path(folder, "conll2003", "ner", "valid.parquet")
        corpus.parent.mkdir(parents=True)
        pq.write_table(pa.table({"tokens": [["EU", "rejects"]], "ner_tags": [["B-ORG", "O"]]}), corpus)
        return make(task, settings, Path(folder))


def record_keys() -> dict[str, Any]:
    """What the file holds: all keys of one task, and of every other task hashes of them by run and by stage."""
    found: dict[str, Any] = {}
    for preset in PRESETS:
        for name in (*TASKS, *WITHOUT_STUDIES):
            by_run, by_stage = dict[str, str](), dict[str, dict[str, str]]()
            for run in _list_runs(name in TASKS):
                keys = _record(preset, name, run).keys
                by_run[run] = _hash(keys)
                for label, key in keys.items():
                    by_stage.setdefault(label.split()[0], {})[f"{run} {label}"] = key
                if (name, run) in IN_FULL:
                    found[f"{preset} {name} {run}"] = dict(sorted(keys.items()))
            found[f"{preset} {name}, by run"] = by_run
            found[f"{preset} {name}, by stage"] = {stage: _hash(keys) for stage, keys in sorted(by_stage.items())}
    return found


def _hash(keys: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(keys, sort_keys=True).encode()).hexdigest()[:10]


def _compare(before: Mapping[str, Mapping[str, str]], now: Mapping[str, Mapping[str, str]]) -> list[str]:
    """A line for each entry that is not as it was."""
    told = []
    for group in before | now:
        old, new = before.get(group, {}), now.get(group, {})
        for label in old | new:
            if old.get(label) != new.get(label):
                told.append(f"{group}: {label}: {old.get(label)} is now {new.get(label)}")
    return told


def test_golden_keys() -> None:
    changed = _compare(json.loads(FILE.read_text()), record_keys())
    assert not changed, f"{len(changed)} keys or hashes of keys changed:\n" + "\n".join(changed[:40])


def test_golden_keys_see_each_part_of_a_key() -> None:
    """The comparison can fail: a default, a stage's version, what a key holds, a job more."""
    before = {"smoke nt/H3": _record("smoke", "nt/H3", "suite").keys}
    assert not _compare(before, {"smoke nt/H3": _record("smoke", "nt/H3", "suite").keys})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(STAGES, "align", replace(STAGES["align"], version=99))
        told = _compare(before, {"smoke nt/H3": _record("smoke", "nt/H3", "suite").keys})
    stages = {line.split()[2] for line in told}
    assert {"align", "refit", "evaluate"} <= stages, told
    assert not {"select", "baseline", "warmup"} & stages, told
    assert len(_compare(before, {"smoke nt/H3": before["smoke nt/H3"] | {"select new": "key"}})) == 1


def _write() -> None:
    FILE.write_text(json.dumps(record_keys(), indent=0) + "\n")


def _show(label: str) -> None:
    preset, name, run = label.split(" ", 2)
    recorder = _record(preset, name, run)
    for job_name, key in sorted(recorder.keys.items()):
        job = recorder.jobs.get(job_name)
        print(json.dumps({"job": job_name, "key": key} | ({"args": job.args, "parts": job.parts} if job else {})))


if __name__ == "__main__":
    _write() if sys.argv[1:] == ["--write"] else _show(sys.argv[2])
