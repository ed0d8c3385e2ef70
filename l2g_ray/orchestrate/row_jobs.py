"""Jobs that need a task's rows and nothing of the stages before them; what the keys of all jobs hold of the rows."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from l2g_ray.config import BaselinesSettings, Settings
from l2g_ray.data.dataset import PreparedTask
from l2g_ray.data.folds import Fold
from l2g_ray.orchestrate.fingerprint import fingerprint_language_model
from l2g_ray.orchestrate.job import Job


def describe_data(prepared: PreparedTask, settings: Settings) -> dict[str, Any]:
    """The part of a key that says which rows, and how they reach a model."""
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
    """A simple model on the task's rows; nothing of the embedder or the language model is in its key.

    With a fold it is an arm's member, whose penalty has the `strength` given. `precision`: of what trains by gradients.
    """
    baselines = settings.baselines
    own = baselines.model_dump(mode="json", exclude={"names", "boosting_rounds", "cnn_steps"})
    parts = describe_data(prepared, settings) | {"settings": own}
    # Of one model each, and in its key where they are not the default, which results of earlier versions have.
    if name == "kmer_boosting" and baselines.boosting_rounds != BaselinesSettings().boosting_rounds:
        parts |= {"boosting_rounds": baselines.boosting_rounds}
    if name == "cnn" and baselines.cnn_steps is not None:
        parts |= {"cnn_steps": baselines.cnn_steps}
    if name == "deepstarr":  # trains as the embedder alone does
        parts |= {"embedder_only": settings.embedder_only.model_dump(mode="json")}
    if name == "genomic_lm":
        assert baselines.genomic_model is not None
        stage = settings.finetune
        parts |= {
            "finetune": {
                "epochs": stage.epochs,
                "optim": stage.optim.model_dump(mode="json"),
                "lr": stage.lr_predictor,
            },
            "batch_size": min(stage.batch_size),
            "genomic_model": fingerprint_language_model(baselines.genomic_model),
        }
    if name in ("cnn", "deepstarr", "genomic_lm") and precision != "fp32":
        parts |= {"precision": precision}
    args: dict[str, Any] = {"name": name, "seed": settings.seed if seed is None else seed}
    if fold is not None:
        args |= {"fold": asdict(fold)} | ({} if strength is None else {"strength": strength})
    return Job("baseline", name if fold is None else name_member(name, args["seed"], fold), args, {}, parts)


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
    """What a model of an arm is called in tables and in MLflow."""
    place = f"fold-{fold.number + 1}" if fold.of else ""
    return " ".join(part for part in (what, f"seed-{seed}", place) if part)
