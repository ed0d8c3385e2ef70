"""Known motifs, and which of them a found motif is: JASPAR, MEME files, TOMTOM, q-values."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from l2g_ray.data.text import open_lines, readable
from l2g_ray.errors import UserError, how_to_install, nearest
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
    """Whether the package with JASPAR's motifs is installed."""
    import importlib.util

    return importlib.util.find_spec("pyjaspar") is not None


def read_jaspar(group: str) -> list[KnownMotif]:
    """The CORE motifs of a taxonomic group. Raises UserError for an unknown group, or without the package."""
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
    """The motifs of a file in MEME's format. Raises UserError for a file without, or a damaged one (row named)."""
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
