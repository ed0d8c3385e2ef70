"""Jobs that need a task's rows and nothing of the stages before them; what the keys of all jobs hold of the rows."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from l2g_ray.arms import BASELINES, find_baseline
from l2g_ray.config import BaselinesSettings, Settings
from l2g_ray.data.dataset import PreparedTask
from l2g_ray.data.splits import Fold
from l2g_ray.models.locate import fingerprint_language_model
from l2g_ray.store.results import Job


def describe_data(prepared: PreparedTask, settings: Settings) -> dict[str, Any]:
    """Return the part of a key that says which rows, and how they reach a model."""
    dumped = settings.for_task(prepared.task.strand_specific).data.model_dump(mode="json")
    names = ("channels", "rc_augment", "shift_bp", "shuffle_window_rows", "bucket_batches")
    return {
        "task": prepared.task.model_dump(mode="json", include={"kind", "labels", "metric", "strand_specific"}),
        "data": {split: prepared.fingerprint(split) for split in ("train", "valid")},
        "length_bp": prepared.length_range(),
        "data_settings": {name: dumped[name] for name in names},
    }


def make_baseline_job(
    prepared: PreparedTask,
    settings: Settings,
    name: str,
    seed: int | None = None,
    fold: Fold | None = None,
    strength: float | None = None,
    precision: str = "fp32",
) -> Job:
    """Return a baseline of `arms.BASELINES` on the task's rows; nothing of the embedder or the language model is in
    its key.

    Raises UserError for an unknown name. With a fold it is an arm's member, whose penalty has the `strength` given. `precision`: of what trains by gradients.
    """
    kind, baselines, defaults = find_baseline(name), settings.baselines, BaselinesSettings()
    others = {setting for one in BASELINES.values() for setting in one.own}
    shared = baselines.model_dump(mode="json", exclude={"names", *others})
    parts = describe_data(prepared, settings) | {"settings": shared} | kind.key(settings)
    # Results of earlier versions have the defaults.
    own = {setting: getattr(baselines, setting) for setting in kind.own}
    parts |= {setting: value for setting, value in own.items() if value != getattr(defaults, setting)}
    if kind.language_model:
        parts[kind.language_model] = fingerprint_language_model(getattr(baselines, kind.language_model))
    if kind.trained and precision != "fp32":
        parts |= {"precision": precision}
    seed = settings.seed if seed is None else seed
    if fold is None:
        return Job("baseline", name, {"name": name, "seed": seed}, {}, parts)
    args = {"name": name, "seed": seed, "fold": asdict(fold)} | ({} if strength is None else {"strength": strength})
    return Job("baseline", name_member(name, seed, fold), args, {}, parts)


def make_pretrain_job(prepared: PreparedTask, settings: Settings, precision: str, threads: int) -> Job:
    """Continued pre-training on the training rows. Of validation, its key has no more than the range of lengths."""
    data = describe_data(prepared, settings)
    model = settings.model
    parts = {
        "data": {"train": prepared.fingerprint("train")},
        "strand_specific": prepared.task.strand_specific,
        **{name: data[name] for name in ("length_bp", "data_settings")},
        "language_model": fingerprint_language_model(model.language_model),
        "init": model.language_model_init,
        "layers": model.language_model_layers,
        "settings": settings.pretrain.model_dump(mode="json"),
        "precision": precision,
        "threads": threads,
    }
    return Job("pretrain", f"seed-{settings.seed}", {"seed": settings.seed}, {}, parts)


def name_member(what: str, seed: int, fold: Fold) -> str:
    """Return what a model of an arm is called in tables and in MLflow."""
    place = f"fold-{fold.number + 1}" if fold.of else ""
    return " ".join(part for part in (what, f"seed-{seed}", place) if part)
