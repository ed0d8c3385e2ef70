"""Whether bf16 autocast pays on this CPU: measured once for each machine, then remembered.

Processors that list the same instructions differ: with `avx512_bf16`, a bf16 product ran at half the rate of fp32 on an
Intel Xeon and at twice that rate on an AMD EPYC (docs/performance.md).
"""

from __future__ import annotations

import time
from importlib import metadata

from l2g_ray.machine import describe_processor, locked_choices, read_choices, read_processor_flags

# How much faster than fp32 bf16 must be before it is taken.
MARGIN = 1.3
# Rounds after one that is not counted, and the seconds after which no further one begins.
ROUNDS, BUDGET_S = 7, 1.2
# x86 (avx512_bf16, amx_bf16) and ARM (bf16). Without any of these, bf16 is emulated.
BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


def choose_cpu_precision(threads: int) -> str:
    """Return 'bf16' where it is at least `MARGIN` times as fast as fp32 in everything that `measure_gains` measures.

    `threads` are those of a trial. Else, and where the processor has no bf16 instructions, 'fp32'. The choice is kept in
    `precision.json` of the cache folder.
    """
    if not BF16_FLAGS & read_processor_flags():
        return "fp32"
    key = _describe(threads)
    with locked_choices("precision") as kept:
        if kept.get(key) not in ("fp32", "bf16"):
            kept[key] = "bf16" if min(measure_gains(threads).values()) >= MARGIN else "fp32"
        return kept[key]


def recall_cpu_precision(threads: int) -> str | None:
    """Return what `choose_cpu_precision` returns on this machine, None where that is not measured yet. Needs no torch."""
    if not BF16_FLAGS & read_processor_flags():
        return "fp32"
    return read_choices("precision").get(_describe(threads))


def measure_gains(threads: int) -> dict[str, float]:
    """Measure how many times as fast as fp32 a pass forward and backward under bf16 autocast is, in a second.

    'convolution': 96 channels to 96, kernel size 7, batch (32, 96, 150). 'product': MiniLM's feed-forward layer, 384 to
    1536, for 640 tokens. Each is the ratio of the shortest times in interleaved rounds, so that other work on the machine
    delays both alike. Neither the random state nor the number of threads changes.
    """
    # Here: a pipeline only recalls, and does without torch.
    import torch
    from torch import nn

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            layers = {
                "convolution": (nn.Conv1d(96, 96, 7, padding=3), torch.randn(32, 96, 150)),
                "product": (nn.Linear(384, 1536), torch.randn(640, 384)),
            }
            least = {name: {False: float("inf"), True: float("inf")} for name in layers}
            begun = time.perf_counter()
            for number in range(1 + ROUNDS):
                for name, (layer, values) in layers.items():
                    x = values.requires_grad_()
                    for bf16, shortest in least[name].items():
                        since = time.perf_counter()
                        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                            output = layer(x)
                        torch.autograd.grad(output.float().sum(), [x, *layer.parameters()])
                        if number:
                            least[name][bf16] = min(shortest, time.perf_counter() - since)
                if number > 1 and time.perf_counter() - begun > BUDGET_S:
                    break
    finally:
        torch.set_num_threads(before)
    return {name: seconds[False] / seconds[True] for name, seconds in least.items()}


def _describe(threads: int) -> str:
    return f"{describe_processor()}, {threads} | torch {metadata.version('torch')}"
