"""Peaks as a task: BED or narrowPeak files and a genome; one file with drawn negatives, or one file a class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
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
from l2g_ray.data.windows import Windows, cut_windows, find_chromosomes
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

    Intervals that reach past the end of their chromosome, or are on one that the genome does not have, are left out and
    counted in a note; with `strict` the first of them is an error. With `window_bp` the rows are windows of that width
    round the summit, or the middle, and the same holds for those that do not fit on their chromosome. With `stranded` rows of strand '-' are reverse-complemented,
    the task is strand-specific, and a negative has its peak's strand.

    A chromosome is named as the first interval on it names it, whatever the genome's name for it ('1' or 'chr1').
    Sequences are fetched while the pieces are read.

    Raises
    ------
    UserError : no genome, a file that cannot be read, a file without any interval on the genome, labels that do not fit
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
        windows = [cut_windows(intervals, genome, shown, options, notes) for intervals in files]
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


def _draw(intervals: Intervals, windows: Windows, genome: Genome, options: SourceOptions, notes: list[str]) -> Windows:
    n_peaks = len(windows.start)
    count = int(options.negatives_per_peak * n_peaks + 0.5)
    if count == 0:
        raise UserError(
            f"{intervals.path}: {options.negatives_per_peak:g} negatives per peak leave one class only; "
            "set negatives_per_peak higher, or give a second file as the other class"
        )
    # The intervals themselves too: they can be wider than the windows cut from them, or have none.
    places = np.stack([intervals.start, intervals.end], axis=1)
    owners = find_chromosomes(intervals, genome)
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


def _piece(where: str, genome: Path, windows: Windows, label: str) -> Piece:
    return Piece(where, partial(_iter_windows, genome, windows, label))


def _iter_windows(genome_path: Path, windows: Windows, label: str, batch_rows: int = 10_000) -> Iterator[pa.Table]:
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
