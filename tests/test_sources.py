"""Each form of a person's own data, through `open_source` and `prepare`, with the rows, labels and splits it must give."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from Bio import bgzf
from click.testing import CliRunner

from l2g_ray.cli.main import main
from l2g_ray.cli.source import find_source, make_options
from l2g_ray.config import DataSettings
from l2g_ray.data.dataset import PreparedTask, open_prepared
from l2g_ray.data.options import SourceOptions
from l2g_ray.data.prepare import check_raw, prepare
from l2g_ray.data.raw import RawTask
from l2g_ray.data.sources import open_source
from l2g_ray.data.splits import hash_indices, part_rows
from l2g_ray.errors import UserError

N_ROWS = 60


def random_sequences(n: int, length_bp: int = 30, seed: int = 0) -> list[str]:
    generator = np.random.default_rng(seed)
    return ["".join(row) for row in generator.choice(list("ACGT"), (n, length_bp))]


SEQUENCES = random_sequences(N_ROWS)


def make_table(**columns: list) -> pa.Table:
    """Ids s0, s1, ..., the sequences, and further columns."""
    return pa.table({"id": [f"s{i}" for i in range(N_ROWS)], "sequence": SEQUENCES} | columns)


def delimited(table: pa.Table, delimiter: str) -> str:
    rows = [table.column_names, *zip(*table.to_pydict().values(), strict=True)]
    return "".join(delimiter.join("" if cell is None else str(cell) for cell in row) + "\n" for row in rows)


def write(path: Path, table: pa.Table) -> Path:
    """A table in the form that the path's name says: .csv, .tsv, .jsonl, .parquet; text also .gz, .zst."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stem = path.name.removesuffix(".gz").removesuffix(".zst")
    if stem.endswith(".parquet"):
        pq.write_table(table, path)
        return path
    if stem.endswith(".jsonl"):
        text = "".join(json.dumps(row) + "\n" for row in table.to_pylist())
    else:
        text = delimited(table, "\t" if stem.endswith(".tsv") else ",")
    return write_text(path, text)


def write_text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    elif path.suffix == ".zst":
        path.write_bytes(pa.Codec("zstd").compress(text.encode(), asbytes=True))
    elif path.suffix == ".bgz":
        with bgzf.BgzfWriter(str(path)) as file:
            file.write(text.encode())
    else:
        path.write_text(text)
    return path


def fasta(headers: list[str], sequences: list[str], width: int = 70) -> str:
    lines = []
    for header, sequence in zip(headers, sequences, strict=True):
        lines += [f">{header}", *(sequence[i : i + width] for i in range(0, len(sequence), width))]
    return "\n".join([*lines, ""])


def own(*paths: Path, **options: Any) -> RawTask:
    return open_source(paths, SourceOptions(**options))


def read_all(prepared: PreparedTask) -> dict[str, list[dict]]:
    """The rows of every split."""
    parts = {split: prepared.table(split) for split in ("train", "valid")} | {"test": prepared.open_test()}
    return {split: table.to_pylist() for split, table in parts.items()}


def collect(prepared: PreparedTask) -> dict[str, Any]:
    """Sequence to label over all splits; no sequence may stand in two."""
    rows = [row for found in read_all(prepared).values() for row in found]
    found = {row["sequence"]: row["label"] for row in rows}
    assert len(found) == len(rows)
    return found


def lay(tmp_path: Path, raw: RawTask, **settings: Any) -> PreparedTask:
    return prepare(raw, tmp_path / "out", DataSettings(**settings))


# ---- tables ----------------------------------------------------------------------------------------------------------

TABLES = [f"t.{kind}{suffix}" for kind in ("csv", "tsv", "jsonl") for suffix in ("", ".gz", ".zst")] + ["t.parquet"]


@pytest.mark.parametrize("name", TABLES)
def test_one_table(tmp_path: Path, name: str) -> None:
    codes = [i % 3 for i in range(N_ROWS)]
    raw = own(write(tmp_path / name, make_table(label=codes)))
    assert (raw.task.bench, raw.task.name, raw.task.kind, raw.task.labels) == (
        "user",
        "t",
        "multiclass",
        ("0", "1", "2"),
    )
    prepared = lay(tmp_path, raw)
    assert collect(prepared) == dict(zip(SEQUENCES, codes, strict=True))
    # A tenth of each class for test, then a tenth of what is left of each class for validation.
    facts = prepared.manifest["splits"]
    assert facts["test"]["classes"] == {"0": 2, "1": 2, "2": 2}
    assert facts["valid"]["classes"] == {"0": 2, "1": 2, "2": 2}
    assert facts["train"]["classes"] == {"0": 16, "1": 16, "2": 16}
    for rows in read_all(prepared).values():
        assert all(row["id"] == f"s{SEQUENCES.index(row['sequence'])}" for row in rows)
        assert [int(row["id"][1:]) for row in rows] == sorted(int(row["id"][1:]) for row in rows)


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl.gz", "t.parquet"])
def test_columns_by_other_names(tmp_path: Path, name: str) -> None:
    table = pa.table(
        {
            "gene": [f"g{i}" for i in range(N_ROWS)],
            "dna": SEQUENCES,
            "class": ["on" if i % 2 else "off" for i in range(N_ROWS)],
            "label": [0.5] * N_ROWS,
        }
    )
    raw = own(write(tmp_path / name, table), sequence_column="dna", label_columns=("class",), id_column="gene")
    assert (raw.task.kind, raw.task.labels, raw.task.label_columns) == ("binary", ("off", "on"), ("class",))
    assert raw.task.sequence_column == "dna"
    rows = [row for found in read_all(lay(tmp_path, raw)).values() for row in found]
    assert {row["id"]: (row["sequence"], row["label"]) for row in rows} == {
        f"g{i}": (SEQUENCES[i], i % 2) for i in range(N_ROWS)
    }


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", make_table(label=[i % 2 for i in range(N_ROWS)]))
    for options, said in (
        ({"sequence_column": "dna"}, r"t\.csv: no column 'dna' .*name it with --sequence-column"),
        ({"label_columns": ("lable",)}, r"t\.csv: no column 'lable' .did you mean 'label'.*correct --label-column"),
        ({"id_column": "gene"}, r"t\.csv: no column 'gene' .*correct --id-column"),
        ({"split": "group", "group_column": "gene"}, r"t\.csv: no column 'gene' to part the rows by"),
        ({"split": "given"}, r"t\.csv: no column 'split' to part the rows by"),
    ):
        with pytest.raises(UserError, match=said):
            prepare(own(path, **options), tmp_path / "out", DataSettings())


def test_a_header_with_blanks_round_its_names(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("sequence , label\n" + "".join(f"{s}, {i % 2}\n" for i, s in enumerate(SEQUENCES)))
    raw = own(tmp_path / "t.csv")
    assert (raw.task.kind, raw.task.label_columns) == ("binary", ("label",))


def test_a_dnabert2_folder(tmp_path: Path) -> None:
    sizes = {"train": 40, "dev": 8, "test": 12}
    texts = iter(SEQUENCES)
    given = {split: [(next(texts), i % 2) for i in range(n)] for split, n in sizes.items()}
    for split, rows in given.items():
        write_text(
            tmp_path / "prom_core_all" / f"{split}.csv", "sequence,label\n" + "".join(f"{s},{y}\n" for s, y in rows)
        )
    raw = own(tmp_path / "prom_core_all")
    assert (raw.task.name, raw.task.kind) == ("prom_core_all", "binary")
    prepared = lay(tmp_path, raw)
    found = {split: [(row["sequence"], row["label"]) for row in rows] for split, rows in read_all(prepared).items()}
    assert found == {"train": given["train"], "valid": given["dev"], "test": given["test"]}
    assert prepared.manifest["valid"] == {"made": "given", "file": "dev.csv"}
    assert prepared.manifest["made"] == {"rule": "given"}
    with pytest.raises(UserError, match=r"train\.csv: comes with its own splits; give one file to part it by --split"):
        prepare(own(tmp_path / "prom_core_all", split="random"), tmp_path / "other", DataSettings())


def test_a_folder_of_folders(tmp_path: Path) -> None:
    table = make_table(label=[i % 2 for i in range(N_ROWS)])
    for name, start, stop in (("train/a", 0, 20), ("train/b", 20, 45), ("test/a", 45, 50), ("test/b", 50, 60)):
        write(tmp_path / "mine" / f"{name}.parquet", table.slice(start, stop - start))
    prepared = lay(tmp_path, own(tmp_path / "mine"))
    rows = read_all(prepared)
    assert [row["id"] for row in rows["test"]] == [f"s{i}" for i in range(45, 60)]
    assert sorted([row["id"] for row in rows["train"] + rows["valid"]]) == sorted(f"s{i}" for i in range(45))
    files = [Path(source["file"]).name for source in prepared.manifest["source"].values()]
    assert sorted(files) == ["a.parquet", "a.parquet", "b.parquet", "b.parquet"]


def test_files_of_a_split_have_the_same_columns(tmp_path: Path) -> None:
    table = make_table(label=[i % 2 for i in range(N_ROWS)])
    write(tmp_path / "mine" / "train" / "a.csv", table.append_column("chrom", [["chr1"] * N_ROWS]))
    write(tmp_path / "mine" / "train" / "b.csv", table)
    write(tmp_path / "mine" / "test.csv", table.slice(0, 5))
    with pytest.raises(UserError, match=r"b\.csv: there is no column 'chrom', which .*a\.csv has; give all rows"):
        lay(tmp_path, own(tmp_path / "mine"))
    pq.write_table(table, tmp_path / "mine" / "train" / "b.parquet")
    with pytest.raises(UserError, match=r"files of one split do not go together .*write them all in one format"):
        own(tmp_path / "mine")


def test_what_prepare_wrote_is_opened_as_it_is(tmp_path: Path) -> None:
    prepared = lay(tmp_path, own(write(tmp_path / "t.csv", make_table(label=[i % 2 for i in range(N_ROWS)]))))
    found = find_source((str(tmp_path / "out"),), {}, None)
    assert isinstance(found, PreparedTask)
    assert found.manifest == prepared.manifest
    with pytest.raises(UserError, match="is prepared already, --kind would do nothing; leave it out"):
        find_source((str(tmp_path / "out"),), {"kind": "binary"}, None)
    with pytest.raises(UserError, match="neither a file or folder nor BENCH/TASK"):
        find_source((str(tmp_path / "nowhere"),), {}, None)


# ---- FASTA -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", ".gz", ".bgz", ".zst", ".bgz renamed .gz"])
def test_fasta_of_the_nucleotide_transformer(tmp_path: Path, suffix: str) -> None:
    # Its ids say where a sequence lies, and repeat.
    text = fasta([f"chr{i % 4}_100|{i % 2}" for i in range(N_ROWS)], SEQUENCES, width=11)
    path = write_text(tmp_path / f"t.fa{suffix.partition(' ')[0]}", text)
    if suffix.endswith("renamed .gz"):
        path = path.rename(tmp_path / "t.fna.gz")
    raw = own(path)
    assert (raw.task.name, raw.task.kind) == ("t", "binary")
    prepared = lay(tmp_path, raw)
    assert collect(prepared) == {text: i % 2 for i, text in enumerate(SEQUENCES)}
    ids = Counter(row["id"] for rows in read_all(prepared).values() for row in rows)
    assert ids == {f"chr{i}_100": N_ROWS // 4 for i in range(4)}


def test_header_pattern(tmp_path: Path) -> None:
    headers = [f"{'pos' if i % 2 else 'neg'} from=gene{i} strand=+" for i in range(N_ROWS)]
    path = write_text(tmp_path / "t.fa", fasta(headers, SEQUENCES))
    raw = own(path, header_pattern=r"^(?P<label>\w+) from=(?P<id>\w+)")
    assert raw.task.labels == ("neg", "pos")
    rows = [row for found in read_all(lay(tmp_path, raw)).values() for row in found]
    assert {row["id"]: row["label"] for row in rows} == {f"gene{i}": i % 2 for i in range(N_ROWS)}
    with path.open("a") as file:
        file.write(">other\nACGT\n")
    with pytest.raises(UserError, match=r"t\.fa, row 61: the label is missing; fill it in"):
        lay(tmp_path, own(path, header_pattern=r"^(?P<label>\w+) from=(?P<id>\w+)"))
    for pattern, said in (("(", "is no regular expression"), ("x", "has no group named label")):
        with pytest.raises(UserError, match=said):
            make_options({"header_pattern": pattern})


@pytest.mark.parametrize("id_column", ["id", "name"])
def test_label_table(tmp_path: Path, id_column: str) -> None:
    path = write_text(tmp_path / "t.fa", fasta([f"s{i} some text" for i in range(N_ROWS)], SEQUENCES))
    order = np.random.default_rng(0).permutation(N_ROWS)
    labels = pa.table(
        {id_column: [f"s{i}" for i in order], "dev": [i / 7 for i in order], "hk": [-i / 3 for i in order]}
    )
    table = write(tmp_path / "labels.csv", labels)
    raw = own(path, label_table=table, id_column=id_column)
    assert (raw.task.kind, raw.task.labels) == ("regression", ("dev", "hk"))
    prepared = lay(tmp_path, raw)
    for text, values in collect(prepared).items():
        i = SEQUENCES.index(text)
        assert np.allclose(values, [i / 7, -i / 3])
    assert {Path(s["file"]).name for s in prepared.manifest["source"].values()} == {"t.fa", "labels.csv"}
    stamp = prepared.manifest["key"]
    write(table, labels.set_column(1, "dev", [[float(i) for i in order]]))
    assert lay(tmp_path, raw).manifest["key"] != stamp


def test_label_tables_that_do_not_fit(tmp_path: Path) -> None:
    path = write_text(tmp_path / "t.fa", fasta([f"s{i}" for i in range(4)], SEQUENCES[:4]))
    table = tmp_path / "labels.csv"
    for text, said in (
        (
            "id,label\ns0,0\ns1,1\ns2,0\n",
            r"t\.fa, row 4: id 's3' is not in .*labels\.csv .did you mean.*; add it there",
        ),
        ("id,label\ns0,0\ns0,1\n", r"labels\.csv: id 's0' stands there more than once; keep one row"),
        ("name,label\ns0,0\n", r"labels\.csv: no column 'id' .*name it with --id-column"),
    ):
        table.write_text(text)
        with pytest.raises(UserError, match=said):
            own(path, label_table=table)
    table.unlink()
    with pytest.raises(UserError, match=r"labels\.csv: cannot be read .no such file.*; check the path"):
        lay(tmp_path, own(path, label_table=table, kind="binary", labels=("0", "1")))
    # Parquet knows missing ids.
    pq.write_table(pa.table({"id": ["s0", None], "label": ["0", "1"]}), tmp_path / "labels.parquet")
    with pytest.raises(UserError, match=r"t\.fa, row 2: id 's1' is not in .*labels\.parquet"):
        own(path, label_table=tmp_path / "labels.parquet")
    assert {p.name for p in tmp_path.iterdir()} == {"t.fa", "labels.parquet"}


def test_one_file_a_class(tmp_path: Path) -> None:
    files = [
        write_text(tmp_path / "positives.fa", fasta([f"p{i}|9" for i in range(40)], SEQUENCES[:40])),
        write_text(tmp_path / "negatives.fa.gz", fasta([f"n{i}" for i in range(20)], SEQUENCES[40:])),
    ]
    raw = own(*files)
    assert (raw.task.name, raw.task.kind) == ("positives_vs_negatives", "binary")
    assert raw.task.labels == ("positives", "negatives")
    assert collect(lay(tmp_path, raw)) == {s: int(i >= 40) for i, s in enumerate(SEQUENCES)}
    assert own(*reversed(files), labels=("none", "some")).task.labels == ("none", "some")
    assert own(*files, name="promoters").task.name == "promoters"
    (tmp_path / "out").rename(tmp_path.parent / f"{tmp_path.name}-out")
    # As a folder, in the order of the names.
    assert own(tmp_path).task.labels == ("negatives", "positives")


@pytest.mark.parametrize(
    ("names", "options", "said"),
    [
        (["pos", "null"], {}, r"null\.fa: a class cannot be named 'null'.*rename the file, or give --labels"),
        (["1.0", "2.0"], {}, r"1\.0\.fa: a class cannot be named '1\.0'"),
        (
            ["pos", "neg"],
            {"labels": ("a", "b", "c")},
            "2 files, a class each, need as many different names, not a, b, c",
        ),
        (["pos", "neg"], {"labels": ("a", "a")}, "2 files, a class each, need as many different names, not a, a"),
    ],
)
@pytest.mark.parametrize("parted", [False, True])
def test_names_of_classes(tmp_path: Path, names: list[str], options: dict, said: str, parted: bool) -> None:
    for split in ("train", "test") if parted else (".",):
        for i, name in enumerate(names):
            write_text(tmp_path / "mine" / split / f"{name}.fa", fasta(["a"], [SEQUENCES[i]]))
    with pytest.raises(UserError, match=said):
        own(tmp_path / "mine", **options)


def test_classes_of_given_splits(tmp_path: Path) -> None:
    # In test the other order of the suffixes puts the files in another order: names decide, not places.
    files = {"train/a.fas": (0, 20), "train/a.fb.fa": (20, 45), "test/a.fna": (45, 50), "test/a.fb.fa": (50, 60)}
    for name, (start, stop) in files.items():
        write_text(tmp_path / "mine" / name, fasta([f"s{i}" for i in range(start, stop)], SEQUENCES[start:stop]))
    raw = own(tmp_path / "mine")
    assert (raw.task.name, raw.task.kind, raw.task.labels) == ("mine", "binary", ("a", "a.fb"))
    prepared = lay(tmp_path, raw)
    assert collect(prepared) == {s: int(20 <= i < 45 or i >= 50) for i, s in enumerate(SEQUENCES)}


def test_positives_and_negatives_of_given_splits(tmp_path: Path) -> None:
    for name, start, stop in (
        ("train/pos", 0, 20),
        ("train/neg", 20, 40),
        ("dev/pos", 40, 45),
        ("dev/neg", 45, 50),
        ("test/pos", 50, 55),
        ("test/neg", 55, 60),
    ):
        write_text(
            tmp_path / "mine" / f"{name}.fa", fasta([f"s{i}" for i in range(start, stop)], SEQUENCES[start:stop])
        )
    prepared = lay(tmp_path, own(tmp_path / "mine"))
    assert prepared.task.labels == ("neg", "pos")
    assert [prepared.manifest["splits"][s]["classes"] for s in ("train", "valid", "test")] == [
        {"neg": 20, "pos": 20},
        {"neg": 5, "pos": 5},
        {"neg": 5, "pos": 5},
    ]
    found = collect(prepared)
    assert [found[s] for s in SEQUENCES] == [1] * 20 + [0] * 20 + ([1] * 5 + [0] * 5) * 2


def test_files_that_do_not_go_together(tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", make_table(label=[0] * N_ROWS))
    other = write_text(tmp_path / "t.fa", ">a\nACGT\n")
    with pytest.raises(UserError, match=r"t\.csv, t\.fa: several files must be FASTA or BED, one a class"):
        own(table, other)
    with pytest.raises(UserError, match=r"gone\.fa: no such file or folder; check the path"):
        own(other, tmp_path / "gone.fa")


# ---- kinds of labels -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet"])
@pytest.mark.parametrize(
    ("columns", "kind", "labels"),
    [
        ({"label": ["yes", "no"]}, "binary", ("no", "yes")),
        ({"label": ["exon", "intron", "utr"]}, "multiclass", ("exon", "intron", "utr")),
        ({"label": [0.25, -1.5, 3e-3, 2.0]}, "regression", ("label",)),
        ({"dev": [0.5, None, 2.0], "hk": [1.5, -2.5, None]}, "regression", ("dev", "hk")),
        ({"a": [0, 1, None], "b": [1, 1, 0, 0]}, "multilabel", ("a", "b")),
    ],
)
def test_kinds_of_labels(tmp_path: Path, name: str, columns: dict[str, list], kind: str, labels: tuple) -> None:
    filled = {column: [values[i % len(values)] for i in range(N_ROWS)] for column, values in columns.items()}
    raw = own(write(tmp_path / name, make_table(**filled)))
    assert (raw.task.kind, raw.task.labels) == (kind, labels)
    prepared = lay(tmp_path, raw)
    manifest = json.loads((tmp_path / "out" / "task.json").read_text())
    assert (manifest["task"]["kind"], tuple(manifest["task"]["labels"])) == (kind, labels)
    found = collect(prepared)
    if kind in ("binary", "multiclass"):
        assert {s: labels[code] for s, code in found.items()} == dict(zip(SEQUENCES, filled["label"], strict=True))
        return
    expected = np.array([[np.nan if v is None else v for v in row] for row in zip(*filled.values(), strict=True)])
    assert np.allclose([found[s] for s in SEQUENCES], expected, equal_nan=True)
    for split, rows in read_all(prepared).items():
        values = np.array([row["label"] for row in rows], np.float64)
        for column, label in enumerate(labels):
            told = manifest["splits"][split]["outputs"][label]
            assert told["missing"] == np.isnan(values[:, column]).sum()
            assert told["mean"] == pytest.approx(np.nanmean(values[:, column]), abs=1e-5)
            assert told["sd"] == pytest.approx(np.nanstd(values[:, column]), abs=1e-5)


@pytest.mark.parametrize(
    ("column", "kind", "labels"),
    [
        (pa.array(["p", "n"] * 30).dictionary_encode(), "binary", ("n", "p")),
        (pa.array([True, False] * 30), "binary", ("0", "1")),
        (pa.array([1.0, 2.0, 3.0] * 20), "multiclass", ("1", "2", "3")),
        (pa.array([0.5, 1.5] * 30, pa.float16()), "regression", ("label",)),
        (pa.array([0.5, 1.5] * 30).cast(pa.decimal128(5, 2)), "regression", ("label",)),
    ],
)
def test_types_of_parquet(tmp_path: Path, column: pa.Array, kind: str, labels: tuple) -> None:
    pq.write_table(pa.table({"sequence": SEQUENCES, "label": column}), tmp_path / "t.parquet")
    raw = own(tmp_path / "t.parquet")
    assert (raw.task.kind, raw.task.labels) == (kind, labels)
    assert len(collect(lay(tmp_path, raw))) == N_ROWS


def test_flags_and_lists_of_parquet(tmp_path: Path) -> None:
    flags = {"a": [i % 2 == 0 for i in range(N_ROWS)], "b": [i % 3 == 0 for i in range(N_ROWS)]}
    pq.write_table(make_table(**flags), tmp_path / "flags.parquet")
    raw = own(tmp_path / "flags.parquet")
    assert (raw.task.kind, raw.task.labels) == ("multilabel", ("a", "b"))
    flagged = collect(prepare(raw, tmp_path / "flags", DataSettings()))
    assert flagged == {s: [float(i % 2 == 0), float(i % 3 == 0)] for i, s in enumerate(SEQUENCES)}
    lists = [[float(i % 2 == 0), float(i % 3 == 0)] for i in range(N_ROWS)]
    pq.write_table(make_table(label=lists), tmp_path / "lists.parquet")
    with pytest.raises(UserError, match=r"column 'label' holds lists; give --kind and --labels, one name a value"):
        own(tmp_path / "lists.parquet")
    raw = own(tmp_path / "lists.parquet", kind="multilabel", labels=("a", "b"), label_columns=("label",))
    assert collect(prepare(raw, tmp_path / "lists", DataSettings())) == flagged
    with pytest.raises(UserError, match=r"row 1: 2 values in column 'label' where the task has 3 labels"):
        lay(
            tmp_path,
            own(tmp_path / "lists.parquet", kind="regression", labels=("a", "b", "c"), label_columns=("label",)),
        )


def test_one_column_of_flags_is_a_class(tmp_path: Path) -> None:
    table = make_table(bound=[i % 2 for i in range(N_ROWS)], note=["x"] * N_ROWS)
    raw = own(write(tmp_path / "t.csv", table))
    assert (raw.task.kind, raw.task.labels, raw.task.label_columns) == ("binary", ("0", "1"), ("bound",))
    raw = own(tmp_path / "t.csv", kind="multilabel", label_columns=("bound",))
    assert (raw.task.kind, raw.task.labels) == ("multilabel", ("bound",))
    assert collect(lay(tmp_path, raw)) == {s: [i % 2] for i, s in enumerate(SEQUENCES)}


def test_labels_can_be_given(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", make_table(label=[i % 2 for i in range(N_ROWS)]))
    raw = own(path, labels=("closed", "open"), strand_specific=True, name="atac")
    assert (raw.task.name, raw.task.kind, raw.task.labels, raw.task.strand_specific) == (
        "atac",
        "binary",
        ("closed", "open"),
        True,
    )
    prepared = lay(tmp_path, raw)
    assert prepared.manifest["splits"]["train"]["classes"] == {"closed": 24, "open": 24}
    assert prepared.manifest["options"] == {
        "name": "atac",
        "labels": ["closed", "open"],
        "strand_specific": True,
    }


# ---- splits ----------------------------------------------------------------------------------------------------------


def indices(tmp_path: Path) -> dict[str, np.ndarray]:
    folder = tmp_path / "out" / "splits"
    return {p.name.removesuffix("_indices.parquet"): pq.read_table(p)["row"].to_numpy() for p in folder.iterdir()}


def place(tmp_path: Path, **options: Any) -> tuple[Path, PreparedTask]:
    """A table with every column that rows can be parted by, prepared."""
    table = make_table(
        label=["rare" if i % 10 == 0 else "often" for i in range(N_ROWS)],
        part=[("Train", "dev", "TEST ", "training")[i % 4] for i in range(N_ROWS)],
        chrom=[f"chr{i % 6}" for i in range(N_ROWS)],
        start=[100 * i for i in range(N_ROWS)],
        end=[100 * i + 30 for i in range(N_ROWS)],
        strand=["+-"[i % 2] for i in range(N_ROWS)],
        gene=[f"g{i % 17}" for i in range(N_ROWS)],
    )
    path = write(tmp_path / "t.csv", table)
    return path, lay(tmp_path, own(path, **options))


def rows_of(prepared: PreparedTask) -> dict[str, list[int]]:
    return {split: [int(row["id"][1:]) for row in rows] for split, rows in read_all(prepared).items()}


def test_split_column(tmp_path: Path) -> None:
    _, prepared = place(tmp_path, split_column="part")
    assert rows_of(prepared) == {
        "train": [i for i in range(N_ROWS) if i % 4 in (0, 3)],
        "valid": [i for i in range(N_ROWS) if i % 4 == 1],
        "test": [i for i in range(N_ROWS) if i % 4 == 2],
    }
    assert {name: rows.tolist() for name, rows in indices(tmp_path).items()} == rows_of(prepared)
    made = prepared.manifest["made"]
    assert (made["rule"], made["column"]) == ("given", "part")
    assert prepared.manifest["valid"]["made"] == "given"


def test_optional_columns_reach_the_shards(tmp_path: Path) -> None:
    _, prepared = place(tmp_path)
    for split in ("train", "valid"):
        table = prepared.table(split)
        assert table.column_names == ["id", "sequence", "label", "chrom", "start", "end", "strand"]
        assert table.schema.field("start").type == table.schema.field("end").type == pa.int64()
        for row in table.to_pylist():
            i = int(row["id"][1:])
            assert (row["chrom"], row["start"], row["end"], row["strand"]) == (
                f"chr{i % 6}",
                100 * i,
                100 * i + 30,
                "+-"[i % 2],
            )


def test_a_place_that_is_none(tmp_path: Path) -> None:
    label = [i % 2 for i in range(N_ROWS)]
    path = write(tmp_path / "t.csv", make_table(label=label, chrom=["chr1"] * N_ROWS, start=[*range(59), None]))
    starts = [row["start"] for rows in read_all(lay(tmp_path, own(path))).values() for row in rows]
    assert sorted(s for s in starts if s is not None) == list(range(59))
    write(path, make_table(label=label, start=[*map(str, range(40)), "40.5", *map(str, range(41, 60))]))
    with pytest.raises(
        UserError, match=r"t\.csv, row 41: column 'start' holds '40\.5', which is no whole number; correct"
    ):
        lay(tmp_path, own(path))


def test_random_split_takes_its_share_of_each_class(tmp_path: Path) -> None:
    _, prepared = place(tmp_path, test_fraction=0.3)
    classes = {split: facts["classes"] for split, facts in prepared.manifest["splits"].items()}
    # 6 rare and 54 often: round(0.3 n) for test, then a tenth, at least one, for validation.
    assert classes["test"] == {"often": 16, "rare": 2}
    assert classes["valid"] == {"often": 4, "rare": 1}
    assert classes["train"] == {"often": 34, "rare": 3}
    assert prepared.manifest["made"]["test_fraction"] == 0.3


def test_index_files_agree_with_their_hashes(tmp_path: Path) -> None:
    _, prepared = place(tmp_path)
    found, made = indices(tmp_path), prepared.manifest["made"]
    assert sorted(found) == ["test", "train", "valid"]
    for name, rows in found.items():
        assert made[f"{name}_sha256"] == hash_indices(rows)
        assert rows.dtype == np.int64
        assert (np.diff(rows) > 0).all()
    rows = rows_of(prepared)
    assert found["test"].tolist() == rows["test"]
    assert found["valid"].tolist() == rows["valid"]
    # Train's indices are those before validation was cut from it.
    assert found["train"].tolist() == sorted(rows["train"] + rows["valid"])
    assert prepared.manifest["valid"]["sha256"] == hash_indices(found["valid"])


def test_seeds_and_keys(tmp_path: Path) -> None:
    path, first = place(tmp_path)
    keys = {first.manifest["key"]}
    same = prepare(own(path), tmp_path / "again", DataSettings())
    assert same.manifest == first.manifest
    for options in ({"seed": 1}, {"test_fraction": 0.2}, {"group_column": "gene"}, {"split": "folds"}, {"name": "x"}):
        other = lay(tmp_path, own(path, **options))
        assert other.manifest["key"] not in keys
        keys.add(other.manifest["key"])
    seeded = prepare(own(path, seed=1), tmp_path / "seeded", DataSettings())
    assert rows_of(seeded)["test"] != rows_of(first)["test"]


def test_chromosome_hold_out(tmp_path: Path) -> None:
    path, prepared = place(tmp_path, split="chromosome", test_chromosomes=("chr0", "chr3"), valid_chromosomes=("chr5",))
    assert rows_of(prepared) == {
        "train": [i for i in range(N_ROWS) if i % 6 in (1, 2, 4)],
        "valid": [i for i in range(N_ROWS) if i % 6 == 5],
        "test": [i for i in range(N_ROWS) if i % 6 in (0, 3)],
    }
    made = prepared.manifest["made"]
    assert (made["rule"], made["test_chromosomes"], made["valid_chromosomes"]) == (
        "chromosome",
        ["chr0", "chr3"],
        ["chr5"],
    )
    for chromosomes, said in (
        (("chr9",), r"t\.csv: no row on chromosome 'chr9' .did you mean.*correct the hold-out"),
        (tuple(f"chr{i}" for i in range(6)), r"t\.csv: every chromosome is held out; leave some"),
    ):
        with pytest.raises(UserError, match=said):
            lay(tmp_path, own(path, split="chromosome", test_chromosomes=chromosomes))
    assert rows_of(open_prepared(tmp_path / "out")) == rows_of(prepared)


def genes(prepared: PreparedTask) -> dict[str, set[int]]:
    return {split: {i % 17 for i in rows} for split, rows in rows_of(prepared).items()}


@pytest.mark.parametrize(
    "options",
    [
        {"split": "group"},
        {},
        {"split": "folds", "folds": 4, "fold": 2},
        {"split": "chromosome", "test_chromosomes": ("chr2",)},
    ],
)
def test_groups_stay_together(tmp_path: Path, options: dict) -> None:
    _, prepared = place(tmp_path, group_column="gene", **options)
    found = genes(prepared)
    assert all(found.values())
    assert not found["train"] & found["valid"]
    if options.get("split") != "chromosome":  # that rule asks for no whole groups in test
        assert not (found["train"] | found["valid"]) & found["test"]
        assert prepared.manifest["made"]["group_column"] == "gene"
    assert prepared.manifest["valid"]["made"] == "cut from train, whole groups"


def test_groups_within_given_splits(tmp_path: Path) -> None:
    table = make_table(label=[i % 2 for i in range(N_ROWS)], gene=[f"g{i % 9}" for i in range(N_ROWS)])
    write(tmp_path / "mine" / "train.csv", table.slice(0, 50))
    write(tmp_path / "mine" / "test.csv", table.slice(50))
    prepared = lay(tmp_path, own(tmp_path / "mine", group_column="gene"))
    rows = rows_of(prepared)
    assert rows["test"] == list(range(50, 60))
    assert not {i % 9 for i in rows["train"]} & {i % 9 for i in rows["valid"]}


def test_folds_cover_every_row_once(tmp_path: Path) -> None:
    path, _ = place(tmp_path)
    tests = []
    for fold in range(3):
        prepared = prepare(own(path, split="folds", folds=3, fold=fold), tmp_path / f"fold{fold}", DataSettings())
        rows = rows_of(prepared)
        tests += rows["test"]
        assert sorted(i for found in rows.values() for i in found) == list(range(N_ROWS))
        assert prepared.manifest["splits"]["test"]["classes"] == {"often": 18, "rare": 2}
        assert prepared.manifest["made"]["fold"] == fold
    assert sorted(tests) == list(range(N_ROWS))


def test_check_finds_the_same_without_writing(tmp_path: Path) -> None:
    path, prepared = place(tmp_path, split_column="part")
    before = sorted(tmp_path.rglob("*"))
    assert check_raw(own(path, split_column="part"), DataSettings()) == prepared.manifest["check"]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("part", ["random", "group", "folds"])
def test_too_few_rows_for_a_rule(part: str) -> None:
    options = SourceOptions(split=part, group_column="gene" if part == "group" else None)
    keys = ["a", "a"] if part == "group" else None
    with pytest.raises(UserError, match=r"^t\.csv: .* too few .*(add rows|give fewer folds)"):
        part_rows(2, options, "t.csv", None if keys else np.array([0, 1]), keys)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"split": "chromosome"}, "needs test_chromosomes, for example"),
        ({"valid_chromosomes": "chr1"}, "needs test_chromosomes"),
        ({"split": "group"}, "needs group_column"),
        ({"split": "random", "group_column": "gene"}, "write split 'group'"),
        ({"split": "folds", "fold": 5}, "fold 5 is not one of 5 folds"),
        ({"folds": 3}, "--folds does nothing without --split folds"),
        ({"fold": 1}, "--fold does nothing without --split folds"),
        ({"test_chromosomes": "a,b", "valid_chromosomes": "b"}, "b: in both"),
        ({"test_fraction": 1.5}, "test_fraction"),
    ],
)
def test_flags_that_do_not_go_together(flags: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        make_options(flags)
    assert "\n" not in str(error.value)


def test_flags_say_the_rule() -> None:
    assert make_options({"test_chromosomes": "chr8, chr9"}).test_chromosomes == ("chr8", "chr9")
    assert make_options({"test_chromosomes": "chr8"}).split == "chromosome"
    assert make_options({"labels": "a,b", "label_columns": ()}) == SourceOptions(labels=("a", "b"))


# ---- the command line ------------------------------------------------------------------------------------------------

Call = Callable[..., str]


@pytest.fixture
def cli() -> Call:
    """The command line in this process; what it prints, or the exception that it ends in."""

    def call(*arguments: object) -> str:
        result = CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    return call


def test_cli_prepare_and_inspect(tmp_path: Path, cli: Call) -> None:
    table = make_table(label=[i % 2 for i in range(N_ROWS)], chrom=[f"chr{i % 3}" for i in range(N_ROWS)])
    path = write(tmp_path / "peaks.csv", table)
    said = cli("data", "prepare", path, "--out", tmp_path / "out", "--test-chromosomes", "chr1", "--labels", "no,yes")
    assert "parted by: chromosome" in said
    prepared = open_prepared(tmp_path / "out")
    assert prepared.task.labels == ("no", "yes")
    assert prepared.n_rows("test") == 20
    shown = cli("data", "inspect", tmp_path / "out")
    for text in ("no ", "yes ", "peaks.csv", "parted by: chromosome"):
        assert text in shown
    assert json.loads(cli("data", "inspect", tmp_path / "out", "--json")) == prepared.manifest
    for arguments, text in (
        (("prepare", tmp_path / "out", "--out", tmp_path / "x"), "is prepared already; look at it with"),
        (("prepare", path, "--out", tmp_path / "x", "--folds", "-1", "--split", "folds"), "folds"),
        (("inspect", tmp_path), "no such file; give a folder that l2g-ray has prepared"),
    ):
        with pytest.raises(UserError, match=text):
            cli("data", *arguments)
    assert not (tmp_path / "x").exists()


def test_cli_settings_and_shards(tmp_path: Path, cli: Call) -> None:
    path = write(tmp_path / "t.csv", make_table(label=[i % 2 for i in range(N_ROWS)]))
    cli("data", "prepare", path, "--out", tmp_path / "out", "--rows-per-shard", 10, "--valid-fraction", 0.25)
    prepared = open_prepared(tmp_path / "out")
    assert [prepared.n_rows(s) for s in ("train", "valid", "test")] == [40, 14, 6]
    assert len(prepared.shard_paths("train")) == 4
    with pytest.raises(UserError, match=r"t\.csv, row 1: the sequence is 30 bp long, over the limit of 20 bp"):
        cli("data", "prepare", path, "--out", tmp_path / "out", "--max-length-bp", 20)
    with pytest.raises(UserError, match="valid_fraction"):
        cli("data", "prepare", path, "--out", tmp_path / "out", "--valid-fraction", 2)
    assert open_prepared(tmp_path / "out").manifest == prepared.manifest


def test_cli_folds(tmp_path: Path, cli: Call) -> None:
    path = write(tmp_path / "t.csv", make_table(label=[i % 2 for i in range(N_ROWS)]))
    cli("data", "prepare", path, "--split", "folds", "--out", tmp_path / "folds")
    assert sorted(p.name for p in (tmp_path / "folds").iterdir()) == [f"fold-{i}" for i in range(5)]
    held = [
        row for i in range(5) for row in open_prepared(tmp_path / "folds" / f"fold-{i}").open_test()["id"].to_pylist()
    ]
    assert sorted(held) == sorted(f"s{i}" for i in range(N_ROWS))
    cli("data", "prepare", path, "--split", "folds", "--folds", 3, "--fold", 1, "--out", tmp_path / "one")
    assert open_prepared(tmp_path / "one").manifest["made"]["fold"] == 1


def test_cli_list(cli: Call, tmp_path: Path) -> None:
    rows = json.loads(cli("data", "list", "--json", "--data-dir", tmp_path))
    assert {"bench", "task", "kind", "here", "from", "licence"} == set(rows[0])
    assert {row["bench"] for row in rows} >= {"demo", "nt", "gue"}
    assert all(row["here"] for row in rows if row["bench"] == "demo")
    assert "demo/" in cli("data", "list", "--data-dir", tmp_path)


def test_parquet_parts_are_one_table(tmp_path: Path) -> None:
    folder = tmp_path / "screen.parquet"
    folder.mkdir()
    (folder / "_SUCCESS").write_text("")
    generator = np.random.default_rng(0)
    for part in range(3):
        rows = ["".join(row) for row in generator.choice(list("ACGT"), (30, 20))]
        pq.write_table(pa.table({"sequence": rows, "label": [0, 1] * 15}), folder / f"part-{part}.parquet")
    raw = open_source([folder], SourceOptions())
    assert (raw.task.name, raw.task.kind) == ("screen", "binary")
    prepared = prepare(raw, tmp_path / "out", DataSettings())
    assert sum(prepared.n_rows(split) for split in ("train", "valid", "test")) == 90
