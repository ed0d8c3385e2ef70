"""A genome FASTA, plain or bgzip, read by place; and places on it like those of peaks, as negatives."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from l2g_ray.data.genome_index import DAMAGE, is_compressed, open_indexed
from l2g_ray.errors import UserError, nearest

_COMPLEMENT = str.maketrans("ACGTURYSWKMBDHVN", "TGCAAYRSWMKVHDBN")


class Genome:
    """Chromosomes of a FASTA file by name and place; places are 0-based, the end excluded.

    The index is checked against the file, and made and written beside it, or into the cache folder, where it does not fit.
    Usable in a `with` statement. Holds an open file: open one in each process.

    Raises
    ------
    UserError : no such file, an empty file, no FASTA, a gzip file that is not bgzip, lines of unequal length, a name
        that comes twice, a damaged file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        _check_kind(self.path)
        self._text, self._records = open_indexed(self.path)
        self._lengths_bp = {name: record.length_bp for name, record in self._records.items()}
        self._by_plain_name: dict[str, list[str]] = {}
        for name in self._lengths_bp:
            self._by_plain_name.setdefault(_plain_name(name), []).append(name)

    def chromosomes(self) -> dict[str, int]:
        """Length in bp by name, in the order of the file."""
        return dict(self._lengths_bp)

    def find_chromosome(self, name: str) -> str:
        """Return the file's own name of a chromosome: `name` itself, or the one that it means ('1' and 'chr1', 'MT'
        and 'chrM').

        Raises
        ------
        UserError : there is none, or `name` could mean two; the nearest name is given.
        """
        if name in self._lengths_bp:
            return name
        candidates = self._by_plain_name.get(_plain_name(name), [])
        if len(candidates) == 1:
            return candidates[0]
        raise UserError(
            f"no chromosome '{name}' in {self.path} ({nearest(name, candidates or self._lengths_bp)}); "
            "give the genome that the places belong to"
        )

    def fetch(self, chrom: str, start: int, end: int, strand: str = "+") -> str:
        """Return the end - start upper-case letters of a place, reverse-complemented (IUPAC letters too) for strand
        '-'.

        Raises
        ------
        UserError : an unknown chromosome, a place that is not within it, an index or a file that is damaged.
        """
        name = self.find_chromosome(chrom)
        length_bp = self._lengths_bp[name]
        if not 0 <= start < end <= length_bp:
            raise UserError(
                f"{self.path}: {chrom}:{start}-{end} is not within {name}, which is {length_bp:,} bp long; "
                "give the genome that the places belong to"
            )
        first, last = (self._records[name].place(base) for base in (start, end - 1))
        try:
            found = self._text.read(first, last + 1 - first).translate(None, b"\r\n")
        except DAMAGE as error:
            raise UserError(f"{self.path}: {name} cannot be read ({error}); copy the file again") from None
        if len(found) != end - start:
            raise UserError(f"{self.path}: {name} is not the same as when the file was opened; run the command again")
        text = found.upper().decode("latin-1")
        return text if strand != "-" else text.translate(_COMPLEMENT)[::-1]

    def close(self) -> None:
        """Close the file."""
        self._text.close()

    def __enter__(self) -> Genome:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _plain_name(name: str) -> str:
    plain = name.lower().removeprefix("chr")
    return "m" if plain == "mt" else plain


def _check_kind(path: Path) -> None:
    if not path.exists():
        raise UserError(f"{path}: no such file; give the genome's FASTA file")
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give the genome's FASTA file")
    try:
        with path.open("rb") as file:
            head = file.read(4096)
        compressed = head.startswith(b"\x1f\x8b")
        if compressed and b"BC\x02\x00" not in head[10:64]:
            raise UserError(
                f"{path}: is compressed by gzip, which cannot be read by place; "
                "compress it by bgzip (gunzip, then bgzip), or decompress it"
            )
        if compressed != is_compressed(path):
            raise UserError(f"{path}: a FASTA file is named .gz if it is compressed by bgzip, and only then; rename it")
        if compressed:
            with gzip.open(path) as text:
                head = text.read(4096)
    except PermissionError:
        raise UserError(f"{path}: no permission to read the file; change its permissions") from None
    except DAMAGE as error:
        raise UserError(f"{path}: the file is cut short or damaged ({error}); copy it again") from None
    head = head.lstrip()
    if not head:
        raise UserError(f"{path}: the file is empty; give the genome's FASTA file")
    if head[:1] not in (b">", b";"):
        raise UserError(f"{path}: is no FASTA file, which starts with a '>' header; give the genome's FASTA file")


MAX_UNKNOWN = 0.1  # share of letters other than A C G T in a negative
_ATTEMPTS = 2000  # candidates for a negative before the GC tolerance is doubled
_CANDIDATES = 1 << 20  # at once, which bounds the memory


@dataclass(frozen=True)
class Negatives:
    """The n negatives, in the order of their peaks.

    peak : int64 (n,), the peak that each is matched to; chrom : object (n,), the genome's names; start, end : int64
    (n,), in bp; gc_difference : float64 (n,), share of G and C of the negative less that of its peak, among A C G T.
    widened : number of negatives further from their peak's GC content than was asked. moved : number of
    negatives on another chromosome than their peak, for want of room. unclear_peaks : number of peaks with more unknown
    letters than a negative may have; a model can recognise these peaks by their unknown letters.
    """

    peak: np.ndarray
    chrom: np.ndarray
    start: np.ndarray
    end: np.ndarray
    gc_difference: np.ndarray
    widened: int
    moved: int
    unclear_peaks: int


def draw_negatives(
    genome: Genome,
    chrom: np.ndarray,
    start: np.ndarray,
    end: np.ndarray,
    occupied: dict[str, np.ndarray],
    count: int,
    gc_tolerance: float,
    generator: np.random.Generator,
) -> Negatives:
    """Draw `count` negatives for n peaks: equally many a peak, the rest for peaks chosen at random.

    Parameters
    ----------
    chrom, start, end : (n,) the windows of the peaks, inside the genome; chrom in the genome's own names.
    occupied : by chromosome, places (m, 2) in bp that no negative may touch, beside the windows.
    gc_tolerance : largest difference of GC content; doubled for a negative that is not found in 2,000 tries.

    Negatives on a chromosome never have the same start, but may overlap. Letters other than A C G T are at most a
    tenth of each. The result follows from the arguments and the state of `generator` alone.

    Raises
    ------
    UserError : the chromosomes of the peaks have no room for `count` negatives.
    """
    peak = _share_out(len(start), count, generator)
    width = (end - start)[peak]
    home = chrom[peak]
    target = np.full(count, np.nan)
    found_chrom = np.full(count, None, dtype=object)
    found_start = np.full(count, -1, dtype=np.int64)
    found_gc = np.full(count, np.nan)
    used: dict[str, np.ndarray] = {}
    unclear = np.zeros(len(start), dtype=bool)

    def fill(name: str, rows: np.ndarray) -> None:
        windows = np.stack([start, end], axis=1)[chrom == name]
        blocked = np.concatenate([windows, occupied.get(name, np.empty((0, 2), np.int64))])
        field = _Field(genome.fetch(name, 0, genome.chromosomes()[name]), blocked, used.get(name))
        here = np.flatnonzero(chrom == name)
        unclear[here] = field.is_unclear(start[here], (end - start)[here])
        own = rows[home[rows] == name]
        target[own] = field.gc(start[peak[own]], width[own])
        starts, gc = field.draw(width[rows], target[rows], gc_tolerance, generator)
        found = rows[starts >= 0]
        found_chrom[found], found_start[found], found_gc[found] = name, starts[starts >= 0], gc[starts >= 0]
        used[name] = field.used

    names = list(dict.fromkeys(chrom.tolist()))
    for name in names:
        fill(name, np.flatnonzero(home == name))
    # The longest first, as it has the most room.
    for name in sorted(names, key=lambda name: -genome.chromosomes()[name]):
        missing = np.flatnonzero((found_start < 0) & (home != name))
        if len(missing):
            fill(name, missing)
    homeless = np.flatnonzero(found_start < 0)
    if len(homeless):
        raise UserError(
            f"{genome.path}: no room outside the peaks for {len(homeless)} of {count} negatives "
            f"(the first is {int(width[homeless[0]])} bp wide); ask for fewer negatives per peak or narrower windows"
        )
    difference = found_gc - target
    widened = int((np.abs(difference) > gc_tolerance).sum())
    moved = int((found_chrom != home).sum())
    return Negatives(
        peak, found_chrom, found_start, found_start + width, difference, widened, moved, int(unclear.sum())
    )


def _share_out(n_peaks: int, count: int, generator: np.random.Generator) -> np.ndarray:
    each, rest = divmod(count, n_peaks)
    extra = generator.choice(n_peaks, rest, replace=False)
    return np.sort(np.concatenate([np.repeat(np.arange(n_peaks), each), extra]))


class _Field:
    """One chromosome: its composition, what is occupied, and the starts that are taken."""

    def __init__(self, text: str, blocked: np.ndarray, used: np.ndarray | None) -> None:
        letters = np.frombuffer(text.encode("ascii", errors="replace"), np.uint8)
        self.length_bp = len(letters)
        strong = (letters == ord("G")) | (letters == ord("C"))
        self._strong = np.zeros(self.length_bp + 1, np.int32)
        np.cumsum(strong, out=self._strong[1:])
        # Few, as a rule: their places need less memory than another running sum.
        self._unknown = np.flatnonzero(~(strong | (letters == ord("A")) | (letters == ord("T"))))
        blocked = blocked[np.argsort(blocked[:, 0])]
        reach = np.maximum.accumulate(blocked[:, 1])
        first = np.flatnonzero(np.r_[True, blocked[1:, 0] > reach[:-1]])
        self._blocked_start = blocked[first, 0]
        self._blocked_end = np.r_[reach[first[1:] - 1], reach[-1]]
        self.used = np.empty(0, np.int64) if used is None else used

    def gc(self, start: np.ndarray, width: np.ndarray) -> np.ndarray:
        """Share of G and C among A C G T; NaN where there is none of them."""
        known = width - self._count_unknown(start, width)
        strong = self._strong[start + width] - self._strong[start]
        return np.where(known > 0, strong / np.maximum(known, 1), np.nan)

    def is_unclear(self, start: np.ndarray, width: np.ndarray) -> np.ndarray:
        """Return whether too many letters are none of A C G T."""
        return self._count_unknown(start, width) > MAX_UNKNOWN * width

    def draw(
        self, width: np.ndarray, target: np.ndarray, tolerance: float, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return starts (n,) and GC contents (n,) of n negatives; the start is -1 where there is no room."""
        starts = np.full(len(width), -1, dtype=np.int64)
        gc = np.full(len(width), np.nan)
        longest_gap_bp = int(np.max(self._gaps() @ np.array([-1, 1]), initial=0))
        pending = np.flatnonzero(width <= longest_gap_bp)
        while len(pending):
            attempts = 0
            while len(pending) and attempts < _ATTEMPTS:
                tries = max(1, min(_CANDIDATES // len(pending), 128))
                attempts += tries
                rows, found, found_gc = self._try(pending, width, target, tolerance, tries, generator)
                starts[rows], gc[rows] = found, found_gc
                self.used = np.union1d(self.used, found)
                pending = pending[starts[pending] < 0]
            if tolerance >= 1:
                break
            tolerance *= 2
        full: set[int] = set()  # widths for which no place is left
        for row in pending:  # hardly any room: look at every place
            if width[row] in full:
                continue
            starts[row], gc[row] = self._nearest(int(width[row]), float(target[row]))
            if starts[row] >= 0:
                self.used = np.union1d(self.used, starts[row])
            else:
                full.add(int(width[row]))
        return starts, gc

    def _try(
        self,
        pending: np.ndarray,
        width: np.ndarray,
        target: np.ndarray,
        tolerance: float,
        tries: int,
        generator: np.random.Generator,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return, for each pending row, the first of `tries` candidates that fits: rows, starts, GC contents."""
        wide = np.repeat(width[pending], tries)
        start = generator.integers(0, self.length_bp - wide + 1)
        gc = self.gc(start, wide)
        wanted = np.repeat(target[pending], tries)
        near = np.isnan(wanted) | (np.abs(gc - wanted) <= tolerance)
        fits = (near & self._is_free(start, wide)).reshape(len(pending), tries)
        which = np.flatnonzero(fits.any(axis=1))
        place = which * tries + fits[which].argmax(axis=1)
        _, first = np.unique(start[place], return_index=True)
        return pending[which[first]], start[place[first]], gc[place[first]]

    def _nearest(self, width: int, target: float) -> tuple[int, float]:
        starts = np.concatenate([np.arange(a, b - width + 1) for a, b in self._gaps() if b - a >= width])
        wide = np.full(len(starts), width)
        starts = starts[self._is_free(starts, wide)]
        if not len(starts):
            return -1, np.nan
        gc = self.gc(starts, wide[: len(starts)])
        best = 0 if np.isnan(target) else int(np.argmin(np.abs(gc - target)))
        return int(starts[best]), float(gc[best])

    def _is_free(self, start: np.ndarray, width: np.ndarray) -> np.ndarray:
        following = np.searchsorted(self._blocked_end, start, side="right")
        limit = np.r_[self._blocked_start, self.length_bp][following]
        return (start + width <= limit) & ~self.is_unclear(start, width) & ~np.isin(start, self.used)

    def _count_unknown(self, start: np.ndarray, width: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._unknown, start + width) - np.searchsorted(self._unknown, start)

    def _gaps(self) -> np.ndarray:
        """Free places (k, 2) between what is occupied."""
        return np.stack([np.r_[0, self._blocked_end], np.r_[self._blocked_start, self.length_bp]], axis=1)
