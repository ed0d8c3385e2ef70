"""What a row of tokens costs a language model's encoder, by formulas, from its `config.json` alone.

Bytes that training keeps were counted with torch 2.13 on real modules and are linear in the sizes named below, without
remainder; `tests/test_plan_counts.py` counts some of them again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pydantic import JsonValue

from l2g_ray.errors import UserError
from l2g_ray.models.locate import PACKAGED, locate
from l2g_ray.plan.costs import FLOAT_BYTES, Counted, read_known

# What transformers' configs leave out of `config.json` where it is the default.
_DEFAULTS: dict[str, float] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "vocab_size": 30522,
    "attention_probs_dropout_prob": 0.1,
    "hidden_dropout_prob": 0.1,
}
# Families by `model_type`: whether positions begin after the padding's, and what else differs.
_SHIFTED = ("roberta", "xlm-roberta", "camembert", "mpnet")
_FAMILIES = ("bert", *_SHIFTED)


@dataclass(frozen=True)
class LanguageModelShape:
    """A language model's config as JSON, without weights; `origin` says where it is from."""

    name: str
    config: str
    origin: str


@dataclass(frozen=True)
class _Encoder:
    family: str
    width: int
    layers: int
    heads: int
    inner: int
    positions: int
    types: int
    vocabulary: int
    attention_dropout: float
    hidden_dropout: float
    max_tokens: int


def read_shape(name: str) -> LanguageModelShape:
    """Return the shape of a language model: packaged, a local folder, the hub's cache, the table in machines.yaml,
    the hub.

    Raises UserError where it cannot be had.
    """
    known = read_known().language_models
    if name in known and not _is_cached(name):
        return LanguageModelShape(name, json.dumps(known[name], sort_keys=True), "known sizes")
    try:
        place = Path(locate(name))
        path = place / "config.json" if place.is_dir() else Path(_download(name))
        return shape_from_config(name, json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise UserError(
            f"language model '{name}': its config cannot be read ({' '.join(str(error).split())[:160]}); "
            "give a local folder or another hub id with --language-model"
        ) from None


def shape_from_config(name: str, config: dict[str, JsonValue]) -> LanguageModelShape:
    """Return the shape that a config mapping describes (`model_type` and what differs from its defaults)."""
    return LanguageModelShape(name, json.dumps(config, sort_keys=True, default=str), "its config")


def _is_cached(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return name not in PACKAGED and isinstance(try_to_load_from_cache(name, "config.json"), str)


def _download(name: str) -> str:
    from huggingface_hub import hf_hub_download

    return hf_hub_download(name, "config.json")


@lru_cache(maxsize=8)
def _read_encoder(shape: LanguageModelShape) -> _Encoder:
    given = json.loads(shape.config)
    family = given.get("model_type", "")
    if family not in _FAMILIES:
        raise UserError(
            f"language model '{shape.name}': a model of type '{family}' is not supported; "
            "use an encoder of the BERT, RoBERTa or MPNet family"
        )
    config = _DEFAULTS | given
    padding = 1 if family == "mpnet" or config.get("pad_token_id") is None else int(config["pad_token_id"])
    return _Encoder(
        family=family,
        width=int(config["hidden_size"]),
        layers=int(config["num_hidden_layers"]),
        heads=int(config["num_attention_heads"]),
        inner=int(config["intermediate_size"]),
        positions=int(config["max_position_embeddings"]),
        types=int(config["type_vocab_size"]),
        vocabulary=int(config["vocab_size"]),
        attention_dropout=float(config["attention_probs_dropout_prob"]),
        hidden_dropout=float(config["hidden_dropout_prob"]),
        max_tokens=int(config["max_position_embeddings"]) - (padding + 1 if family in _SHIFTED else 0),
    )


def measure_shape(shape: LanguageModelShape) -> tuple[int, int]:
    """Width D of a language model, and how many tokens it reads at most."""
    encoder = _read_encoder(shape)
    return encoder.width, encoder.max_tokens


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
    encoder = _read_encoder(shape)
    if layers is not None and layers > encoder.layers:
        raise UserError(
            f"model.language_model_layers is {layers}, but the language model has {encoder.layers} layers; lower it"
        )
    count = layers or encoder.layers
    first = count - (count + 1) // 2
    trains = {"all": count, "top_half": count - first}.get(train_layers, 0)
    rank = lora_rank if train_layers == "lora" else 0
    fused = encoder.family != "mpnet" and (on_gpu or not encoder.attention_dropout)
    n, width, inner = n_tokens, encoder.width, encoder.inner
    matrices = 4 * width * width + 2 * width * inner
    products, attention = 2.0 * n * matrices, 4.0 * n * n * width
    low_rank = rank * (8 * width + 2 * (width + inner))
    forward = count * (products + attention + 2.0 * n * low_rank)
    # Backward: into the input of each product; into its weights where they train; attention is computed again if fused.
    backward = count * (products + attention * (2.5 if fused else 2) + 4.0 * n * low_rank) + trains * products

    norms, biases = 4 * width, 5 * width + inner
    weights = count * (matrices + biases + norms + low_rank)
    trainable = {
        "all": weights,
        "top_half": trains * (matrices + biases) + count * norms,
        "norms": count * norms,
        "lora": count * low_rank,
    }.get(train_layers, 0)
    if encoder.family == "mpnet":  # one bias for each distance, of all layers
        weights += _DISTANCES * encoder.heads
        trainable += _DISTANCES * encoder.heads if train_layers == "all" else 0
    saved = sum(_saved_of_layer(encoder, n, layer >= count - trains, rank, precision, fused) for layer in range(count))
    if precision == "bf16":  # between layers, the norm's float32 as well as its copy
        saved += (count - 1) * FLOAT_BYTES * n * width
    if masked and encoder.family != "mpnet":
        saved += (FLOAT_BYTES if fused else 1) * n * n
    if positions == "lm":
        added = (encoder.positions + (0 if encoder.family == "mpnet" else encoder.types)) * width + 2 * width
        weights += added
        trainable += added if train_layers == "all" else 2 * width if train_layers in ("top_half", "norms") else 0
        saved += 2 * FLOAT_BYTES * n * width + 2 * FLOAT_BYTES * n
    fixed = 2.0 * count * (matrices + low_rank) if precision == "bf16" else 0.0  # autocast's copies
    fixed += FLOAT_BYTES * encoder.heads * n * n if encoder.family == "mpnet" else 0.0
    return Counted(forward, forward + backward, saved, 0.0, fixed, weights, trainable)


_DISTANCES = 32


def _saved_of_layer(encoder: _Encoder, n: int, trains: bool, rank: int, precision: str, fused: bool) -> float:
    """Return bytes that one layer keeps of a row; inputs of linear maps only where their weights (or LoRA's) train."""
    size = 2 if precision == "bf16" else FLOAT_BYTES
    inputs = trains or rank > 0
    # Two of the tensors are of the norms, which autocast keeps in float32.
    wide = (8 if inputs else 6 if fused else 5) * size + 2 * FLOAT_BYTES
    scores = FLOAT_BYTES * encoder.heads * n if fused else 3 * size * encoder.heads * n * n
    inner = n * encoder.inner * size * (2 if inputs else 1)
    return n * encoder.width * wide + inner + scores + 4.0 * FLOAT_BYTES * n + 6 * rank * n * size


def count_vocabulary(shape: LanguageModelShape, n_tokens: int) -> Counted:
    """Return what masked modelling adds to the encoder over `n_tokens` tokens a row: token embeddings, and a head of
    a dense layer and the scores of the whole vocabulary (whose matrix is that of the embeddings).
    """
    encoder = _read_encoder(shape)
    width, vocabulary = encoder.width, encoder.vocabulary
    weights = width * (vocabulary + width)
    forward = 2.0 * n_tokens * weights
    saved = float(FLOAT_BYTES * n_tokens * (2 * vocabulary + 3 * width))
    return Counted(forward, 3 * forward, saved, 0.0, 0.0, weights, weights)
