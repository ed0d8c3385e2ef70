"""Each stage of the registry that trains, on tiny data, with one signature; and a look at the loss of every step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from toys import make_data, make_task, plant, regression_table, tiny_config, tiny_reference, tiny_settings

from l2g_ray import counts
from l2g_ray.config import OptimSettings, Settings
from l2g_ray.models import baselines as cnn_model
from l2g_ray.models import embedder as embedder_model
from l2g_ray.stages import cnn, loop, registry
from l2g_ray.stages.align import train_aligned
from l2g_ray.stages.context import TaskData, build_net
from l2g_ray.stages.embedder_only import train_embedder_only
from l2g_ray.stages.finetune import FinetuneTrial, finetune
from l2g_ray.stages.loop import Runtime, TrainResult
from l2g_ray.stages.search import search_architecture
from l2g_ray.stages.select import train_backbone

# What of the registry `run_stage` does not train, and where else its training is tried.
ELSEWHERE = {
    "reference": "trains nothing",
    "evaluate": "trains nothing",
    "pretrain": "test_pretrain.py",
    "warmup": "the first epochs of align",
    "refit": "as a trial trains",
}
# As `run_stage` calls them.
NAMES = {"trial": "finetune", "baseline": "cnn"}
STAGES = tuple(NAMES.get(s.name, s.name) for s in registry.STAGES.values() if s.run and s.name not in ELSEWHERE)
TRIAL = FinetuneTrial(1e-3, 1e-3, 1e-4, 0.0, 16, "all", 0.0)
SECTIONS = ("select", "search", "align", "embedder_only", "finetune")


def run_stage(
    stage: str, data: TaskData, settings: Settings, runtime: Runtime, seed: int = 3, trial: FinetuneTrial = TRIAL
) -> TrainResult:
    """Train one of `STAGES`; `trial` is for 'finetune'."""
    reference, config = tiny_reference(), tiny_config(data, settings)
    if stage == "select":
        return train_backbone(data, settings, reference, runtime, backbone="unet", seed=seed)
    if stage == "search":
        return search_architecture(data, settings, reference, runtime, backbone="resnet", seed=seed).training
    if stage == "align":
        return train_aligned(data, settings, reference, runtime, config=config, alpha=1.0, seed=seed)
    if stage == "embedder_only":
        return train_embedder_only(data, settings, reference, runtime, config=config, seed=seed)
    if stage == "cnn":
        return cnn.train_cnn(data, settings, runtime, seed)
    if stage == "finetune":
        state = build_net(config, data, reference, 5).state_dict()
        return finetune(
            data, settings, reference, runtime, config=config, embedder_state=state, trial=trial, seed=seed
        )  # fmt: skip
    raise NotImplementedError(
        f"no test trains the stage {stage}: add it to `run_stage`, or to `ELSEWHERE` with the reason"
    )


def make_rows(kind: str, rows: int = 64) -> TaskData:
    """'binary': sequences of one length. 'regression': of many lengths, and a third of one output's labels is missing."""
    if kind == "binary":
        return make_data(make_task(), plant(rows), plant(40, seed=9))
    return make_data(make_task("regression"), *(_ragged(n, seed) for n, seed in ((rows, 0), (40, 9))))


def _ragged(rows: int, seed: int) -> pa.Table:
    table, rng = regression_table(rows, 60, seed), np.random.default_rng(seed)
    values = np.array(table["label"].combine_chunks().flatten()).reshape(-1, 2)
    values[::3, 0] = np.nan
    sequences = [sequence[: rng.integers(25, 61)] for sequence in table["sequence"].to_pylist()]
    labels = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel(), pa.float32()), 2)
    return pa.table({"sequence": sequences, "label": labels})


def make_settings(language_model: Path, optimizer: str = "adamw", **changes: Any) -> Settings:
    """Tiny settings without dropout, with one optimiser for all stages and a form of convolution that no timing chooses."""
    optim = {f"{section}__optim__optimizer": optimizer for section in SECTIONS}
    dropout = {f"{section}__dropout": 0.0 for section in ("select", "align", "embedder_only")}
    search = {"search__form": "by_dilation", "search__batch_fraction": 1.0}
    return tiny_settings(language_model, **(optim | dropout | search | changes))


def without_dropout(monkeypatch: pytest.MonkeyPatch, optimizer: str = "adamw") -> None:
    """Of the small CNN, whose settings are its module's: no dropout, two epochs, and an optimiser of choice."""
    for module, name in (
        (cnn_model, "ANYWHERE_DROPOUT"), (cnn_model, "DENSE_DROPOUT"), (embedder_model, "_MEAN_MAX_DROPOUT"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, 0.0)
    for by_position, stage in list(counts.CNN_SCHEDULES.items()):
        optim: OptimSettings = stage.optim.model_copy(update={"optimizer": optimizer})
        short = stage.model_copy(update={"epochs": (2, 2), "batch_size": 16, "optim": optim})
        monkeypatch.setitem(counts.CNN_SCHEDULES, by_position, short)


def record_steps(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The loss of every step from now on, in order."""
    found, backward = [], loop._backward

    def recorded(*args: Any) -> torch.Tensor:
        found.append(backward(*args))
        return found[-1]

    monkeypatch.setattr(loop, "_backward", recorded)
    return found
