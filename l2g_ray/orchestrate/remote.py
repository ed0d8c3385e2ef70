"""One task's pipeline in a Ray process of its own."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

from l2g_ray.config import Settings, resolve_precision
from l2g_ray.data.dataset import PreparedTask, open_prepared
from l2g_ray.models.corpus import Corpus, find_corpus
from l2g_ray.models.locate import fingerprint_language_model
from l2g_ray.monitor.events import Event, Note
from l2g_ray.orchestrate.keys import make_pretrain_job
from l2g_ray.orchestrate.pipeline import Pipeline, TaskOutcome
from l2g_ray.orchestrate.place import Place, raise_first_error
from l2g_ray.orchestrate.residence import hold
from l2g_ray.orchestrate.tasks import run_jobs, run_jobs_warm, warm_up
from l2g_ray.store.results import Job, StageResult
from l2g_ray.store.shared import open_store


def run_task(spec: dict[str, Any], board: Any) -> TaskOutcome:
    """Run a task whose spec the suite made: 'task', 'prepared', 'settings', 'out', 'data_dir', 'slots', 'verbose',
    'tasks_at_once'.

    Raises what the stages raise.
    """
    import ray

    if not spec["verbose"]:
        for name in ("ray", "ray.tune", "ray.train", "ray.data"):
            logging.getLogger(name).setLevel(logging.ERROR)
    settings = Settings.model_validate(spec["settings"])
    prepared = open_prepared(spec["prepared"])
    out = Path(spec["out"])
    store = open_store(out / "stages", spec["remote"], settings.cluster.storage_wait_s)
    slots = spec["slots"]
    # Here, not in the driver: Ray gives a pipeline an idle process too, and it would take one that is warm.
    warm_up(slots)
    device = "cuda" if slots.gpus else "cpu"
    scratch = Path(spec["scratch"])
    common = {
        "root": str(store.root),
        "remote": spec["remote"],
        "prepared": spec["prepared"],
        "settings": spec["settings"],
        "threads": slots.cpus,
        "device": device,
        "gpus": slots.gpus,
        "precision": resolve_precision(settings.precision, device),
        "scratch": str(scratch),
    }
    pending: list[Any] = []

    def emit(event: Event) -> None:
        pending.append(board.put.remote(event))

    scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
    begun = scratch / f"{spec['task']}.begun"
    if begun.exists():
        text = f"{spec['task']}: lost its process or machine and begins again; finished stages are there already"
        emit(Note(spec["task"], text))
    with contextlib.suppress(OSError):
        begun.touch()
    held = hold(prepared, settings.data, spec["tasks_at_once"])
    place = Place(spec["task"], store, common, slots, board, emit, scratch, held)
    try:
        align, data_dir = settings.align, spec["data_dir"]
        # First: where there is no such text, nothing begins.
        corpus, _ = find_corpus(align.source, align.source_path, Path(data_dir) if data_dir else None)
        pretrained = _pretrain(place, prepared, settings)
        reference = _reference(place, settings, data_dir, corpus, pretrained)
        text = f"{spec['task']}: aligns to {reference.values['described']}"
        emit(Note(spec["task"], text))
        common |= {"reference": str(reference.folder), "reference_facts": reference.values}
        if pretrained is not None:
            common["pretrained"] = str(pretrained.folder)
        return Pipeline(place, prepared, settings, reference, common["precision"], pretrained).run()
    finally:
        ray.get(pending)  # also of a task that fails: an event after its end would find its MLflow runs closed


def _pretrain(place: Place, prepared: PreparedTask, settings: Settings) -> StageResult | None:
    """The language model trained further on the task's training rows; None where that is not asked for."""
    if not settings.pretrain.enabled:
        return None
    job = make_pretrain_job(prepared, settings, place.common["precision"], place.slots.cpus)
    return run_jobs(place, job.stage, [job])[0]


def _reference(
    place: Place, settings: Settings, data_dir: str | None, corpus: Corpus | None, pretrained: StageResult | None
) -> StageResult:
    align, model = settings.align, settings.model
    if align.reference_weights == "pretrained":  # the text goes through the weights from before
        pretrained = None
    parts = {
        "language_model": fingerprint_language_model(model.language_model),
        "init": settings.reference_init,
        "seed": settings.seed,
        "source": align.source,
        "corpus": corpus.fingerprint() if corpus else "vocabulary",
        "per_class": align.per_class,
    }
    if pretrained is not None:
        parts["pretrain"] = pretrained.key
    job = Job("reference", model.language_model, {}, {}, parts)
    found = place.store.find(job.stage, job.key)
    if found is None:
        # The data folder is where to look, not what was found, so it stays out of the key.
        spec = place.spec(job) | {"data_dir": data_dir}
        if pretrained is not None:
            spec["pretrained"] = str(pretrained.folder)
        errors = run_jobs_warm([spec], "process", place.slots, {}, place.board)
        raise_first_error(errors, place.task, job.stage)
        found = place.store.find(job.stage, job.key)
        assert found is not None
    return found
