"""How time and peak memory grow with rows, length, channels, trials and slots: slopes in log-log.

Time is CPU seconds of this process, medians of rounds in which the sizes take turns; waiting for other work is not in
them. Memory is the peak of a fresh process a point, beyond what it held before (imports, input, model). The orchestration
is the suite's own code on a virtual clock: its trials only wait, and the clock's own seconds are counted. Ray, MLflow and
HyperOpt are not in it; HyperOpt's proposals are a separate series.

A slope is the least squares line through all sizes, 1 being linear growth. Where the lower half grows clearly more slowly
than the upper one, a fixed cost (or a term of lower order) dominates there, and the slope is that of the upper half; the
table says so.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.growth_work import SERIES, Series, set_threads
from benchmarks.measure import Options, interleave, measure_peak_mib

SECONDS, MIB = "CPU s", "MiB"
# Of a slope: from here on growth is called worse than linear.
LIMIT = 1.1
# Where the lower half's slope is so much less than the upper one's, a fixed cost dominates there.
GAP = 0.2
LEAST_MIB = 1.0  # less is pages that the allocator had or had not
QUICK_MEMORY = "training step"  # a process a point takes seconds to start


@dataclass(frozen=True)
class Growth:
    """A power law through some sizes: value = factor x size^slope from the size `first` on; `fitted` says which they are."""

    slope: float
    factor: float
    first: int
    fitted: str


@dataclass(frozen=True)
class Measured:
    """A series in one unit, by size, the least first, and its growth; None where fewer than two sizes can be fitted."""

    work: str
    axis: str
    unit: str
    values: dict[int, float]
    growth: Growth | None


def fit_line(sizes: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """Slope and factor of value = factor x size^slope by least squares of the logarithms. All numbers are positive, and
    there are two sizes at least."""
    slope, offset = np.polyfit(np.log(sizes), np.log(values), 1)
    return float(slope), float(np.exp(offset))


def fit_growth(values: dict[int, float]) -> Growth | None:
    """Return the growth over all sizes, or over their upper half where the lower half grows clearly more slowly.

    The halves share the size in the middle, or of an even number the first of the upper half. None for fewer than two sizes.
    """
    sizes = sorted(values)
    n, middle = len(sizes), len(sizes) // 2
    if n < 2:
        return None
    chosen, fitted = sizes, f"all {n}"
    if n > 2:
        lower, upper = (_fit(values, half)[0] for half in (sizes[: middle + 1], sizes[middle:]))
        if upper - lower > GAP:
            chosen, fitted = sizes[middle:], f"upper {n - middle} of {n}"
    slope, factor = _fit(values, chosen)
    return Growth(slope, factor, chosen[0], fitted)


def run(options: Options) -> list[dict[str, Any]]:
    """Return one row a series and unit; `growth_points.json` and the figure `growth` (SVG, PNG) go to `options.out`.

    `quick`: the two smallest sizes of each series, and memory of one series alone.
    """
    set_threads(options.threads)
    measured = []
    with tempfile.TemporaryDirectory() as folder:
        for name, series in SERIES.items():
            sizes = series.sizes[:2] if options.quick else series.sizes
            measured.append(_measure_time(name, series, sizes, Path(folder), 1 if options.quick else 3))
            # After the times: forms of mixed convolutions are chosen then, and kept for the other processes.
            if name == QUICK_MEMORY or not options.quick:
                measured.append(_measure_memory(name, series, sizes, Path(folder), options.threads))
    options.out.mkdir(parents=True, exist_ok=True)
    points = [asdict(one) for one in measured]
    (options.out / "growth_points.json").write_text(json.dumps(points, indent=1) + "\n")
    plot(measured, options.out / "growth")
    return [_make_row(one) for one in measured]


def _fit(values: dict[int, float], sizes: Sequence[int]) -> tuple[float, float]:
    return fit_line(sizes, [values[size] for size in sizes])


def _measure_time(name: str, series: Series, sizes: Sequence[int], folder: Path, rounds: int) -> Measured:
    series.make(series.warm, folder)()
    sides = {str(size): series.make(size, folder) for size in sizes}
    found = interleave(sides, rounds, clock=time.process_time)
    values = {size: found[str(size)]["median_s"] for size in sizes}
    return Measured(name, series.axis, SECONDS, values, fit_growth(values))


def _measure_memory(name: str, series: Series, sizes: Sequence[int], folder: Path, threads: int) -> Measured:
    def measure(size: int) -> float:
        return measure_peak_mib("benchmarks.growth_work", name, str(size), str(folder), str(threads))

    with ThreadPoolExecutor(2) as pool:  # nothing is timed here
        values = dict(zip(sizes, pool.map(measure, sizes), strict=True))
    enough = {size: value for size, value in values.items() if value >= LEAST_MIB}
    growth = fit_growth(enough)
    if growth and len(enough) < len(values):
        growth = replace(growth, fitted=f"{growth.fitted} from {LEAST_MIB:g} MiB on")
    return Measured(name, series.axis, MIB, values, growth)


def _make_row(one: Measured) -> dict[str, Any]:
    (least, first), (most, last) = (list(one.values.items())[i] for i in (0, -1))
    growth = one.growth
    return {
        "work": one.work,
        "grows with": one.axis,
        "from, to": f"{least:,} to {most:,}",
        "of": one.unit,
        "at these": f"{_show(first)} to {_show(last)}",
        "slope": "-" if growth is None else f"{growth.slope:.2f}",
        "fitted over": "-" if growth is None else growth.fitted,
        "worse than linear": "-" if growth is None else "yes" if growth.slope > LIMIT else "no",
    }


def _show(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def plot(measured: Sequence[Measured], path_stem: Path) -> None:
    """Log-log panels, a column an axis, time above memory. A line covers the sizes that it was fitted to, its slope beside
    its end. Writes `<path_stem>.svg` and `<path_stem>.png`."""
    import matplotlib
    from matplotlib.figure import Figure

    from l2g_ray.results.figures import STYLE, save

    names = list(dict.fromkeys(one.axis for one in measured))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.6 * len(names), 6.0), layout="constrained")
        panels = figure.subplots(2, len(names), squeeze=False)
        for column, axis in enumerate(names):
            of_axis = [one for one in measured if one.axis == axis]
            works = list(dict.fromkeys(one.work for one in of_axis))
            for panel, unit in zip(panels[:, column], (SECONDS, MIB), strict=True):
                _draw_panel(panel, {one.work: one for one in of_axis if one.unit == unit}, works)
            place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderpad": 0, "labelspacing": 0.2}
            panels[0, column].legend(**place, fontsize=8, handletextpad=0.2)
            panels[1, column].set_xlabel(axis)
        panels[0, 0].set_ylabel("CPU seconds")
        panels[1, 0].set_ylabel("peak memory, MiB")
        figure.supxlabel("lines: fitted over these sizes; numbers: their slopes; dotted: slope 1", fontsize=8)
        save(figure, path_stem)


def _draw_panel(panel: Any, lines: dict[str, Measured], works: Sequence[str]) -> None:
    """`works` are all of the axis, so that a work looks the same in every panel."""
    from l2g_ray.results.figures import BLUE, ORANGE, VERMILION

    if not lines:  # quick, which leaves memory out
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set_visible(False)
        panel.text(0.5, 0.5, "not measured", ha="center", fontsize=8, transform=panel.transAxes)
        return
    ends = []
    panel.set(xscale="log", yscale="log")
    for work, colour, marker in zip(works, (BLUE, VERMILION, ORANGE), "osD", strict=False):
        if (one := lines.get(work)) is None:
            continue
        sizes = np.array(list(one.values))
        panel.plot(sizes, list(one.values.values()), marker, color=colour, markersize=4.5, label=work)
        if one.growth:
            at = np.array([one.growth.first, sizes[-1]])
            fitted = one.growth.factor * at**one.growth.slope
            panel.plot(at, fitted, color=colour, linewidth=1.3)
            ends.append((int(sizes[-1]), float(fitted[-1]), f"{one.growth.slope:.2f}", colour))
    _set_limits(panel)
    _write_slopes(panel, ends)


def _set_limits(panel: Any) -> None:
    """Room for the slopes, guides of slope 1, and ticks in plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    from l2g_ray.results.figures import GREY

    (left, right), (bottom, top) = panel.get_xlim(), panel.get_ylim()
    height = np.log10(top / bottom)
    spare = max(0.0, 1.0 - height) / 2  # a decade at least, so that flat lines look flat
    bottom, top = bottom / 10**spare, top * 10 ** (spare + 0.12 * max(height, 1.0))
    guide = np.array([left, right])
    for shift in np.arange(-6.0, 7.0):
        panel.plot(guide, bottom * 10**shift * guide / left, ":", color=GREY, linewidth=0.7, alpha=0.6, zorder=0)
    panel.set(xlim=(left, right * (right / left) ** 0.25), ylim=(bottom, top))
    for axis, (least, most) in ((panel.xaxis, panel.get_xlim()), (panel.yaxis, (bottom, top))):
        axis.set_major_locator(LogLocator(subs=(1,) if most / least > 100 else (1, 2, 5)))
        axis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value / 1000:,g}k" if value >= 1000 else f"{value:g}")
        )
        axis.set_minor_formatter(NullFormatter())
    panel.tick_params(labelsize=8)


def _write_slopes(panel: Any, ends: list[tuple[int, float, str, str]]) -> None:
    """Write texts right of (x, y), moved up where they would touch the one below; of a line that ends before others, above it."""
    (bottom, top), last = panel.get_ylim(), max((end[0] for end in ends), default=0)
    below, gap = 0.0, (top / bottom) ** 0.07
    for x, y, text, colour in sorted(ends, key=lambda end: end[1]):
        style = {"color": colour, "fontsize": 9, "textcoords": "offset points"}
        if 2 * x < last:
            panel.annotate(text, (x, y), (0, 6), ha="center", va="bottom", **style)
            continue
        below = max(y, below * gap)
        panel.annotate(text, (x, below), (7, 0), va="center", **style)
