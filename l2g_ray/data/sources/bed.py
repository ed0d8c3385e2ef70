"""Peaks as a task: BED or narrowPeak files and a genome; one file with drawn negatives, or one file a class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from l2g_ray.data.genome import Genome
from l2g_ray.data.infer import make_name
from l2g_ray.data.intervals import Intervals, read_intervals
from l2g_ray.data.negatives import MAX_UNKNOWN, Negatives, draw_negatives
from l2g_ray.data.options import SourceOptions
from l2g_ray.data.raw import ALL, Piece, RawTask
from l2g_ray.data.text import split_suffix
from l2g_ray.errors import UserError
from l2g_ray.tasks.catalogue import parse_task

BENCH = "user"
DRAWN_LABELS = ("background", "peak")
_SUFFIXES = (".bed", ".narrowpeak", ".broadpeak")
_VERSION = 1  # of the drawing: goes into the content key


def is_bed(path: str | Path) -> bool:
    """Whether a file is named .bed, .narrowPeak or .broadPeak, plain or compressed, in any case."""
    return split_suffix(Path(path).name)[0].endswith(_SUFFIXES)


def open_bed(paths: list[Path], options: SourceOptions) -> RawTask:
    """The task of one or several files of intervals on `options.genome`; all rows in the split 'all'.

    One file: its intervals against `negatives_per_peak` times as many negatives of the same widths, GC content (within
    `gc_tolerance`) and chromosomes, drawn with `seed`; labels 'background' and 'peak', or the two of `labels`, the
    negative first. Several files: one class each, in the order given, named by `labels` or by the files.

    With `window_bp` the rows are windows of that width round the summit, or the middle; those that do not fit on
    their chromosome are left out and counted in a note. With `stranded` rows of strand '-' are reverse-complemented,
    the task is strand-specific, and a negative has its peak's strand.

    A chromosome is named as the first interval on it names it, whatever the genome's name for it ('1' or 'chr1').
    Sequences are fetched while the pieces are read.

    Raises
    ------
    UserError : no genome, a file that cannot be read, an interval that is not on the genome, labels that do not fit
        the files, no strand where one is needed, no room for negatives. File and line are named where there is one.
    """
    if not paths:
        raise UserError("no BED file; give at least one")
    if options.genome is None:
        raise UserError(f"{paths[0]}: intervals need the genome that they are on; add --genome FASTA")
    stems = [_cut_suffix(path.name) for path in paths]
    labels = _name_labels(paths, stems, options)
    task = parse_task(
        {
            "bench": BENCH,
            "name": options.name or make_name("_vs_".join(stems)),
            "kind": options.kind or ("binary" if len(labels) == 2 else "multiclass"),
            "labels": labels,
            "strand_specific": options.strand_specific or options.stranded,
            "source": f"{', '.join(path.name for path in paths)} on {options.genome.name}",
        },
        ", ".join(map(str, paths)),
    )
    if not task.is_classification:
        raise UserError(f"{paths[0]}: kind '{task.kind}' does not fit intervals, which give classes; leave kind out")
    content: dict[str, Any] = {"window_bp": options.window_bp, "stranded": options.stranded, "labels": list(labels)}
    notes: list[str] = []
    with Genome(options.genome) as genome:
        shown: dict[str, str] = {}
        files = [read_intervals(path) for path in paths]
        windows = [_cut_windows(intervals, genome, shown, options, notes) for intervals in files]
        if len(paths) == 1:
            pieces = [_piece(str(paths[0]), options.genome, windows[0], labels[1])]
            drawn = _draw(files[0], windows[0], genome, options, notes)
            pieces.append(_piece(f"negatives drawn from {options.genome}", options.genome, drawn, labels[0]))
            content |= {
                "negatives_per_peak": options.negatives_per_peak,
                "gc_tolerance": options.gc_tolerance,
                "seed": options.seed,
                "version": _VERSION,
            }
        else:
            pieces = [
                _piece(str(path), options.genome, rows, label)
                for path, rows, label in zip(paths, windows, labels, strict=True)
            ]
    names = ["peaks"] if len(paths) == 1 else [f"peaks_{i}" for i in range(1, len(paths) + 1)]
    return RawTask(
        task=task,
        splits={ALL: pieces},
        files={**dict(zip(names, paths, strict=True)), "genome": options.genome},
        options=options,
        content=content,
        notes=tuple(notes),
    )


@dataclass(frozen=True)
class _Windows:
    """Places of n rows: `chrom` as the genome names it, `shown` as the files do; start and end in bp, strand + or -."""

    chrom: np.ndarray
    shown: np.ndarray
    start: np.ndarray
    end: np.ndarray
    strand: np.ndarray


def _name_labels(paths: list[Path], stems: list[str], options: SourceOptions) -> tuple[str, ...]:
    if len(paths) == 1:
        labels = options.labels or DRAWN_LABELS
        if len(labels) != 2:
            raise UserError(
                f"{paths[0]}: {len(labels)} label(s) for one file of peaks; give two, that of the negatives first"
            )
        return labels
    labels = options.labels or tuple(stems)
    if len(labels) != len(paths):
        raise UserError(f"{paths[0]}: {len(labels)} label(s) for {len(paths)} files; give one a file, in their order")
    if len(set(labels)) != len(labels):
        raise UserError(f"{paths[0]}: two classes have the same name; rename a file, or give labels that differ")
    return labels


def _cut_suffix(name: str) -> str:
    plain = split_suffix(name)[0]
    return name[: len(plain) - max((len(suffix) for suffix in _SUFFIXES if plain.endswith(suffix)), default=0)]


def _cut_windows(
    intervals: Intervals, genome: Genome, shown: dict[str, str], options: SourceOptions, notes: list[str]
) -> _Windows:
    """The windows that fit, in order; `shown` learns how the files name the genome's chromosomes."""
    chrom = _locate(intervals, genome, shown)
    strand = np.full(len(intervals), "+", dtype=object)
    if options.stranded:
        strand = intervals.strand
        if (unknown := np.flatnonzero(strand == ".")).size:
            raise UserError(
                f"{intervals.path}, line {intervals.line[unknown[0]]}: the interval has no strand; "
                "write + or - in column 6, or leave out stranded"
            )
    names = np.array([shown[name] for name in chrom.tolist()], dtype=object)
    rows = _Windows(chrom, names, intervals.start, intervals.end, strand)
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
    if left_out := int((~fits).sum()):
        peaks = "1 peak" if left_out == 1 else f"{left_out:,} peaks"
        verb = "was" if left_out == 1 else "were"
        notes.append(
            f"{intervals.path.name}: {peaks} too near a chromosome's end for a window of {options.window_bp} bp "
            f"{verb} left out"
        )
    return _Windows(chrom[fits], names[fits], start[fits], end[fits], strand[fits])


def _locate(intervals: Intervals, genome: Genome, shown: dict[str, str]) -> np.ndarray:
    """The genome's name of each interval's chromosome; an interval that is not on the genome is a mistake."""
    found: dict[str, str] = {}
    lengths_bp = genome.chromosomes()
    for name, end, line in zip(intervals.chrom.tolist(), intervals.end.tolist(), intervals.line.tolist(), strict=True):
        where = f"{intervals.path}, line {line}"
        if name not in found:
            try:
                found[name] = genome.find_chromosome(name)
            except UserError as error:
                raise UserError(f"{where}: {error}, or remove the line") from None
            shown.setdefault(found[name], name)
        if end > (length_bp := lengths_bp[found[name]]):
            raise UserError(
                f"{where}: the interval ends at {end:,}, past the end of {name}, which is {length_bp:,} bp long in "
                f"{genome.path}; give the genome that the peaks were called on, or correct the line"
            )
    return np.array([found[name] for name in intervals.chrom.tolist()], dtype=object)


def _draw(
    intervals: Intervals, windows: _Windows, genome: Genome, options: SourceOptions, notes: list[str]
) -> _Windows:
    n_peaks = len(windows.start)
    count = int(options.negatives_per_peak * n_peaks + 0.5)
    if count == 0:
        raise UserError(
            f"{intervals.path}: {options.negatives_per_peak:g} negatives per peak leave one class only; "
            "set negatives_per_peak higher, or give a second file as the other class"
        )
    # The intervals themselves too: they can be wider than the windows cut from them, or have none.
    places = np.stack([intervals.start, intervals.end], axis=1)
    owners = np.array([genome.find_chromosome(name) for name in intervals.chrom.tolist()], dtype=object)
    occupied = {name: places[owners == name] for name in dict.fromkeys(windows.chrom.tolist())}
    generator = np.random.default_rng(options.seed)
    drawn = draw_negatives(
        genome, windows.chrom, windows.start, windows.end, occupied, count, options.gc_tolerance, generator
    )
    notes.extend(_describe(drawn, n_peaks, genome, options))
    names = dict(zip(windows.chrom.tolist(), windows.shown.tolist(), strict=True))
    shown = np.array([names[name] for name in drawn.chrom.tolist()], dtype=object)
    return replace(
        windows, chrom=drawn.chrom, shown=shown, start=drawn.start, end=drawn.end, strand=windows.strand[drawn.peak]
    )


def _describe(drawn: Negatives, n_peaks: int, genome: Genome, options: SourceOptions) -> list[str]:
    count = len(drawn.start)
    notes = [
        f"{count:,} negatives ({options.negatives_per_peak:g} per peak, {n_peaks:,} peaks, rounded to a whole number) "
        f"were drawn from {genome.path.name} outside all peaks, each of its peak's width, chromosome and GC content "
        f"(within {options.gc_tolerance:g}), with at most {MAX_UNKNOWN:.0%} N; seed {options.seed}"
    ]
    if drawn.widened:
        worst = float(np.nanmax(np.abs(drawn.gc_difference)))
        notes.append(
            f"{drawn.widened:,} of {count:,} negatives are further than {options.gc_tolerance:g} from their peak's GC "
            f"content, by {worst:.3f} at most, as none nearer was found"
        )
    if drawn.moved:
        notes.append(
            f"{drawn.moved:,} of {count:,} negatives lie on another chromosome than their peak, for want of room"
        )
    if drawn.unclear_peaks:
        notes.append(
            f"{drawn.unclear_peaks:,} of {n_peaks:,} peaks have more than {MAX_UNKNOWN:.0%} N, which no negative has"
        )
    return notes


def _piece(where: str, genome: Path, windows: _Windows, label: str) -> Piece:
    return Piece(where, partial(_iter_windows, genome, windows, label))


def _iter_windows(genome_path: Path, windows: _Windows, label: str, batch_rows: int = 10_000) -> Iterator[pa.Table]:
    with Genome(genome_path) as genome:
        for first in range(0, len(windows.start), batch_rows):
            rows = slice(first, first + batch_rows)
            chrom, shown, strand = (column[rows].tolist() for column in (windows.chrom, windows.shown, windows.strand))
            start, end = windows.start[rows].tolist(), windows.end[rows].tolist()
            ids = [f"{name}:{a}-{b}({sign})" for name, a, b, sign in zip(shown, start, end, strand, strict=True)]
            sequences = list(map(genome.fetch, chrom, start, end, strand))
            yield pa.table(
                {
                    "id": pa.array(ids, pa.string()),
                    "sequence": pa.array(sequences, pa.large_string()),
                    "label": pa.array([label] * len(ids), pa.string()),
                    "chrom": pa.array(shown, pa.string()),
                    "start": pa.array(start, pa.int64()),
                    "end": pa.array(end, pa.int64()),
                    "strand": pa.array(strand, pa.string()),
                }
            )
