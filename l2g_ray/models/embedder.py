"""The embedder f^t: backbone, projection to the language model's width, LayerNorm, and Predictor 1 (paper, "Embedder")."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from l2g_ray.counts import default_architecture, load_backbone
from l2g_ray.models.layers import Composed, Dropout, MaskedMax, masked_mean, pool_mask
from l2g_ray.sequence import encode_batch


@dataclass(frozen=True)
class EmbedderConfig:
    """All that is needed to build an embedder again.

    `length_bp` is the longest sequence; `width` is D of the language model; `max_tokens` its limit.
    `architecture` holds one (kernel size, dilation) a searchable layer.
    """

    backbone: str
    channels: tuple[int, ...]
    length_bp: int
    width: int
    max_tokens: int
    n_outputs: int
    in_channels: int = 4
    target_tokens: int = 32
    full_tokens: bool = False
    pool: int = 1
    causal: bool = False
    dropout: float = 0.0
    predictor_reads: str = "tokens"
    pooling: str = "mean"
    norm_eps: float = 1e-12
    architecture: tuple[tuple[int, int], ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready mapping; `from_dict` reads it back."""
        return {
            **self.__dict__,
            "architecture": [list(pair) for pair in self.architecture],
            "channels": list(self.channels),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EmbedderConfig:
        """Return the config that `to_dict` wrote."""
        pairs = tuple((int(k), int(d)) for k, d in values["architecture"])
        return cls(**{**values, "architecture": pairs, "channels": tuple(values["channels"])})

    def with_architecture(self, architecture: list[tuple[int, int]]) -> EmbedderConfig:
        """Return the same embedder with other kernel sizes and dilations."""
        return replace(self, architecture=tuple(architecture))


@dataclass
class Embedding:
    """What an embedder returns: tokens (batch, N, D) after LayerNorm with their mask (batch, N) or None, and the
    backbone's features (batch, channels, length') with theirs (batch, 1, length') or None."""

    tokens: torch.Tensor
    token_mask: torch.Tensor | None
    features: torch.Tensor
    feature_mask: torch.Tensor | None

    def pooled_tokens(self) -> torch.Tensor:
        """Masked mean over tokens (batch, D)."""
        mask = None if self.token_mask is None else self.token_mask[..., None]
        return masked_mean(self.tokens, mask, 1)

    def pooled_features(self) -> torch.Tensor:
        """Masked mean over the backbone's positions (batch, channels)."""
        return masked_mean(self.features, self.feature_mask, 2)


# Before the read-out of mean and max, as in `models.baselines`.
_MEAN_MAX_DROPOUT = 0.1


class Predictor(Composed):
    """Read-out of what stands at each of N positions, (batch, N, in_features), to (batch, n_outputs) in the label's own units.

    Parameters
    ----------
    pooling : 'mean' over positions; 'mean_max': mean and max; 'by_position': the mean, and weights for each of `n_places`
        positions, since a mean cannot tell where a motif is. They start at zero.
    hidden : units of a layer between pooling and the linear map.
    zero : the linear map starts at zero.

    `offset` and `scale` (n_outputs,) are the labels' mean and standard deviation for regression, 0 and 1 otherwise,
    so the network works on unit-variance targets whatever the assay's units are.
    """

    offset: torch.Tensor
    scale: torch.Tensor

    def __init__(
        self,
        in_features: int,
        n_outputs: int,
        hidden: int | None = None,
        zero: bool = False,
        pooling: str = "mean",
        n_places: int = 0,
    ) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.zeros(n_places, n_outputs, in_features)) if pooling == "by_position" else None
        self.highest = MaskedMax() if pooling == "mean_max" else None
        if self.highest is not None:
            self.dropout = Dropout(_MEAN_MAX_DROPOUT)
            in_features *= 2
        self.hidden = nn.Sequential(nn.Linear(in_features, hidden), nn.ReLU()) if hidden else nn.Identity()
        self.linear = nn.Linear(hidden or in_features, n_outputs)
        if zero:
            nn.init.zeros_(self.linear.weight)
        else:
            nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)
        self.register_buffer("offset", torch.zeros(n_outputs))
        self.register_buffer("scale", torch.ones(n_outputs))

    def set_label_scale(self, offset: torch.Tensor, scale: torch.Tensor) -> None:
        """Fix mean and standard deviation of the labels (n_outputs,)."""
        self.offset.copy_(offset)
        self.scale.copy_(scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what was pooled (batch, features) to (batch, n_outputs)."""
        read = self.linear(self.hidden(x))
        return read.to(torch.promote_types(read.dtype, torch.float32)) * self.scale + self.offset

    def read(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """x (batch, N, in_features) with its mask (batch, N) or None to (batch, n_outputs). By position, what is beyond the last
        place has only the weights that all positions share."""
        wide = None if mask is None else mask[..., None]
        pooled = masked_mean(x, wide, 1)
        if self.highest is not None:
            highest = self.highest(x.transpose(1, 2), None if mask is None else mask[:, None])
            pooled = self.dropout(torch.cat([pooled, highest], 1))
        shared = self.forward(pooled)
        if self.places is None:
            return shared
        known = self.places[: x.shape[1]]
        worth = torch.einsum("bnd,ncd->bnc", x[:, : len(known)], known)
        worth = nn.functional.pad(worth, (0, 0, 0, x.shape[1] - len(known)))
        return shared + masked_mean(worth, wide, 1).to(shared.dtype) * self.scale


class Embedder(Composed):
    """One-hot DNA to tokens that a language model can read."""

    def __init__(self, config: EmbedderConfig) -> None:
        super().__init__()
        own = default_architecture(config.backbone)
        if not config.architecture:
            config = config.with_architecture(own)
        if len(config.architecture) != len(own):
            raise ValueError(f"{config.backbone} has {len(own)} layers, the architecture {len(config.architecture)}")
        kind = load_backbone(config.backbone)
        options = {name: getattr(config, name) for name in kind.options}
        self.config = config
        self.backbone = kind(config.in_channels, config.channels, config.architecture, **options)
        # s = ceil(length / target): a prime length is padded, not collapsed to one token (docs/method.md, "Official quirk").
        target = config.max_tokens if config.full_tokens else min(config.target_tokens, config.max_tokens)
        self.stride = math.ceil(self.backbone.out_length(config.length_bp) / target)
        self.projection: nn.Conv1d | None = None
        if self.stride > 1 or self.backbone.out_channels != config.width:
            self.projection = nn.Conv1d(self.backbone.out_channels, config.width, self.stride, stride=self.stride)
            if config.backbone == "orca":  # its own initialisation
                nn.init.xavier_uniform_(self.projection.weight, gain=math.sqrt(2))
                nn.init.zeros_(self.projection.bias)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)

    @property
    def n_tokens(self) -> int:
        """Tokens of the longest sequence."""
        return math.ceil(self.backbone.out_length(self.config.length_bp) / self.stride)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> Embedding:
        """Map one-hot (batch, channels, length), mask (batch, 1, length) float or None, to an `Embedding`."""
        features, feature_mask = self.backbone(x, mask)
        tokens, token_mask = features, feature_mask
        if self.projection is not None:
            spare = -features.shape[-1] % self.stride
            tokens = self.projection(nn.functional.pad(features, (0, spare)))
            token_mask = pool_mask(feature_mask, self.stride)
        tokens = self.norm(tokens.transpose(1, 2))
        return Embedding(tokens, None if token_mask is None else token_mask[:, 0], features, feature_mask)


def make_token_predictor(config: EmbedderConfig, n_tokens: int, zero: bool = False) -> Predictor:
    """Return a predictor that reads tokens, or what a language model makes of them."""
    return Predictor(config.width, config.n_outputs, zero=zero, pooling=config.pooling, n_places=n_tokens)


class EmbedderNet(Composed):
    """Embedder and Predictor 1: what is selected, searched, aligned, and trained alone.

    Predictor 1 reads after projection and LayerNorm (`predictor_reads: tokens`), so that both get the task's gradient;
    the official code reads the backbone's features (`backbone`), which leaves the projection
    untrained (docs/method.md, "Official quirk").
    """

    def __init__(self, config: EmbedderConfig) -> None:
        super().__init__()
        self.embedder = Embedder(config)
        if config.predictor_reads == "tokens":
            self.predictor = make_token_predictor(config, self.embedder.n_tokens)
            return
        if config.pooling == "by_position":
            raise ValueError("pooling by position needs a predictor that reads tokens (predictor_reads)")
        backbone = self.embedder.backbone
        self.predictor = Predictor(
            backbone.out_channels, config.n_outputs, backbone.predictor_width, pooling=config.pooling
        )

    @property
    def config(self) -> EmbedderConfig:
        """The embedder's config."""
        return self.embedder.config

    @property
    def in_channels(self) -> int:
        """Channels of the one-hot input."""
        return self.config.in_channels

    def encode(self, codes: torch.Tensor, lengths_bp: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Map codes (batch, length) to one-hot and mask; the mask is None when no position is padding."""
        return encode_batch(codes, lengths_bp, self.config.in_channels)

    def predict(self, embedding: Embedding) -> torch.Tensor:
        """Return outputs (batch, n_outputs) of Predictor 1."""
        if self.config.predictor_reads == "tokens":
            return self.predictor.read(embedding.tokens, embedding.token_mask)
        mask = None if embedding.feature_mask is None else embedding.feature_mask[:, 0]
        return self.predictor.read(embedding.features.transpose(1, 2), mask)

    @property
    def leaves_unused(self) -> bool:
        """Whether projection and LayerNorm take no part in a step on the task alone."""
        return self.config.predictor_reads != "tokens"

    def forward(self, codes: torch.Tensor, lengths_bp: torch.Tensor, pool: bool = False) -> Any:
        """Map codes (batch, length) uint8 and lengths (batch,) to outputs (batch, n_outputs); with `pool` to
        outputs and the mean of each row's tokens (batch, width).
        """
        if not pool:
            return self.forward_one_hot(*self.encode(codes, lengths_bp))
        embedding = self.embedder(*self.encode(codes, lengths_bp))
        return self.predict(embedding), embedding.pooled_tokens()

    def forward_one_hot(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Map one-hot (batch, channels, length), mask (batch, 1, length) or None, to outputs (batch, n_outputs)."""
        return self.predict(self.embedder(x, mask))
