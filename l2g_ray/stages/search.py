"""Stage 1b: DASH, the search for kernel size and dilation of every layer (spec 4).

Searched is the very network that is deployed: same widths, same padding, same encoding, same augmentation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from l2g_ray.config import OptimSettings, Settings
from l2g_ray.counts import batches_per_epoch
from l2g_ray.models.embedder import EmbedderNet
from l2g_ray.models.form_choice import choose_forms
from l2g_ray.models.mixed_conv import MixedConv1d, OperationSet, replace_convolutions
from l2g_ray.stages.common import (
    Reference,
    TaskData,
    build_net,
    count_steps,
    make_batches,
    make_embedder_config,
    make_losses,
    make_validate,
)
from l2g_ray.stages.loop import LoopSettings, Runtime, TrainResult, train
from l2g_ray.stages.optim import make_schedule


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
    optim = OptimSettings(
        decay="step", step_epochs=stage.step_epochs, step_factor=stage.step_factor, warmup_fraction=0.0
    )

    def scale_gradients() -> None:
        for layer in mixed.values():
            layer.scale_logit_gradient_(stage.gradient_scale, stage.field_penalty)

    training = train(
        net,
        make_search_optimizer(net, mixed, settings),
        make_schedule(optim, stage.epochs, steps),
        LoopSettings(stage.epochs, steps, seed, clip_norm=stage.clip_norm),
        runtime,
        batches=make_batches(
            settings, data, stage.batch_size, seed, augment=stage.augment, max_batches=per_epoch, team=runtime.team
        ),
        losses=make_losses(net, data.task, data.label_scale),
        validate=make_validate(net, data, runtime),
        before_step=scale_gradients,
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
        temperature=settings.search.temperature,
        generator=torch.Generator().manual_seed(seed),
    )


def make_search_optimizer(net: nn.Module, mixed: dict[str, MixedConv1d], settings: Settings) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum over two groups: weights, and logits with their own rate (spec 4.3)."""
    stage = settings.search
    logits = [layer.logits for layer in mixed.values()]
    chosen = {id(p) for p in logits}
    weights = [p for p in net.parameters() if id(p) not in chosen]
    groups = [
        {"params": weights, "lr": stage.lr, "initial_lr": stage.lr},
        {"params": logits, "lr": stage.logit_lr, "initial_lr": stage.logit_lr},
    ]
    return torch.optim.SGD(
        groups, lr=stage.lr, momentum=stage.momentum, nesterov=True, weight_decay=stage.weight_decay, fused=True
    )
