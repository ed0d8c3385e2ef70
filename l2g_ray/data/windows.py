"""Intervals of a file as places on a genome: those that do not fit are left out, counted, and told."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from l2g_ray.data.genome import Genome
from l2g_ray.data.intervals import Intervals
from l2g_ray.data.options import SourceOptions
from l2g_ray.errors import UserError


@dataclass(frozen=True)
class Windows:
    """Places of n rows: `chrom` as the genome names it, `shown` as the files do; start and end in bp, strand + or -."""

    chrom: np.ndarray
    shown: np.ndarray
    start: np.ndarray
    end: np.ndarray
    strand: np.ndarray


def cut_windows(
    intervals: Intervals, genome: Genome, shown: dict[str, str], options: SourceOptions, notes: list[str]
) -> Windows:
    """The windows that fit, in order; `shown` learns how the files name the genome's chromosomes."""
    intervals, chrom = _keep_located(intervals, genome, shown, options.strict, notes)
    strand = np.full(len(intervals), "+", dtype=object)
    if options.stranded:
        strand = intervals.strand
        if (unknown := np.flatnonzero(strand == ".")).size:
            raise UserError(
                f"{intervals.path}, line {intervals.line[unknown[0]]}: the interval has no strand; "
                "write + or - in column 6, or leave out stranded"
            )
    names = np.array([shown[name] for name in chrom.tolist()], dtype=object)
    rows = Windows(chrom, names, intervals.start, intervals.end, strand)
    if options.window_bp is None:
        return rows
    middle = (intervals.start + intervals.end) // 2
    start = np.where(intervals.summit >= 0, intervals.summit, middle) - options.window_bp // 2
    end = start + options.window_bp
    lengths_bp = genome.chromosomes()
    fits = (start >= 0) & (end <= np.array([lengths_bp[name] for name in chrom.tolist()]))
    if not fits.any():
        raise UserError(
            f"{intervals.path}, line {intervals.line[0]}: a window of {options.window_bp:,} bp fits nowhere on its "
            "chromosome, as in all other lines; set window_bp lower"
        )
    _leave_out(
        intervals,
        ~fits,
        f"too near a chromosome's end for a window of {options.window_bp} bp",
        "set window_bp lower",
        options.strict,
        notes,
    )
    return Windows(chrom[fits], names[fits], start[fits], end[fits], strand[fits])


def _keep_located(
    intervals: Intervals, genome: Genome, shown: dict[str, str], strict: bool, notes: list[str]
) -> tuple[Intervals, np.ndarray]:
    """The intervals that lie on the genome, and the genome's name (n,) of the chromosome of each.

    Raises UserError where none does; with `strict`, at the first that does not.
    """
    chrom = find_chromosomes(intervals, genome)
    lengths_bp = genome.chromosomes()
    known = chrom != None  # noqa: E711 - an array
    beyond = known & (intervals.end > np.array([lengths_bp.get(name, 0) for name in chrom.tolist()]))
    if not known.any():
        raise UserError(
            f"{intervals.path}: none of its chromosomes ({_list(intervals.chrom)}) is in {genome.path} "
            f"({_list(genome.chromosomes())}), with or without 'chr'; give the genome that the peaks were called on"
        )
    kept = known & ~beyond
    if not kept.any():
        first = int(np.flatnonzero(known)[0])
        raise UserError(
            f"{intervals.path}, line {intervals.line[first]}: the interval ends at {intervals.end[first]:,}, past the end "
            f"of {intervals.chrom[first]}, which is {lengths_bp[chrom[first]]:,} bp long in {genome.path}, and no other "
            "line fits either; give the genome that the peaks were called on"
        )
    remedy = "give the genome that the peaks were called on, or correct the line"
    missing = f"on chromosomes that {genome.path.name} does not have ({_list(intervals.chrom[~known])})"
    _leave_out(intervals, ~known, missing, remedy, strict, notes)
    ends = f"past the end of {'its chromosome' if beyond.sum() == 1 else 'their chromosomes'} in {genome.path.name}"
    _leave_out(intervals, beyond, ends, remedy, strict, notes)
    for name, given in zip(chrom[kept].tolist(), intervals.chrom[kept].tolist(), strict=True):
        shown.setdefault(name, given)
    return intervals.take(kept), chrom[kept]


def find_chromosomes(intervals: Intervals, genome: Genome) -> np.ndarray:
    """The genome's name of each interval's chromosome, None for one that it does not have, (n,)."""
    found: dict[str, str | None] = {}
    for name in dict.fromkeys(intervals.chrom.tolist()):
        try:
            found[name] = genome.find_chromosome(name)
        except UserError:
            found[name] = None
    return np.array([found[name] for name in intervals.chrom.tolist()], dtype=object)


def _leave_out(intervals: Intervals, rows: np.ndarray, why: str, remedy: str, strict: bool, notes: list[str]) -> None:
    """Note how many rows are left out, by a mask (n,), and why; with `strict`, raise UserError at the first."""
    if not rows.any():
        return
    first = intervals.take(np.flatnonzero(rows)[:1])
    line, place = first.line[0], f"{first.chrom[0]}:{first.start[0]}-{first.end[0]}"
    if strict:
        raise UserError(f"{intervals.path}, line {line}: {place} is {why}; {remedy}, or leave out --strict")
    n = int(rows.sum())
    peaks, were = ("1 peak", "was") if n == 1 else (f"{n:,} peaks", "were")
    notes.append(f"{intervals.path.name}: {peaks} {why} {were} left out (first: line {line}, {place})")


def _list(names: Iterable[str], most: int = 5) -> str:
    different = list(dict.fromkeys(names))
    return ", ".join(different[:most]) + (", ..." if len(different) > most else "")
