"""The table and the figure of `l2g-ray scale`, from the numbers of `scaling.json`. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from l2g_ray.results.figures import BLUE, GREY, ORANGE, VERMILION, _new_figure, _styled
from l2g_ray.results.terminal import Column, Listing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = {
    "strong": ("strong: one batch", "workers", "rows_per_s"),
    "weak": ("weak: a batch each", "workers", "rows_per_s"),
    "trials": ("trials side by side", "slots", "trials_per_min"),
}
HEADINGS = ("Measured", "Number", "Rows", "Batch", "Epoch", "Speed", "Speed-up", "Efficiency", "Start")


def list_rows(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The measurements as text, a row each, under `HEADINGS`."""
    rows: list[tuple[str, ...]] = []
    for kind, (title, size, speed) in KINDS.items():
        for one in found[kind]:
            unit = "rows/s" if speed == "rows_per_s" else "trials/min"
            trains = kind != "trials"
            rows.append(
                (
                    title,
                    str(one[size]),
                    f"{one['rows']:,}" if trains else f"{one['trials']} trials",
                    str(one["batch_size"]) if trains else "",
                    f"{one['epoch_s']:.2f} s" if trains else f"{one['wall_s']:.1f} s",
                    f"{one[speed]:.3g} {unit}",
                    f"{one['speedup']:.2f}",
                    f"{one['efficiency']:.0%}",
                    f"{one['start_s']:.1f} s" if trains else "",
                )
            )
    return rows


def render_scaling(found: Mapping[str, Any]) -> Listing:
    """For a terminal of any width."""
    shape, machine, rows = found["shape"], found["machine"], list_rows(found)
    title = (
        f"Scaling of fine-tuning: {shape['language_model']}, {shape['length_bp']} bp, {machine['cores']} CPU cores, "
        f"{shape['gpus_per_worker']:g} GPU a worker"
    )
    begins = [i for i in range(1, len(rows)) if rows[i][0] != rows[i - 1][0]]
    columns = [Column(HEADINGS[0], words=True), *map(Column, HEADINGS[1:])]
    listing = Listing(columns, title=title, keys=2, sections=begins)
    for row in rows:
        listing.add(*row)
    return listing


def write_markdown(found: Mapping[str, Any]) -> str:
    """The same table in Markdown."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "|---|" + "---:|" * (len(HEADINGS) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in list_rows(found)]
    return "\n".join(lines) + "\n"


@_styled
def plot_scaling(found: Mapping[str, Any]) -> Figure:
    """Speed-up over workers (strong, weak) and over slots (trials), each beside the ideal."""
    figure, panels = _new_figure(7.2, 3.0, columns=2)
    for kind, colour, marker in (("strong", BLUE, "o"), ("weak", ORANGE, "s")):
        _draw(panels[0], found[kind], "workers", KINDS[kind][0], colour, marker)
    _draw(panels[1], found["trials"], "slots", KINDS["trials"][0], VERMILION, "^")
    for axes, kind, size in ((panels[0], "strong", "workers of one trial"), (panels[1], "trials", "trials at once")):
        sizes = [one[KINDS[kind][1]] for one in found[kind]]
        axes.plot(sizes, [n / sizes[0] for n in sizes], color=GREY, linestyle=":", label="ideal")
        axes.set(xlabel=size, ylabel="speed-up", ylim=(0, None), xticks=sizes)
        axes.legend(loc="upper left")
    return figure


def _draw(axes: Axes, rows: list[dict[str, Any]], size: str, label: str, colour: str, marker: str) -> None:
    axes.plot([row[size] for row in rows], [row["speedup"] for row in rows], color=colour, marker=marker, label=label)
