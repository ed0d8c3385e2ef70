"""CNN backbones of the embedder (docs/method.md, "Network"): ResNet, UNet, DeepSEA, ORCA.

Each maps one-hot (batch, channels, length) and a mask (batch, 1, length) to features (batch, out_channels, length')
and their mask. `options` are the fields of `EmbedderConfig` that it takes; `predictor_width`: units of a hidden layer of a
predictor that reads its features. The convolutions that DASH may replace are `SearchableConv1d`, in the order of
`searchable_layers`. The table of all backbones is `config.BACKBONES`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from l2g_ray.models.layers import (
    Composed,
    MaskedBatchNorm1d,
    MaskedMaxPool1d,
    MaskedUpsample1d,
    apply_mask,
)
from l2g_ray.models.mixed_conv import SearchableConv1d

Architecture = Sequence[tuple[int, int]]
Features = tuple[torch.Tensor, torch.Tensor | None]


class ConvUnit(Composed):
    """Convolution, dropout, batch norm, ReLU; padding is zeroed so that the next layer sees a true end."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, dilation: int, dropout: float, causal: bool
    ) -> None:
        super().__init__()
        self.conv = SearchableConv1d(in_channels, out_channels, kernel_size, dilation, causal=causal)
        self.dropout = nn.Dropout(dropout)
        self.norm = MaskedBatchNorm1d(out_channels)
        self.activation = nn.ReLU()

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """x (batch, in, length) to (batch, out, length)."""
        return apply_mask(self.activation(self.norm(self.dropout(self.conv(x)), mask)), mask)


class ResidualBlock(Composed):
    """Three units and a shortcut that is added after the last ReLU (1x1 convolution + norm where widths differ)."""

    def __init__(
        self, in_channels: int, out_channels: int, architecture: Architecture, dropout: float, causal: bool
    ) -> None:
        super().__init__()
        widths = [in_channels, out_channels, out_channels, out_channels]
        self.units = nn.ModuleList(
            ConvUnit(widths[i], widths[i + 1], k, d, dropout, causal) for i, (k, d) in enumerate(architecture)
        )
        self.shortcut: nn.Conv1d | None = None
        if in_channels != out_channels:
            self.shortcut = nn.Conv1d(in_channels, out_channels, 1)
            self.shortcut_norm = MaskedBatchNorm1d(out_channels)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """x (batch, in, length) to (batch, out, length)."""
        side = x if self.shortcut is None else self.shortcut_norm(self.shortcut(x), mask)
        for unit in self.units:
            x = unit(x, mask)
        return apply_mask(x + side, mask)


class ResNet(Composed):
    """Three residual blocks of three units: nine (kernel size, dilation) pairs.

    `pool` 2 halves the length after the first and second block (the official network keeps the full length: 1).
    """

    options: tuple[str, ...] = ("causal", "dropout", "pool")
    predictor_width: int | None = None

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int],
        architecture: Architecture,
        *,
        dropout: float = 0.0,
        causal: bool = False,
        pool: int = 1,
    ) -> None:
        super().__init__()
        widths = [in_channels, *channels]
        self.blocks = nn.ModuleList(
            ResidualBlock(widths[i], widths[i + 1], architecture[3 * i : 3 * i + 3], dropout, causal) for i in range(3)
        )
        self.pools = nn.ModuleList(MaskedMaxPool1d(pool) for _ in range(2 if pool > 1 else 0))
        self.pool = pool
        self.out_channels = channels[-1]

    def out_length(self, length_bp: int) -> int:
        """Feature positions for a sequence of `length_bp`."""
        for _ in self.pools:
            length_bp = math.ceil(length_bp / self.pool)
        return length_bp

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> Features:
        """Map one-hot (batch, in, length) to features (batch, channels[-1], out_length)."""
        for i, block in enumerate(self.blocks):
            x = block(x, mask)
            if i < len(self.pools):
                x, mask = self.pools[i](x, mask)
        return x, mask


class DoubleConv(Composed):
    """Two units, without dropout."""

    def __init__(self, in_channels: int, out_channels: int, architecture: Architecture, causal: bool) -> None:
        super().__init__()
        (k1, d1), (k2, d2) = architecture
        self.first = ConvUnit(in_channels, out_channels, k1, d1, 0.0, causal)
        self.second = ConvUnit(out_channels, out_channels, k2, d2, 0.0, causal)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """x (batch, in, length) to (batch, out, length)."""
        return self.second(self.first(x, mask), mask)


class UNet(Composed):
    """Five encoder and four decoder levels of two convolutions: 18 pairs; the output has the full length."""

    options: tuple[str, ...] = ("causal",)
    predictor_width: int | None = None

    def __init__(
        self, in_channels: int, channels: Sequence[int], architecture: Architecture, *, causal: bool = False
    ) -> None:
        super().__init__()
        pairs = [architecture[2 * i : 2 * i + 2] for i in range(9)]
        widths = [in_channels, *channels]
        self.encoders = nn.ModuleList(DoubleConv(widths[i], widths[i + 1], pairs[i], causal) for i in range(5))
        self.pools = nn.ModuleList(MaskedMaxPool1d(2) for _ in range(4))
        self.upsamples = nn.ModuleList(MaskedUpsample1d() for _ in range(4))
        outs = [channels[3] // 2, channels[2] // 2, channels[1] // 2, channels[0]]
        self.decoders = nn.ModuleList()
        below = channels[4]
        for i, out in enumerate(outs):
            self.decoders.append(DoubleConv(channels[3 - i] + below, out, pairs[5 + i], causal))
            below = out
        self.out_channels = outs[-1]

    def out_length(self, length_bp: int) -> int:
        """Feature positions for a sequence of `length_bp`."""
        return length_bp

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> Features:
        """Map one-hot (batch, in, length) to features (batch, channels[0], length)."""
        skips: list[Features] = []
        for i, encoder in enumerate(self.encoders):
            if i:
                x, mask = self.pools[i - 1](x, mask)
            x = encoder(x, mask)
            skips.append((x, mask))
        skips.pop()
        for upsample, decoder in zip(self.upsamples, self.decoders, strict=True):
            skip, skip_mask = skips.pop()
            raised = apply_mask(upsample(x, mask, skip.shape[-1]), skip_mask)
            x, mask = decoder(torch.cat([skip, raised], 1), skip_mask), skip_mask
        return x, mask


class DeepSEA(Composed):
    """Three convolutions (k = 8), two poolings by four; the ablation arm of the paper."""

    options: tuple[str, ...] = ("causal",)
    predictor_width: int | None = 925

    def __init__(
        self, in_channels: int, channels: Sequence[int], architecture: Architecture, *, causal: bool = False
    ) -> None:
        super().__init__()
        widths = [in_channels, *channels]
        self.convs = nn.ModuleList(
            SearchableConv1d(widths[i], widths[i + 1], k, d, causal=causal) for i, (k, d) in enumerate(architecture)
        )
        for conv in self.convs:
            nn.init.xavier_uniform_(conv.weight, gain=math.sqrt(2))
            nn.init.zeros_(conv.bias)
        self.activations = nn.ModuleList(nn.ReLU() for _ in range(3))
        self.dropouts = nn.ModuleList(nn.Dropout(p) for p in (0.2, 0.2, 0.5))
        self.pools = nn.ModuleList(MaskedMaxPool1d(4) for _ in range(2))
        self.out_channels = channels[-1]

    def out_length(self, length_bp: int) -> int:
        """Feature positions for a sequence of `length_bp`; the last partial window is kept."""
        return math.ceil(math.ceil(length_bp / 4) / 4)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> Features:
        """Map one-hot (batch, in, length) to features (batch, channels[-1], ceil(length / 16))."""
        for i, conv in enumerate(self.convs):
            x = apply_mask(self.activations[i](conv(x)), mask)
            if i < 2:
                x, mask = self.pools[i](x, mask)
            x = self.dropouts[i](x)
        return x, mask


class Orca(Composed):
    """No layers: the embedder is its projection alone, one convolution with kernel = stride (ORCA)."""

    options: tuple[str, ...] = ("causal",)
    predictor_width: int | None = None

    def __init__(
        self, in_channels: int, channels: Sequence[int], architecture: Architecture, *, causal: bool = False
    ) -> None:
        super().__init__()
        self.out_channels = in_channels

    def out_length(self, length_bp: int) -> int:
        """Feature positions for a sequence of `length_bp`."""
        return length_bp

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> Features:
        """Return one-hot as it is."""
        return x, mask


def searchable_layers(module: nn.Module) -> list[tuple[str, SearchableConv1d]]:
    """Return the convolutions that DASH replaces, by name, in the order of an architecture's pairs."""
    return [(name, m) for name, m in module.named_modules() if isinstance(m, SearchableConv1d)]
