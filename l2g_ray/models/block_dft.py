"""Correlation with a few taps by discrete Fourier transforms of short blocks, made of matrix products alone.

Overlap-save: the signal is cut into blocks of n = m + span samples that overlap by the taps' span; in the frequency
domain a block costs 8 F c_in c_out operations (F = n // 2 + 1), however many taps there are. At these lengths (n of 50
to 200) a transform as a matrix product runs at the machine's matrix rate and leaves its result in the layout that the
products over channels want, which an FFT does not. Real arithmetic only; gradients by autograd.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F


def correlate_blocks(signal: Tensor, taps: Tensor, offsets: tuple[int, ...], before: int, groups: int = 1) -> Tensor:
    """``y[b, o, p] = sum_t sum_i taps[t, o, i] * signal[b, i, p + offsets[t] - before]``, zeros beyond both ends.

    signal (batch, c_in, length), taps (T, c_out, c_in / groups), offsets in 0..span where span is the largest; the result
    is (batch, c_out, length). float32 or float64.
    """
    batch, c_in, length = signal.shape
    c_out, span = taps.shape[1], max(offsets)
    n_blocks, m = plan_blocks(length, span, c_in, c_out, groups)
    n = m + span
    frequencies = n // 2 + 1
    into, cosines, sines, back = _matrices(n, m, offsets, signal.dtype, signal.device)
    blocks = F.pad(signal, (before, n_blocks * m + span - before - length))
    if n_blocks > 1:
        blocks = blocks.unfold(-1, n, m).transpose(1, 2)
    rows = batch * n_blocks
    # (frequency, real | imaginary, row, channel): the transform leaves frequencies in front.
    spectrum = (into @ blocks.reshape(rows * c_in, n).t()).view(frequencies, 2 * rows, c_in)
    flat = taps.reshape(len(offsets), -1)
    real, imaginary = (
        _multiply(spectrum, (basis @ flat).view(-1, *taps.shape[1:]), groups) for basis in (cosines, sines)
    )
    real_real, imaginary_real = real.view(frequencies, 2, rows * c_out).unbind(1)
    real_imaginary, imaginary_imaginary = imaginary.view(frequencies, 2, rows * c_out).unbind(1)
    product = torch.stack([real_real - imaginary_imaginary, imaginary_real + real_imaginary], 1)
    output = (product.view(2 * frequencies, rows * c_out).t() @ back).view(batch, n_blocks, c_out, m)
    return output.transpose(1, 2).reshape(batch, c_out, n_blocks * m)[..., :length]


def _multiply(spectrum: Tensor, response: Tensor, groups: int) -> Tensor:
    """(F, rows, c_in) by (F, c_out, c_in / groups) to (F, rows, c_out)."""
    if groups == 1:
        return torch.bmm(spectrum, response.transpose(1, 2))
    spectrum, response = spectrum.unflatten(2, (groups, -1)), response.unflatten(1, (groups, -1))
    return torch.einsum("frgi,fgoi->frgo", spectrum, response).flatten(2)


@lru_cache(256)
def plan_blocks(length: int, span: int, c_in: int, c_out: int, groups: int = 1) -> tuple[int, int]:
    """Return how many blocks, and how many outputs each: the fewest operations of both transforms and the product."""

    def operations(n_blocks: int) -> int:
        m = -(-length // n_blocks)
        n = m + span
        frequencies = n // 2 + 1
        return n_blocks * frequencies * (4 * n * c_in + 4 * m * c_out + 8 * c_in * c_out // groups)

    n_blocks = min(range(1, length // 16 + 2), key=operations)
    return n_blocks, -(-length // n_blocks)


@lru_cache(64)
@torch.inference_mode(False)
def _matrices(
    n: int, m: int, offsets: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Transform of a block (2F, n), cosines and sines of the taps' offsets (F, T), and the way back (2F, m)."""
    frequency = torch.arange(n // 2 + 1, dtype=torch.float64)[:, None]

    def waves(positions: Tensor) -> tuple[Tensor, Tensor]:
        angles = (frequency * positions) % n * (2 * math.pi / n)  # exact integers before the one rounding
        return angles.cos(), angles.sin()

    cosines, sines = waves(torch.arange(n, dtype=torch.float64))
    into = torch.stack([cosines, -sines], 1).view(-1, n)
    # A real signal has each frequency twice, but for 0 and, with an even n, the last.
    weight = torch.full_like(frequency, 2.0 / n)
    weight[0] = 1.0 / n
    if n % 2 == 0:
        weight[-1] = 1.0 / n
    back = torch.stack([cosines * weight, -sines * weight], 1).view(-1, n)[:, :m].contiguous()
    taps = waves(torch.tensor(offsets, dtype=torch.float64))
    into, cosines, sines, back = (matrix.to(dtype).to(device, non_blocking=True) for matrix in (into, *taps, back))
    return into, cosines, sines, back
