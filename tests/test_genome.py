"""A genome in FASTA, plain or in blocks: any piece of it, its index, and its faults."""

from __future__ import annotations

import gzip
import io
import os
from pathlib import Path

import numpy as np
import pytest
from Bio import bgzf
from genome_files import CHROMOSOMES, fasta_text, flip, message, write_bgzip, write_genome
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from l2g_ray.data.genome import Genome
from l2g_ray.errors import UserError


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
    """The first byte of a block that follows one of 65,536 bytes is a place that is easily missed."""
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
    assert "uneven.fa, line 3: cannot be indexed: a line that is shorter" in (text := message(Genome, uneven))
    assert "give all lines one length" in text
    longer = put("longer.fa", b">a\nACGT\nACGTA\n")
    assert "longer.fa, line 3: cannot be indexed: 5 bases where earlier lines have 4" in message(Genome, longer)
    assert "twice.fa, line 3: two chromosomes are named 'a'; rename" in message(
        Genome, put("twice.fa", b">a\nACGT\n>a\nACGT\n")
    )
    assert "nameless.fa, line 1: the header has no name" in message(Genome, put("nameless.fa", b">\nACGT\n"))
    assert "latin.fa, line 3: the header is not UTF-8" in message(Genome, put("latin.fa", b">a\nAC\n>\xe9\nAC\n"))
    assert "blanks.fa, line 2: cannot be indexed: a blank among" in message(Genome, put("blanks.fa", b">a\nAC GT\n"))
    whole = write_bgzip(tmp_path / "whole.fa.gz", fasta_text()).read_bytes()
    assert "copy" in message(Genome, put("cut.fa.gz", whole[: len(whole) // 2]))
    ends = [start for start, *_ in bgzf.BgzfBlocks(io.BytesIO(whole))]
    assert "end marker is not there; copy" in message(Genome, put("unmarked.fa.gz", whole[: ends[-1]]))
    assert "end marker is not there; copy" in message(Genome, put("block.fa.gz", whole[: ends[1]]))
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".index")]


@pytest.mark.parametrize(
    "text",
    [">a\nACGT\n\n\n>b\nACGT\n", ">a\nACGT\n\n\nACGT\n", ">a\nACGT\n\nACGT\n", ">a\nACGT\n\n\n"],
    ids=["between", "inside", "one inside", "at the end"],
)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_blank_lines_are_named_by_file_and_line(tmp_path: Path, text: str, suffix: str) -> None:
    path = tmp_path / f"toy.fa{suffix}"
    path.write_text(text) if not suffix else write_bgzip(path, text)
    said = message(Genome, path)
    assert said.startswith(f"{path}, line 3: cannot be indexed: a blank line in or after the sequence, in 'a'")
    assert "report" not in said


# ---- the index -------------------------------------------------------------------------------------------------------


def put_genome(path: Path, records: dict[str, str], width: int, newline: str = "\n") -> Path:
    text = "".join(
        f">{name}{newline}" + "".join(bases[i : i + width] + newline for i in range(0, len(bases), width))
        for name, bases in records.items()
    )
    path.write_bytes(text.encode()) if path.suffix == ".fa" else write_bgzip(path, text)
    return path


def read_genome(path: Path) -> dict[str, str]:
    with Genome(path) as genome:
        return {name: genome.fetch(name, 0, bp) for name, bp in genome.chromosomes().items()}


def indices(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.suffix in (".fai", ".gzi"))


@pytest.mark.parametrize("name", ["toy.fa", "toy.fa.gz", "toy.fa.bgz"])
def test_a_release_that_is_older_than_the_index_is_indexed_again(tmp_path: Path, name: str) -> None:
    """`cp -p` keeps the time stamp, so that a new release may look older than the index of the release before."""
    path = put_genome(tmp_path / name, CHROMOSOMES, 60)
    assert read_genome(path) == {name: text.upper() for name, text in CHROMOSOMES.items()}
    release = CHROMOSOMES | {"chr1": f"ACGTA{CHROMOSOMES['chr1']}"}
    put_genome(path, release, 60)
    os.utime(path, (1, 1))
    for _ in range(2):
        assert read_genome(path) == {name: text.upper() for name, text in release.items()}
    assert indices(tmp_path) == ([f"{name}.fai"] if name == "toy.fa" else [f"{name}.fai", f"{name}.gzi"])


def test_an_index_of_another_hand_is_used_whatever_its_age(tmp_path: Path) -> None:
    path = put_genome(tmp_path / "toy.fa", {"a": "ACGTACGTAC", "b": "GGG"}, 4)
    index = tmp_path / "toy.fa.fai"
    index.write_text("a\t10\t3\t4\t5\nb\t3\t19\t3\t4\n")  # as `samtools faidx` writes it
    os.utime(index, (1, 1))
    assert read_genome(path) == {"a": "ACGTACGTAC", "b": "GGG"}
    assert index.stat().st_mtime == 1


SEQUENCES = st.dictionaries(
    st.sampled_from(["chr1", "chr2", "1", "x|y"]), st.text("ACGTN", min_size=1, max_size=40), min_size=1, max_size=4
)
LAYOUTS = st.tuples(SEQUENCES, st.integers(1, 12), st.sampled_from(["\n", "\r\n"]))
FUZZ = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@FUZZ
@given(old=LAYOUTS, new=LAYOUTS, suffix=st.sampled_from([".fa", ".gz"]))
def test_no_index_of_another_file_is_ever_believed(tmp_path: Path, old: tuple, new: tuple, suffix: str) -> None:
    path = tmp_path / f"toy{suffix}"
    for records, width, newline in (old, new):
        put_genome(path, records, width, newline)
        os.utime(path, (1, 1))
        assert read_genome(path) == records


@FUZZ
@given(data=st.data(), suffix=st.sampled_from([".fa", ".gz"]))
def test_a_damaged_index_is_rebuilt(tmp_path: Path, data: st.DataObject, suffix: str) -> None:
    records = {"a": "ACGTACGTACGTA", "b": "GATTACA", "c": "T"}
    path = put_genome(tmp_path / f"toy{suffix}", records, 5)
    found = [tmp_path / f"{path.name}{ending}" for ending in (".fai", ".gzi")[: 1 + (suffix == ".gz")]]
    for index in found:
        index.unlink(missing_ok=True)
    Genome(path).close()
    for index in found:
        whole = index.read_bytes()
        cut = data.draw(st.integers(0, len(whole)))
        index.write_bytes(whole[:cut] + data.draw(st.binary(max_size=12)))
    assert read_genome(path) == records


@FUZZ
@given(lines=st.lists(st.sampled_from([">a", ">b x", "ACGT", "AC", "", "; no", "A C", ">"]), max_size=8))
def test_any_fasta_is_read_as_it_stands_or_refused(tmp_path: Path, lines: list[str]) -> None:
    path = tmp_path / "any.fa"
    path.write_text("\n".join(lines))
    # That of the example before fits where only bases differ, and bases are not read again then.
    path.with_name("any.fa.fai").unlink(missing_ok=True)
    try:
        with Genome(path) as genome:
            found = {name: genome.fetch(name, 0, bp) if bp else "" for name, bp in genome.chromosomes().items()}
    except UserError:
        return
    expected: dict[str, str] = {}
    for line in lines:
        if line.startswith(">"):
            expected[name := line[1]] = ""
        elif expected:
            expected[name] += line.strip()
    assert found == expected


def test_an_index_goes_to_the_cache_where_it_cannot_be_beside_the_genome(
    tmp_path: Path, fasta: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("L2G_RAY_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "toy.fa.fai").mkdir()  # the tests may run as root, whom permissions do not hold back
    for _ in range(2):
        assert read_genome(fasta)["chr2"] == CHROMOSOMES["chr2"].upper()
    assert indices(tmp_path / "cache") == ["toy.fa.fai"]
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("L2G_RAY_CACHE_DIR", str(tmp_path / "file"))
    assert read_genome(fasta)["chr2"] == CHROMOSOMES["chr2"].upper()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".index")]
