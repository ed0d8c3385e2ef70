"""Known motifs (JASPAR, MEME files, a task's list, motifs planted in its sequences), and which of them was found: TOMTOM, q-values."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from l2g_ray.data.text import open_lines, readable
from l2g_ray.errors import UserError, nearest
from l2g_ray.explain.attribution import Attributions
from l2g_ray.extras import how_to_install, is_installed
from l2g_ray.sequence import N_CODE
from l2g_ray.storage import Location

JASPAR_GROUPS = ("vertebrates", "plants", "insects", "nematodes", "fungi", "urochordates")
JASPAR_RELEASE = "JASPAR2024"
# TOMTOM's null distribution comes from the columns of all targets; with few of them its p-values mean little.
_MIN_TARGETS = 100


@dataclass(frozen=True)
class KnownMotif:
    """A motif of a database: `name` as people know it, `id` there ('' if none), `ppm` (length, 4), `source`."""

    name: str
    id: str
    ppm: np.ndarray
    source: str


@dataclass(frozen=True)
class Match:
    """`target` of found motif number `query`: TOMTOM's p-value, and q-value over all pairs of the search."""

    query: int
    target: KnownMotif
    p_value: float
    q_value: float


def has_jaspar() -> bool:
    """Return whether the package with JASPAR's motifs is installed."""
    return is_installed("pyjaspar")


def read_jaspar(group: str) -> list[KnownMotif]:
    """Return the CORE motifs of a taxonomic group. Raises UserError for an unknown group, or without the package."""
    if group not in JASPAR_GROUPS:
        raise UserError(f"JASPAR has no group '{group}'; {nearest(group, JASPAR_GROUPS)}")
    if not has_jaspar():
        raise UserError(f"JASPAR's motifs are not installed; run: {how_to_install('explain')}; or give a MEME file")
    from pyjaspar import jaspardb

    motifs = jaspardb(release=JASPAR_RELEASE).fetch_motifs(collection="CORE", tax_group=[group])
    found = []
    for motif in motifs:
        counts = np.array([motif.counts[letter] for letter in "ACGT"], np.float64).T
        found.append(KnownMotif(motif.name, motif.matrix_id, _normalise(counts), f"{JASPAR_RELEASE} {group}"))
    return found


def read_meme(path: Path) -> list[KnownMotif]:
    """Return the motifs of a file in MEME's format. Raises UserError for a file without, or a damaged one (row
    named).
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a file in MEME's format, or jaspar:GROUP")
    with readable(str(path)), open_lines(Location(str(path))) as text:
        lines = list(text)
    found: list[KnownMotif] = []
    name = identifier = ""
    number = 0
    while number < len(lines):
        line = lines[number].strip()
        number += 1
        if line.startswith("MOTIF"):
            words = line.split()[1:] or ["unnamed"]
            identifier, name = words[0], words[-1]
        elif line.startswith("letter-probability matrix"):
            width = re.search(r"\bw\s*=\s*(\d+)", line)
            rows: list[list[float]] = []
            while number < len(lines) and (width is None or len(rows) < int(width[1])):
                numbers = _to_numbers(lines[number])
                if numbers is None:
                    break
                rows.append(numbers)
                number += 1
            if not rows or (width is not None and len(rows) != int(width[1])):
                raise UserError(
                    f"{path}, row {number + 1}: motif '{name}' has {len(rows)} rows of four numbers"
                    f"{f', its head says {width[1]}' if width else ''}; check the file"
                )
            found.append(KnownMotif(name, identifier, _normalise(np.array(rows)), path.name))
    if not found:
        raise UserError(f"{path}: no motif in it; give a file in MEME's format, or jaspar:GROUP")
    return found


def read_database(name: str) -> list[KnownMotif]:
    """`jaspar:GROUP`, or the path of a MEME file."""
    if name.startswith("jaspar:"):
        return read_jaspar(name.removeprefix("jaspar:"))
    return read_meme(Path(name))


def match_motifs(
    queries: Sequence[np.ndarray], targets: Sequence[KnownMotif], *, q_below: float = 1.0, seed: int = 0
) -> list[Match]:
    """TOMTOM of found motifs (length, 4) against known ones, both strands: all pairs with a q-value of at most `q_below`.

    q-values are Benjamini and Hochberg's (1995) over all pairs. Fewer than 100 targets are filled up with copies of
    theirs whose columns are shuffled: they give TOMTOM a background and count as tests, but are never reported.
    """
    if not len(queries) or not targets:
        return []
    from memelite import tomtom

    generator = np.random.default_rng(seed)
    matrices = [target.ppm for target in targets]
    for i in range(max(0, _MIN_TARGETS - len(targets))):
        matrices.append(generator.permutation(targets[i % len(targets)].ppm))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = tomtom(
            [np.ascontiguousarray(q.T) for q in queries], [np.ascontiguousarray(m.T) for m in matrices], n_jobs=1
        )
    p_values = np.clip(np.asarray(result[0], np.float64), 0, 1)
    q_values = adjust(p_values.ravel()).reshape(p_values.shape)
    found = [
        Match(i, target, float(p_values[i, j]), float(q_values[i, j]))
        for i in range(len(queries))
        for j, target in enumerate(targets)
        if q_values[i, j] <= q_below
    ]
    return sorted(found, key=lambda match: (match.query, match.p_value))


def adjust(p_values: np.ndarray) -> np.ndarray:
    """q-values (n,) of p-values (n,) by Benjamini and Hochberg."""
    from scipy.stats import false_discovery_control

    return false_discovery_control(p_values, method="bh")


def _normalise(counts: np.ndarray) -> np.ndarray:
    return counts / counts.sum(1, keepdims=True)


def _to_numbers(line: str) -> list[float] | None:
    try:
        numbers = [float(word) for word in line.split()]
    except ValueError:
        return None
    return numbers if len(numbers) == 4 and sum(numbers) > 0 else None


class KnownName(BaseModel):
    """A motif of a list: `names` are what databases call it, its own name by default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    motif: str
    found_by: str = ""
    names: tuple[str, ...] = ()

    def is_called(self, name: str) -> bool:
        """Return whether a database's name is one of `names`, or `motif`; dimers (`a::b`) match by either part, in any case."""
        own = {text.lower() for text in self.names or (self.motif,)}
        return bool(own & {name.lower(), *name.lower().split("::")})


class KnownList(BaseModel):
    """Motifs that are known for one output of one task, and where that is said."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str = ""
    output: str = ""
    title: str
    source: str = ""
    motifs: tuple[KnownName, ...] = Field(min_length=1)


@dataclass(frozen=True)
class Comparison:
    """`both`, `only_known` and `only_found`: names of the list found, of the list not found, and of found motifs whose
    best match is none of the list's ('unnamed' where a motif has no match)."""

    title: str
    source: str
    both: list[str]
    only_known: list[str]
    only_found: list[str]


@cache
def shipped_lists() -> tuple[KnownList, ...]:
    """Return the lists of `known_motifs.yaml`."""
    text = (resources.files("l2g_ray.explain") / "known_motifs.yaml").read_text("utf-8")
    return tuple(KnownList.model_validate(entry) for entry in yaml.safe_load(text))


def find_list(task: str, output: str) -> KnownList | None:
    """Return the shipped list for an output of the task `bench/name`, if there is one."""
    return next((entry for entry in shipped_lists() if (entry.task, entry.output) == (task, output)), None)


def read_list(name: str) -> KnownList:
    """Return a list by file (YAML like an entry of `known_motifs.yaml`, or one name a line), or a shipped one by
    `task:output`.

    Raises UserError for a file that is neither, or an unknown name.
    """
    path = Path(name)
    if not path.is_file():
        shipped = {f"{entry.task}:{entry.output}": entry for entry in shipped_lists()}
        if name not in shipped:
            raise UserError(f"--known '{name}': no such file or shipped list; {nearest(name, shipped)}")
        return shipped[name]
    with readable(str(path)), open_lines(Location(str(path))) as found:
        lines = list(found)
    try:
        content: Any = yaml.safe_load("".join(lines))
        if isinstance(content, str):  # one name a line
            names = [line.strip() for line in lines]
            content = {"title": path.stem, "motifs": [{"motif": line} for line in names if line]}
        return KnownList.model_validate(content)
    except (yaml.YAMLError, ValidationError) as error:
        first = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        reason = " ".join(first.split())[:200]
        raise UserError(f"{path}: no list of motifs ({reason}); give one name a line") from None


def compare(known: KnownList, n_found: int, matches: Sequence[Match]) -> Comparison:
    """Found motifs 0 to n_found - 1, with their significant matches, best first, against a list.

    A motif of the list counts as found where any significant match has one of its names.
    """
    both = [name.motif for name in known.motifs if any(name.is_called(match.target.name) for match in matches)]
    others: list[str] = []
    for query in range(n_found):
        own = [match.target.name for match in matches if match.query == query]
        if not any(name.is_called(match) for name in known.motifs for match in own):
            others.append(own[0] if own else "unnamed")
    only_known = [name.motif for name in known.motifs if name.motif not in both]
    return Comparison(known.title, known.source, both, only_known, list(dict.fromkeys(others)))


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
    """Return the sites of the sequences with these ids, from Parquet with id, motif, start, end, strand, output.

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
    """Return how much of the strongest contributions stands inside sites; `inside` (n, length) is `cover`'s.

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
    """Return what was planted, as motifs: the letters of all sites of a name, turned to the + strand."""
    counts: dict[str, np.ndarray] = {}
    for site in sites:
        letters = codes[site.row, site.start : site.end]
        if site.strand == "-":
            letters = np.where(letters < N_CODE, 3 - letters, letters)[::-1]
        tally = counts.setdefault(site.motif, np.full((len(letters), 4), 0.01))
        if len(tally) == len(letters):
            tally += np.eye(5, 4)[letters]
    return [KnownMotif(name, "", c / c.sum(1, keepdims=True), source) for name, c in sorted(counts.items())]
