"""The data check as people read it: in the terminal, and as one page with figures that opens anywhere."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from l2g_ray.results import figures
from l2g_ray.results.composition import explain_composition, plot_composition, tabulate_composition
from l2g_ray.results.figures import (
    BLUE,
    GREY,
    MEDIUM,
    ORANGE,
    SMALL,
    VERMILION,
    _new_figure,
    _put_legend_above,
    _styled,
)
from l2g_ray.results.leaderboard import write_atomically
from l2g_ray.results.lights import list_lights, tabulate_limits
from l2g_ray.results.terminal import Column, Listing, Sentence

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import Group

COLOURS = {"train": BLUE, "valid": ORANGE, "test": VERMILION}
# More classes or outputs than this are no longer told apart.
MAX_LABELS = 16


@_styled
def plot_features(check: Mapping[str, Any]) -> Figure:
    """Length and GC share: of each split the share of rows by bin."""
    figure, panels = _new_figure(7.2, 2.7, columns=2)
    _draw_steps(panels[0], check["shift"]["length_bp"]["histogram"], "length (bp)")
    _draw_steps(panels[1], check["shift"]["gc"]["histogram"], "share of G and C")
    panels[0].set_ylabel("share of rows")
    _put_legend_above(panels[0])
    return figure


def _draw_steps(axes: Axes, histogram: Mapping[str, Any], label: str) -> None:
    axes.set_xlabel(label)
    edges = np.array(histogram["edges"], dtype=float)
    if len(edges) == 2:
        axes.set_xlim(edges[0] - 5, edges[1] + 5)
        axes.set_xticks([edges.mean()])
    for split, counts in histogram["counts"].items():
        shares = np.array(counts) / max(sum(counts), 1)
        if len(shares):
            # Drawn in another width each, so that equal curves are still seen.
            width = {"train": 3.2, "valid": 2.0}.get(split, 1.1)
            axes.stairs(shares, edges, color=COLOURS.get(split, GREY), linewidth=width, label=split)
    axes.set_ylim(bottom=0)


@_styled
def plot_balance(check: Mapping[str, Any]) -> Figure:
    """Return labels by split: shares of the classes, shares of positives, or means and sds of the outputs in train's
    sd.
    """
    splits, kind = check["balance"]["splits"], check["kind"]
    names = list(check["labels"])[:MAX_LABELS]
    figure, (axes,) = _new_figure(MEDIUM, 1.0 + (0.18 * len(splits) + 0.16) * len(names))
    height = 0.8 / len(splits)
    for i, (split, told) in enumerate(splits.items()):
        places = np.arange(len(names)) + (i - (len(splits) - 1) / 2) * height
        colour = COLOURS.get(split, GREY)
        if kind == "regression":
            means, sds = (np.array([_in_train_sd(splits, split, name)[j] for name in names]) for j in (0, 1))
            axes.errorbar(means, places, xerr=sds, fmt="o", color=colour, capsize=3, markersize=4, label=split)
            continue
        if kind == "multilabel":
            shares = [told[name]["mean"] or 0.0 for name in names]
        else:
            shares = [told[name] / max(sum(told.values()), 1) for name in names]
        axes.barh(places, shares, height=height * 0.9, color=colour, label=split)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    labels = {
        "regression": "mean (point) and sd (bar), from train's mean, in train's sd",
        "multilabel": "share of positives among the known values",
    }
    axes.set_xlabel(labels.get(kind, "share of rows"))
    axes.grid(axis="x", color=GREY, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    _put_legend_above(axes)
    return figure


def _in_train_sd(splits: Mapping[str, Any], split: str, name: str) -> tuple[float, float]:
    """Return mean and sd of an output; NaN where a split has no values."""
    train, told = splits["train"][name], splits[split][name]
    if told["mean"] is None or train["mean"] is None:
        return np.nan, np.nan
    unit = train["sd"] or 1.0
    return (told["mean"] - train["mean"]) / unit, told["sd"] / unit


@_styled
def plot_near(check: Mapping[str, Any]) -> Figure:
    """Return rows of test and valid by the similarity to their best partner in train; dashed: the threshold."""
    pairs = [name for name in ("train_in_test", "train_in_valid") if name in check["near"]]
    figure, panels = _new_figure(SMALL * len(pairs), 2.7, columns=len(pairs))
    for axes, name in zip(panels, pairs, strict=True):
        one, other = name.split("_in_")
        found = check["near"][name]
        edges, counts = found["histogram"]["edges"], np.array(found["histogram"]["other_counts"])
        axes.stairs(counts, edges, fill=True, color=COLOURS.get(other, GREY))
        axes.axvline(found["threshold"], color=GREY, linestyle="--", linewidth=1)
        axes.set_xlabel(f"similarity to the nearest {one} row")
        axes.set_ylabel(f"{other} rows")
        axes.set_ylim(0, max(1, counts.max() * 1.05))
    return figure


_FEATURES = {"length_bp": "Length", "gc": "GC share"}
_MEASURES = {"auroc": "AUROC", "spearman": "|Spearman|"}
_EXPLAIN_SPLITS = (
    "Length: shortest, median, longest. Repeats: rows that repeat an earlier one, and those that do so only as reverse "
    "complement. Near-duplicates: rows with one in the same split. Conflicts: sequences with different labels."
)
_EXPLAIN_PAIRS = (
    "Rows of a split that are also in the other: equal, only as reverse complement, or nearly. Then how far labels, length "
    "and GC lie apart (0: alike, 1: nothing in common)."
)


def render_check(check: Mapping[str, Any], title: str) -> Group:
    """Return the check for a terminal of any width: findings, then a table of splits and one of pairs of splits."""
    from rich.console import Group

    colours = {"warning": "yellow", "note": "dim"}
    lines: list[Any] = [Sentence(f"{title} · {check['kind']}", "bold")]
    for finding in check["findings"]:
        mark = "! " if finding["level"] == "warning" else "· "
        lines.append(Sentence(mark + finding["text"], colours.get(finding["level"], ""), indent=2))
    if not check["findings"]:
        lines.append(Sentence("Nothing found.", indent=2))
    for table in (list_splits(check), list_pairs(check)):
        lines += [Sentence(""), _make_listing(*table)]
    return Group(*lines)


def render_summary(check_by_name: Mapping[str, Mapping[str, Any]]) -> Listing:
    """Many checks for a terminal of any width: one line a task; the findings are left to the page."""
    headings = ["Task", "Train", "Test", "Exact", "RC", "Near", "Conflicts", "GC", "Length", "!"]
    lines = []
    for name, check in check_by_name.items():
        seen, near = check["duplicates"]["train_in_test"], (check["near"] or {}).get("train_in_test")
        lines.append(
            [
                name,
                *(f"{check['rows'][split]:,}" for split in ("train", "test")),
                f"{seen['exact']:,} / {seen['other_exact']:,}",
                f"{seen['reverse_complement']:,} / {seen['other_reverse_complement']:,}",
                "–" if near is None else f"{near['near_only']:,} / {near['other_near_only']:,}",
                f"{check['conflicts']['total']['sequences']:,}",
                *(_format(check["leak"][feature]["value"]) for feature in ("gc", "length_bp")),
                str(sum(finding["level"] == "warning" for finding in check["findings"]) or ""),
            ]
        )
    told = (
        "Exact, RC, near: train rows that are also in test / test rows that are also in train, equal, as reverse complement, "
        "or nearly. Conflicts: sequences with different labels, in any split. GC, length: AUROC (regression: "
        "|Spearman|) of that one feature. !: warnings."
    )
    return _make_listing(headings, lines, [told])


def list_splits(check: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return headings, and one line a split: what it holds."""
    lines = []
    for split, rows in check["rows"].items():
        length, gc = (check["shift"][feature]["splits"][split] for feature in _FEATURES)
        quantiles, repeats = length["quantiles"] or {}, check["repeats"][split]
        conflicts = check["conflicts"]["within"][split]
        lines.append(
            [
                split,
                f"{rows:,}",
                "/".join(f"{quantiles[q]:g}" for q in ("0", "0.5", "1")) if quantiles else "–",
                "–" if gc["mean"] is None else f"{gc['mean']:.3f}",
                f"{repeats['exact']:,} + {repeats['reverse_complement']:,}",
                _get_near(check, split),
                f"{conflicts['sequences']:,}",
            ]
        )
    headings = ["Split", "Rows", "Length (bp)", "GC", "Repeats + RC", "Near-duplicates", "Conflicts"]
    return headings, lines


def list_pairs(check: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return headings, and one line a pair of splits: the rows of the second that have a partner in the first, and
    shifts.
    """
    lines = []
    for name, counts in check["duplicates"].items():
        one, other = name.split("_in_")
        near = (check["near"] or {}).get(name)
        key = f"{one}_{other}"
        lines.append(
            [
                f"{other} seen in {one}",
                f"{counts['other_exact']:,}",
                f"{counts['other_reverse_complement']:,}",
                "–" if near is None else f"{near['other_near_only']:,}" + (" (sample)" if near["sampled"] else ""),
                _format(check["balance"]["distances"][key]["value"]),
                *(_format(check["shift"][feature]["pairs"][key]["ks"]) for feature in _FEATURES),
            ]
        )
    return ["Rows of", "Exact", "RC", "Near", "Label distance", "KS length", "KS GC"], lines


def list_leaks(check: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return headings, and one line a feature: how well it alone predicts the label in train."""
    lines = []
    for feature, name in _FEATURES.items():
        told = check["leak"][feature]
        limit = check["leak"]["limits"][told["measure"]]
        measure = _MEASURES[told["measure"]]
        lines.append([name, told["label"] or "–", f"{measure} {_format(told['value'])}", f"{limit:g}"])
    return ["Feature alone", "Label", "Score", "Limit"], lines


def write_check_page(folder: Path, check_by_name: Mapping[str, Mapping[str, Any]]) -> Path:
    """Write `check.json` and, from it, `check.html` with one section a task, each whole or not at all.

    The page needs no network and follows the reader's light or dark theme. Returns its path. Raises UserError for a
    folder that cannot be written to.
    """
    import jinja2
    from markupsafe import Markup

    text = json.dumps(check_by_name, indent=1, allow_nan=False)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("l2g_ray", "results"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Drawn by us, with its texts escaped by matplotlib.
    environment.globals |= {"draw": lambda svg: Markup(svg)}
    template = environment.get_template("check_template.html")
    sections = [_make_section(name, check, i) for i, (name, check) in enumerate(check_by_name.items())]
    page = template.render(sections=sections, limits=tabulate_limits())
    write_atomically(Path(folder) / "check.json", text + "\n")
    return write_atomically(Path(folder) / "check.html", page)


def _make_section(name: str, check: Mapping[str, Any], number: int) -> dict[str, Any]:
    pictures = []

    def add(key: str, figure: Figure, caption: str) -> None:
        width = f"{figure.get_figwidth() * 72:.0f}pt"
        pictures.append((figures.inline_svg(figure, f"check{number}-{key}", caption), caption, width))

    add("features", plot_features(check), "Length and GC share of the sequences, by split.")
    cut = f" The first {MAX_LABELS} are shown." if len(check["labels"]) > MAX_LABELS else ""
    add("balance", plot_balance(check), f"Labels, by split.{cut}")
    between = {key: found for key, found in (check["near"] or {}).items() if key != "within"}
    if any(sum(found["histogram"]["other_counts"]) for found in between.values()):
        add("near", plot_near(check), _explain_near(check))
    tables = [
        ("Splits", _EXPLAIN_SPLITS, *list_splits(check)),
        ("Between splits", _EXPLAIN_PAIRS, *list_pairs(check)),
        ("Shortcuts", "How well length or GC share alone predicts the label in train.", *list_leaks(check)),
    ]
    if check.get("composition"):
        add("composition", plot_composition(check), explain_composition(check))
        tables.append(("Composition", "Shares of the letters A, C, G and T.", *tabulate_composition(check)))
    return {
        "name": name,
        "check": check,
        "warnings": sum(finding["level"] == "warning" for finding in check["findings"]),
        "lights": list_lights(check),
        "tables": tables,
        "pictures": pictures,
        "near_examples": [
            (key.split("_in_"), example) for key, found in between.items() for example in found["examples"]
        ],
    }


def _explain_near(check: Mapping[str, Any]) -> str:
    told = check["near"]["train_in_test"]
    low = told["histogram"]["edges"][0]
    return (
        f"Rows by the similarity to their nearest train row (share of common {told['k']}-mers on either strand), from "
        f"{low:g} on; dashed: the threshold of a near-duplicate; 1 holds equal sequences too."
    )


def _get_near(check: Mapping[str, Any], split: str) -> str:
    near = (check["near"] or {}).get("within", {}).get(split)
    return "–" if near is None else f"{near['near_only']:,}" + (" (sample)" if near["sampled"] else "")


def _format(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _make_listing(headings: list[str], lines: list[list[str]], caption: Sequence[str] = ()) -> Listing:
    listing = Listing([Column(headings[0], words=True), *map(Column, headings[1:])], caption=caption)
    for line in lines:
        listing.add(*line)
    return listing
