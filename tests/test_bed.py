from __future__ import annotations

import gzip
import os
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from Bio import bgzf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from l2g_ray.data import genome as genome_module
from l2g_ray.data.genome import Genome
from l2g_ray.data.intervals import read_intervals
from l2g_ray.data.negatives import MAX_UNKNOWN, draw_negatives
from l2g_ray.data.options import SourceOptions
from l2g_ray.data.raw import RawTask
from l2g_ray.data.sources.bed import is_bed, open_bed
from l2g_ray.errors import UserError

PAIRS = dict(zip("ACGTRYSWKMBDHVN", "TGCAYRSWMKVHDBN", strict=True))


def make_chromosome(length: int, seed: int) -> str:
    """GC content that changes along the way, soft-masked parts, runs of N, a few IUPAC letters."""
    generator = np.random.default_rng(seed)
    gc = 0.5 + 0.25 * np.sin(np.arange(length) / 900)
    strong = generator.random(length) < gc
    letters = np.where(strong, generator.choice(list("GC"), length), generator.choice(list("AT"), length))
    letters[:150] = "N"
    letters[length // 2 : length // 2 + 700] = "N"
    letters[generator.integers(200, length, 20)] = generator.choice(list("RYSWKMBDHV"), 20)
    masked = (np.arange(length) // 400) % 3 == 0
    return "".join(np.where(masked, np.char.lower(letters), letters))


CHROMOSOMES = {
    "chr1": make_chromosome(50_000, 1),
    "chr2": make_chromosome(40_020, 2),
    "chrM": make_chromosome(6_001, 3),
}


def fasta_text(chromosomes: dict[str, str] = CHROMOSOMES, newline: str = "\n") -> str:
    records = []
    for name, text in chromosomes.items():
        lines = [text[i : i + 60] for i in range(0, len(text), 60)]
        records.append(newline.join([f">{name} a toy", *lines, ""]))
    return "".join(records)


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    path = tmp_path / "toy.fa"
    path.write_text(fasta_text())
    return path


def write_bgzip(path: Path, text: str) -> Path:
    with bgzf.BgzfWriter(str(path)) as file:
        file.write(text)
    return path


def write_bed(path: Path, rows: list[tuple]) -> Path:
    path.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))
    return path


def flip(text: str) -> str:
    return "".join(PAIRS[letter] for letter in reversed(text))


def rows_of(raw: RawTask, piece: int) -> list[dict]:
    return pa.concat_tables(raw.splits["all"][piece].tables()).to_pylist()


def random_peaks(n: int, seed: int = 0, widths: tuple[int, int] = (80, 300)) -> list[tuple]:
    generator = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        chrom = ("chr1", "chr2")[i % 2]
        start, width = int(generator.integers(200, 19_000)), int(generator.integers(*widths))
        rows.append((chrom, start, start + width, f"p{i}", 0, "+-"[i % 3 == 0]))
    return rows


def message(call, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    text = str(caught.value)
    assert "\n" not in text
    return text


# ---- genome ----------------------------------------------------------------------------------------------------------


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


# ---- intervals -------------------------------------------------------------------------------------------------------


BED = (
    "browser position chr1:1-100\r\ntrack name=peaks\r\n# a comment\r\n\r\n"
    "chr1\t100\t300\tfirst peak\t0\t-\r\nchr2 5 9\r\n"
)


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_intervals_plain_and_compressed(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"peaks.bed{suffix}"
    if suffix == ".zst":
        with pa.CompressedOutputStream(str(path), "zstd") as file:
            file.write(BED.encode())
    else:
        path.write_bytes(gzip.compress(BED.encode()) if suffix else b"\xef\xbb\xbf" + BED.encode())
    intervals = read_intervals(path)
    assert len(intervals) == 2
    assert intervals.chrom.tolist() == ["chr1", "chr2"]
    assert intervals.start.tolist() == [100, 5]
    assert intervals.end.tolist() == [300, 9]
    assert intervals.name.tolist() == ["first peak", ""]
    assert intervals.strand.tolist() == ["-", "."]
    assert intervals.summit.tolist() == [-1, -1]
    assert intervals.line.tolist() == [5, 6]
    if suffix:
        path.write_bytes(path.read_bytes()[:-15])
        assert "cut short or damaged" in message(read_intervals, path)


def test_narrow_peak_summits(tmp_path: Path) -> None:
    rows = [("chr1", 100, 300, ".", 0, ".", 1.5, 2.5, 3.5, peak) for peak in (0, 20, 199, -1)]
    for name in ("peaks.narrowPeak", "peaks.bed"):  # ENCODE names them .bed
        assert read_intervals(write_bed(tmp_path / name, rows)).summit.tolist() == [100, 120, 299, -1]
    twelve = ("chr1", 100, 300, "t", 0, "+", 120, 280, "0,0,0", 1, "200,", "0,")
    assert read_intervals(write_bed(tmp_path / "genes.bed", [twelve])).summit.tolist() == [-1]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("chr1\t100", "fewer than 3 columns; give chromosome, start and end"),
        ("chr1\t1e3\t2000", "the start is '1e3', not a whole number; give"),
        ("chr1\t1000\t2,000", "the end is '2,000', not a whole number; give"),
        ("chr1\t1\t" + "9" * 30, "not a whole number"),
        ("chr1\t-5\t20", "the start -5 is negative; count bases from 0"),
        ("chr1\t20\t20", "the start 20 is not before the end 20; BED counts from 0"),
        ("chr1\t30\t20\tx", "the start 30 is not before the end 20"),
        ("chr1\t10\t20\tx\t0\tplus", "the strand (column 6) is 'plus'; write '+', '-', or '.'"),
        ("chr1\t10\t20\tx\t0\t.\t1\t1\t1\tmid", "the peak (column 10) is 'mid', not a whole number"),
        ("chr1\t10\t20\tx\t0\t.\t1\t1\t1\t10", "outside the interval of 10 bp; count it from the start, or write -1"),
    ],
)
def test_wrong_lines(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "peaks.bed"
    path.write_text(f"# header\nchr1\t1\t2\n{line}\n")
    text = message(read_intervals, path)
    assert text.startswith(f"{path}, line 3: ")
    assert said in text


def test_wrong_files(tmp_path: Path) -> None:
    path = tmp_path / "peaks.bed"
    assert "peaks.bed: no such file; check the path" in message(read_intervals, path)
    assert "is a folder; give" in message(read_intervals, tmp_path)
    for nothing in ("", "track name=x\n\n# nothing\n"):
        path.write_text(nothing)
        assert "peaks.bed: the file has no intervals; give lines" in message(read_intervals, path)
    path.write_bytes(b"chr1\t1\t2\n\xff\xfe\n")
    assert "not UTF-8 text" in message(read_intervals, path)
    narrow = write_bed(tmp_path / "x.narrowPeak", [("chr1", 1, 2)])
    assert f"{narrow}, line 1: 3 columns where narrowPeak has 10; name the file .bed" in message(read_intervals, narrow)


FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
CELLS = st.one_of(
    st.integers(-5, 50).map(str), st.sampled_from(["chr1", "+", "-", ".", "", "track", "x y", "٣", "1_0"])
)
LINES = st.one_of(st.text(max_size=30), st.lists(CELLS, max_size=12).map("\t".join))


@FUZZ
@given(lines=st.lists(LINES, max_size=6), data=st.binary(max_size=40))
def test_any_text_reads_or_raises_user_error(tmp_path: Path, lines: list[str], data: bytes) -> None:
    contents = ["\n".join(lines).encode("utf-8", "surrogatepass"), data]
    for name in ("a.bed", "a.narrowPeak", "a.bed.gz", "a.bed.zst"):
        for content in contents:
            (tmp_path / name).write_bytes(content)
            try:
                intervals = read_intervals(tmp_path / name)
            except UserError:
                continue
            assert (intervals.start < intervals.end).all()
            assert (intervals.start >= 0).all()


NAMES = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=8)
PLACES = st.tuples(NAMES, st.integers(0, 10**9), st.integers(1, 10**6), NAMES, st.sampled_from("+-."))


@FUZZ
@given(rows=st.lists(PLACES, min_size=1, max_size=20), newline=st.sampled_from(["\n", "\r\n"]))
def test_valid_intervals_come_back(tmp_path: Path, rows: list[tuple], newline: str) -> None:
    lines = [f"{chrom}\t{start}\t{start + width}\t{name}\t0\t{strand}" for chrom, start, width, name, strand in rows]
    (tmp_path / "a.bed").write_bytes((newline.join(lines) + newline).encode())
    intervals = read_intervals(tmp_path / "a.bed")
    columns = (intervals.chrom, intervals.start, intervals.end - intervals.start, intervals.name, intervals.strand)
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == rows
    assert intervals.line.tolist() == list(range(1, len(rows) + 1))


# ---- negatives -------------------------------------------------------------------------------------------------------


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


# ---- the task --------------------------------------------------------------------------------------------------------


def test_is_bed() -> None:
    for name in ("a.bed", "A.BED.gz", "x.narrowPeak", "x.NARROWPEAK.zst", "x.broadPeak.gz"):
        assert is_bed(name)
    for name in ("a.csv", "bed", "a.bed.csv", "a.bed.bz2", "a.bedgraph"):
        assert not is_bed(Path(name))


def test_peaks_keep_their_widths_and_strands(tmp_path: Path, fasta: Path) -> None:
    rows = random_peaks(30)
    bed = write_bed(tmp_path / "my peaks.bed", rows)
    for stranded in (False, True):
        raw = open_bed([bed], SourceOptions(genome=fasta, stranded=stranded))
        assert raw.task.strand_specific is stranded
        for row, (chrom, start, end, _, _, strand) in zip(rows_of(raw, 0), rows, strict=True):
            sign = strand if stranded else "+"
            text = CHROMOSOMES[chrom][start:end].upper()
            assert row == {
                "id": f"{chrom}:{start}-{end}({sign})",
                "sequence": text if sign == "+" else flip(text),
                "label": "peak",
                "chrom": chrom,
                "start": start,
                "end": end,
                "strand": sign,
            }
        negative = next(row for row in rows_of(raw, 1) if row["strand"] == ("-" if stranded else "+"))
        text = CHROMOSOMES[negative["chrom"]][negative["start"] : negative["end"]].upper()
        assert negative["sequence"] == (flip(text) if stranded else text)
    assert (raw.task.bench, raw.task.name, raw.task.kind) == ("user", "my_peaks", "binary")
    assert raw.task.labels == ("background", "peak")
    assert raw.task.source == "my peaks.bed on toy.fa"
    assert raw.files == {"peaks": bed, "genome": fasta}
    assert list(raw.splits) == ["all"]
    assert [piece.where for piece in raw.splits["all"]] == [str(bed), f"negatives drawn from {fasta}"]
    assert raw.content == {
        "window_bp": None,
        "negatives_per_peak": 1.0,
        "gc_tolerance": 0.02,
        "stranded": True,
        "seed": 0,
        "labels": ["background", "peak"],
        "version": 1,
    }
    table = next(raw.splits["all"][0].tables())
    assert (table.schema.field("sequence").type, table.schema.field("start").type) == (pa.large_string(), pa.int64())
    again = pickle.loads(pickle.dumps(raw))
    assert rows_of(again, 1) == rows_of(raw, 1)


def test_windows_stand_round_summit_or_middle(tmp_path: Path, fasta: Path) -> None:
    tail = (".", 0, ".", 1, 1, 1)
    rows = [("chr1", 1000, 1400, *tail, 30), ("chr1", 2000, 2401, *tail, -1), ("chr2", 20, 60, *tail, 5)]
    rows += [("chrM", 5900, 6001, *tail, 100), ("chrM", 5500, 5901, *tail, 401 - 1)]
    bed = write_bed(tmp_path / "peaks.narrowPeak", rows)
    raw = open_bed([bed], SourceOptions(genome=fasta, window_bp=200))
    places = [(row["chrom"], row["start"], row["end"]) for row in rows_of(raw, 0)]
    assert places == [("chr1", 930, 1130), ("chr1", 2100, 2300), ("chrM", 5800, 6000)]
    assert raw.notes[0] == (
        "peaks.narrowPeak: 2 peaks too near a chromosome's end for a window of 200 bp were left out"
    )
    for row in rows_of(raw, 1):  # away from the whole of each peak and from its window
        assert row["end"] - row["start"] == 200
        for (chrom, start, end, *_), (_, a, b) in zip([rows[0], rows[1], rows[4]], places, strict=True):
            assert row["chrom"] != chrom or row["end"] <= min(start, a) or row["start"] >= max(end, b)
    text = message(open_bed, [bed], SourceOptions(genome=fasta, window_bp=60_000))
    assert text.startswith(f"{bed}, line 1: a window of 60,000 bp fits nowhere")
    assert "set window_bp lower" in text


def test_names_of_the_file_stay_whatever_the_genome_calls_them(tmp_path: Path, fasta: Path) -> None:
    bed = write_bed(tmp_path / "peaks.bed", [("1", 300, 400), ("chr1", 900, 1000), ("MT", 500, 600)])
    raw = open_bed([bed], SourceOptions(genome=fasta))
    peaks = rows_of(raw, 0)
    assert [row["chrom"] for row in peaks] == ["1", "1", "MT"]
    assert [row["chrom"] for row in rows_of(raw, 1)] == ["1", "1", "MT"]
    assert peaks[2]["sequence"] == CHROMOSOMES["chrM"][500:600].upper()


def test_one_file_a_class(tmp_path: Path, fasta: Path) -> None:
    beds = [
        write_bed(tmp_path / name, random_peaks(5, seed))
        for seed, name in enumerate(["enhancer.bed", "promoter.broadPeak", "silencer.bed"])
    ]
    raw = open_bed(beds, SourceOptions(genome=fasta, name="regions"))
    assert (raw.task.name, raw.task.kind) == ("regions", "multiclass")
    assert raw.task.labels == ("enhancer", "promoter", "silencer")
    assert [{row["label"] for row in rows_of(raw, i)} for i in range(3)] == [{label} for label in raw.task.labels]
    assert raw.files == {"peaks_1": beds[0], "peaks_2": beds[1], "peaks_3": beds[2], "genome": fasta}
    assert raw.notes == ()
    assert "seed" not in raw.content
    two = open_bed(beds[:2], SourceOptions(genome=fasta, labels=("no", "yes")))
    assert (two.task.name, two.task.kind, two.task.labels) == ("enhancer_vs_promoter", "binary", ("no", "yes"))


def test_rows_come_in_batches(tmp_path: Path, fasta: Path) -> None:
    rows = [("chr1", 200 + i, 210 + i) for i in range(10_001)]
    bed = write_bed(tmp_path / "many.bed", rows)
    other = write_bed(tmp_path / "other.bed", rows[:1])
    raw = open_bed([bed, other], SourceOptions(genome=fasta))
    assert [table.num_rows for table in raw.splits["all"][0].tables()] == [10_000, 1]


def test_mistakes_in_a_task_of_peaks(tmp_path: Path, fasta: Path) -> None:
    bed = write_bed(tmp_path / "peaks.bed", [("chr1", 200, 300, "x", 0, "+"), ("chr1", 400, 500, "x", 0, ".")])

    def said(rows: list[tuple] | None = None, paths: list[Path] | None = None, **fields) -> str:
        if rows is not None:
            write_bed(bed, rows)
        return message(open_bed, [bed] if paths is None else paths, SourceOptions(**{"genome": fasta, **fields}))

    assert f"{bed}: intervals need the genome that they are on; add --genome FASTA" in said(genome=None)
    assert f"{bed}, line 2: the interval has no strand; write + or - in column 6" in said(stranded=True)
    assert "3 label(s) for one file of peaks; give two" in said(labels=("a", "b", "c"))
    assert "1 label(s) for 2 files; give one a file" in said(paths=[bed, bed], labels=("a",))
    assert "two classes have the same name; rename a file" in said(paths=[bed, bed])
    assert "leave one class only; set negatives_per_peak higher" in said(negatives_per_peak=0)
    assert "does not fit intervals, which give classes" in said(kind="multilabel")
    assert "may hold only letters" in said(name="a/b")
    assert "give at least one" in said(paths=[])
    text = said([("chr1", 1, 9), ("chr20", 5, 9)])
    assert text.startswith(f"{bed}, line 2: no chromosome 'chr20' in {fasta} (did you mean 'chr2'?); give the genome")
    text = said([("chr1", 1, 9), ("chr2", 40_000, 40_021)])
    assert text.startswith(f"{bed}, line 2: the interval ends at 40,021, past the end of chr2, which is 40,020 bp long")
    assert "correct the line" in text
