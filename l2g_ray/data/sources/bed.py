"""Peaks as a task: BED or narrowPeak files and a genome; one file with drawn negatives, or one file a class."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from l2g_ray.data.genome import MAX_UNKNOWN, Genome, Negatives, draw_negatives
from l2g_ray.data.infer import make_name
from l2g_ray.data.raw import ALL, Piece, RawTask, SourceOptions
from l2g_ray.data.text import open_lines, readable, split_suffix
from l2g_ray.errors import UserError
from l2g_ray.storage import Location
from l2g_ray.tasks.catalogue import parse_task

_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,15}")
_NARROW_PEAK_COLUMNS = 10  # the BED standard has no BED10
_STRANDS = ("+", "-", ".")


@dataclass(frozen=True)
class Intervals:
    """The n intervals of a file, in order. Places are 0-based, the end excluded.

    chrom, name, strand : object arrays (n,) of text; name is '' and strand '.' where the file gives none.
    start, end, summit : int64 arrays (n,), in bp from the chromosome's beginning; summit is -1 where there is none.
    line : int64 array (n,), counted from 1.
    """

    path: Path
    chrom: np.ndarray
    start: np.ndarray
    end: np.ndarray
    name: np.ndarray
    strand: np.ndarray
    summit: np.ndarray
    line: np.ndarray

    def __len__(self) -> int:
        return len(self.start)

    def take(self, rows: np.ndarray) -> Intervals:
        """Return some of them, by a mask (n,) or row numbers."""
        columns = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name != "path"}
        return Intervals(self.path, **columns)


def read_intervals(path: str | Path) -> Intervals:
    """Return all intervals of a file; `track`, `browser`, '#' and blank lines are passed over.

    Ten columns are a narrowPeak: the summit is the start plus the tenth column, unless that is negative.

    Raises
    ------
    UserError : a missing, damaged or empty file; a line with too few columns, no whole numbers, a negative start,
        start >= end, an unknown strand or a summit outside its interval. The message names file, line and fix.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file; check the path")
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give one BED or narrowPeak file")
    rows = []
    with readable(str(path)), open_lines(Location(str(path))) as lines:
        for number, text in enumerate(lines, start=1):
            cells = _split_cells(text)
            if cells:
                rows.append((*_parse_cells(cells, path, number), number))
    if not rows:
        raise UserError(f"{path}: the file has no intervals; give lines of chromosome, start and end")
    chrom, start, end, name, strand, summit, line = zip(*rows, strict=True)
    texts = [np.array(column, dtype=object) for column in (chrom, name, strand)]
    numbers = [np.array(column, dtype=np.int64) for column in (start, end, summit, line)]
    return Intervals(path, texts[0], numbers[0], numbers[1], texts[1], texts[2], numbers[2], numbers[3])


def _split_cells(text: str) -> list[str]:
    """Return the cells of a line, none for one that holds no interval."""
    text = text.rstrip("\r\n")
    if not text.strip() or text.lstrip().startswith("#"):
        return []
    # Tabs, because a name may hold blanks; any blanks where there is no tab.
    cells = [cell.strip() for cell in text.split("\t")] if "\t" in text else text.split()
    # A chromosome may be named like that, but is then followed by a number.
    if cells[0].split(" ")[0] in ("track", "browser") and not (len(cells) > 2 and _WHOLE_NUMBER.fullmatch(cells[1])):
        return []
    return cells


def _parse_cells(cells: list[str], path: Path, number: int) -> tuple[str, int, int, str, str, int]:
    where = f"{path}, line {number}"
    if len(cells) < 3 or not cells[0]:
        raise UserError(f"{where}: fewer than 3 columns; give chromosome, start and end, separated by tabs")
    start, end = (_parse_place(cells[i], where, name) for i, name in ((1, "start"), (2, "end")))
    if start < 0:
        raise UserError(f"{where}: the start {start} is negative; count bases from 0")
    if start >= end:
        raise UserError(
            f"{where}: the start {start} is not before the end {end}; BED counts from 0 and excludes the end"
        )
    strand = cells[5] if len(cells) > 5 else "."
    if strand not in _STRANDS:
        raise UserError(f"{where}: the strand (column 6) is '{strand}'; write '+', '-', or '.' for none")
    summit = -1
    if len(cells) == _NARROW_PEAK_COLUMNS:
        offset = _parse_place(cells[9], where, "peak (column 10)")
        if offset >= end - start:
            raise UserError(
                f"{where}: the peak (column 10) is {offset} bp from the start, outside the interval of "
                f"{end - start} bp; count it from the start, or write -1 for none"
            )
        summit = start + offset if offset >= 0 else -1
    elif ".narrowpeak" in path.name.lower():
        raise UserError(f"{where}: {len(cells)} columns where narrowPeak has 10; name the file .bed if it has no peaks")
    return cells[0], start, end, cells[3] if len(cells) > 3 else "", strand, summit


def _parse_place(cell: str, where: str, column: str) -> int:
    if not _WHOLE_NUMBER.fullmatch(cell):
        raise UserError(f"{where}: the {column} is '{cell}', not a whole number; give a place in bp, without commas")
    return int(cell)


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
    """Return the windows that fit, in order; `shown` learns how the files name the genome's chromosomes."""
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
    """Return the intervals that lie on the genome, and the genome's name (n,) of the chromosome of each.

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
    """Return the genome's name of each interval's chromosome, None for one that it does not have, (n,)."""
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


BENCH = "user"
DRAWN_LABELS = ("background", "peak")
_SUFFIXES = (".bed", ".narrowpeak", ".broadpeak")
_VERSION = 1  # of the drawing: goes into the content key


def is_bed(path: str | Path) -> bool:
    """Return whether a file is named .bed, .narrowPeak or .broadPeak, plain or compressed, in any case."""
    return split_suffix(Path(path).name)[0].endswith(_SUFFIXES)


def open_bed(paths: list[Path], options: SourceOptions) -> RawTask:
    """Return the task of one or several files of intervals on `options.genome`; all rows in the split 'all'.

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
