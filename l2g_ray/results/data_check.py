"""The data check (`check_splits`) as people read it: in the terminal, and as one page that opens anywhere."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l2g_ray.results import data_figures, figures
from l2g_ray.results.leaderboard import write_atomically
from l2g_ray.results.terminal import Column, Listing, Sentence

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Group

_FEATURES = {"length_bp": "Length", "gc": "GC share"}
_MEASURES = {"auroc": "AUROC", "spearman": "|Spearman|"}
_EXPLAIN_SPLITS = (
    "Length: shortest, median, longest. Repeats: rows that repeat an earlier one, and those that do so only as reverse "
    "complement. Near-duplicates: rows with one in the same split. Conflicts: sequences with different labels."
)
_EXPLAIN_PAIRS = (
    "Rows of a split that stand in the other: equal, only as reverse complement, or nearly. Then how far labels, length "
    "and GC lie apart (0: alike, 1: nothing in common)."
)


def render_check(check: Mapping[str, Any], title: str) -> Group:
    """The check for a terminal of any width: findings, then a table of splits and one of pairs of splits."""
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
        "Exact, RC, near: train rows that stand in test / test rows that stand in train, equal, as reverse complement, "
        "or nearly. Conflicts: sequences with different labels, in any split. GC, length: AUROC (regression: "
        "|Spearman|) of that one feature. !: warnings."
    )
    return _make_listing(headings, lines, [told])


def list_splits(check: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings, and one line a split: what it holds."""
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
    """Headings, and one line a pair of splits: the rows of the second that have a partner in the first, and shifts."""
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
    """Headings, and one line a feature: how well it tells the label of train alone."""
    lines = []
    for feature, name in _FEATURES.items():
        told = check["leak"][feature]
        limit = check["leak"]["limits"][told["measure"]]
        measure = _MEASURES[told["measure"]]
        lines.append([name, told["label"] or "–", f"{measure} {_format(told['value'])}", f"{limit:g}"])
    return ["Feature alone", "Label", "Tells it with", "Limit"], lines


def write_check_page(folder: Path, check_by_name: Mapping[str, Mapping[str, Any]]) -> Path:
    """Write `check.json` and, from it, `check.html` with one section a task, each whole or not at all.

    The page needs no network and follows the reader's day or night colours. Returns its path. Raises UserError for a
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
    page = template.render(sections=sections)
    write_atomically(Path(folder) / "check.json", text + "\n")
    return write_atomically(Path(folder) / "check.html", page)


def _make_section(name: str, check: Mapping[str, Any], number: int) -> dict[str, Any]:
    pictures = []

    def add(key: str, figure: Figure, caption: str) -> None:
        pictures.append((figures.inline_svg(figure, f"check{number}-{key}", caption), caption))

    add("features", data_figures.plot_features(check), "Length and GC share of the sequences, by split.")
    cut = f" The first {data_figures.MAX_LABELS} are shown." if len(check["labels"]) > data_figures.MAX_LABELS else ""
    add("balance", data_figures.plot_balance(check), f"Labels, by split.{cut}")
    between = {key: found for key, found in (check["near"] or {}).items() if key != "within"}
    if any(sum(found["histogram"]["other_counts"]) for found in between.values()):
        add("near", data_figures.plot_near(check), _explain_near(check))
    return {
        "name": name,
        "check": check,
        "warnings": sum(finding["level"] == "warning" for finding in check["findings"]),
        "tables": [
            ("Splits", _EXPLAIN_SPLITS, *list_splits(check)),
            ("Between splits", _EXPLAIN_PAIRS, *list_pairs(check)),
            ("Shortcuts", "How well length or GC share tells the label of train alone.", *list_leaks(check)),
        ],
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
