"""CORAL: distance of two samples by their covariances; an alternative to MMD (Sun and Saenko, 2016, eq. 1)."""

from __future__ import annotations

import torch
from torch import Tensor


def coral(source: Tensor, target: Tensor) -> Tensor:
    """Squared Frobenius distance of the covariances of `source` (n, D) and `target` (m, D), over 4 D^2; a scalar.

    Computed in float32, also under autocast. Raises ValueError for other shapes, or fewer than two rows.
    """
    if source.ndim != 2 or target.ndim != 2 or source.shape[1] != target.shape[1]:
        raise ValueError(f"expected (n, D) and (m, D), got {tuple(source.shape)} and {tuple(target.shape)}")
    if min(len(source), len(target)) < 2:
        raise ValueError(f"need at least two rows in each sample, got {len(source)} and {len(target)}")
    with torch.autocast(device_type=target.device.type, enabled=False):
        difference = _covariance(source.float()) - _covariance(target.float())
    return difference.square().sum() / (4 * source.shape[1] ** 2)


def _covariance(x: Tensor) -> Tensor:
    centred = x - x.mean(0)
    return centred.T @ centred / (len(x) - 1)
