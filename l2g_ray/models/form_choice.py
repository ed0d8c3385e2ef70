"""Which form of a mixed convolution is fastest here: measured once for each machine and shape, then remembered.

All forms give the same numbers up to rounding, but a rounding may decide a tie somewhere in a training; so a choice is
kept in a file of this machine (`forms.json` in the cache folder), and every later run, a resumed one too, takes the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from l2g_ray.machine import describe_processor, locked_choices
from l2g_ray.models.mixed_conv import MixedConv1d

# Another form must be so much faster than the rule's own before it is taken: timings are noisy, choices should not be.
MARGIN = 1.15
ROWS, ROUNDS, HOPELESS = 16, 2, 3.0

_chosen: dict[str, str] = {}


def choose_forms(
    module: nn.Module, probe: Callable[[], Any], batch_size: int, precision: str = "fp32"
) -> dict[str, str]:
    """Set `form` of every `MixedConv1d` inside to the fastest, and return name -> form.

    Parameters
    ----------
    probe : one forward pass through `module` with a row or more, for the length that each layer sees.
    batch_size : rows of a training batch; at most 16 are measured.
    precision : 'bf16' measures under autocast.

    Neither the random state nor the module's weights and statistics change.
    """
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, MixedConv1d)}
    lengths = _lengths(module, layers, probe)
    for name, layer in layers.items():
        if name in lengths:
            layer.form = _choose(layer, lengths[name], min(batch_size, ROWS), precision)
    return {name: layer.form for name, layer in layers.items()}


def _lengths(module: nn.Module, layers: dict[str, MixedConv1d], probe: Callable[[], Any]) -> dict[str, int]:
    found: dict[str, int] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs, name=name: found.__setitem__(name, inputs[0].shape[-1]))
        for name, layer in layers.items()
    ]
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            probe()
    finally:
        module.train(training)
        for hook in hooks:
            hook.remove()
    return found


def _choose(layer: MixedConv1d, length: int, rows: int, precision: str) -> str:
    key = _describe(layer, length, rows, precision)
    if key not in _chosen:
        with locked_choices("forms") as kept:
            if kept.get(key) not in layer.candidates():
                kept[key] = _measure(layer, length, rows, precision)
            _chosen[key] = kept[key]
    return _chosen[key]


def _describe(layer: MixedConv1d, length: int, rows: int, precision: str) -> str:
    operations = layer.operation_set
    device = layer.weight.device
    where = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{describe_processor()}, {torch.get_num_threads()}"
    )
    shape = (
        f"{layer.in_channels}>{layer.out_channels}/{layer.groups} {rows}x{length} {'causal' if layer.causal else ''}"
    )
    return f"{where} | torch {torch.__version__} | {precision} | {operations.kernel_sizes}x{operations.dilations} | {shape}"


def _measure(layer: MixedConv1d, length: int, rows: int, precision: str) -> str:
    """Return the form whose forward and backward pass took the least time, in interleaved rounds."""
    own, device = layer.form, layer.weight.device
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, layer.in_channels, length, generator=generator).to(layer.weight).requires_grad_()
    inputs = [x, *(p for p in layer.parameters() if p.requires_grad)]
    least = dict.fromkeys(layer.candidates(), float("inf"))

    def spend(form: str) -> float:
        layer.form = form
        _wait(device)
        begun = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            output = layer(x)
        torch.autograd.grad(output.float().sum(), inputs)
        _wait(device)
        return time.perf_counter() - begun

    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.enable_grad():
            first = {form: spend(form) for form in least}
            hopeful = [form for form in least if first[form] < HOPELESS * min(first.values())]
            for _ in range(ROUNDS):
                for form in hopeful:
                    least[form] = min(least[form], spend(form))
    finally:
        layer.form = own
    best = min(least, key=lambda form: least[form])
    return best if least[own] > MARGIN * least[best] else own


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
