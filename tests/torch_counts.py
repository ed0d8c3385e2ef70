"""Costs of real modules, run on fake tensors by torch: what the formulas of `l2g-ray plan` are compared with."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from l2g_ray.models.baselines import SmallCNN, SmallCNNConfig
from l2g_ray.models.embedder import EmbedderConfig, EmbedderNet
from l2g_ray.models.language_model import LanguageModel
from l2g_ray.models.mixed_conv import MixedConv1d, OperationSet, replace_convolutions
from l2g_ray.plan.costs import Counted
from l2g_ray.plan.encoder import LanguageModelShape


def _attention_flops(query: Any, key: Any, value: Any, *others: Any, **named: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward_flops(gradient: Any, query: Any, key: Any, value: Any, *others: Any, **named: Any) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


# The counter knows the attention kernels of GPUs, and not the CPU's; all get their tensors' shapes.
_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}


@lru_cache(maxsize=8)
def measure_shape(shape: LanguageModelShape) -> tuple[int, int]:
    """Width D of a language model, and how many tokens it reads at most."""
    model = _build_language_model(shape, "none", None)
    return model.width, model.max_tokens


def _build_language_model(shape: LanguageModelShape, positions: str, layers: int | None) -> LanguageModel:
    from transformers import AutoConfig, AutoModel

    values = json.loads(shape.config)
    with torch.device("meta"):
        transformer = AutoModel.from_config(AutoConfig.for_model(values.pop("model_type"), **values))
        return LanguageModel(transformer, positions, layers)


@lru_cache(maxsize=512)
def count_language_model(
    shape: LanguageModelShape,
    n_tokens: int,
    train_layers: str = "all",
    *,
    positions: str = "none",
    layers: int | None = None,
    lora_rank: int = 8,
    masked: bool = False,
    precision: str = "fp32",
    on_gpu: bool = True,
) -> Counted:
    """Costs of the encoder over `n_tokens` tokens a row; gradients flow back to the tokens whatever trains.

    A GPU's attention kernels keep no (tokens, tokens) matrix; a CPU's do as soon as attention has dropout.
    """
    model = _build_language_model(shape, positions, layers)
    if train_layers == "lora":
        with torch.device("meta"):
            model.add_lora(lora_rank, 1.0, 0)
    else:
        model.set_trainable(train_layers)
    for name, module in model.named_modules():
        if on_gpu and name.endswith("attention.self.dropout") and isinstance(module, nn.Dropout):
            module.p = 0.0

    def call(rows: int) -> torch.Tensor:
        tokens = torch.empty(rows, n_tokens, model.width, requires_grad=True)
        return model(tokens, torch.ones(rows, n_tokens) if masked else None)

    return _count(model, call, precision)


@lru_cache(maxsize=512)
def count_net(
    config: EmbedderConfig,
    length_bp: int,
    *,
    operations: OperationSet | None = None,
    separable: bool = False,
    masked: bool = False,
    precision: str = "fp32",
) -> Counted:
    """Costs of an embedder with Predictor 1 for rows of `length_bp`.

    With `operations` it is the supernet of the search, whose layers cost what `MixedConv1d`'s own form costs.
    """
    with torch.device("meta"):
        net = EmbedderNet(config)
        if operations is not None:
            replace_convolutions(net.embedder.backbone, operations, separable=separable)

    def call(rows: int) -> torch.Tensor:
        x = torch.empty(rows, config.in_channels, length_bp)
        embedding = net.embedder(x, torch.ones(rows, 1, length_bp) if masked else None)
        return net.predict(embedding)

    return _count(net, call, precision)


def count_cnn(config: SmallCNNConfig, length_bp: int, *, masked: bool = False, precision: str = "fp32") -> Counted:
    """Costs of the small CNN for rows of `length_bp`."""
    with torch.device("meta"):
        net = SmallCNN(config)

    def call(rows: int) -> torch.Tensor:
        x = torch.empty(rows, 4, length_bp)
        return net.forward_one_hot(x, torch.ones(rows, 1, length_bp) if masked else None)

    return _count(net, call, precision, fewest=2)


def _count(model: nn.Module, call: Callable[[int], torch.Tensor], precision: str, fewest: int = 1) -> Counted:
    """`fewest` rows that the model trains on: a batch norm without positions wants two."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu").train()
        # Two points of the line rows -> costs: what does not grow belongs to the batch.
        forward, train, saved = _measure(model, lambda: call(fewest), precision)
        forward_2, train_2, saved_2 = _measure(model, lambda: call(fewest + 1), precision)
    parameters = list(model.parameters())
    return Counted(
        forward_2 - forward,
        train_2 - train,
        saved_2 - saved,
        (fewest + 1) * train - fewest * train_2,
        (fewest + 1) * saved - fewest * saved_2,
        sum(p.numel() for p in parameters),
        sum(p.numel() for p in parameters if p.requires_grad),
    )


def _measure(model: nn.Module, call: Callable[[], torch.Tensor], precision: str) -> tuple[float, float, float]:
    """Forward FLOPs, forward and backward FLOPs, saved bytes of one call."""
    # The storages themselves: an address is used again once they are gone, and a forward pass replaces buffers.
    storages = [tensor.untyped_storage() for tensor in [*model.parameters(), *model.buffers()]]
    own = {storage._cdata for storage in storages}
    held: dict[int, Any] = {}
    transforms: list[float] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            held[storage._cdata] = storage
        return tensor

    hooks = [
        module.register_forward_hook(lambda m, inputs, output: transforms.append(_fft_flops(m, inputs[0])))
        for module in model.modules()
        if isinstance(module, MixedConv1d) and module.form == "fft"
    ]
    counter = FlopCounterMode(display=False, custom_mapping=_ATTENTION)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    with counter, autocast, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = call()
        forward = counter.get_total_flops()
    saved = sum(storage.nbytes() for storage in held.values())
    with counter:
        output.float().sum().backward()
    for hook in hooks:
        hook.remove()
    return forward + sum(transforms), forward + counter.get_total_flops() + 3 * sum(transforms), float(saved)


def _fft_flops(layer: MixedConv1d, x: torch.Tensor) -> float:
    """Of a depthwise mixed convolution by FFT, which the counter does not know: 2.5 n log2 n a real transform, 6 a
    complex product."""
    rows, channels, length = x.shape
    size = length + max(layer.operation_set.fields) - 1
    transforms = rows * channels + layer.out_channels + rows * layer.out_channels
    return transforms * 2.5 * size * math.log2(size) + 6.0 * rows * channels * (size // 2 + 1)
