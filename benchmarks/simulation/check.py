"""The simulation beside real runs: `python -m benchmarks.simulation.check RUN...`, folders of finished suites.

Trials take the CPU seconds of that very run, so what remains are Ray's processes and queue, what a trial does outside of
its epochs, and the waiting that `OVERHEADS` assumes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.simulation.lengths import Recorded, record, script_as_recorded
from benchmarks.simulation.virtual import simulate
from benchmarks.utilisation import OVERHEADS


def main(runs: list[Path]) -> None:
    """Print one line a run."""
    print(
        "| run | slots | trials | from first to last, s | simulated | trials' seconds | simulated | busy | simulated |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for run in runs:
        real = json.loads((run / "leaderboard.json").read_text())["slots"]
        scripts = [script_as_recorded(one, one.seeds) for one in (Recorded(**task) for task in record([run])["tasks"])]
        found = simulate(scripts, real["slots"], OVERHEADS).use
        pairs = [(real["span_s"], found.span_s), (real["busy_s"], found.busy_s)]
        seconds = " | ".join(f"{one:,.0f} | {other:,.0f}" for one, other in pairs)
        trials = f"{real['trials']}" if real["trials"] == found.trials else f"{real['trials']} ({found.trials})"
        print(f"| {run.name} | {real['slots']} | {trials} | {seconds} | {real['busy']:.0%} | {found.busy:.0%} |")


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
