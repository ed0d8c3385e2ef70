"""Convolutional networks of the ensemble and of baselines: a small CNN for each kind of strand, and DeepSTARR."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from l2g_ray.counts import CNN_DENSE, CNN_LAYERS, CNN_MOST_PLACES
from l2g_ray.models.backbones import ConvUnit
from l2g_ray.models.embedder import Predictor
from l2g_ray.models.layers import Composed, Dropout, MaskedMax, MaskedMaxPool1d, masked_mean
from l2g_ray.sequence import N_CODE, encode_batch, one_hot

ANYWHERE_DROPOUT, DENSE_DROPOUT = 0.1, 0.4


@dataclass(frozen=True)
class SmallCNNConfig:
    """`by_position`: the read-out has weights for each place (of sequences up to `length_bp`), else it is their mean and max."""

    length_bp: int
    n_outputs: int
    by_position: bool

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping."""
        return asdict(self)


class SmallCNN(Composed):
    """Three convolutions with batch norm and ReLU, then a read-out in the labels' own units. Padding changes nothing."""

    config_type = SmallCNNConfig

    def __init__(self, config: SmallCNNConfig) -> None:
        super().__init__()
        self.config = config
        layers = CNN_LAYERS[config.by_position]
        widths = [4, *(filters for filters, _, _ in layers)]
        self.units = nn.ModuleList(
            ConvUnit(before, filters, kernel, 1, 0.0, False)
            for before, (filters, kernel, _) in zip(widths, layers, strict=False)
        )
        self.pools = nn.ModuleList(MaskedMaxPool1d(size) for _, _, size in layers)
        if not config.by_position:
            self.highest, self.dropout = MaskedMax(), Dropout(ANYWHERE_DROPOUT)
            self.predictor = Predictor(2 * widths[-1], config.n_outputs)
            return
        places = config.length_bp
        for _, _, size in layers:
            places = math.ceil(places / size)
        # Longer sequences are pooled further before the dense layer.
        self.last_pool = MaskedMaxPool1d(math.ceil(places / CNN_MOST_PLACES))
        self.n_places = math.ceil(places / self.last_pool.size)
        flat = widths[-1] * self.n_places
        self.dense = nn.Sequential(
            nn.BatchNorm1d(flat), Dropout(DENSE_DROPOUT), nn.Linear(flat, CNN_DENSE), nn.ReLU(), Dropout(DENSE_DROPOUT)
        )
        self.predictor = Predictor(CNN_DENSE, config.n_outputs)

    @property
    def in_channels(self) -> int:
        """Channels of the one-hot input."""
        return 4

    def forward(self, codes: torch.Tensor, lengths_bp: torch.Tensor) -> torch.Tensor:
        """Codes (batch, length) uint8 and lengths (batch,) to outputs (batch, n_outputs)."""
        return self.forward_one_hot(*encode_batch(codes, lengths_bp))

    def forward_one_hot(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """One-hot (batch, 4, length), mask (batch, 1, length) or None, to outputs (batch, n_outputs)."""
        for unit, pool in zip(self.units, self.pools, strict=True):
            x, mask = pool(unit(x, mask), mask)
        if not self.config.by_position:
            return self.predictor(self.dropout(torch.cat([masked_mean(x, mask, 2), self.highest(x, mask)], 1)))
        x, _ = self.last_pool(x, mask)
        x = nn.functional.pad(x[..., : self.n_places], (0, max(0, self.n_places - x.shape[2])))
        return self.predictor(self.dense(x.flatten(1)))


# Filters and kernel sizes, each followed by batch norm, ReLU and pooling by two; then two dense layers.
CONVOLUTIONS = ((256, 7), (60, 3), (60, 5), (120, 3))
DENSE, DROPOUT = 256, 0.4


@dataclass(frozen=True)
class DeepSTARRConfig:
    """Sequences are padded, or cut at the right end, to `length_bp`."""

    length_bp: int
    n_outputs: int

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping."""
        return asdict(self)


class DeepSTARR(nn.Module):
    """Four convolutions, two dense layers, one linear output, in the labels' own units."""

    config_type = DeepSTARRConfig

    def __init__(self, config: DeepSTARRConfig) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        width, length = 4, config.length_bp
        for filters, kernel in CONVOLUTIONS:
            layers += [nn.Conv1d(width, filters, kernel, padding="same"), nn.BatchNorm1d(filters), nn.ReLU()]
            layers.append(nn.MaxPool1d(2, ceil_mode=True))
            width, length = filters, math.ceil(length / 2)
        layers.append(nn.Flatten())
        width *= length
        for _ in range(2):
            layers += [nn.Linear(width, DENSE), nn.BatchNorm1d(DENSE), nn.ReLU(), nn.Dropout(DROPOUT)]
            width = DENSE
        self.layers = nn.Sequential(*layers)
        self.predictor = Predictor(DENSE, config.n_outputs)

    def forward(self, codes: torch.Tensor, lengths_bp: torch.Tensor) -> torch.Tensor:
        """Codes (batch, length) uint8 and lengths (batch,) to outputs (batch, n_outputs)."""
        wanted = self.config.length_bp
        codes = nn.functional.pad(codes[:, :wanted], (0, max(0, wanted - codes.shape[1])), value=N_CODE)
        return self.predictor(self.layers(one_hot(codes, torch.ones_like(codes, dtype=torch.bool))))
