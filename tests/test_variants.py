"""Variants: the parser, the windows, the scores, and what a faulty row does. The answers come from strings and predict."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from commands import Cli
from explained import LENGTH_BP, make_net, write_model
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import make_task

from l2g_ray.data.genome import Genome
from l2g_ray.data.readers import VcfRow, open_vcf
from l2g_ray.errors import UserError
from l2g_ray.explain.scores import score_sequences
from l2g_ray.explain.variants import Policy, Windows
from l2g_ray.predict import find_model, load_predictor

_RANDOM = random.Random(3)
CONTIGS = {name: "".join(_RANDOM.choices("ACGT", k=bp)) for name, bp in (("chr1", 300), ("chr2", 25))}
COMPLEMENT = str.maketrans("ACGTN", "TGCAN")
BASES = st.text("ACGT", min_size=1, max_size=12)


@pytest.fixture(scope="module")
def fasta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("genome") / "small.fa"
    # Soft-masked, as real genomes are.
    path.write_text("".join(f">{name}\n{text[:40].lower()}{text[40:]}\n" for name, text in CONTIGS.items()))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("run") / "toy")


def other(base: str) -> str:
    return "CGTA"["ACGT".index(base)]


def line(chrom: str, pos: int, ref: str, alt: str, *more: str) -> str:
    return "\t".join([chrom, str(pos), ".", ref, alt, *(more or (".", ".", "."))]) + "\n"


def make_row(chrom: str, pos: int, ref: str, *alts: str) -> VcfRow:
    return VcfRow(1, chrom, pos, ref, alts, (chrom, str(pos), ".", ref, ",".join(alts)))


def window_of(text: str, start: int, left: int, length: int) -> str:
    padded = "N" * length + text + "N" * length
    first = length + start - left
    return padded[first : first + length]


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_windows_are_those_of_the_edited_chromosome(fasta: Path, data: st.DataObject) -> None:
    chrom = data.draw(st.sampled_from(list(CONTIGS)))
    text = CONTIGS[chrom]
    start = data.draw(st.integers(0, len(text) - 1))
    ref = text[start : start + data.draw(st.integers(1, 12))]
    alt, length = data.draw(BASES), data.draw(st.integers(12, 60))
    strand = data.draw(st.sampled_from(["+", "-"]))
    with Genome(fasta) as genome:
        (allele,) = Windows(genome, Policy(length, strand=strand), "x").cut(make_row(chrom, start + 1, ref, alt))
    edited = text[:start] + alt + text[start + len(ref) :]
    left = (length - max(len(ref), len(alt))) // 2
    expected = [window_of(t, start, left, length) for t in (text, edited)]
    if strand == "-":
        expected = [t.translate(COMPLEMENT)[::-1] for t in expected]
    assert [allele.reference, allele.alternative] == expected
    assert allele.padded_bp == max(t.count("N") for t in expected)


ROWS = st.lists(
    st.tuples(st.sampled_from(["1", "chrX"]), st.integers(1, 10**9), BASES, st.lists(BASES, min_size=1, max_size=3)),
    min_size=1,
    max_size=5,
)


@settings(max_examples=40, deadline=None)
@given(rows=ROWS, header=st.booleans(), crlf=st.booleans(), lower=st.booleans(), packed=st.booleans())
def test_reads_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, int, str, list[str]]],
    header: bool,
    crlf: bool,
    lower: bool,
    packed: bool,
) -> None:
    text = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n" if header else ""
    for chrom, pos, ref, alts in rows:
        written = (ref, ",".join(alts))
        text += line(chrom, pos, *(w.lower() if lower else w for w in written))
    raw = text.replace("\n", "\r\n" if crlf else "\n").encode()
    path = tmp_path_factory.mktemp("vcf") / f"a.vcf{'.gz' if packed else ''}"
    path.write_bytes(gzip.compress(raw) if packed else raw)
    head, found = open_vcf(path)
    assert bool(head.columns) == header
    assert [(r.chrom, r.pos, r.ref, list(r.alts)) for r in found] == rows


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "empty"),
        ("1 5 . A C\n", "line 1: fewer than 5 columns; separate the columns by tabs"),
        ("1\t5\t.\tA\n", "line 1: fewer than 5 columns"),
        (line("1", 5, "A", "C") + "1\t6\t.\tA\tC\n", "line 2: 5 columns where the first row has 8"),
        (line("1", 5, "A", "C").replace("5", "five"), "line 1: POS 'five'"),
        (line("1", 5, "-", "C"), "line 1: REF '-' is no sequence"),
        (line("1", 5, "A", "C,,T"), "line 1: ALT '' is no allele"),
        (line("1", 5, "A", "X"), "line 1: ALT 'X' is no allele"),
        (line("", 5, "A", "C"), "line 1: CHROM is empty"),
        ("#chrom\tpos\n", "line 1: '#chrom"),
        (line("1", 5, "A", "C") + "##late\n", "line 2: a header line after the first variant"),
    ],
)
def test_a_faulty_line_is_named(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "bad.vcf"
    path.write_text(text)
    with pytest.raises(UserError, match=r"bad\.vcf") as error:
        list(open_vcf(path)[1])
    assert told in str(error.value)


@pytest.mark.parametrize("kind", ["binary", "regression", "multilabel"])
def test_scores_equal_those_of_predict_and_log_odds_do_not_saturate(tmp_path: Path, kind: str) -> None:
    labels = {"binary": ("no", "yes"), "regression": ("gc", "a"), "multilabel": ("x", "y")}[kind]
    task = make_task("binary").model_copy(update={"kind": kind, "labels": labels, "metric": ""})
    model = make_net(2)
    folder = write_model(
        tmp_path / "run", task.model_copy(update={"metric": "mse_mean" if kind == "regression" else "auroc"})
    )
    predictor = load_predictor(find_model(folder))
    sequences = [CONTIGS["chr1"][i : i + 40] for i in range(0, 200, 20)] + [CONTIGS["chr2"]]
    scores = score_sequences(model, task, sequences, both_strands=True)
    expected = np.concatenate([predictor.predict_array(pa.array([s])) for s in sequences])
    np.testing.assert_allclose(scores.values, expected, atol=1e-5)
    if kind == "regression":
        assert scores.log_odds is None
        return
    np.testing.assert_allclose(scores.log_odds, np.log(scores.values / (1 - scores.values)), rtol=1e-6)
    loud = score_sequences(lambda c, n: model(c, n) * 1e4, task, sequences, both_strands=False)
    assert loud.log_odds is not None
    assert ((loud.values == 0) | (loud.values == 1)).any()
    assert np.isfinite(loud.log_odds).all()


def test_a_vcf_with_everything_in_it(cli: Cli, run: Path, fasta: Path, tmp_path: Path) -> None:
    text = CONTIGS["chr1"]
    wrong, snv, indel = 100, 151, 160
    lines = [
        "##fileformat=VCFv4.2\n##INFO=<ID=L2G_DIFF,Number=A,Type=Float,Description=\"old\">\n",
        "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tme\n",
        line("1", snv, text[snv - 1].lower(), other(text[snv - 1]), "9", "PASS", "DP=3;L2G_DIFF=7", "GT", "0/1"),
        line("chr1", indel, text[indel - 1 : indel + 2], f"{text[indel - 1]},<DEL>,{text[indel - 1]}GGG", ".", ".", ".", "GT", "1/2"),
        line("chr1", wrong, other(text[wrong - 1]), text[wrong - 1], ".", ".", ".", "GT", "0/0"),
        line("chr2", 1, CONTIGS["chr2"][0], other(CONTIGS["chr2"][0]), ".", ".", ".", "GT", "0/0"),
        line("chr9", 1, "A", "C", ".", ".", ".", "GT", "0/0"),
        line("chr2", 26, "A", "C", ".", ".", ".", "GT", "0/0"),
    ]  # fmt: skip
    vcf = tmp_path / "in.vcf.gz"
    vcf.write_bytes(gzip.compress("".join(lines).encode()))
    base = ["variants", run, "--input", vcf, "--genome", fasta]
    table, copy = tmp_path / "out.parquet", tmp_path / "out.vcf.gz"

    stopped = cli(*base, "--output", table)
    assert stopped.code == 2
    assert "in.vcf.gz, line 6: chr1:100: REF is" in stopped.err
    assert not list(tmp_path.glob("*out*"))

    said = cli(*base, "--on-mismatch", "swap", "--output", table, "--output", copy)
    assert said.code == 0, said.err
    assert "5 alleles of 6 rows scored" in said.out
    assert "1 with REF and ALT exchanged in the file (first: line 6)" in said.out
    assert "1 without scores: the genome has no such contig (first: line 8)" in said.out
    frame = pd.read_parquet(table)
    statuses = ["scored", "scored", "not_a_sequence", "scored", "swapped", "scored", "unknown_contig", "outside_contig"]
    assert frame["status"].tolist() == statuses
    assert frame["line"].tolist() == [4, 5, 5, 5, 6, 7, 8, 9]
    assert frame.loc[2, "alt"] == "<DEL>"
    assert (
        frame["padded_bp"].tolist()[5] == LENGTH_BP - 20 - 1 - 4 + 5 - 1 + 1 - 0 or frame["padded_bp"].tolist()[5] > 0
    )

    predictor = load_predictor(find_model(run))
    for row, start, ref, alt in (
        (0, snv - 1, 1, other(text[snv - 1])),
        (3, indel - 1, 3, f"{text[indel - 1]}GGG"),
    ):
        edited = text[:start] + alt + text[start + ref :]
        left = (LENGTH_BP - max(ref, len(alt))) // 2
        both = [t[start - left : start - left + LENGTH_BP] for t in (text, edited)]
        expected = predictor.predict(both)["probability_present"]
        assert frame.loc[row, "ref_present"] == pytest.approx(expected[0], abs=1e-6)
        assert frame.loc[row, "alt_present"] == pytest.approx(expected[1], abs=1e-6)
    # Swapped: the scores stay those of the file's own alleles.
    left = (LENGTH_BP - 1) // 2
    here = text[wrong - 1 - left : wrong - 1 - left + LENGTH_BP]
    assert frame.loc[4, "alt_present"] == pytest.approx(predictor.predict([here])["probability_present"][0], abs=1e-6)
    scored = frame[frame["status"].isin(["scored", "swapped"])]
    assert (scored["diff_present"] == scored["alt_present"] - scored["ref_present"]).all()
    assert frame.loc[[2, 6, 7], "diff_present"].isna().all()

    with gzip.open(copy, "rt") as file:
        written = file.read().splitlines()
    assert copy.read_bytes()[12:16] == b"BC\x02\x00"  # bgzip, not plain gzip
    assert sum(item.startswith("##INFO=<ID=L2G_DIFF,") for item in written) == 1
    rows = [item.split("\t") for item in written if not item.startswith("#")]
    before = [item.rstrip("\n").split("\t") for item in lines[2:]]
    assert [r[:7] + r[8:] for r in rows] == [b[:7] + b[8:] for b in before]
    info = dict(item.split("=") for item in rows[0][7].split(";"))
    assert info["DP"] == "3"
    assert float(info["L2G_DIFF"]) == pytest.approx(frame.loc[0, "diff_present"], rel=1e-5)
    assert rows[1][7].split(";")[0] == "L2G_STATUS=scored,not_a_sequence,scored"
    assert rows[1][7].split("L2G_ALT=")[1].split(";")[0].split(",")[1] == "."


def test_edges_may_be_left_out_and_a_file_without_scores_leaves_nothing(
    cli: Cli, run: Path, fasta: Path, tmp_path: Path
) -> None:
    vcf = tmp_path / "bare.vcf"
    vcf.write_text(line("chr1", 1, CONTIGS["chr1"][0], "N"))
    base = ["variants", run, "--input", vcf, "--genome", fasta, "--output", tmp_path / "o.csv"]
    assert cli(*base).code == 0
    assert pd.read_csv(tmp_path / "o.csv")["padded_bp"].tolist() == [19]
    (tmp_path / "o.csv").unlink()
    said = cli(*base, "--at-edge", "skip")
    assert said.code == 2
    assert "no allele could be scored (1 without scores: the window reaches over the contig's edge" in said.err
    assert not (tmp_path / "o.csv").exists()
    assert "this model reads up to 40 bp" in cli(*base, "--window-bp", 41).err


def test_pairs_need_no_genome(cli: Cli, run: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.csv"
    one, two = CONTIGS["chr1"][:40], CONTIGS["chr1"][40:75].lower()
    pairs.write_text(f"id,ref,alt\na,{one},{two}\nb,{two},{two}\n")
    said = cli("variants", run, "--input", pairs, "--output", tmp_path / "o.tsv")
    assert said.code == 0, said.err
    frame = pd.read_csv(tmp_path / "o.tsv", sep="\t")
    expected = load_predictor(find_model(run)).predict([one, two])["probability_present"].to_numpy()
    np.testing.assert_allclose(frame["ref_present"], expected, atol=1e-6)
    np.testing.assert_allclose(frame["diff_present"], [expected[1] - expected[0], 0], atol=1e-6)
    pairs.write_text(f"ref,alt\n{one},{one}A\n")
    assert "pairs.csv, column 'alt', row 1: the sequence is 41 bp long" in cli("variants", run, "--input", pairs).err
    pairs.write_text(f"ref,other\n{one},{one}\n")
    assert "no column 'alt'" in cli("variants", run, "--input", pairs).err
    assert "Missing option '--input'" in cli("variants", run).err
