"""What the benchmarks share: interleaved rounds, medians, the machine's name."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Options:
    """`data_dir` holds the real benchmarks' files; `quick` measures less, to see that a benchmark runs. Files beside the
    table go to `out`. `threads` is what a side may use: a trial has one, and one leaves the other core to the machine.
    """

    data_dir: Path
    quick: bool = False
    out: Path = Path("benchmarks/results")
    threads: int = 1


def interleave(
    sides: Mapping[str, Callable[[], Any]], rounds: int = 7, clock: Callable[[], float] = time.perf_counter
) -> dict[str, dict[str, float]]:
    """Return seconds of each side, measured in turn so that the machine's mood falls on all alike: median, least and
    most.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side()  # warm caches, lazy imports
    for _ in range(rounds):
        for name, side in sides.items():
            begun = clock()
            side()
            seconds[name].append(clock() - begun)
    return {
        name: {"median_s": statistics.median(found), "min_s": min(found), "max_s": max(found)}
        for name, found in seconds.items()
    }


def compare(
    what: str, ours: float, other: float, target: float, unit: str = "ms", faster: bool = True
) -> dict[str, Any]:
    """Return a row: both sides, how many times the other takes what ours takes, the target for that, and whether it
    is met.

    `faster=False` is for a cost that may be up to `target` times the other's: the ratio is then ours / other.
    """
    ratio = other / ours if faster else ours / other
    met = ratio >= target if faster else ratio <= target
    columns = {"what": what, f"ours {unit}": ours, f"other {unit}": other, "ratio": ratio}
    return columns | {"target": f"{'>=' if faster else '<='} {target:g}", "met": "yes" if met else "no"}


def measure_matrix_rate(precision: str = "fp32", size: int = 1024, seconds: float = 0.5) -> float:
    """FLOP/s of a square matrix product in torch with the threads of now: the bound for anything made of products."""
    import torch

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    least, begun = float("inf"), time.perf_counter()
    while time.perf_counter() - begun < seconds:
        start = time.perf_counter()
        torch.mm(a, b)
        least = min(least, time.perf_counter() - start)
    return 2 * size**3 / least


def measure_peak_mib(module: str, *arguments: str) -> float:
    """Peak memory of a fresh process that runs a benchmark's `main`, beyond what it held before, by `print_peak`."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return float(json.loads(done.stdout.strip().splitlines()[-1]))


def print_peak(work: Callable[[], Any]) -> None:
    """Do the work in the fresh process, print how far the peak of memory rose above what was held at the start, MiB."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of what came before, such as imports
    before = _read_mib("VmRSS")
    work()
    print(json.dumps(_read_mib("VmHWM") - before))


def _read_mib(name: str) -> float:
    # Not getrusage: its peak starts at that of the parent process.
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields[name].split()[0]) / 1024


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


class Kept:
    """Rows of a long benchmark in `<name>.jsonl` of `--out`, as they come: what is there is not measured again."""

    def __init__(self, name: str, options: Options) -> None:
        options.out.mkdir(parents=True, exist_ok=True)
        self.file = options.out / f"{name}{'-quick' if options.quick else ''}.jsonl"
        self.rows: list[dict[str, Any]] = []
        if self.file.exists():
            self.rows = [json.loads(line) for line in self.file.read_text().splitlines()]

    def has(self, case: dict[str, Any]) -> bool:
        """Return whether a row with all of these values is there."""
        return any(case.items() <= row.items() for row in self.rows)

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row, at once."""
        self.rows.append(row)
        with self.file.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
