"""A genome in FASTA, plain or in blocks: any piece of it, its index, and its faults."""

from __future__ import annotations

import gzip
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from genome_files import CHROMOSOMES, fasta_text, flip, message, write_bgzip, write_genome

from l2g_ray.data import genome as genome_module
from l2g_ray.data.genome import Genome


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    return write_genome(tmp_path)


@pytest.mark.parametrize("form", ["plain", "crlf", "bgzip", "bgz"])
def test_fetch_equals_slicing(tmp_path: Path, form: str) -> None:
    path = tmp_path / {"bgzip": "toy.fa.gz", "bgz": "toy.fa.bgz"}.get(form, "toy.fa")
    if form.startswith("bg"):
        write_bgzip(path, fasta_text())
    else:
        path.write_bytes(fasta_text(newline="\r\n" if form == "crlf" else "\n").encode())
    generator = np.random.default_rng(4)
    for _ in range(2):  # the second opens the index that the first has written
        with Genome(path) as genome:
            assert genome.chromosomes() == {name: len(text) for name, text in CHROMOSOMES.items()}
            for name, text in CHROMOSOMES.items():
                ends = [(0, len(text)), (0, 1), (len(text) - 1, len(text)), (59, 61), (60, 120)]
                for a, b in [*ends, *np.sort(generator.integers(0, len(text), (40, 2))).tolist()]:
                    if a < b:
                        assert genome.fetch(name, a, b) == text[a:b].upper()
                        assert genome.fetch(name, a, b, "-") == flip(text[a:b].upper())


def test_fetch_at_every_place_of_a_full_block(tmp_path: Path) -> None:
    """pyfaidx alone fails where a place is the first byte of a block that follows one of 65,536 bytes."""
    path = write_bgzip(tmp_path / "toy.fa.gz", fasta_text())
    for _ in range(2):
        with Genome(path) as genome:
            for name, text in CHROMOSOMES.items():
                for a in range(0, len(text) - 5):
                    if genome.fetch(name, a, a + 5) != text[a : a + 5].upper():
                        pytest.fail(f"{name}:{a}")


def test_chromosome_names_are_resolved_both_ways(tmp_path: Path, fasta: Path) -> None:
    with Genome(fasta) as genome:
        assert [genome.find_chromosome(name) for name in ("chr1", "1", "Chr1", "MT", "M", "chrMT")] == [
            *["chr1"] * 3,
            *["chrM"] * 3,
        ]
        assert genome.fetch("1", 500, 600) == CHROMOSOMES["chr1"][500:600].upper()
        assert "chr10" in message(genome.find_chromosome, "chr10")
        assert "did you mean 'chr1'?" in message(genome.find_chromosome, "chr10")
        assert "is not within chr1, which is 50,000 bp long" in message(genome.fetch, "chr1", 49_990, 50_001)
        assert "give the genome" in message(genome.fetch, "chr1", -1, 5)
    bare = tmp_path / "bare.fa"
    bare.write_text(">1\nACGT\n>MT\nGGCC\n>2\nAA\n>chr2\nCC\n")
    with Genome(bare) as genome:
        assert (genome.find_chromosome("chr1"), genome.find_chromosome("chrM")) == ("1", "MT")
        assert (genome.find_chromosome("2"), genome.find_chromosome("chr2")) == ("2", "chr2")
        assert "no chromosome 'CHR2'" in message(genome.find_chromosome, "CHR2")


def test_genomes_that_cannot_be_read(tmp_path: Path) -> None:
    def put(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    assert "nothing.fa: no such file; give" in message(Genome, tmp_path / "nothing.fa")
    assert "is a folder; give" in message(Genome, tmp_path)
    assert "empty.fa: the file is empty; give" in message(Genome, put("empty.fa", b""))
    assert "is no FASTA file" in message(Genome, put("table.fa", b"sequence,label\nACGT,1\n"))
    gzipped = put("toy.fa.gz", gzip.compress(fasta_text().encode()))
    assert "toy.fa.gz: is compressed by gzip" in (text := message(Genome, gzipped))
    assert "bgzip" in text
    assert "rename it" in message(Genome, put("plain.fa.gz", b">a\nACGT\n"))
    uneven = put("uneven.fa", b">a\nACGT\nAC\nACGT\n")
    assert "uneven.fa: cannot be indexed" in (text := message(Genome, uneven))
    assert "one length" in text
    assert "two chromosomes are named 'a'; rename" in message(Genome, put("twice.fa", b">a\nACGT\n>a\nACGT\n"))
    whole = write_bgzip(tmp_path / "whole.fa.gz", fasta_text()).read_bytes()
    assert "copy" in message(Genome, put("cut.fa.gz", whole[: len(whole) // 2]))
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".index")]


def test_index_goes_elsewhere_when_the_folder_is_read_only(
    tmp_path: Path, fasta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder = tempfile.TemporaryDirectory

    def refuse(dir: Path, prefix: str) -> tempfile.TemporaryDirectory:  # the tests may run as root, who can write
        if Path(dir) == fasta.parent:
            raise PermissionError(dir)
        return make_folder(dir=dir, prefix=prefix)

    monkeypatch.setattr(genome_module.tempfile, "TemporaryDirectory", refuse)
    monkeypatch.setattr(genome_module.tempfile, "gettempdir", lambda: str(tmp_path / "scratch"))
    for _ in range(2):
        with Genome(fasta) as genome:
            assert genome.fetch("chr2", 300, 310) == CHROMOSOMES["chr2"][300:310].upper()
    assert not (tmp_path / "toy.fa.fai").exists()
    assert [path.name for path in (tmp_path / "scratch").rglob("*.fai")] == ["toy.fa.fai"]


def test_an_older_index_is_made_anew(fasta: Path) -> None:
    Genome(fasta).close()
    fasta.write_text(">chr9\nACGTACGT\n")
    later = fasta.stat().st_mtime + 10
    os.utime(fasta, (later, later))
    with Genome(fasta) as genome:
        assert genome.chromosomes() == {"chr9": 8}
