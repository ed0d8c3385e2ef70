"""BED and narrowPeak: intervals read back, and the tasks that are made of them."""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path

import pyarrow as pa
import pytest
from commands import Cli
from genome_files import CHROMOSOMES, flip, message, random_peaks, rows_of, write_bed, write_genome
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from l2g_ray.data.raw import SourceOptions
from l2g_ray.data.sources.bed import is_bed, open_bed, read_intervals
from l2g_ray.errors import UserError


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    return write_genome(tmp_path)


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


# ---- the task --------------------------------------------------------------------------------------------------------


def test_is_bed() -> None:
    for name in ("a.bed", "A.BED.gz", "a.bed.bgz", "x.narrowPeak", "x.NARROWPEAK.zst", "x.broadPeak.gz"):
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
        "peaks.narrowPeak: 2 peaks too near a chromosome's end for a window of 200 bp were left out "
        "(first: line 3, chr2:20-60)"
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
    text = said([("chr20", 1, 9), ("X", 5, 9)])
    assert text.startswith(
        f"{bed}: none of its chromosomes (chr20, X) is in {fasta} (chr1, chr2, chrM), with or without"
    )
    assert "give the genome that the peaks were called on" in text
    text = said([("chr20", 1, 9), ("chr2", 40_000, 40_021)])
    assert text.startswith(f"{bed}, line 2: the interval ends at 40,021, past the end of chr2, which is 40,020 bp long")


OFF = [("chr1", 300, 400), ("chrUn_7", 5, 90), ("chr2", 39_900, 40_023), ("2", 600, 700), ("chrUn_9", 5, 90)]


@pytest.mark.parametrize("window_bp", [None, 60])
def test_peaks_that_are_not_on_the_genome_are_left_out_and_counted(
    tmp_path: Path, fasta: Path, window_bp: int | None
) -> None:
    bed = write_bed(tmp_path / "peaks.bed", OFF)
    options = SourceOptions(genome=fasta, window_bp=window_bp)
    raw = open_bed([bed], options)
    assert [row["chrom"] for row in rows_of(raw, 0)] == ["chr1", "2"]
    notes = (
        "peaks.bed: 2 peaks on chromosomes that toy.fa does not have (chrUn_7, chrUn_9) were left out "
        "(first: line 2, chrUn_7:5-90)",
        "peaks.bed: 1 peak past the end of its chromosome in toy.fa was left out (first: line 3, chr2:39900-40023)",
    )
    assert raw.notes[:2] == notes
    assert all(row["end"] <= 39_900 for row in rows_of(raw, 1) if row["chrom"] == "2")
    other = write_bed(tmp_path / "other.bed", [("chr1", 800, 900)])
    assert open_bed([bed, other], options).notes == notes  # a file a class


def test_strict_stops_at_the_first_peak_that_does_not_fit(tmp_path: Path, fasta: Path) -> None:
    bed = tmp_path / "peaks.bed"
    for rows, said in (
        (OFF, "line 2: chrUn_7:5-90 is on chromosomes that toy.fa does not have"),
        (OFF[2:4], "line 1: chr2:39900-40023 is past the end of its chromosome in toy.fa; give the genome"),
        ([("chr1", 300, 400), ("chr1", 5, 20)], "line 2: chr1:5-20 is too near a chromosome's end for a window of 60"),
    ):
        write_bed(bed, rows)
        options = SourceOptions(genome=fasta, window_bp=60, strict=True)
        assert (text := message(open_bed, [bed], options)).startswith(f"{bed}, {said}")
        assert text.endswith(", or leave out --strict")


def test_the_terminal_tells_what_was_left_out(tmp_path: Path, fasta: Path, cli: Cli) -> None:
    bed = write_bed(
        tmp_path / "peaks.bed", [*((f"chr{i % 2 + 1}", 1000 + 300 * i, 1100 + 300 * i) for i in range(40)), OFF[2]]
    )
    command = ["data", "prepare", bed, "--genome", fasta, "--out", tmp_path / "out"]
    said = cli(*command)
    assert said.code == 0, said.err
    assert "1 peak past the end of its chromosome in toy.fa was left out" in " ".join((said.out + said.err).split())
    warnings = json.loads((tmp_path / "out" / "task.json").read_text())["warnings"]
    assert any("1 peak past the end of its chromosome" in warning for warning in warnings)
    said = cli(*command, "--strict")
    assert said.code == 2
    assert "line 41: chr2:39900-40023 is past the end" in said.err
    said = cli("data", "check", bed, "--genome", fasta, "--out", tmp_path / "check")
    assert "1 peak past the end of its chromosome in toy.fa was left out" in " ".join((said.out + said.err).split())
