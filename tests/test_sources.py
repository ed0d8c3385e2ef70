"""Each form of a person's own data, through `open_source` and `prepare`, with the rows, labels and splits it must give."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_files import (
    N_ROWS,
    SEQUENCES,
    TABLES,
    collect,
    fasta,
    lay,
    make_table,
    own,
    read_all,
    write,
    write_text,
)

from l2g_ray.api.requests import find_source, make_options
from l2g_ray.config import DataSettings
from l2g_ray.data.dataset import PreparedTask
from l2g_ray.data.prepare import prepare
from l2g_ray.errors import UserError


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
        ({"split": "group", "group_column": "gene"}, r"t\.csv: no column 'gene' to split the rows by"),
        ({"split": "given"}, r"t\.csv: no column 'split' to split the rows by"),
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
    with pytest.raises(UserError, match=r"train\.csv: comes with its own splits; give one file to split it by --split"):
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
    raw = own(path, label_table=table, id_column=id_column, label_columns=("dev", "hk"))
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
        ("id,label\ns0,0\ns0,1\n", r"labels\.csv: id 's0' occurs more than once; keep one row"),
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
@pytest.mark.parametrize("has_splits", [False, True])
def test_names_of_classes(tmp_path: Path, names: list[str], options: dict, said: str, has_splits: bool) -> None:
    for split in ("train", "test") if has_splits else (".",):
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
    named = tuple(columns) if kind == "regression" else ()
    raw = own(write(tmp_path / name, make_table(**filled)), label_columns=named)
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
