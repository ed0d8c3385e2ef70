"""What a job hands to a stage's function, and what these functions share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from l2g_ray.config import Settings
from l2g_ray.data.dataset import PreparedTask
from l2g_ray.models.embedder import EmbedderConfig, EmbedderNet
from l2g_ray.models.l2g import load_model, save_model
from l2g_ray.models.team import ALONE
from l2g_ray.stages.common import Reference, TaskData, make_embedder_config, predict_source
from l2g_ray.stages.loop import Runtime, TrainResult

# What a job of an arm leaves beside its model: predictions for held-out rows, of the given strand and of both.
HELD_OUT = "held_out.npy"


@dataclass(frozen=True)
class Context:
    """What a stage's function gets, beside its arguments.

    Parameters
    ----------
    language_model : what the text reference says of it; see `reference`.
    work : the folder for the stage's files.
    inputs : folders of earlier results by name.
    pretrained : folder of the language model after continued pre-training, where there was any.
    data_dir : where a text corpus may be.
    """

    prepared: PreparedTask
    data: TaskData
    settings: Settings
    language_model: Reference | None
    runtime: Runtime
    work: Path
    inputs: dict[str, Path]
    pretrained: Path | None = None
    data_dir: Path | None = None

    @property
    def reference(self) -> Reference:
        """What the stage needs of the language model; stages with an embedder have one."""
        assert self.language_model is not None
        return self.language_model


def summarise(training: TrainResult, inherited_epochs: int = 0) -> dict[str, Any]:
    """Return what a stage's result says of a training, without the cost of epochs that it took over."""
    own = training.history[inherited_epochs:]
    return {
        "score": training.best_score,
        "best_epoch": training.best_epoch,
        "history": training.history,
        "epochs": len(own),
        "cpu_s": sum(row["cpu_s"] for row in own),
        "wall_s": sum(row["wall_s"] for row in own),
    }


def read_architecture(args: dict[str, Any]) -> list[tuple[int, int]]:
    """Return the kernel size and dilation of each layer."""
    return [(int(kernel_size), int(dilation)) for kernel_size, dilation in args["architecture"]]


def make_config(context: Context, args: dict[str, Any]) -> EmbedderConfig:
    """Return the embedder's config of `args['backbone']` and `args['architecture']`."""
    architecture = read_architecture(args)
    return make_embedder_config(context.settings, context.data, context.reference, args["backbone"], architecture)


def save_embedder(context: Context, config: EmbedderConfig, training: TrainResult) -> None:
    """Write the best embedder of a training; of a team, the first worker does."""
    if context.runtime.team.is_first:
        net = EmbedderNet(config)
        net.load_state_dict(training.best_state)
        save_model(net, context.work)


def predict_held_out(context: Context) -> None:
    """Write the predictions (2, n, n_outputs) of the stored model for the held-out rows: of the given strand, and of both."""
    runtime, task, valid = replace(context.runtime, team=ALONE), context.prepared.task, context.data.valid
    model = load_model(context.work).to(runtime.device)
    size = context.settings.evaluate.batch_size
    strands = [predict_source(model, valid, task, runtime, size, rc_average=both)[0] for both in (False, True)]
    np.save(context.work / HELD_OUT, np.stack(strands).astype(np.float32))
