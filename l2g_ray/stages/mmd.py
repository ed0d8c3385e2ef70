"""Maximum mean discrepancy between two samples of embeddings, the alignment loss of L2G's second stage.

Source: the L2G paper's embedder pre-training and its official loss: squared MMD with a sum of Gaussian
kernels whose bandwidths follow the data. The published code expands an (N, N, D) tensor; distances from Gram
matrices give the same value in O(N^2) memory.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mmd(
    source: Tensor,
    target: Tensor,
    *,
    n_kernels: int = 5,
    bandwidth: float | Tensor | None = None,
    biased: bool = True,
) -> Tensor:
    """Squared maximum mean discrepancy of ``source`` (n, D) and ``target`` (m, D), a scalar.

    The kernel is ``k(u, v) = sum_i exp(-|u - v|^2 / b_i)`` with ``b_i = bandwidth * 2^(i - n_kernels // 2)``,
    so five kernels span bandwidth / 4 .. 4 bandwidth, and there is no factor 2 in the exponent.
    ``bandwidth=None`` takes the mean squared distance over ordered pairs of different rows of the pool; no
    gradient flows through it, given or not.

    ``biased=True`` is L2G's V-statistic: at least 0, diagonals included, and positive even for two samples of
    one distribution. ``biased=False`` is the U-statistic: mean 0 for one distribution, so it can be negative.

    Computed in float64 if an input is float64, else in float32, also under autocast. Raises ValueError for
    inputs that are not two matrices with equal D, for too few rows, or for a bandwidth or kernel count that
    is not positive.
    """
    if source.ndim != 2 or target.ndim != 2 or source.shape[1] != target.shape[1]:
        raise ValueError(f"expected (n, D) and (m, D), got {tuple(source.shape)} and {tuple(target.shape)}")
    fewest = 1 if biased else 2
    if min(len(source), len(target)) < fewest:
        raise ValueError(f"need at least {fewest} rows in each sample, got {len(source)} and {len(target)}")
    if isinstance(bandwidth, Tensor):
        bandwidth = bandwidth.detach()
    if n_kernels < 1 or (bandwidth is not None and float(bandwidth) <= 0):
        raise ValueError(f"n_kernels and bandwidth must be positive, got {n_kernels} and {bandwidth}")

    dtype = torch.promote_types(torch.promote_types(source.dtype, target.dtype), torch.float32)
    with torch.autocast(device_type=target.device.type, enabled=False):
        x, y = source.to(dtype), target.to(dtype)
        # Distances ignore the origin, but in a Gram matrix a far origin cancels digits; so the pool is
        # centred.
        centre = (x.detach().sum(0) + y.detach().sum(0)) / (len(x) + len(y))
        x, y = x - centre, y - centre
        xx, yy, xy = _squared_distances(x, x), _squared_distances(y, y), _squared_distances(x, y)
        if bandwidth is None:
            pool = len(x) + len(y)
            base = (xx.detach().sum() + yy.detach().sum() + 2 * xy.detach().sum()) / (pool * pool - pool)
            # If all rows are equal, what distance is left is rounding of the centring; any positive bandwidth
            # does.
            rounding = (4 * torch.finfo(dtype).eps * centre.norm()) ** 2
            base = torch.where(base > rounding, base, torch.ones_like(base))
        else:
            base = torch.as_tensor(bandwidth, dtype=dtype, device=target.device)
        bandwidths = [base * 2.0 ** (i - n_kernels // 2) for i in range(n_kernels)]
        k_xx, k_yy, k_xy = (_sum_kernels(d2, bandwidths) for d2 in (xx, yy, xy))
        if biased:
            return k_xx.mean() + k_yy.mean() - 2 * k_xy.mean()
        return _mean_off_diagonal(k_xx) + _mean_off_diagonal(k_yy) - 2 * k_xy.mean()


def sample_rows(reference: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """``n`` rows of ``reference`` (m, D), uniformly with replacement: (n, D) on the device of ``reference``.

    ``generator`` may live on another device (a CPU generator gives the same rows everywhere). Raises
    ValueError when ``reference`` has no rows.
    """
    if not len(reference):
        raise ValueError("cannot sample from a reference without rows")
    rows = torch.randint(len(reference), (n,), generator=generator, device=generator.device)
    return reference[rows.to(reference.device, non_blocking=True)]


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    squares = a.square().sum(1)[:, None] + b.square().sum(1)
    # Rounding can take the distance of near-equal rows below 0.
    return torch.addmm(squares, a, b.t(), alpha=-2).clamp_min(0)


def _sum_kernels(squared_distances: Tensor, bandwidths: list[Tensor]) -> Tensor:
    total = torch.exp(-squared_distances / bandwidths[0])
    for bandwidth in bandwidths[1:]:
        total = total + torch.exp(-squared_distances / bandwidth)
    return total


def _mean_off_diagonal(kernel: Tensor) -> Tensor:
    n = len(kernel)
    return (kernel.sum() - kernel.diagonal().sum()) / (n * (n - 1))
