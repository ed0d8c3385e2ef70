"""An explanation as people read it: in the terminal, and as one page that opens anywhere.

Only figures and tables come in here; `explain` computes them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l2g_ray.results import figures
from l2g_ray.results.leaderboard import write_atomically
from l2g_ray.results.terminal import Column, Listing, Sentence

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Group

PAGES = ("explain.html", "explain.json")


@dataclass(frozen=True)
class Table:
    """Headings and lines of text; the first cell of a line is its head."""

    headings: Sequence[str]
    lines: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """A figure, what it shows, and the numbers behind it."""

    name: str
    figure: Figure
    caption: str
    table: Table


@dataclass(frozen=True)
class MotifPictures:
    """The logos of one motif, by its name: information and contributions."""

    name: str
    information: Figure
    contribution: Figure


@dataclass(frozen=True)
class Section:
    """One output: its `summary` (see `Explanation.summary`), its motifs' logos and its pictures."""

    summary: Mapping[str, Any]
    motifs: Sequence[MotifPictures]
    pictures: Sequence[Picture]


def render_explanation(summary: Mapping[str, Any]) -> Group:
    """Return the figures of an output for a terminal of any width."""
    from rich.console import Group

    lines: list[Any] = [Sentence(f"{summary['output']} ({summary['explained']})", "bold")]
    about = [describe_completeness(summary["completeness"], summary["method"]), *summary["notes"]]
    about += [describe_share(name, share) for name, share in summary["planted_shares"].items()]
    lines += [Sentence(text, indent=2) for text in about]
    headings, rows = list_motifs(summary)
    listing = Listing([Column(heading, words=i not in (1, 2, 5)) for i, heading in enumerate(headings)])
    for row in rows:
        listing.add(*row)
    lines += [listing] if rows else []
    return Group(*lines, *(Sentence(f"! {warning}", "bold red") for warning in summary["warnings"]))


def describe_completeness(completeness: Mapping[str, float], method: str) -> str:
    """Return one sentence: how far the contributions of a method are from adding up."""
    return (
        f"Completeness error of {method}: median {completeness['median']:.1e}, 95 % of sequences below "
        f"{completeness['p95']:.1e}, {completeness['above_0.01']:.0%} above 1 %."
    )


def describe_share(name: str, share: Mapping[str, float]) -> str:
    """Return one sentence: how much of the strongest contributions stands inside planted sites."""
    return (
        f"Strongest tenth of all positions: {share['mass']:.1%} of its contribution inside {name} "
        f"(chance {share['expected']:.1%})."
    )


def list_motifs(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return headings, and one line a found motif."""
    lines = [
        [
            motif["motif"],
            f"{motif['seqlets']:,}",
            f"{motif['mean_contribution']:+.3g}",
            motif["consensus"],
            motif["match"] or "–",
            "–" if motif["q_value"] is None else f"{motif['q_value']:.1e}",
            motif["other_matches"] or "–",
        ]
        for motif in summary["motifs"]
    ]
    return ["Motif", "Seqlets", "Contribution", "Consensus", "Best match", "q", "Other matches"], lines


def list_planted(summary: Mapping[str, Any]) -> Table:
    """Return one line a planted motif: as what it was found."""
    lines = [
        [
            planted["motif"],
            planted["found_as"] or "–",
            "–" if planted["p_value"] is None else f"{planted['p_value']:.1e}",
            "–" if planted["q_value"] is None else f"{planted['q_value']:.1e}",
        ]
        for planted in summary["planted_motifs"]
    ]
    return Table(["Planted motif", "Best found", "p", "q"], lines)


def write_page(
    folder: Path, title: str, facts: Mapping[str, str], sections: Sequence[Section], model: Mapping[str, str]
) -> Path:
    """Write `explain.json` and `explain.html`, each whole or not at all; figures also go to `figures/`.

    `facts` head the page; `model` says in the JSON which model it is. The page needs no network and follows the reader's
    day or night colours. Returns its path. Raises UserError for a folder that cannot be written to.
    """
    import jinja2
    from markupsafe import Markup

    prepared = []
    for number, section in enumerate(sections):
        for picture in section.pictures:
            figures.save(picture.figure, folder / section.summary["folder"] / "figures" / picture.name)
        prepared.append(_draw(section, f"s{number}"))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("l2g_ray", "results"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Drawn by us, with its texts escaped by matplotlib.
    environment.globals |= {"draw": lambda svg: Markup(svg)}
    page = environment.get_template("explain_template.html").render(title=title, facts=facts, sections=prepared)
    content = {"schema": 1, **model, "facts": dict(facts), "outputs": [dict(section.summary) for section in sections]}
    write_atomically(folder / PAGES[1], json.dumps(content, indent=1) + "\n")
    return write_atomically(folder / PAGES[0], page)


def _draw(section: Section, prefix: str) -> dict[str, Any]:
    summary = section.summary
    logos = {
        motif.name: (
            figures.inline_svg(motif.information, f"{prefix}-{motif.name}-b", f"Logo of {motif.name} in bits"),
            figures.inline_svg(motif.contribution, f"{prefix}-{motif.name}-c", f"Contributions of {motif.name}"),
        )
        for motif in section.motifs
    }
    return {
        "summary": summary,
        "completeness": describe_completeness(summary["completeness"], summary["method"]),
        "shares": [describe_share(name, share) for name, share in summary["planted_shares"].items()],
        "logos": logos,
        "planted": list_planted(summary) if summary["planted_motifs"] else None,
        "pictures": [
            (figures.inline_svg(p.figure, f"{prefix}-{p.name}", p.caption), p.caption, p.table)
            for p in section.pictures
        ],
    }
