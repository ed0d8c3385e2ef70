"""One task's pipeline in a separate Ray process."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace
from typing import Any

from l2g_ray.config import Settings
from l2g_ray.data.dataset import PreparedTask, open_prepared
from l2g_ray.models.corpus import Corpus, find_corpus
from l2g_ray.models.locate import fingerprint_language_model
from l2g_ray.monitor.events import Event, Note
from l2g_ray.orchestrate.keys import make_pretrain_job
from l2g_ray.orchestrate.memory import hold
from l2g_ray.orchestrate.pipeline import Pipeline, TaskOutcome
from l2g_ray.orchestrate.place import Place, raise_first_error
from l2g_ray.orchestrate.spec import JobSpec, TaskSpec
from l2g_ray.orchestrate.tasks import run_jobs, run_jobs_warm
from l2g_ray.orchestrate.warm import warm_up
from l2g_ray.store.results import Job, StageResult


def run_task(spec: TaskSpec, board: Any) -> TaskOutcome:
    """Run a task. Raises what the stages raise."""
    import ray

    if not spec.verbose:
        for name in ("ray", "ray.tune", "ray.train", "ray.data"):
            logging.getLogger(name).setLevel(logging.ERROR)
    site, slots = spec.site, spec.slots
    settings, scratch = site.settings, site.scratch
    prepared = open_prepared(site.prepared)
    # Here, not in the driver: Ray gives a pipeline an idle process too, and it would take one that is warm.
    warm_up(slots)
    pending: list[Any] = []

    def emit(event: Event) -> None:
        pending.append(board.put.remote(event))

    scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
    begun = scratch / f"{site.task}.begun"
    if begun.exists():
        text = f"{site.task}: lost its process or machine and restarts; finished stages are reused"
        emit(Note(site.task, text))
    with contextlib.suppress(OSError):
        begun.touch()
    held = hold(prepared, settings.data, spec.tasks_at_once)
    place = Place(site, site.open_store(), slots, board, emit, held)
    try:
        # First: where there is no such text, nothing begins.
        corpus, _ = find_corpus(settings.align.source, settings.align.source_path, site.data_dir)
        pretrained = _pretrain(place, prepared, settings)
        reference = _reference(place, settings, corpus, pretrained)
        text = f"{site.task}: aligns to {reference.values['described']}"
        emit(Note(site.task, text))
        site = replace(site, reference=reference, pretrained=pretrained.folder if pretrained else None)
        return Pipeline(replace(place, site=site), prepared, settings, reference, pretrained).run()
    finally:
        ray.get(pending)  # also of a task that fails: an event after its end would find its MLflow runs closed


def _pretrain(place: Place, prepared: PreparedTask, settings: Settings) -> StageResult | None:
    """Return the language model trained further on the task's training rows; None where that is not asked for."""
    if not settings.pretrain.enabled:
        return None
    job = make_pretrain_job(prepared, settings, place.site.precision, place.slots.cpus)
    return run_jobs(place, job.stage, [job])[0]


def _reference(place: Place, settings: Settings, corpus: Corpus | None, pretrained: StageResult | None) -> StageResult:
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
        site = replace(place.site, pretrained=pretrained.folder if pretrained else None)
        errors = run_jobs_warm([JobSpec(site, job)], "process", place.slots, {}, place.board)
        raise_first_error(errors, place.task, job.stage)
        found = place.store.find(job.stage, job.key)
        assert found is not None
    return found
