"""What the benchmarks share: interleaved rounds, medians, the machine's name."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Options:
    """`data_dir` holds the real benchmarks' files; `quick` measures less, to see that a benchmark runs. Files beside the
    table go to `out`."""

    data_dir: Path
    quick: bool = False
    out: Path = Path("benchmarks/results")


def interleave(sides: Mapping[str, Callable[[], Any]], rounds: int = 7) -> dict[str, dict[str, float]]:
    """Seconds of each side, measured in turn so that the machine's mood falls on all alike: median, least and most."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side()  # warm caches, lazy imports
    for _ in range(rounds):
        for name, side in sides.items():
            begun = time.perf_counter()
            side()
            seconds[name].append(time.perf_counter() - begun)
    return {
        name: {"median_s": statistics.median(found), "min_s": min(found), "max_s": max(found)}
        for name, found in seconds.items()
    }


def describe_machine() -> dict[str, Any]:
    """Processor, cores, versions."""
    import numpy
    import pyarrow
    import torch

    names = [line.partition(":")[2].strip() for line in _read_cpuinfo() if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "pyarrow": pyarrow.__version__,
        "torch": torch.__version__,
    }


def _read_cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
