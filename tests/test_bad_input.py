"""Bad input: one sentence with file, row and fix; nothing half-written; the old output as it was. And what is accepted."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pytest
from bad_files import (
    BAD,
    ROWS,
    SEQUENCES,
    TEXT,
    csv,
    jsonl,
    lay,
    put,
    random_sequences,
    refuse,
    replace,
    truncated,
)

from l2g_ray.data.readers import read_table
from l2g_ray.errors import UserError


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_named(tmp_path: Path, case: str) -> None:
    name, content, said = BAD[case]
    path = put(tmp_path / "in" / name, content)
    with refuse(tmp_path, said):
        lay(tmp_path, path)
    assert [p.name for p in path.parent.iterdir()] == [name]


def test_a_fault_appears_in_a_source_that_was_good(tmp_path: Path) -> None:
    path = put(tmp_path / "old" / "good.csv", csv(ROWS))
    with refuse(tmp_path, r"good\.csv, row 12: 'X' at base 1"):
        put(path, replace(12, "X,1"))
        lay(tmp_path, path)


def test_damage_in_the_middle_of_parquet(tmp_path: Path) -> None:
    path = put(
        tmp_path / "in" / "t.parquet", pa.table({"sequence": random_sequences(3000, 40), "label": [0, 1] * 1500})
    )
    whole = bytearray(path.read_bytes())
    whole[2000:12_000] = b"\xee" * 10_000
    path.write_bytes(whole)
    with refuse(tmp_path, r"t\.parquet: the file (cannot be read|is not UTF-8|.*damaged).*; "):
        lay(tmp_path, path)


@pytest.mark.parametrize("compression", ["gz", "zst"])
def test_cut_anywhere(tmp_path: Path, compression: str) -> None:
    whole = truncated(TEXT, compression) * 1
    full = (
        gzip.compress(TEXT.encode(), mtime=0)
        if compression == "gz"
        else pa.Codec("zstd").compress(TEXT.encode(), asbytes=True)
    )
    assert full.startswith(whole[:100])
    for n_bytes in (1, 3, 12, 40, len(full) // 3, len(full) - 9, len(full) - 1):
        path = put(tmp_path / f"t.csv.{compression}", full[:n_bytes])
        with pytest.raises(UserError, match=r"t\.csv\.(gz|zst): .*; "):
            read_table(path)


BIG_ROWS = 20_000


@pytest.mark.parametrize(("label", "said"), [("{}", "the label is missing"), ("{}.5", "all labels are missing")])
def test_a_missing_label_deep_in_a_file(tmp_path: Path, label: str, said: str) -> None:
    rows = [f"{text},{label.format(i % 3)}" for i, text in enumerate(random_sequences(BIG_ROWS, 20))]
    rows[17_402] = rows[17_402].partition(",")[0] + ","
    path = put(tmp_path / "in" / "t.csv", csv(rows))
    with refuse(tmp_path, rf"t\.csv, row 17403: {said}; fill (it|one) in or remove the row"):
        lay(tmp_path, path)


def test_a_row_longer_than_what_is_read_at_once(tmp_path: Path) -> None:
    path = put(tmp_path / "in" / "t.csv", csv(["ACGT,1", "A" * 9_000_000 + ",0"]))
    with refuse(tmp_path, r"t\.csv, row 2: the row has more than 4\.2 million characters.*FASTA or Parquet"):
        lay(tmp_path, path)


def test_rows_are_counted_over_blocks(tmp_path: Path) -> None:
    # More than the 4 MB that are read at once.
    texts = ["A" * 19_999 + "ACGT"[i % 4] for i in range(1000)]
    rows = [f"{text},{i % 2}" for i, text in enumerate(texts)]
    for last, said in (
        ("ACGT,1,7", r"t\.csv, row 1001: 3 columns"),
        ("ACGT,\0", r"t\.csv, row 1001: column 'label' holds a NUL"),
        ("AXGT,1", r"t\.csv, row 1001: 'X' at base 2"),
    ):
        with refuse(tmp_path, said):
            lay(tmp_path, put(tmp_path / "in" / "t.csv", csv([*rows, last])))
    lines = jsonl([{"sequence": text, "label": i % 2} for i, text in enumerate(texts)])
    for last, said in (
        ('{"sequence": "ACGT", "label": "x"}', r"t\.jsonl: .*\(Column\(/label\) changed .* in row 1001\); correct"),
        ('{"sequence": "AC', r"t\.jsonl: .* in row 1001\); correct"),
        ('{"sequence": "ACGT"}', r"t\.jsonl, row 1001: the label is missing"),
        ('{"sequence": "ACGT", "label": 1, "chrom": "1"}', r"t\.jsonl: there is a column 'chrom', which earlier rows"),
    ):
        with refuse(tmp_path, said):
            lay(tmp_path, put(tmp_path / "in" / "t.jsonl", lines + last + "\n"))
    # What is a whole number in one block and not in the next are numbers all the same.
    table = read_table(put(tmp_path / "in" / "t.jsonl", lines + '{"sequence": "ACGT", "label": 0.5, "new": 1}\n'))
    assert table["label"].to_pylist() == [*([0, 1] * 500), 0.5]
    assert table["new"].to_pylist() == [None] * 1000 + [1]
    assert table["id"][-1].as_py() == "1001"


def test_labels_that_only_test_has(tmp_path: Path) -> None:
    put(tmp_path / "in" / "train.csv", csv(ROWS))
    put(tmp_path / "in" / "test.csv", csv(["ACGT,0", "ACGA,often"]))
    with refuse(
        tmp_path, r"test\.csv, row 2: label 'often' is not among the declared labels .known: 0, 1.; correct it"
    ):
        lay(tmp_path, tmp_path / "in")


def test_columns_of_lists_that_do_not_fit(tmp_path: Path) -> None:
    for labels, options, said in (
        (
            [["a"]] * 4,
            {"kind": "regression", "labels": ("y",), "label_columns": ("label",)},
            "not lists of numbers; write",
        ),
        ([[1, 0]] * 4, {"kind": "binary", "labels": ("a", "b")}, "not one label a row; name the column"),
        (
            [0, 1] * 2,
            {"kind": "multilabel", "labels": ("a", "b"), "label_columns": ("label",)},
            "2 labels; name one colu",
        ),
        (
            [[0.5, float("inf")]] * 4,
            {"kind": "regression", "labels": ("a", "b"), "label_columns": ("label",)},
            "row 1: .*'b'",
        ),
    ):
        path = put(tmp_path / "in" / "t.parquet", pa.table({"sequence": SEQUENCES[:4], "label": labels}))
        with refuse(tmp_path, said):
            lay(tmp_path, path, **options)


@pytest.mark.parametrize(
    "content", [b"name: \xe9", b"name: \x01", b"- a", b"sequence_column: 3", b"label_columns: 3", b"["]
)
def test_a_task_yaml_that_is_none(tmp_path: Path, content: bytes) -> None:
    for split in ("train", "test"):
        put(tmp_path / "in" / f"{split}.csv", csv(ROWS))
    put(tmp_path / "in" / "task.yaml", content)
    with refuse(tmp_path, r"task\.yaml: .*; (save|correct|write)"):
        lay(tmp_path, tmp_path / "in")


def test_folders_in_place_of_files(tmp_path: Path) -> None:
    (tmp_path / "in" / "x.csv").mkdir(parents=True)
    with refuse(tmp_path, r"x\.csv: no train file; add train\.csv"):
        lay(tmp_path, tmp_path / "in" / "x.csv")
    put(tmp_path / "in" / "set" / "test.csv", csv(ROWS))
    (tmp_path / "in" / "set" / "train.csv").mkdir()
    with refuse(tmp_path, r"train\.csv: is a folder; give one file"):
        lay(tmp_path, tmp_path / "in" / "set")
    with refuse(tmp_path, r"train\.csv: cannot be read .is a directory.; check"):
        lay(tmp_path, tmp_path / "in" / "set", kind="binary", labels=("0", "1"))


def test_names_that_point_elsewhere(tmp_path: Path) -> None:
    put(tmp_path / "in" / "t.csv", csv(ROWS))
    for name in ("../up", "/root", ".hidden", "a/b"):
        with refuse(tmp_path, r"t\.csv: key 'name': .*may hold only letters, digits.* and must start with"):
            lay(tmp_path, tmp_path / "in" / "t.csv", name=name)


def test_names_that_are_harmless(tmp_path: Path) -> None:
    labels = ["../../up", "/etc/x", "a/b"]
    rows = [f"{text},{labels[i % 3]}" for i, text in enumerate(SEQUENCES)]
    path = put(tmp_path / "in" / "..t (1)..csv", csv(rows))
    prepared = lay(tmp_path, path)
    assert prepared.task.labels == ("../../up", "/etc/x", "a/b")
    assert prepared.task.name == "t_1_."
    found = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert found == {"in/..t (1)..csv", "out/task.json"} | {
        f"out/{split}/part-00000.parquet" for split in ("train", "valid", "test")
    } | {f"out/splits/{split}_indices.parquet" for split in ("train", "valid", "test")} | {
        "out/near_train.parquet",
        "out/groups.parquet",
    }
