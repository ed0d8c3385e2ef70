"""Small data and models whose answers are known."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from l2g_ray.config import ModelSettings, Settings
from l2g_ray.counts import find_channels
from l2g_ray.data.batches import InMemorySource
from l2g_ray.models import embedder as embedder_module
from l2g_ray.models.embedder import EmbedderConfig
from l2g_ray.models.layers import MaskedBatchNorm1d
from l2g_ray.orchestrate.pipeline import Pipeline
from l2g_ray.orchestrate.spec import Site
from l2g_ray.presets import resolve
from l2g_ray.stages import finetune as finetune_module
from l2g_ray.stages.context import Reference, TaskData, make_embedder_config, make_label_scale
from l2g_ray.store.results import StageResult
from l2g_ray.tasks.schema import Task

MOTIF = "TGACTCA"
TINY = {
    "model.language_model_layers": 2,
    "model.target_tokens": 8,
    "select.batch_size": 16,
    "search.batch_size": 16,
    "align.batch_size": 16,
    "align.max_samples": 31,
    "finetune.batch_size": [16],
    "embedder_only.batch_size": 16,
    "precision": "fp32",
}


def tiny_settings(language_model: Path | str = "", **changes: Any) -> Settings:
    """The smoke preset with tiny batches; `changes` use '__' for dots."""
    named = {key.replace("__", "."): value for key, value in changes.items()}
    return resolve("smoke", None, TINY | {"model.language_model": str(language_model)} | named)


def plant(rows: int, length_bp: int = 60, seed: int = 0, shuffle_labels: bool = False) -> pa.Table:
    """Random sequences; label 1 where a motif (either strand) stands somewhere."""
    rng = np.random.default_rng(seed)
    letters = rng.choice(list("ACGT"), (rows, length_bp))
    labels = np.arange(rows) % 2
    for row in np.flatnonzero(labels):
        start = rng.integers(0, length_bp - len(MOTIF))
        letters[row, start : start + len(MOTIF)] = list(MOTIF)
    if shuffle_labels:
        labels = rng.permutation(labels)
    return pa.table({"sequence": ["".join(r) for r in letters], "label": pa.array(labels, pa.int64())})


def mixed_lengths(rows: int, seed: int = 0) -> pa.Table:
    """Planted sequences of 24 to 60 bp, so that batches have padding."""
    table = plant(rows, 60, seed)
    stops = np.random.default_rng(seed).integers(24, 61, rows)
    cut = [text[:stop] for text, stop in zip(table["sequence"].to_pylist(), stops, strict=True)]
    return table.set_column(0, "sequence", pa.array(cut))


def regression_table(rows: int, length_bp: int = 60, seed: int = 0) -> pa.Table:
    """Two outputs: GC content in percent, and minus three times the share of A."""
    rng = np.random.default_rng(seed)
    letters = rng.choice(list("ACGT"), (rows, length_bp))
    values = np.stack([100 * np.isin(letters, ["G", "C"]).mean(1), -3 * (letters == "A").mean(1)], 1).astype("float32")
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 2)
    return pa.table({"sequence": ["".join(r) for r in letters], "label": column})


def make_task(kind: str = "binary", **changes: Any) -> Task:
    labels = {"binary": ("absent", "present"), "regression": ("gc", "a")}[kind]
    return Task.model_validate({"bench": "toy", "name": "planted", "kind": kind, "labels": labels} | changes)


def make_data(task: Task, train: pa.Table, valid: pa.Table) -> TaskData:
    means: list[float | None] = [None] * task.n_outputs
    sds = means
    if not task.is_classification:
        values = np.array(train["label"].combine_chunks().flatten()).reshape(-1, task.n_outputs)
        means, sds = np.nanmean(values, 0).tolist(), np.nanstd(values, 0).tolist()
    lengths = [len(s) for t in (train, valid) for s in t["sequence"].to_pylist()]
    offset, scale = make_label_scale(task, means, sds)
    return TaskData(
        task, InMemorySource(train), InMemorySource(valid), max(lengths), min(lengths) == max(lengths), offset, scale
    )


def toy_data(rows: int = 160, seed: int = 0, **changes: Any) -> TaskData:
    return make_data(make_task(), plant(rows, seed=seed, **changes), plant(max(40, rows // 4), seed=seed + 1000))


def tiny_reference(seed: int = 0) -> Reference:
    generator = torch.Generator().manual_seed(seed)
    return Reference(16, 64, 1e-12, torch.ones(16), torch.zeros(16), torch.randn(200, 16, generator=generator))


def tiny_config(data: TaskData, settings: Settings, backbone: str = "resnet") -> EmbedderConfig:
    return make_embedder_config(settings, data, tiny_reference(), backbone)


def make_site(folder: Path, settings: Settings | None = None, prepared: str | None = None, **changes: Any) -> Site:
    """A site whose store is `folder/stages`, and whose task is prepared in `folder/prepared` if nowhere else."""
    fields = {"root": folder / "stages", "scratch": folder / "tune"} | changes
    return Site("planted", prepared or str(folder / "prepared"), settings or tiny_settings(), **fields)


def narrow(backbone: str) -> tuple[int, ...]:
    """Channels of a backbone of the table, as few as tests like: those of the settings by rank, 6 and up."""
    widths = find_channels(ModelSettings(), backbone, 512)
    ranks = sorted(set(widths))
    return tuple(6 + 2 * ranks.index(width) for width in widths)


def make_pipeline(
    settings: Settings, pretrained: StageResult | None = None, reference: str = "r", norm: str = "n"
) -> Pipeline:
    """A pipeline that only makes keys; `reference` is the text's key, `norm` names the model's LayerNorm."""
    prepared = SimpleNamespace(
        task=make_task(),
        fingerprint=lambda split: split,
        length_range=lambda: (60, 60),
        row_groups=lambda: np.arange(9),
    )
    place = SimpleNamespace(slots=SimpleNamespace(cpus=1), task="planted", site=SimpleNamespace(precision="fp32"))
    facts = {"width": 16, "max_tokens": 64, "norm_eps": 1e-12, "norm": norm}
    found = StageResult("reference", reference, Path(), facts)
    return Pipeline(place, prepared, settings, found, pretrained)  # type: ignore[arg-type]


@contextlib.contextmanager
def precision(dtype: torch.dtype) -> Iterator[None]:
    """All parameters, also the language model's, in this type; and no dropout before the predictor, which has no setting."""
    load = finetune_module.load_transformer
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune_module, "load_transformer", lambda *arguments: load(*arguments).to(dtype))
        patch.setattr(embedder_module, "_MEAN_MAX_DROPOUT", 0.0)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def freeze_norms(net: nn.Module) -> Any:
    """Batch norms as in evaluation mode."""
    for module in net.modules():
        if isinstance(module, MaskedBatchNorm1d):
            module.eval()
    return net
