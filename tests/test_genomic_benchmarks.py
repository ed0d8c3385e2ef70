"""Genomic Benchmarks in their published forms: intervals of a reference, and a text file a sequence."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from official_files import OPTIONS, block_sizes, make_task, open_form, rows

from l2g_ray.data.raw import SourceOptions
from l2g_ray.data.sources import published as genomic_benchmarks
from l2g_ray.data.sources.official import open_official
from l2g_ray.errors import UserError
from l2g_ray.tasks.catalogue import find_tasks

COMPLEMENT = str.maketrans("ACGT", "TGCA")
CHR1 = "ACGTTGCAAGGCTTAACCGGATCGATCGTTTAGCCA"
CHR2 = "TTTTGGGGCCCCAAAATCTCAGAGNNACGT"
URL = "ftp://ftp.ensembl.org/pub/release-100/fasta/homo_sapiens/dna/Homo_sapiens.GRCh38.dna.toplevel.fa.gz"
CDNA = "http://ftp.ensembl.org/pub/release-104/fasta/homo_sapiens/cdna/Homo_sapiens.GRCh38.cdna.all.fa.gz"
TRAIN = {
    "negative": ["0,chr1,0,6,+", "1,chr2,4,12,-"],
    "positive": ["0,chr1,10,15,-", "1,chr1,3,9,+", "2,chr2,20,28,+"],
}
TEST = {"negative": ["0,chr2,0,4,+"], "positive": ["0,chr1,30,36,+"]}


def write_intervals(folder: Path, splits: dict[str, dict[str, list[str]]], classes: str | None = None) -> Path:
    for split, by_class in splits.items():
        (folder / split).mkdir(parents=True)
        for name, lines in by_class.items():
            with gzip.open(folder / split / f"{name}.csv.gz", "wt") as file:
                file.write("\n".join(["id,region,start,end,strand", *lines, ""]))
    entries = [
        f"  {name}:\n    extra_processing: ENSEMBL_HUMAN_GENOME\n    type: fa.gz\n    url: {URL}\n"
        for name in splits["train"]
    ]
    (folder / "metadata.yaml").write_text(f"classes:\n{classes or ''.join(entries)}version: 0\n")
    return folder


def write_reference(folder: Path, name: str = "Homo_sapiens.GRCh38.dna.toplevel.fa", prefix: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = f">{prefix}1 dna:chromosome chromosome:GRCh38:1\n{CHR1}\n>{prefix}2 dna:chromosome\n{CHR2}\n"
    (folder / name).write_text(text)
    return folder / name


@pytest.fixture
def intervals(tmp_path: Path) -> Path:
    return write_intervals(tmp_path / "genomic_benchmarks" / "own", {"train": TRAIN, "test": TEST})


def cut(sequence: str, start: int, end: int, strand: str = "+") -> str:
    piece = sequence[start:end]
    return piece if strand == "+" else piece.translate(COMPLEMENT)[::-1]


@pytest.mark.parametrize(("place", "prefix"), [("references", ""), (".", "chr"), ("genomic_benchmarks", "")])
def test_intervals_are_cut_from_the_reference(tmp_path: Path, intervals: Path, place: str, prefix: str) -> None:
    reference = write_reference(tmp_path / place, prefix=prefix)
    raw = open_form(make_task(), intervals)
    assert rows(raw, "train", "label", "chrom", "start", "end", "strand") == [
        ("0", cut(CHR1, 0, 6), "negative", "chr1", 0, 6, "+"),
        ("1", cut(CHR2, 4, 12, "-"), "negative", "chr2", 4, 12, "-"),
        ("0", cut(CHR1, 10, 15, "-"), "positive", "chr1", 10, 15, "-"),
        ("1", cut(CHR1, 3, 9), "positive", "chr1", 3, 9, "+"),
        ("2", "AGAGNNAC", "positive", "chr2", 20, 28, "+"),
    ]
    assert rows(raw, "test", "label") == [("0", "TTTT", "negative"), ("0", CHR1[-6:], "positive")]
    assert set(raw.splits) == {"train", "test"}
    assert set(raw.files.values()) == {*intervals.rglob("*.csv.gz"), intervals / "metadata.yaml", reference}


def test_intervals_stream_in_blocks(tmp_path: Path, intervals: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_reference(tmp_path)
    monkeypatch.setattr(genomic_benchmarks, "BLOCK_ROWS", 2)
    raw = open_form(make_task(), intervals)
    assert block_sizes(raw, "train") == [2, 2, 1]
    assert [row[1] for row in rows(raw, "train")][-1] == "AGAGNNAC"


def test_classes_of_different_references_and_transcripts_without_version(tmp_path: Path) -> None:
    splits = {"train": {"coding_seqs": ["7,ENST00000641515,2,6,+"], "intergenomic_seqs": ["9,2,0,5,-"]}}
    classes = (
        f"  coding_seqs:\n    extra_processing: ENSEMBL_HUMAN_TRANSCRIPTOME\n    type: fa.gz\n    url: {CDNA}\n"
        f"  intergenomic_seqs:\n    type: fa.gz\n    url: {URL}\n"
    )
    folder = write_intervals(tmp_path / "own", {**splits, "test": splits["train"]}, classes)
    write_reference(tmp_path / "references")
    (tmp_path / "references" / "Homo_sapiens.GRCh38.cdna.all.fa").write_text(">ENST00000641515.2 cdna\nCCATGAAG\n")
    raw = open_form(make_task(labels=["coding", "intergenic"]), folder)
    assert rows(raw, "train", "label") == [("7", "ATGA", "coding"), ("9", "CAAAA", "intergenic")]
    assert len(raw.files) == 7


def test_one_genome_given_stands_for_the_one_reference(tmp_path: Path, intervals: Path) -> None:
    genome = write_reference(tmp_path / "elsewhere", "hg38.fa", "chr")
    options = SourceOptions(genome=genome)
    assert len(rows(open_form(make_task(), intervals, options), "train")) == 5
    (intervals / "metadata.yaml").unlink()
    raw = open_form(make_task(), intervals, options)
    assert len(rows(raw, "test")) == 2
    assert genome in raw.files.values()


def test_a_missing_reference_is_named_with_its_url(tmp_path: Path, intervals: Path) -> None:
    with pytest.raises(UserError) as caught:
        open_official(make_task(), intervals, OPTIONS)
    for part in ("Homo_sapiens.GRCh38.dna.toplevel.fa", URL, "decompress", str(intervals.parent / "references")):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0,chr1,30,37,+", r"test/positive\.csv\.gz, row 2: .*chr1:30-37.*36 bp"),
        ("0,chr9,0,5,+", r"row 2: .*'chr9'"),
        ("0,chr1,x,5,+", r"row 2: start 'x' and end '5' are no whole numbers"),
        ("0,chr1,0,5,.", r"row 2: the strand is '\.'"),
        ("0,chr1,0", r"positive\.csv\.gz, row 2: 3 columns"),
    ],
)
def test_faulty_intervals_are_named_by_file_and_row(tmp_path: Path, line: str, message: str) -> None:
    test = {**TEST, "positive": [*TEST["positive"], line]}
    folder = write_intervals(tmp_path / "own", {"train": TRAIN, "test": test})
    write_reference(tmp_path)
    with pytest.raises(UserError, match=message):
        rows(open_form(make_task(), folder), "test")


def test_faulty_interval_files(tmp_path: Path, intervals: Path) -> None:
    write_reference(tmp_path)
    with pytest.raises(UserError, match=r"2 classes \(negative, positive\).*3 labels"):
        open_official(make_task(kind="multiclass", labels=["a", "b", "c"]), intervals, OPTIONS)
    path = intervals / "train" / "negative.csv.gz"
    with gzip.open(path, "wt") as file:
        file.write("id,region,begin,end,strand\n0,chr1,0,5,+\n")
    with pytest.raises(UserError, match=r"negative\.csv\.gz: no column 'start'"):
        rows(open_form(make_task(), intervals), "train")
    with gzip.open(path, "wt") as file:
        file.write("id,region,start,end,strand\n")
    with pytest.raises(UserError, match=r"negative\.csv\.gz: the file has no rows"):
        rows(open_form(make_task(), intervals), "train")
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"negative\.csv\.gz"):
        rows(open_form(make_task(), intervals), "train")
    (intervals / "metadata.yaml").write_text("classes: {negative: {url: a/b.fa.gz}}")
    with pytest.raises(UserError, match=r"metadata\.yaml: no url of a reference for class 'positive'"):
        open_official(make_task(), intervals, OPTIONS)
    (intervals / "metadata.yaml").write_text("classes: [")
    with pytest.raises(UserError, match=r"metadata\.yaml: not valid YAML"):
        open_official(make_task(), intervals, OPTIONS)
    (intervals / "test" / "positive.csv.gz").unlink()
    with pytest.raises(UserError, match="holds the classes negative where train has negative, positive"):
        open_official(make_task(), intervals, OPTIONS)


def test_one_text_file_a_sequence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split, count in (("train", 11), ("test", 1)):
        for name, letter in (("ocr", "G"), ("enhancer", "A"), ("promoter", "T")):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                (tmp_path / split / name / f"{i}.txt").write_text(f"AC{letter}" + "C" * i)
    task = find_tasks("genomic_benchmarks", ["human_ensembl_regulatory"])[0]
    monkeypatch.setattr(genomic_benchmarks, "BLOCK_ROWS", 4)
    raw = open_form(task, tmp_path)
    assert block_sizes(raw, "train") == [4, 4, 3] * 3
    found = rows(raw, "train", "label")
    assert found[9:12] == [
        ("9", "ACA" + "C" * 9, "enhancer"),
        ("10", "ACA" + "C" * 10, "enhancer"),
        ("0", "ACG", "open_chromatin"),
    ]
    assert rows(raw, "test", "label")[2] == ("0", "ACT", "promoter")
    assert len(raw.files) == 36
    (tmp_path / "test" / "ocr" / "0.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"ocr/0\.txt: the file is not UTF-8"):
        rows(open_form(task, tmp_path), "test")
    (tmp_path / "test" / "ocr" / "0.txt").unlink()
    with pytest.raises(UserError, match=r"test/ocr: no \.txt files"):
        open_official(task, tmp_path, OPTIONS)
