"""The plan's formulas against the real modules, run on fake tensors by torch's own counter (`torch_counts`)."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch_counts
from test_plan import shape_of
from toys import narrow

from l2g_ray.config import BACKBONES
from l2g_ray.models.baselines import SmallCNNConfig
from l2g_ray.models.embedder import EmbedderConfig
from l2g_ray.models.mixed_conv import OperationSet
from l2g_ray.plan import encoder as plan_encoder
from l2g_ray.plan.network import Mixture, count_cnn, count_net

# Where a block is as wide as the one before, a network may leave a layer out.
CHANNELS = {"resnet": (8, 8, 16), "unet": (8, 12, 8, 16, 8), "deepsea": (8, 8, 12), "orca": ()}
EVERY_BACKBONE = [
    (name, changes, mixture, masked, "fp32", 0.1)
    for name, kind in BACKBONES.items()
    if kind.n_layers
    for changes, mixture, masked in (({"predictor_reads": "backbone"}, None, True), ({"causal": True}, False, False))
]
EXACT = ("forward_flops", "train_flops", "parameters", "trainable")


def compare(counted: Any, real: Any, memory: float) -> None:
    for name in EXACT:
        assert getattr(counted, name) == pytest.approx(getattr(real, name), rel=1e-9), name
    assert counted.fixed_flops == pytest.approx(real.fixed_flops, rel=1e-6, abs=1)
    for rows in (1, 32):
        kept = [one.saved_bytes * rows + one.fixed_bytes for one in (counted, real)]
        assert kept[0] == pytest.approx(kept[1], rel=memory), rows


@pytest.mark.parametrize(
    ("backbone", "changes", "mixture", "masked", "precision", "memory"),
    [
        ("resnet", {}, None, False, "fp32", 1e-9),
        ("unet", {}, None, False, "fp32", 1e-9),
        ("deepsea", {"predictor_reads": "backbone"}, None, False, "fp32", 1e-9),
        ("orca", {}, None, False, "fp32", 1e-9),
        ("resnet", {"pool": 2, "dropout": 0.2, "causal": True}, None, True, "fp32", 0.05),
        ("resnet", {"predictor_reads": "backbone", "full_tokens": True}, None, False, "fp32", 1e-9),
        ("unet", {"pooling": "by_position"}, None, True, "bf16", 0.05),
        ("unet", {"pooling": "mean_max"}, None, False, "fp32", 0.01),
        ("deepsea", {"predictor_reads": "backbone", "pooling": "mean_max"}, None, True, "fp32", 0.05),
        ("resnet", {}, False, False, "fp32", 0.05),
        ("resnet", {"causal": True}, True, False, "fp32", 0.05),
        ("unet", {}, False, True, "bf16", 0.08),
        *EVERY_BACKBONE,
    ],
)
def test_an_embedder(
    backbone: str, changes: dict[str, Any], mixture: bool | None, masked: bool, precision: str, memory: float
) -> None:
    sizes = {"length_bp": 60, "width": 16, "max_tokens": 62, "n_outputs": 3, "target_tokens": 8}
    config = EmbedderConfig(backbone=backbone, channels=CHANNELS.get(backbone) or narrow(backbone), **(sizes | changes))
    operations = None if mixture is None else OperationSet((3, 5, 7), (1, 3))
    real = torch_counts.count_net(
        config, 50, operations=operations, separable=bool(mixture), masked=masked, precision=precision
    )
    mixed = None if mixture is None else Mixture((3, 5, 7), (1, 3), mixture)
    compare(count_net(shape_of(config), 50, mixture=mixed, masked=masked, precision=precision), real, memory)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("bert", {}),
        ("bert", {"train_layers": "top_half", "positions": "lm", "on_gpu": False}),
        ("roberta", {"train_layers": "lora", "lora_rank": 4, "masked": True}),
        ("roberta", {"precision": "bf16", "layers": 2}),
        ("mpnet", {"on_gpu": False, "masked": True}),
        ("mpnet", {"train_layers": "norms", "positions": "lm"}),
    ],
)
def test_an_encoder(family: str, options: dict[str, Any]) -> None:
    config = {
        "model_type": family,
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 160,
        "max_position_embeddings": 130,
        "vocab_size": 100,
    }
    shape = plan_encoder.shape_from_config(family, config)
    assert plan_encoder.measure_shape(shape) == torch_counts.measure_shape(shape)
    real = torch_counts.count_language_model(shape, 24, **options)
    compare(plan_encoder.count_language_model(shape, 24, **options), real, 0.05)


def test_a_config_without_sizes_has_its_family_s() -> None:
    for family in ("bert", "roberta", "mpnet"):
        config = {"model_type": family}
        assert plan_encoder.measure_shape(plan_encoder.shape_from_config(family, config)) == torch_counts.measure_shape(
            plan_encoder.shape_from_config(family, config)
        )
        assert json.loads(plan_encoder.shape_from_config(family, config).config) == config


@pytest.mark.parametrize(
    ("by_position", "longest_bp", "masked", "precision", "memory"),
    [
        (False, 60, False, "fp32", 0.05),
        (False, 60, True, "fp32", 0.08),
        (True, 60, False, "fp32", 0.05),
        (True, 60, True, "bf16", 0.1),
        (True, 1400, False, "fp32", 0.05),
    ],
)
def test_a_small_cnn(by_position: bool, longest_bp: int, masked: bool, precision: str, memory: float) -> None:
    length_bp = longest_bp - 10
    counted = count_cnn(length_bp, longest_bp, 3, by_position=by_position, masked=masked, precision=precision)
    config = SmallCNNConfig(longest_bp, 3, by_position)
    compare(counted, torch_counts.count_cnn(config, length_bp, masked=masked, precision=precision), memory)
