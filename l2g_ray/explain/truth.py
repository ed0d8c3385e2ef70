"""Scores against planted motifs: data whose truth is known says where every site is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from l2g_ray.data.text import readable
from l2g_ray.errors import UserError
from l2g_ray.explain.attribution import Attributions
from l2g_ray.explain.databases import KnownMotif
from l2g_ray.sequence import N_CODE

_COLUMNS = ("id", "motif", "start", "end", "strand", "output")


@dataclass(frozen=True)
class Site:
    """A planted site: 0-based `start` and `end` on the given strand of sequence `row`, and the `output` that it drives."""

    row: int
    motif: str
    start: int
    end: int
    strand: str
    output: str


def read_sites(path: Path, ids: Sequence[str]) -> list[Site]:
    """The sites of the sequences with these ids, from Parquet with id, motif, start, end, strand, output.

    Raises UserError for a file without these columns. Sequences without a site have none.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a table of planted sites")
    with readable(str(path)):
        table = pq.read_table(path)
    missing = [name for name in _COLUMNS if name not in table.column_names]
    if missing:
        raise UserError(f"{path}: no column {missing[0]}; planted sites need {', '.join(_COLUMNS)}")
    row_of = {name: row for row, name in enumerate(ids)}
    sites = []
    for number, r in enumerate(table.select(list(_COLUMNS)).to_pylist(), start=1):
        try:
            start, end = int(r["start"]), int(r["end"])
        except (TypeError, ValueError):
            raise UserError(
                f"{path}, row {number}: start '{r['start']}' and end '{r['end']}' are no whole numbers; correct the row"
            ) from None
        if r["id"] in row_of:
            sites.append(Site(row_of[r["id"]], r["motif"], start, end, r["strand"], r["output"]))
    return sites


def cover(sites: Sequence[Site], shape: tuple[int, int]) -> np.ndarray:
    """Mask (n, length), True at every position inside a site."""
    inside = np.zeros(shape, bool)
    for site in sites:
        inside[site.row, site.start : site.end] = True
    return inside


def measure_share(attributions: Attributions, inside: np.ndarray, share: float = 0.1) -> dict[str, float]:
    """How much of the strongest contributions stands inside sites; `inside` (n, length) is `cover`'s.

    Taken are the `share` of all real positions with the largest |contribution|. `mass`: the part of their summed
    |contribution| inside; `positions`: the part of their number; `expected`: the part of all positions, chance.
    """
    real = attributions.codes != N_CODE
    size = np.abs(attributions.contributions)[real]
    within = inside[real]
    top = np.argsort(-size, kind="stable")[: max(1, round(share * len(size)))]
    mass = size[top]
    return {
        "mass": float(mass[within[top]].sum() / max(mass.sum(), np.finfo(float).tiny)),
        "positions": float(within[top].mean()),
        "expected": float(within.mean()),
    }


def build_motifs(sites: Sequence[Site], codes: np.ndarray, source: str) -> list[KnownMotif]:
    """What was planted, as motifs: the letters of all sites of a name, turned to the + strand."""
    counts: dict[str, np.ndarray] = {}
    for site in sites:
        letters = codes[site.row, site.start : site.end]
        if site.strand == "-":
            letters = np.where(letters < N_CODE, 3 - letters, letters)[::-1]
        tally = counts.setdefault(site.motif, np.full((len(letters), 4), 0.01))
        if len(tally) == len(letters):
            tally += np.eye(5, 4)[letters]
    return [KnownMotif(name, "", c / c.sum(1, keepdims=True), source) for name, c in sorted(counts.items())]
