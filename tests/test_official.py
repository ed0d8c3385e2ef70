"""The official benchmarks in their published forms: small files of exactly that form, and every fault in them."""

from __future__ import annotations

import gzip
import shutil
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import h5py
import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io

from l2g_ray.data.options import SourceOptions
from l2g_ray.data.raw import RawTask
from l2g_ray.data.readers import iter_tables
from l2g_ray.data.sources import deepsea, deepstarr, genomic_benchmarks, official
from l2g_ray.data.sources.deepsea import decode
from l2g_ray.data.sources.hub import fetch_dataset
from l2g_ray.data.sources.official import is_official, open_official
from l2g_ray.errors import UserError
from l2g_ray.hub import hub_answers
from l2g_ray.tasks.catalogue import find_tasks, load_bench, parse_task
from l2g_ray.tasks.schema import Task

OPTIONS = SourceOptions()
COMPLEMENT = str.maketrans("ACGT", "TGCA")


def make_task(**fields) -> Task:
    base = {"bench": "own", "name": "own", "kind": "binary", "labels": ["negative", "positive"]}
    return parse_task({**base, **fields}, "test")


def open_form(task: Task, folder: Path, options: SourceOptions = OPTIONS) -> RawTask:
    raw = open_official(task, folder, options)
    assert raw is not None
    assert all(path.is_file() for path in raw.files.values())
    return raw


def rows(raw: RawTask, split: str, *columns: str) -> list[tuple]:
    """The rows of all pieces of a split: id, sequence and these columns."""
    found = []
    for piece in raw.splits[split]:
        for table in piece.tables():
            assert table.schema.field("id").type == pa.string()
            assert table.schema.field("sequence").type == pa.large_string()
            found += list(zip(*(table[name].to_pylist() for name in ("id", "sequence", *columns)), strict=True))
    return found


def block_sizes(raw: RawTask, split: str) -> list[int]:
    return [table.num_rows for piece in raw.splits[split] for table in piece.tables()]


# ---- Genomic Benchmarks ----------------------------------------------------------------------------------------------

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


# ---- the hub's Parquet -----------------------------------------------------------------------------------------------


def write_shard(path: Path, **columns: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def test_shards_of_one_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shard(tmp_path / "data" / "train-00000-of-00002.parquet", seq=["ACGT", "GGCC", "TTTT"], label=[1, 0, 1])
    write_shard(tmp_path / "data" / "train-00001-of-00002.parquet", seq=["CCCC"], label=[0])
    write_shard(tmp_path / "data" / "test-00000-of-00001.parquet", seq=["AAAA"], label=[1])
    task = find_tasks("genomic_benchmarks", ["human_ocr_ensembl"])[0]
    monkeypatch.setattr(official, "BLOCK_ROWS", 2)
    raw = open_form(task, tmp_path)
    assert block_sizes(raw, "train") == [2, 1, 1]
    assert [row[1:] for row in rows(raw, "train", "label")] == [("ACGT", 1), ("GGCC", 0), ("TTTT", 1), ("CCCC", 0)]
    assert rows(raw, "test", "label") == [("1", "AAAA", 1)]
    (tmp_path / "data" / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(UserError, match="1 of 2 shards"):
        open_official(task, tmp_path, OPTIONS)
    (tmp_path / "data" / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(UserError, match=r"no test-\*\.parquet"):
        open_official(task, tmp_path, OPTIONS)


def write_nt_tables(folder: Path) -> Path:
    for split, offset in (("train", 0), ("test", 10)):
        write_shard(
            folder / "data" / f"{split}-00000-of-00001.parquet",
            sequence=["ACGT", "GGCC", "TTTT", "A" * (5 + offset)],
            name=["chr1:5-9", "same", "chr2:1-5", "same"],
            label=[0, 1, 1, 0],
            task=["H3", "enhancers", "H3K9ac", "enhancers"],
        )
    return folder


def test_rows_of_all_tasks_in_one_table(tmp_path: Path) -> None:
    folder = write_nt_tables(tmp_path)
    raw = open_form(find_tasks("nt", ["enhancers"])[0], folder)
    assert rows(raw, "train", "label") == [("same", "GGCC", 1), ("same", "AAAAA", 0)]
    assert rows(raw, "test", "label") == [("same", "GGCC", 1), ("same", "A" * 15, 0)]
    assert rows(open_form(find_tasks("nt", ["H3"])[0], folder), "train", "label") == [("chr1:5-9", "ACGT", 0)]
    assert "task enhancers" in raw.splits["train"][0].where


def test_faulty_shards(tmp_path: Path) -> None:
    folder = write_nt_tables(tmp_path)
    with pytest.raises(UserError, match=r"no rows with task 'H2AFZ'.*nucleotide_transformer_downstream_tasks_revised"):
        rows(open_form(find_tasks("nt_revised", ["H2AFZ"])[0], folder), "train")
    with pytest.raises(UserError, match=r"no column 'activity'"):
        rows(open_form(make_task(label_columns=["activity"]), folder), "train")
    with pytest.raises(UserError, match=r"no column 'config'.*several tasks"):
        rows(open_form(make_task(hub_filter={"config": "{name}"}), folder), "train")
    (folder / "data" / "train-00000-of-00001.parquet").write_text("no parquet")
    with pytest.raises(UserError, match=r"train-00000-of-00001\.parquet: the file cannot be read"):
        rows(open_form(make_task(), folder), "train")


# ---- Nucleotide Transformer, GUE: plain split files ------------------------------------------------------------------


def test_fasta_of_the_nucleotide_transformer_may_repeat_names(tmp_path: Path) -> None:
    (tmp_path / "train.fna").write_text(">TATA|1\nACGT\nAC\n>TATA|0\nGGCC\n>TATA|1\nTTTT\n")
    (tmp_path / "test.fna").write_text(">TATA|0\nCCCC\n")
    assert open_official(find_tasks("nt", ["promoter_tata"])[0], tmp_path, OPTIONS) is None
    (table,) = iter_tables(tmp_path / "train.fna")
    assert table.to_pydict() == {
        "id": ["TATA"] * 3, "sequence": ["ACGTAC", "GGCC", "TTTT"], "label": ["1", "0", "1"]
    }  # fmt: skip


def test_other_folders_are_not_taken_for_a_published_form(tmp_path: Path) -> None:
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.csv").write_text("sequence,label\nACGT,1\n")
    assert not is_official(tmp_path)
    assert not is_official(tmp_path / "nowhere")
    write_shard(tmp_path / "train.parquet", sequence=["A"], label=[1])
    assert not is_official(tmp_path)


# ---- DeepSTARR -------------------------------------------------------------------------------------------------------

DEEPSTARR = find_tasks("deepstarr")[0]
LABELS = DEEPSTARR.label_columns


def write_activities(
    path: Path, lines: list[str], columns: str = "set\tSequence\tDev_log2_enrichment\tHk_log2_enrichment\tz"
) -> None:
    path.write_text("\n".join([columns, *lines, ""]))


def test_deepstarr_in_one_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "Sequences_activity_all.txt"
    lines = ["Train\tACGT\t1.5\t-2\t0", "Val\tGGGG\t0\t0\t0", "Train\tCCCC\t-0.25\t3\t0", "Test\tTTTT\t7\t8\t1"]
    write_activities(path, lines)
    monkeypatch.setattr(deepstarr, "BLOCK_ROWS", 2)
    raw = open_form(DEEPSTARR, tmp_path)
    numbers = {split: [(r[1], *map(float, r[2:])) for r in rows(raw, split, *LABELS)] for split in raw.splits}
    assert numbers == {
        "train": [("ACGT", 1.5, -2.0), ("CCCC", -0.25, 3.0)],
        "valid": [("GGGG", 0.0, 0.0)],
        "test": [("TTTT", 7.0, 8.0)],
    }
    assert block_sizes(raw, "train") == [1, 1]
    write_activities(path, [*lines, "Tset\tACGT\t1\t1\t0"])
    with pytest.raises(UserError, match=r"all\.txt, row 5: set is 'Tset'"):
        rows(open_form(DEEPSTARR, tmp_path), "train")
    write_activities(path, lines[:3])
    with pytest.raises(UserError, match="no rows of set Test"):
        rows(open_form(DEEPSTARR, tmp_path), "test")
    for old in ("set", "Sequence", "Hk_log2_enrichment"):
        columns = "set\tSequence\tDev_log2_enrichment\tHk_log2_enrichment\tz".replace(old, "other")
        write_activities(path, lines, columns)
        with pytest.raises(UserError, match=f"no column '{old}'"):
            rows(open_form(DEEPSTARR, tmp_path), "train")


def write_pairs(folder: Path, counts: dict[str, int]) -> None:
    for name, count in counts.items():
        fasta = [f">chr2L_{i}_{i + 249}_+_peak\nAC{'GT'[i % 2]}\n" for i in range(count)]
        (folder / f"Sequences_{name}.fa").write_text("".join(fasta))
        lines = [f"{i}\t{i}.5\t-{i}" for i in range(count)]
        write_activities(folder / f"Sequences_activity_{name}.txt", lines, "x\tDev_log2_enrichment\tHk_log2_enrichment")


def test_deepstarr_in_pairs_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deepstarr, "BLOCK_ROWS", 2)
    write_pairs(tmp_path, {"Train": 5, "Val": 1, "Test": 2})
    raw = open_form(DEEPSTARR, tmp_path)
    assert block_sizes(raw, "train") == [2, 2, 1]
    assert [(r[0], r[1], float(r[2]), float(r[3])) for r in rows(raw, "train", *LABELS)] == [
        (f"chr2L_{i}_{i + 249}_+_peak", f"AC{'GT'[i % 2]}", i + 0.5, -i) for i in range(5)
    ]
    assert [len(rows(raw, split)) for split in ("valid", "test")] == [1, 2]
    path = tmp_path / "Sequences_activity_Train.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-1]))
    with pytest.raises(UserError, match=r"activity_Train\.txt: 4 rows, but Sequences_Train\.fa has more"):
        rows(open_form(DEEPSTARR, tmp_path), "train")
    path.write_text("\n".join([*lines, lines[-1]]))
    with pytest.raises(UserError, match=r"more rows than Sequences_Train\.fa has records \(5\)"):
        rows(open_form(DEEPSTARR, tmp_path), "train")
    path.write_text("\n".join([lines[0].replace("Dev", "dev"), *lines[1:]]))
    with pytest.raises(UserError, match="no column 'Dev_log2_enrichment'"):
        rows(open_form(DEEPSTARR, tmp_path), "train")
    path.unlink()
    with pytest.raises(UserError, match=r"no Sequences_activity_Train\.txt"):
        open_official(DEEPSTARR, tmp_path, OPTIONS)


# ---- DeepSEA ---------------------------------------------------------------------------------------------------------


def random_windows(n: int, length: int, n_outputs: int, seed: int) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Sequences with some N, the same one-hot (n, 4, length) with rows A, G, C, T, and labels."""
    generator = np.random.default_rng(seed)
    sequences = ["".join(row) for row in generator.choice(list("ACGTN"), (n, length))]
    windows = np.zeros((n, 4, length), np.uint8)
    for i, sequence in enumerate(sequences):
        for j, letter in enumerate(sequence):
            if letter != "N":
                windows[i, "AGCT".index(letter), j] = 1
    return sequences, windows, generator.integers(0, 2, (n, n_outputs)).astype(np.uint8)


def write_hdf5(path: Path, split: str, windows: np.ndarray, labels: np.ndarray, **storage) -> None:
    with h5py.File(path, "w", userblock_size=512) as file:  # as MATLAB does
        file.create_dataset(f"{split}xdata", data=windows.transpose(2, 1, 0), **storage)
        file.create_dataset(f"{split}data", data=labels.T)


def write_mat5(path: Path, split: str, windows: np.ndarray, labels: np.ndarray) -> None:
    scipy.io.savemat(path, {f"{split}xdata": windows, f"{split}data": labels})


def labels_task(count: int) -> Task:
    return make_task(kind="multilabel", labels={"prefix": "target_", "count": count}, label_columns=["label"])


def test_deepsea_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deepsea, "BLOCK_ROWS", 3)
    made = {
        split: random_windows(n, 20, 5, i) for i, (split, n) in enumerate({"train": 7, "valid": 4, "test": 2}.items())
    }
    write_hdf5(tmp_path / "train.mat", "train", *made["train"][1:])
    write_mat5(tmp_path / "valid.mat", "valid", *made["valid"][1:])
    write_mat5(tmp_path / "test.mat", "test", *made["test"][1:])
    raw = open_form(labels_task(5), tmp_path)
    assert raw.task.labels == tuple(f"target_{i}" for i in range(5))
    for split, (sequences, _, labels) in made.items():
        found = rows(raw, split, "label")
        assert [row[0] for row in found] == [str(i + 1) for i in range(len(sequences))]
        assert [row[1] for row in found] == sequences
        assert np.array_equal([row[2] for row in found], labels)
    assert block_sizes(raw, "train") == [3, 3, 1]
    assert block_sizes(raw, "valid") == [3, 1]
    assert next(raw.splits["train"][0].tables())["label"].type == pa.list_(pa.float32(), 5)


def test_deepsea_reads_whole_chunks_of_hdf5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deepsea, "BLOCK_ROWS", 2)
    sequences, windows, labels = random_windows(11, 8, 3, 1)
    for split in ("train", "test"):
        write_hdf5(tmp_path / f"{split}.mat", split, windows, labels, chunks=(8, 4, 5), compression="gzip")
    reads = []
    original = h5py.Dataset.__getitem__

    def note_read(self: h5py.Dataset, key: tuple) -> np.ndarray:
        reads.append(key[-1])
        return original(self, key)

    monkeypatch.setattr(h5py.Dataset, "__getitem__", note_read)
    raw = open_form(labels_task(3), tmp_path)
    assert [row[1] for row in rows(raw, "train")] == sequences
    assert block_sizes(raw, "train") == [2, 2, 1, 2, 2, 1, 1]
    assert {(key.start, key.stop) for key in reads} == {(0, 5), (5, 10), (10, 15)}


def test_deepsea_npz(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deepsea, "BLOCK_ROWS", 3)
    task = find_tasks("deepsea", ["deepsea_filtered"])[0]
    made = {
        split: random_windows(n, 12, 36, i) for i, (split, n) in enumerate({"train": 7, "val": 2, "test": 3}.items())
    }
    arrays = {f"x_{split}": windows.transpose(0, 2, 1).astype(np.float32) for split, (_, windows, _) in made.items()}
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    arrays |= {f"y_{split}": labels for split, (_, _, labels) in made.items()}
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "deepsea_filtered.npz", **arrays)
        raw = open_form(task, tmp_path)
        for split, name in (("train", "train"), ("valid", "val"), ("test", "test")):
            found = rows(raw, split, "label")
            assert [row[1] for row in found] == made[name][0]
            assert np.array_equal([row[2] for row in found], made[name][2])
        assert block_sizes(raw, "train") == [3, 3, 1]
        assert set(raw.splits) == {"train", "valid", "test"}


def test_deepsea_takes_the_file_with_the_tasks_labels(tmp_path: Path) -> None:
    sequences, windows, labels = random_windows(3, 6, 4, 0)
    for split in ("train", "test"):
        write_mat5(tmp_path / f"{split}.mat", split, windows[:2], labels[:2])
    x, y = np.ascontiguousarray(windows.transpose(0, 2, 1)), labels[:, :2]
    np.savez(tmp_path / "deepsea_filtered.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    assert [row[1] for row in rows(open_form(labels_task(4), tmp_path), "train")] == sequences[:2]
    raw = open_form(labels_task(2), tmp_path)
    assert [row[1] for row in rows(raw, "train")] == sequences
    assert set(raw.splits) == {"train", "test"}
    with pytest.raises(UserError, match=r"4 labels a row \(train\) where the task 'own' has 3"):
        open_official(labels_task(3), tmp_path, OPTIONS)
    with pytest.raises(UserError, match="of kind binary"):
        open_official(make_task(), tmp_path, OPTIONS)


def test_deepsea_label_names(tmp_path: Path) -> None:
    _, windows, labels = random_windows(2, 6, 3, 0)
    for split in ("train", "test"):
        write_mat5(tmp_path / f"{split}.mat", split, windows, labels)
    (tmp_path / "names.txt").write_text("8988T|DNase|None\nAoSMC|DNase|None\n\n8988T|DNase|None\n")
    raw = open_form(labels_task(3), tmp_path)
    assert raw.task.labels == ("8988T|DNase|None", "AoSMC|DNase|None", "8988T|DNase|None (2)")
    assert raw.files["labels"] == tmp_path / "names.txt"
    (tmp_path / "predictor.names").write_text("one\n")
    raw = open_form(labels_task(3), tmp_path)
    assert raw.task.labels[0] == "target_0"
    assert "1 names for 3 labels" in raw.notes[0]


def test_all_zeros_are_n_and_what_is_not_one_hot_is_refused() -> None:
    windows = np.zeros((2, 4, 3))
    windows[0, [0, 1, 2], [0, 1, 2]] = 1
    windows[1, 3, 0] = 1
    assert decode(windows, "x").to_pylist() == ["AGC", "TNN"]
    windows[1, 0, 0] = 1
    with pytest.raises(UserError, match=r"x, row 12: position 1 is 1, 0, 0, 1 in the 4 channels"):
        decode(windows, "x", 11)
    windows[1, :, 0] = 0.25
    with pytest.raises(UserError, match=r"0\.25, 0\.25, 0\.25, 0\.25"):
        decode(windows, "x", 11)


def test_faulty_deepsea_files(tmp_path: Path) -> None:
    _, windows, labels = random_windows(5, 6, 3, 0)
    train, test, npz = (tmp_path / name for name in ("train.mat", "test.mat", "deepsea_filtered.npz"))
    write_mat5(train, "train", windows, labels)

    def refused(message: str) -> None:
        with pytest.raises(UserError, match=message):
            open_official(labels_task(3), tmp_path, OPTIONS)

    refused(r"no test\.mat")
    write_mat5(test, "train", windows, labels)
    refused(r"test\.mat: no variable 'testxdata' \(it has trainxdata, traindata\)")
    write_hdf5(test, "test", windows, labels[:4])
    refused(r"test\.mat: testxdata and testdata have the shapes \(5, 4, 6\) and \(4, 3\)")
    write_hdf5(test, "test", windows.transpose(0, 2, 1), labels)
    refused(r"\(5, 6, 4\)")
    test.write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
    refused(r"test\.mat: the file cannot be read")
    wrong = windows.copy()
    wrong[3, :, 2] = 1
    write_mat5(test, "test", wrong, labels)
    with pytest.raises(UserError, match=r"test\.mat \(test\), row 4: position 3"):
        rows(open_form(labels_task(3), tmp_path), "test")
    train.unlink()
    x = np.ascontiguousarray(windows.transpose(0, 2, 1))
    np.savez(npz, x_train=x, y_train=labels)
    refused("no x_test and y_test")
    np.savez(npz, x_train=x, y_train=labels, x_test=x)
    refused("x_test is there, but no y_test")
    np.savez(npz, x_train=np.asfortranarray(x), y_train=labels, x_test=x, y_test=labels)
    refused("Fortran order")
    np.savez(npz, x_train=x.astype(object), y_train=labels, x_test=x, y_test=labels)
    refused("holds objects")
    npz.write_bytes(npz.read_bytes()[:300])
    refused(r"deepsea_filtered\.npz: the file cannot be read")


# ---- the hub ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def fake_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose sub-folders OWNER/NAME are the data sets of the hub; the cache is the folder `cache` beside it."""
    from fnmatch import fnmatch

    hub, cache = tmp_path / "hub", tmp_path / "cache"

    def list_files(root: Path) -> list[str]:
        return [path.relative_to(root).as_posix() for path in sorted(root.rglob("*")) if path.is_file()]

    def dataset_info(self, repo_id: str, timeout: float) -> SimpleNamespace:
        if not (hub / repo_id).is_dir():
            raise ConnectionResetError("the line is cut\nfurther lines")
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in list_files(hub / repo_id)])

    def snapshot_download(repo_id, repo_type, allow_patterns=None, cache_dir=None, local_files_only=False) -> str:
        target = Path(cache_dir or cache) / repo_id
        if local_files_only and not target.is_dir():
            raise FileNotFoundError("not cached")
        for name in [] if local_files_only else list_files(hub / repo_id):
            if any(fnmatch(name, pattern) for pattern in allow_patterns):
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(hub / repo_id / name, target / name)
        return str(target)

    monkeypatch.setattr("l2g_ray.data.sources.hub.hub_answers", lambda: True)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return hub


def fill(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"sequence,label\nACGT,{len(name)}\n")


@pytest.mark.parametrize("layout", ["{0}", "GUE/{1}"])
def test_a_task_is_fetched_from_its_own_folder(fake_hub: Path, tmp_path: Path, layout: str) -> None:
    config = {"emp_H4": "EMP/H4", "tf_0": "tf/0", "mouse_0": "mouse/0", "virus_covid": "virus/covid",
              "prom_core_all": "prom/prom_core_all", "splice_reconstructed": "splice/reconstructed"}  # fmt: skip
    named = {**{name: name for name in config}, "tf_0": "human_tf_0"}
    folders = {name: layout.format(named[name], folder) for name, folder in config.items()}
    for folder in (*folders.values(), "emp_H4ac", "GUE/EMP/H4ac"):
        fill(fake_hub / "leannmlindsey" / "GUE", *(f"{folder}/{part}.csv" for part in ("train", "dev", "test")))
    for name, folder in folders.items():
        found = fetch_dataset(find_tasks("gue", [name])[0], tmp_path / "cache")
        assert found == tmp_path / "cache" / "leannmlindsey" / "GUE" / folder
        assert sorted(path.name for path in found.iterdir()) == ["dev.csv", "test.csv", "train.csv"]


def test_fetched_forms_are_understood(fake_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_nt_tables(fake_hub / "InstaDeepAI" / "nucleotide_transformer_downstream_tasks")
    fill(fake_hub / "InstaDeepAI" / "nucleotide_transformer_downstream_tasks", "README.md", "data/notes.csv")
    task = find_tasks("nt", ["enhancers"])[0]
    folder = fetch_dataset(task)
    assert sorted(path.name for path in folder.rglob("*.*")) == [
        "test-00000-of-00001.parquet", "train-00000-of-00001.parquet"
    ]  # fmt: skip
    assert len(rows(open_form(task, folder), "train")) == 2
    # Without a network the copy in the cache will do.
    monkeypatch.setattr("l2g_ray.data.sources.hub.hub_answers", lambda: False)
    assert fetch_dataset(task) == folder
    with pytest.raises(UserError, match=r"cannot be reached.*--data-dir"):
        fetch_dataset(find_tasks("nt_revised", ["enhancers"])[0])


def test_what_the_hub_does_not_have(fake_hub: Path) -> None:
    with pytest.raises(UserError, match=r"Genomic_Benchmarks_human_ocr_ensembl.*\(the line is cut\).*--data-dir DIR$"):
        fetch_dataset(find_tasks("genomic_benchmarks", ["human_ocr_ensembl"])[0])
    fill(fake_hub / "leannmlindsey" / "GUE", "mouse/0/train.csv", "tf_1/train.csv", "README.md")
    with pytest.raises(UserError, match=r"leannmlindsey/GUE has no train and test files.*DIR/GUE/tf/0"):
        fetch_dataset(find_tasks("gue", ["tf_0"])[0])
    with pytest.raises(UserError, match=r"no hub has its files; .*from https://data\.starklab\.org"):
        fetch_dataset(DEEPSTARR)


def test_a_data_set_that_is_not_there(fake_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import RepositoryNotFoundError

    def not_found(self, repo_id: str, timeout: float) -> None:
        raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", not_found)
    with pytest.raises(UserError, match=r"the hub has no data set leannmlindsey/GUE.*download the files yourself"):
        fetch_dataset(find_tasks("gue", ["tf_0"])[0])


def test_an_unreachable_hub_ends_within_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        closed = taken.getsockname()[1]
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed}")
    begun = time.monotonic()
    with pytest.raises(UserError, match=r"'H3'.*hub cannot be reached.*DIR/nt/H3.*--data-dir DIR$"):
        fetch_dataset(find_tasks("nt", ["H3"])[0], tmp_path)
    assert time.monotonic() - begun < 5


def test_the_hub_is_asked_at_its_own_port(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        for endpoint in (f"http://{address}", f"https://{address}/mirror", address):
            monkeypatch.setenv("HF_ENDPOINT", endpoint)
            assert hub_answers()
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert not hub_answers()
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert not hub_answers()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:port")
    assert not hub_answers()


# ---- the catalogue ---------------------------------------------------------------------------------------------------


def test_the_two_releases_of_the_nucleotide_transformer_share_nothing() -> None:
    original, revised = (load_bench(name).tasks.values() for name in ("nt", "nt_revised"))
    for field in (lambda task: set(task.source_folders), lambda task: {task.hub}):
        assert not set.union(*map(field, original)) & set.union(*map(field, revised))
    # A folder of one release is no copy of the other's repository.
    for task in revised:
        assert all(part.split("/")[0] in ("nt_revised", "nucleotide_transformer_downstream_tasks_revised")
                   for part in task.source_folders)  # fmt: skip
    assert {task.name for task in original} != {task.name for task in revised}


def test_a_release_is_not_picked_from_the_others_repository(fake_hub: Path) -> None:
    write_nt_tables(fake_hub / "InstaDeepAI" / "nucleotide_transformer_downstream_tasks")
    with pytest.raises(UserError, match="nucleotide_transformer_downstream_tasks_revised"):
        fetch_dataset(find_tasks("nt_revised", ["enhancers"])[0])


def test_names_are_put_into_folders_and_labels_are_counted() -> None:
    task = make_task(folder="a/{name}", folders=["{name}", "b"], hub="o/x_{name}", hub_filter={"task": "{name}"})
    assert task.source_folders == ("a/own", "own", "b")
    assert (task.hub, task.hub_filter) == ("o/x_own", {"task": "own"})
    assert make_task().source_folders == ("own/own",)
    assert len(labels_task(919).labels) == 919
    assert labels_task(919).labels[::918] == ("target_000", "target_918")
    assert labels_task(919).label_columns == ("label",)
    assert make_task(kind="regression", labels={"prefix": "y", "count": 2}).label_columns == ("y0", "y1")
    assert Task.model_validate(task.model_dump(mode="json")) == task


@pytest.mark.parametrize("labels", [{"prefix": "a"}, {"prefix": "a", "count": 0}, {"prefix": 1, "count": 2}, {}])
def test_labels_that_cannot_be_counted(labels: dict) -> None:
    with pytest.raises(UserError, match="give a list of names, or prefix"):
        make_task(labels=labels)


def test_label_columns_are_one_or_as_many_as_labels() -> None:
    with pytest.raises(UserError, match=r"label_columns must name 1 or 3 column\(s\), not 2"):
        make_task(kind="multilabel", labels=["a", "b", "c"], label_columns=["x", "y"])
    with pytest.raises(UserError, match=r"label_columns must name 1 column\(s\), not 2"):
        make_task(label_columns=["x", "y"])


def test_tasks_that_must_share_a_folder_are_told_apart_by_their_files() -> None:
    for bench in ("nt", "nt_revised", "gue", "genomic_benchmarks"):
        tasks = find_tasks(bench)
        shared = [folder for task in tasks for folder in task.source_folders]
        assert all(shared.count(folder) == 1 or all(task.hub_filter for task in tasks) for folder in shared), bench
