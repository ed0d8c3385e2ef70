"""MMD by Gram matrices, forward and backward, beside the published (2n, 2n, D) expansion: n = 320, D = 768."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import Options, compare, interleave, measure_peak_mib, print_peak
from l2g_ray.stages.distances import mmd

D = 768


def run(options: Options) -> list[dict[str, Any]]:
    """Time and memory of both; memory of a fresh process each."""
    torch.set_num_threads(options.threads)
    n = 64 if options.quick else 320
    samples = _draw(n)
    sides = {"ours": lambda: _step(mmd, *samples), "other": lambda: _step(expand, *samples)}
    values = {name: float(side()) for name, side in sides.items()}
    found = interleave(sides, rounds=3)
    ours, other = (1_000 * found[side]["median_s"] for side in ("ours", "other"))
    peaks = {side: measure_peak_mib("benchmarks.mmd", side, str(n)) for side in ("ours", "other")}
    difference = {"values differ by": abs(values["ours"] - values["other"]) / values["other"]}
    return [
        compare(f"time, n = {n}, ms", ours, other, 50, "") | difference,
        compare(f"memory, n = {n}, MiB", peaks["ours"], peaks["other"], 20, "") | difference,
    ]


def _draw(n: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, D, generator=generator), torch.randn(n, D, generator=generator) + 0.1


def _step(loss: Any, source: Tensor, target: Tensor) -> Tensor:
    target = target.detach().requires_grad_()
    value = loss(source, target)
    value.backward()
    return value.detach()


def expand(source: Tensor, target: Tensor) -> Tensor:
    """Return the loss as the official code computes it: all differences at once."""
    n = len(source)
    pool = torch.cat([source, target])
    distances = (pool[None] - pool[:, None]).square().sum(2)
    bandwidth = distances.detach().sum() / (4 * n * n - 2 * n) / 4
    kernel = sum(torch.exp(-distances / (bandwidth * 2.0**i)) for i in range(5))
    return kernel[:n, :n].mean() + kernel[n:, n:].mean() - kernel[:n, n:].mean() - kernel[n:, :n].mean()


if __name__ == "__main__":
    torch.set_num_threads(1)
    _step(mmd, *_draw(8))  # what torch holds anyway
    pair = _draw(int(sys.argv[2]))
    print_peak(lambda: _step(mmd if sys.argv[1] == "ours" else expand, *pair))
