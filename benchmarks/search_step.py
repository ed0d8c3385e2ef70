"""A step of the DASH search over a whole ResNet, beside a training step of the same ResNet with kernel size 11.

Both: forward, backward, clipping, SGD with Nesterov momentum, as the stages do it. One FLOP more a tap would give 12.7
(140 taps of 20 operations against 11); the search mixes kernels before it convolves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.measure import Options, compare, interleave
from l2g_ray.config import Settings
from l2g_ray.models.embedder import EmbedderConfig, EmbedderNet
from l2g_ray.presets import resolve
from l2g_ray.stages.loop import Runtime
from l2g_ray.stages.search import build_supernet, make_search_optimizer, set_forms

# Widths, pooling, rows and length: the official widths with MiniLM's 384 at the end, and those of the preset `fast`.
SIZES = {"official widths": ((128, 256, 384), 1, 16, 300), "preset fast": ((32, 64, 96), 2, 64, 200)}


def run(options: Options) -> list[dict[str, Any]]:
    """Return one row a size of the ResNet."""
    torch.set_num_threads(options.threads)
    settings = read_settings()
    rows = []
    for name, (channels, pool, batch_size, length_bp) in SIZES.items():
        if options.quick and name != "preset fast":
            continue
        search, forms = make_search(settings, channels, pool, batch_size, length_bp)
        sides = {"search": search, "plain": make_plain(settings, channels, pool, batch_size, length_bp)}
        found = interleave(sides, rounds=2 if options.quick else 3)
        ours, other = (1_000 * found[side]["median_s"] for side in ("search", "plain"))
        what = f"ResNet {name}, {batch_size} x {length_bp} bp"
        counted = {form: list(forms.values()).count(form) for form in sorted(set(forms.values()))}
        used = ", ".join(f"{n} {form}" for form, n in counted.items())
        rows.append(compare(what, ours, other, 5, faster=False) | {"forms": used})
    return rows


def read_settings() -> Settings:
    """Return the operations and the optimiser of the preset `paper`, for sequences of four channels."""
    return resolve("paper", None, {"data.channels": 4})


def _config(channels: tuple[int, ...], pool: int, length_bp: int, kernel_size: int = 3) -> EmbedderConfig:
    return EmbedderConfig(
        "resnet", channels, length_bp, 384, 512, 2, pool=pool, architecture=((kernel_size, 1),) * 9, target_tokens=25
    )


def make_search(
    settings: Settings, channels: tuple[int, ...], pool: int, batch_size: int, length_bp: int
) -> tuple[Callable[[], None], dict[str, str]]:
    """Return a step of the search at these widths, and the form of each mixed convolution."""
    net = EmbedderNet(_config(channels, pool, length_bp))
    mixed = build_supernet(net, settings, seed=0)
    forms = set_forms(net, settings, length_bp, Runtime())
    optimizer = make_search_optimizer(net, mixed, settings.search)

    def scale() -> None:
        for layer in mixed.values():
            layer.scale_logit_gradient_(settings.search.gradient_scale, settings.search.field_penalty)

    return make_step(net, optimizer, batch_size, length_bp, scale), forms


def make_plain(
    settings: Settings, channels: tuple[int, ...], pool: int, batch_size: int, length_bp: int
) -> Callable[[], None]:
    """Return a training step of the same ResNet with kernel size 11."""
    net = EmbedderNet(_config(channels, pool, length_bp, 11))
    optimizer = make_search_optimizer(net, {}, settings.search)
    return make_step(net, optimizer, batch_size, length_bp, lambda: None)


def make_step(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch_size: int,
    length_bp: int,
    before_step: Callable[[], None],
) -> Callable[[], None]:
    """Return a step of any model of codes and lengths with two outputs, on random rows of one length."""
    codes = torch.randint(0, 4, (batch_size, length_bp), dtype=torch.uint8)
    lengths_bp = torch.full((batch_size,), length_bp)
    labels = torch.randint(0, 2, (batch_size,))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(net(codes, lengths_bp), labels).backward()
        before_step()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()

    return step
