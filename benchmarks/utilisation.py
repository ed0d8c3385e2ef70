"""How busy a suite's slots are: its own scheduling of trials that wait for the recorded seconds of real ones."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

from benchmarks.measure import Options
from benchmarks.simulation.lengths import Script, read_recorded, script_as_recorded, script_paper
from benchmarks.simulation.virtual import Overheads, Simulated, simulate

TASKS = 18
CASES = [(preset, slots) for preset in ("fast", "paper") for slots in (4, 16, 64)]
UNLIMITED = 10_000
# Seconds that starting takes, of the order of what a suite on two cores loses; not fitted to anything.
OVERHEADS = Overheads(task_s=6.0, stage_s=1.0, search_s=3.0)


def make_scripts(preset: str, count: int) -> list[Script]:
    """Return `count` tasks: the recorded ones with L2G, in turn."""
    make = {"fast": script_as_recorded, "paper": script_paper}[preset]
    recorded = itertools.cycle(task for task in read_recorded() if "l2g" in task.arms)
    return [replace(make(task), name=f"{task.name} ({i})") for i, task in enumerate(itertools.islice(recorded, count))]


def run(options: Options) -> list[dict[str, Any]]:
    """Return one row a simulation, and the plot in `options.out`."""
    rows: list[dict[str, Any]] = []
    drawn: dict[str, Simulated] = {}
    for preset, slots in CASES:
        scripts = make_scripts(preset, TASKS)
        found = simulate(scripts, slots, OVERHEADS)
        given = simulate(scripts, slots, OVERHEADS, given_order=True)
        # No schedule beats the longest task on slots without end, nor all work divided by the slots.
        alone = [simulate([one], UNLIMITED).use for one in scripts]
        work_s, longest_s = sum(use.busy_s for use in alone), max(use.span_s for use in alone)
        most = min(1.0, work_s / slots / longest_s)
        title = f"{len(scripts)} tasks, {preset}"
        drawn[f"{title}, {slots} slots"] = found
        rows.append(
            {
                "simulated": title,
                "slots": slots,
                "trials": found.use.trials,
                "hours": round(found.use.span_s / 3600, 2),
                "busy": f"{found.use.busy:.1%}",
                "no schedule exceeds": f"{most:.1%}",
                "of that": f"{found.use.busy / most:.1%}",
                "in the order given": f"{given.use.busy:.1%}",
                "a task alone fills": round(sum(u.busy_s for u in alone) / sum(u.span_s for u in alone), 2),
            }
        )
    options.out.mkdir(parents=True, exist_ok=True)
    plot(drawn).savefig(options.out / "utilisation.svg")
    return rows


def plot(drawn: dict[str, Simulated]) -> Any:
    """Busy slots over time, a panel a simulation."""
    import matplotlib as mpl
    import numpy as np
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "utilisation"  # the same file every time
    columns = 3
    lines = -(-len(drawn) // columns)
    figure = Figure(figsize=(9, 2 * lines), layout="constrained")
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for empty in panels[len(drawn) :]:
        empty.set_axis_off()
    for axes, (title, found) in zip(panels, drawn.items(), strict=False):
        begins, ends = (np.sort([pair[i] for pair in found.intervals]) for i in (0, 1))
        at = np.linspace(begins[0], ends[-1], 400)
        busy = np.searchsorted(begins, at, side="right") - np.searchsorted(ends, at, side="right")
        axes.fill_between(at / 3600, busy / found.use.slots, step="mid", alpha=0.6, linewidth=0)
        axes.set(title=f"{title}: {found.use.busy:.0%}", ylim=(0, 1.02), xlim=(0, at[-1] / 3600))
        axes.title.set_fontsize(9)
        axes.tick_params(labelsize=8)
    figure.supylabel("share of busy slots", fontsize=9)
    figure.supxlabel("hours", fontsize=9)
    return figure
