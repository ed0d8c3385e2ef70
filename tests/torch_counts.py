"""Costs of real modules, run on fake tensors by torch: what the formulas of `l2g-ray plan` are compared with."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from l2g_ray.errors import UserError
from l2g_ray.models.embedder import EmbedderConfig, EmbedderNet
from l2g_ray.models.language_model import LanguageModel
from l2g_ray.models.locate import PACKAGED, locate
from l2g_ray.models.mixed_conv import MixedConv1d, OperationSet, replace_convolutions
from l2g_ray.orchestrate.machines import read_machines


def _attention_flops(query: Any, key: Any, value: Any, *others: Any, **named: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward_flops(gradient: Any, query: Any, key: Any, value: Any, *others: Any, **named: Any) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


# The counter knows the attention kernels of GPUs, and not the CPU's; all get their tensors' shapes.
_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}
BYTES = 4  # of a parameter: weights are float32, also under autocast


@dataclass(frozen=True)
class Counted:
    """Costs of a model.

    forward_flops, train_flops : a row forward, and forward + backward. saved_bytes : a row's tensors that the forward
    pass keeps for the backward one. fixed_flops, fixed_bytes : of a training batch whatever its rows (a mixed
    convolution aggregates its kernels once). parameters, trainable : numbers of weights.
    """

    forward_flops: float
    train_flops: float
    saved_bytes: float
    fixed_flops: float
    fixed_bytes: float
    parameters: int
    trainable: int

    def __add__(self, other: Counted) -> Counted:
        return Counted(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(Counted)})

    @property
    def model_bytes(self) -> int:
        """Size of the weights."""
        return self.parameters * BYTES

    def optimizer_bytes(self, optimizer: str, momentum: float = 0.0) -> int:
        """Size of the optimiser's states: two moments for Adam and AdamW, one for SGD with momentum, else none."""
        return self.trainable * BYTES * ((1 if momentum else 0) if optimizer == "sgd" else 2)

    def training_bytes(self, rows: float, optimizer: str, momentum: float = 0.0) -> int:
        """Peak memory of training on `rows` rows at once:

            weights + gradients + optimiser states + rows * saved_bytes + fixed_bytes

        Left out: passing temporaries of a single operation, the fragments of the allocator, and (on a GPU) the CUDA
        context, which `machines.yaml` has.
        """
        held = self.model_bytes + self.trainable * BYTES + self.optimizer_bytes(optimizer, momentum)
        return int(held + rows * self.saved_bytes + self.fixed_bytes)


@dataclass(frozen=True)
class LanguageModelShape:
    """A language model's config as JSON, without weights; `origin` says where it is from."""

    name: str
    config: str
    origin: str


def read_shape(name: str) -> LanguageModelShape:
    """The shape of a language model: packaged, a local folder, the hub's cache, the table in machines.yaml, the hub.

    Raises UserError where it cannot be had.
    """
    from transformers import AutoConfig

    known = read_machines()["language_models"]
    if name in known and not _is_cached(name):
        return LanguageModelShape(name, json.dumps(known[name], sort_keys=True), "known sizes")
    try:
        config = AutoConfig.from_pretrained(locate(name))
    except (OSError, ValueError) as error:
        raise UserError(
            f"language model '{name}': its config cannot be read ({' '.join(str(error).split())[:160]}); "
            "give a local folder or another hub id with --language-model"
        ) from None
    return shape_from_config(name, config.to_diff_dict() | {"model_type": config.model_type})


def shape_from_config(name: str, config: dict[str, Any]) -> LanguageModelShape:
    """The shape that a config mapping describes (`model_type` and what differs from its defaults)."""
    return LanguageModelShape(name, json.dumps(config, sort_keys=True, default=str), "its config")


def _is_cached(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return name not in PACKAGED and isinstance(try_to_load_from_cache(name, "config.json"), str)


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
        if not (hasattr(transformer, "embeddings") and hasattr(getattr(transformer, "encoder", None), "layer")):
            raise UserError(
                f"language model '{shape.name}': a {type(transformer).__name__} is not supported; "
                "use an encoder of the BERT, RoBERTa or MPNet family"
            )
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


def count_head(width: int, n_outputs: int) -> Counted:
    """Costs of the linear read-out from a row's mean token."""
    weights, forward = width * n_outputs + n_outputs, 2.0 * width * n_outputs
    return Counted(forward, 3 * forward, BYTES * (width + n_outputs), 0.0, 0.0, weights, weights)


def count_vocabulary(shape: LanguageModelShape, n_tokens: int) -> Counted:
    """What masked modelling adds to the encoder over `n_tokens` tokens a row: token embeddings, and a head of a dense layer
    and the scores of the whole vocabulary (whose matrix is that of the embeddings)."""
    from transformers import AutoConfig

    values = json.loads(shape.config)
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    width, vocabulary = config.hidden_size, config.vocab_size
    weights = width * (vocabulary + width)
    forward = 2.0 * n_tokens * weights
    saved = float(BYTES * n_tokens * (2 * vocabulary + 3 * width))
    return Counted(forward, 3 * forward, saved, 0.0, 0.0, weights, weights)


def _count(model: nn.Module, call: Callable[[int], torch.Tensor], precision: str) -> Counted:
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu").train()
        # Two points of the line rows -> costs: what does not grow belongs to the batch.
        forward, train, saved = _measure(model, lambda: call(1), precision)
        forward_2, train_2, saved_2 = _measure(model, lambda: call(2), precision)
    parameters = list(model.parameters())
    return Counted(
        forward_2 - forward,
        train_2 - train,
        saved_2 - saved,
        2 * train - train_2,
        2 * saved - saved_2,
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
