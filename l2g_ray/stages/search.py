"""Stage 1b: DASH, the search for kernel size and dilation of every layer (paper, "Neural Architecture Search").

Searched is the very network that is deployed: same widths, same padding, same encoding, same augmentation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from l2g_ray.config import SearchSettings, Settings
from l2g_ray.counts import batches_per_epoch, default_architecture
from l2g_ray.data.batches import Batch
from l2g_ray.models.embedder import EmbedderNet
from l2g_ray.models.form_choice import choose_forms
from l2g_ray.models.mixed_conv import MixedConv1d, OperationSet, replace_convolutions
from l2g_ray.stages.context import (
    Context,
    Reference,
    TaskData,
    build_net,
    count_steps,
    make_batches,
    make_embedder_config,
    make_losses,
    make_validate,
    summarise,
)
from l2g_ray.stages.loop import LoopSettings, Runtime, TrainResult, train
from l2g_ray.stages.optim import make_optimizer, make_schedule


@dataclass
class SearchResult:
    """The architecture, one (kernel size, dilation) a layer; how training the supernet went; and the form of each mixed
    convolution, which changes speed and rounding, nothing else."""

    architecture: list[tuple[int, int]]
    training: TrainResult
    forms: dict[str, str]


def search_architecture(
    data: TaskData, settings: Settings, reference: Reference, runtime: Runtime, *, backbone: str, seed: int
) -> SearchResult:
    """Train weights and operation logits together on the same batches (single level), then take each layer's argmax.

    The logits of the last epoch decide, as in DASH; validation is only watched.
    """
    stage = settings.search
    net = build_net(make_embedder_config(settings, data, reference, backbone), data, reference, seed)
    mixed = build_supernet(net, settings, seed)
    net.to(runtime.device)
    forms = set_forms(net, settings, data.length_bp, runtime)
    per_epoch = batches_per_epoch(stage, data.train.n_rows)
    steps = count_steps(data, stage.batch_size, max_batches=per_epoch)
    draw_batches = make_batches(
        settings, data, stage.batch_size, seed, augment=stage.augment, max_batches=per_epoch, team=runtime.team
    )

    def batches(epoch: int) -> Iterator[Batch]:
        for layer in mixed.values():
            layer.temperature = find_temperature(stage, epoch)
        return draw_batches(epoch)

    training = train(
        net,
        make_search_optimizer(net, mixed, stage),
        make_schedule(stage.optim, stage.epochs, steps),
        LoopSettings(stage.epochs, steps, seed, clip_norm=stage.optim.clip_norm),
        runtime,
        batches=batches,
        losses=make_losses(data.task, data.label_scale.to(runtime.device)),
        validate=make_validate(net, data, runtime),
        before_step=lambda: set_logit_gradients(mixed, stage),
    )
    return SearchResult([layer.best() for layer in mixed.values()], training, forms)


def set_forms(net: EmbedderNet, settings: Settings, length_bp: int, runtime: Runtime) -> dict[str, str]:
    """Set the form of each mixed convolution as `search.form` says, for batches of the search at this length."""
    stage, backbone = settings.search, net.embedder.backbone
    if stage.form != "auto":
        return {name: m.form for name, m in backbone.named_modules() if isinstance(m, MixedConv1d)}
    row = torch.zeros(1, settings.data.channels, length_bp, device=runtime.device)
    return choose_forms(backbone, lambda: backbone(row, None), stage.batch_size, runtime.precision)


def build_supernet(net: EmbedderNet, settings: Settings, seed: int) -> dict[str, MixedConv1d]:
    """Replace the backbone's searchable convolutions in place by mixtures over the operation set."""
    operations = OperationSet(tuple(settings.search.kernel_sizes), tuple(settings.search.dilations))
    return replace_convolutions(
        net.embedder.backbone,
        operations,
        separable=settings.search.separable,
        form=None if settings.search.form == "auto" else settings.search.form,
        weight_std=settings.search.weight_std,
        generator=torch.Generator().manual_seed(seed),
    )


def make_search_optimizer(
    net: nn.Module, mixed: dict[str, MixedConv1d], stage: SearchSettings
) -> torch.optim.Optimizer:
    """Return the optimiser of `search.optim` over weights, and over logits with their own rate (docs/method.md,
    "search").
    """
    logits = [layer.logits for layer in mixed.values()]
    chosen = {id(p) for p in logits}
    weights = [p for p in net.parameters() if id(p) not in chosen]
    return make_optimizer(stage.optim, [(weights, stage.optim.lr), (logits, stage.logit_lr)])


def find_temperature(stage: SearchSettings, epoch: int) -> float:
    """Temperature of the mixtures in an epoch: infinite while all operations weigh the same, then from first to last."""
    warm = int(stage.warm_fraction * stage.epochs)
    if epoch < warm:
        return math.inf
    ratio = stage.last_temperature / stage.temperature
    return stage.temperature * ratio ** ((epoch - warm) / max(1, stage.epochs - warm - 1))


def set_logit_gradients(mixed: dict[str, MixedConv1d], stage: SearchSettings) -> None:
    """Rescale the logits' gradients; at an infinite temperature remove them, so that the optimiser leaves the logits."""
    for layer in mixed.values():
        if math.isinf(layer.temperature):
            layer.logits.grad = None
        else:
            layer.scale_logit_gradient_(stage.gradient_scale, stage.field_penalty)


def run(context: Context, args: dict[str, Any]) -> dict[str, Any]:
    """Search the architecture of a backbone, if it has anything to search."""
    if not default_architecture(args["backbone"]):  # ORCA
        return {"score": None, "history": [], "architecture": []}
    found = search_architecture(
        context.data, context.settings, context.reference, context.runtime, backbone=args["backbone"], seed=args["seed"]
    )
    return summarise(found.training) | {"architecture": found.architecture, "forms": found.forms}
