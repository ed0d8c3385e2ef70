"""Negatives that match their peaks in GC content."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from genome_files import CHROMOSOMES, fasta_text, message, random_peaks, rows_of, write_bed, write_genome

from l2g_ray.data.genome import MAX_UNKNOWN, Genome, draw_negatives
from l2g_ray.data.raw import SourceOptions
from l2g_ray.data.sources.bed import open_bed


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    return write_genome(tmp_path)


def gc_share(text: str) -> float:
    known = sum(text.count(letter) for letter in "ACGT")
    return (text.count("G") + text.count("C")) / known


def test_negatives_match_their_peaks(tmp_path: Path, fasta: Path) -> None:
    rows = random_peaks(60)
    bed = write_bed(tmp_path / "peaks.bed", rows)
    options = SourceOptions(genome=fasta, negatives_per_peak=2.5, gc_tolerance=0.05, seed=3)
    raw = open_bed([bed], options)
    peaks, drawn = rows_of(raw, 0), rows_of(raw, 1)
    assert (len(peaks), len(drawn)) == (60, 150)
    assert len(raw.notes) == 1  # none widened, none moved
    assert "150 negatives (2.5 per peak, 60 peaks, rounded to a whole number)" in raw.notes[0]
    for row in drawn:
        text = CHROMOSOMES[row["chrom"]][row["start"] : row["end"]].upper()
        assert row["sequence"] == text
        assert text.count("N") <= MAX_UNKNOWN * len(text)
        assert row["label"] == "background"
        assert row["strand"] == "+"
        for chrom, start, end, *_ in rows:
            assert row["chrom"] != chrom or row["end"] <= start or row["start"] >= end
    assert len({(row["chrom"], row["start"]) for row in drawn}) == 150
    # Two or three each, in the order of the peaks, of the same chromosome and width and close in GC content.
    at, shares = 0, []
    for row in peaks:
        same = 0
        while at < len(drawn) and same < 3:
            other = drawn[at]
            if (other["chrom"], len(other["sequence"])) != (row["chrom"], len(row["sequence"])):
                break
            assert abs(gc_share(other["sequence"]) - gc_share(row["sequence"])) <= 0.05 + 1e-12
            at, same = at + 1, same + 1
        shares.append(same)
    assert at == 150
    assert set(shares) == {2, 3}


def test_negatives_follow_from_the_seed(tmp_path: Path, fasta: Path) -> None:
    bed = write_bed(tmp_path / "peaks.bed", random_peaks(40))
    drawn = [rows_of(open_bed([bed], SourceOptions(genome=fasta, window_bp=101, seed=seed)), 1) for seed in (5, 5, 6)]
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]


def test_a_tolerance_that_cannot_be_met_is_widened(tmp_path: Path) -> None:
    fasta = tmp_path / "two.fa"
    fasta.write_text(fasta_text({"a": "G" * 600 + "AT" * 5000}))
    bed = write_bed(tmp_path / "peaks.bed", [("a", 0, 300), ("a", 300, 600)])
    raw = open_bed([bed], SourceOptions(genome=fasta))
    assert [gc_share(row["sequence"]) for row in rows_of(raw, 1)] == [0, 0]
    assert "2 of 2 negatives are further than 0.02 from their peak's GC content, by 1.000 at most" in raw.notes[1]


def test_peaks_of_unknown_letters_are_told(tmp_path: Path, fasta: Path) -> None:
    bed = write_bed(tmp_path / "peaks.bed", [("chr1", 25_100, 25_300), ("chr1", 1000, 1200)])
    raw = open_bed([bed], SourceOptions(genome=fasta, gc_tolerance=0.1))
    assert all("N" * 21 not in row["sequence"] for row in rows_of(raw, 1))
    assert raw.notes[1:] == ("1 of 2 peaks have more than 10% N, which no negative has",)


def test_a_full_chromosome_gives_way_to_another(tmp_path: Path) -> None:
    fasta = tmp_path / "two.fa"
    fasta.write_text(fasta_text({"full": "ACGT" * 100, "free": "ACGT" * 1000, "other": "ACGT" * 1000}))
    bed = write_bed(tmp_path / "peaks.bed", [("full", 0, 380), ("free", 100, 200), ("full", 10, 60)])
    raw = open_bed([bed], SourceOptions(genome=fasta))
    assert [row["chrom"] for row in rows_of(raw, 1)] == ["free"] * 3  # not 'other', where there are no peaks
    assert "2 of 3 negatives lie on another chromosome than their peak, for want of room" in raw.notes


def test_the_last_places_are_found_and_then_there_is_no_room(tmp_path: Path) -> None:
    fasta = tmp_path / "one.fa"
    fasta.write_text(fasta_text({"a": "ACGTTGCA" * 1000}))
    bed = write_bed(tmp_path / "peaks.bed", [("a", 0, 3998), ("a", 4010, 8000), ("a", 0, 10)])
    with Genome(fasta) as genome:
        names = np.array(["a", "a", "a"], dtype=object)
        ends = {"a": np.array([[0, 3998], [4010, 8000]])}
        starts, stops = np.array([0, 20, 40]), np.array([10, 30, 50])
        drawn = draw_negatives(genome, names, starts, stops, ends, 3, 0.5, np.random.default_rng(0))
        assert sorted(drawn.start) == [3998, 3999, 4000]
    text = message(open_bed, [bed], SourceOptions(genome=fasta))
    assert "one.fa: no room outside the peaks for 2 of 3 negatives" in text
    assert "ask for fewer" in text
