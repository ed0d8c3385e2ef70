"""Layers that know which positions are padding, so that extra padding never changes a result; and a fast dropout."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from l2g_ray.models.team import ALONE, Team


class Composed(nn.Module):
    """Base of a module whose forward only calls its children and takes linear steps, so that contributions of bases pass
    through it (`explain.rules`). A subclass of a subclass says so again, since it may compute something else."""


class Elementwise(nn.Module):
    """Base of a module that works element by element, and so has the rescale rule (`explain.rules`); as for `Composed`."""


class MaskedBatchNorm1d(nn.BatchNorm1d):
    """BatchNorm1d whose training statistics leave padding out, and span all workers of a team.

    forward(x (batch, channels, length), mask (batch, 1, length) float or None). Alone without a mask, and in evaluation
    mode, it is exactly `nn.BatchNorm1d`. (`nn.SyncBatchNorm` knows no mask and wants a GPU.)
    """

    team: Team = ALONE
    running_mean: torch.Tensor | None
    running_var: torch.Tensor | None

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:  # type: ignore[override]
        """x (batch, channels, length), mask (batch, 1, length) float or None, to the normalised x."""
        if not self.training or (mask is None and self.team.size == 1):
            return super().forward(x)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if mask is None:
            mask = wide.new_ones(len(x), 1, x.shape[2])
        count = mask.sum().clamp(min=1)
        mean = (wide * mask).sum((0, 2)) / count
        centred = (wide - mean[None, :, None]) * mask
        variance = centred.square().sum((0, 2)) / count
        if self.team.size > 1:
            count, mean, variance = self._pool(mask.sum(), mean, variance)
        if self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                assert self.num_batches_tracked is not None
                self.num_batches_tracked.add_(1)
                momentum = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
                unbiased = variance * count / (count - 1).clamp(min=1)
                # Not in place: torch's own batch norm, which a batch without padding goes through, keeps both for its
                # backward pass, and that comes after all batches of a step.
                self.running_mean = torch.lerp(self.running_mean, mean, momentum)
                self.running_var = torch.lerp(self.running_var, unbiased, momentum)
        normal = (wide - mean[None, :, None]) * torch.rsqrt(variance + self.eps)[None, :, None]
        return (normal * self.weight[None, :, None] + self.bias[None, :, None]).to(x.dtype)

    def _pool(
        self, count: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Count, means and variances (channels,) of all workers' positions from each worker's own.

        By deviations from the means (Chan, Golub, LeVeque 1979), not by squares, which would cancel digits.
        """
        stacked = self.team.stack(torch.cat([mean, variance, count[None].to(mean.dtype)]))
        n, means, variances = stacked[:, -1:], stacked[:, : len(mean)], stacked[:, len(mean) : -1]
        total = n.sum().clamp(min=1)
        pooled = (n * means).sum(0) / total
        spread = (n * (variances + (means - pooled).square())).sum(0) / total
        return total, pooled, spread


def apply_mask(x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """x (batch, channels, length) with padding set to zero, as the zero padding beyond a true end would be."""
    return x if mask is None else x * mask.to(x.dtype)


def pool_mask(mask: torch.Tensor | None, size: int) -> torch.Tensor | None:
    """Mask (batch, 1, length) after non-overlapping windows of `size`: real where any position is real."""
    return None if mask is None else nn.functional.max_pool1d(mask, size, ceil_mode=True)


class MaskedMaxPool1d(Composed):
    """Non-overlapping max pooling that keeps the last, partial window and ignores padding."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.pool = nn.MaxPool1d(size, ceil_mode=True)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """x (batch, channels, length) to (batch, channels, ceil(length / size)), with its mask."""
        if self.size == 1:  # torch would go through the whole tensor
            return apply_mask(x, mask), mask
        if mask is None:
            return self.pool(x), None
        lowest = torch.finfo(x.dtype).min
        pooled_mask = pool_mask(mask, self.size)
        return apply_mask(self.pool(x.masked_fill(mask == 0, lowest)), pooled_mask), pooled_mask


class MaskedUpsample1d(Composed):
    """Linear upsampling by two whose result does not depend on how far the batch is padded.

    Half-pixel interpolation with the border value held. (The official UNet aligns corners, which makes every output
    depend on the padded length.) With a mask, neighbours that are padding get no weight.
    """

    def __init__(self) -> None:
        super().__init__()
        self.upsample = nn.Upsample(scale_factor=2, mode="linear", align_corners=False)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None, length: int) -> torch.Tensor:
        """x (batch, channels, n) to (batch, channels, length), length in {2n - 1, 2n}."""
        raised = self.upsample(x)
        if mask is not None:
            raised = raised / self.upsample(mask).to(raised.dtype).clamp(min=0.25)
        return raised[..., :length]


class Highest(nn.Module):
    """Max over the last axis, a module so that an attribution can put its rule on it (`explain.rules`)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (batch, channels, length) to (batch, channels)."""
        return x.amax(-1)


class MaskedMax(Composed):
    """Max over positions that padding never wins."""

    def __init__(self) -> None:
        super().__init__()
        self.highest = Highest()

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """x (batch, channels, length), mask (batch, 1, length) or None, to (batch, channels)."""
        if mask is not None:
            # A row that is all padding, as in a batch without rows, keeps its numbers: they must be finite.
            padding = (mask == 0) & (mask != 0).any(2, keepdim=True)
            x = x.masked_fill(padding, torch.finfo(x.dtype).min)
        highest: torch.Tensor = self.highest(x)
        return highest


def masked_mean(x: torch.Tensor, mask: torch.Tensor | None, dim: int) -> torch.Tensor:
    """Return mean of x over `dim`, over real positions only; mask broadcasts against x."""
    if mask is None:
        return x.mean(dim)
    weights = mask.to(x.dtype)
    return (x * weights).sum(dim) / weights.sum(dim).clamp(min=1)


def drop(x: torch.Tensor, p: float) -> torch.Tensor:
    """x with each element set to 0 with probability p, the others divided by 1 - p; p is rounded to 1/65536.

    On a CPU the mask is 16 bits of numpy's SFC64 an element, seeded by torch's random state: ten times as fast as torch's
    Bernoulli draws, which take a tenth of a fine-tuning step.
    """
    # Fake tensors, which only have shapes, and torch.compile cannot draw numbers outside of torch.
    plain = x.device.type == "cpu" and type(x) is torch.Tensor and not torch.compiler.is_compiling()
    limit, n = round(p * 65536), x.numel()
    if not plain or not 0 < limit < 65536:
        return nn.functional.dropout(x, p)
    bits = np.random.SFC64(int(torch.randint(2**62, ()))).random_raw(-(-n // 4)).view(np.uint16)
    return x * (torch.from_numpy(bits[:n] >= limit).view(x.shape).to(x.dtype) * (65536 / (65536 - limit)))


class Dropout(nn.Dropout):
    """`nn.Dropout` by `drop`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the input with elements dropped in training, as it is in evaluation mode."""
        return drop(input, self.p) if self.training and self.p else input
