"""Effects of variants: the scores of both alleles in the genome around them, and their difference.

Both windows have the same length and the same left flank; where the alleles differ in length, the right flank takes up
the difference, so that what is compared is always two sequences that the model could have been trained on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from l2g_ray.data.genome import Genome
from l2g_ray.data.vcf import VcfRow
from l2g_ray.errors import UserError, nearest
from l2g_ray.sequence import CODE_TABLE

# Why an allele has no score, as it stands in the column `status`.
REASONS = {
    "ref_mismatch": "REF is not what the genome has",
    "unknown_contig": "the genome has no such contig",
    "outside_contig": "beyond the end of the contig",
    "contig_edge": "the window reaches over the contig's edge",
    "not_a_sequence": "a symbolic allele, a breakend or none",
    "too_long": "an allele longer than the window",
}
SCORED, SWAPPED = "scored", "swapped"
# What does not fit the genome is the user's to decide about; the others can only be left out.
MISMATCHES = ("ref_mismatch", "unknown_contig", "outside_contig")
_COMPLEMENT = str.maketrans("ACGTRYSWKMBDHVN", "TGCAYRSWMKVHDBN")


@dataclass(frozen=True)
class Policy:
    """How variants are read. `length_bp` is the window's length.

    on_mismatch : 'error' stops at a row that does not fit the genome; 'skip' leaves it without scores; 'swap' takes a
        row whose ALT is what the genome has (the scores stay those of the file's own REF and ALT), and skips the rest.
    at_edge : 'pad' fills with N beyond the contig, 'skip' leaves such rows without scores.
    strand : '+' or '-': which strand the model reads; 'both': the mean over the two.
    """

    length_bp: int
    on_mismatch: str = "error"
    at_edge: str = "pad"
    strand: str = "both"


@dataclass(frozen=True)
class Allele:
    """One alternative of one row: the two sequences, or why there are none."""

    row: VcfRow
    index: int
    status: str
    reference: str = ""
    alternative: str = ""
    padded_bp: int = 0

    @property
    def is_scored(self) -> bool:
        """Whether there are sequences."""
        return self.status in (SCORED, SWAPPED)


@dataclass
class Tally:
    """Counts over a file. `first` is the line at which each reason came first."""

    rows: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, int] = field(default_factory=dict)
    padded: int = 0

    def add(self, alleles: Iterable[Allele]) -> None:
        """Count the alleles of one row."""
        self.rows += 1
        for allele in alleles:
            self.counts[allele.status] = self.counts.get(allele.status, 0) + 1
            self.first.setdefault(allele.status, allele.row.line)
            self.padded += bool(allele.padded_bp)

    @property
    def scored(self) -> int:
        """Alleles with scores."""
        return self.counts.get(SCORED, 0) + self.counts.get(SWAPPED, 0)

    def describe(self) -> list[str]:
        """A sentence for each thing that a reader must know, none where all went well."""
        told = []
        if n := self.counts.get(SWAPPED, 0):
            told.append(f"{n:,} with REF and ALT exchanged in the file (first: line {self.first[SWAPPED]})")
        told += [
            f"{self.counts[reason]:,} without scores: {text} (first: line {self.first[reason]})"
            for reason, text in REASONS.items()
            if reason in self.counts
        ]
        if self.padded:
            told.append(f"{self.padded:,} at a contig's edge: the missing bases are N")
        return told


class Windows:
    """Cuts the two windows of each allele out of a genome."""

    def __init__(self, genome: Genome, policy: Policy, where: str) -> None:
        self.genome, self.policy, self.where = genome, policy, where
        self._lengths_bp = genome.chromosomes()
        self._names: dict[str, str | None] = {}

    def cut(self, row: VcfRow) -> list[Allele]:
        """An `Allele` for each alternative of a row.

        Raises UserError, naming the line, for a row that does not fit the genome under the policy 'error'.
        """
        alleles = [self._cut_one(row, i) for i in range(len(row.alts))]
        for allele in alleles:
            if allele.status in MISMATCHES and self.policy.on_mismatch == "error":
                raise UserError(self._describe(allele))
        return alleles

    def _cut_one(self, row: VcfRow, index: int) -> Allele:
        alt = row.alts[index]
        if alt is None:
            return Allele(row, index, "not_a_sequence")
        name = self._find(row.chrom)
        if name is None:
            return Allele(row, index, "unknown_contig")
        start = row.pos - 1
        if start < 0 or start + len(row.ref) > self._lengths_bp[name]:
            return Allele(row, index, "outside_contig")
        status, there = SCORED, row.ref
        if not self._stands(name, start, row.ref):
            if self.policy.on_mismatch != "swap" or not self._stands(name, start, alt):
                return Allele(row, index, "ref_mismatch")
            status, there = SWAPPED, alt
        if max(len(row.ref), len(alt)) > self.policy.length_bp:
            return Allele(row, index, "too_long")
        windows = [
            self._window(name, start, len(there), bases, max(len(row.ref), len(alt))) for bases in (row.ref, alt)
        ]
        padded_bp = max(padded for _, padded in windows)
        if padded_bp and self.policy.at_edge == "skip":
            return Allele(row, index, "contig_edge", padded_bp=0)
        return Allele(row, index, status, windows[0][0], windows[1][0], padded_bp)

    def _find(self, chrom: str) -> str | None:
        if chrom not in self._names:
            try:
                self._names[chrom] = self.genome.find_chromosome(chrom)
            except UserError:
                self._names[chrom] = None
        return self._names[chrom]

    def _stands(self, name: str, start: int, bases: str) -> bool:
        end = start + len(bases)
        if end > self._lengths_bp[name]:
            return False
        # As codes: a letter of IUPAC in one and N in the other are the same to the model.
        there = self.genome.fetch(name, start, end)
        return bool((_codes(there) == _codes(bases)).all())

    def _window(self, name: str, start: int, replaced_bp: int, bases: str, longest_bp: int) -> tuple[str, int]:
        """The window with `bases` instead of the `replaced_bp` bases from `start`, and how many bases are padding."""
        left_bp = (self.policy.length_bp - longest_bp) // 2
        right_bp = self.policy.length_bp - left_bp - len(bases)
        left, left_pad = self._fetch(name, start - left_bp, start)
        right, right_pad = self._fetch(name, start + replaced_bp, start + replaced_bp + right_bp)
        text = left + bases + right
        return (text.translate(_COMPLEMENT)[::-1] if self.policy.strand == "-" else text), left_pad + right_pad

    def _fetch(self, name: str, start: int, end: int) -> tuple[str, int]:
        inside_start, inside_end = max(start, 0), min(end, self._lengths_bp[name])
        if inside_start >= inside_end:
            return "N" * (end - start), end - start
        text = self.genome.fetch(name, inside_start, inside_end)
        before, after = inside_start - start, end - inside_end
        return "N" * before + text + "N" * after, before + after

    def _describe(self, allele: Allele) -> str:
        row = allele.row
        place = f"{self.where}, line {row.line}: {row.chrom}:{row.pos}"
        remedy = "give the genome that the variants were called on, or leave such rows out with --on-mismatch skip"
        if allele.status == "unknown_contig":
            return f"{place}: no contig '{row.chrom}' in {self.genome.path} ({nearest(row.chrom, self._lengths_bp)}); {remedy}"
        length_bp = self._lengths_bp[self._find(row.chrom) or ""]
        if allele.status == "outside_contig":
            return f"{place}: {row.chrom} is {length_bp:,} bp long in {self.genome.path}; {remedy}"
        there = self.genome.fetch(row.chrom, row.pos - 1, row.pos - 1 + len(row.ref))
        return f"{place}: REF is '{_shorten(row.ref)}', but the genome has '{_shorten(there)}'; {remedy}"


def _codes(bases: str) -> np.ndarray:
    return CODE_TABLE[np.frombuffer(bases.upper().encode(), np.uint8)]


def _shorten(bases: str) -> str:
    return bases if len(bases) <= 20 else f"{bases[:20]}..."
