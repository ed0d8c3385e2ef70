"""The DeepSTARR network (de Almeida et al., 2022), a plain CNN that reads a sequence of fixed length."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from l2g_ray.models.embedder import Predictor
from l2g_ray.sequence import N_CODE, one_hot

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
