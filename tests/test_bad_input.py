"""Bad input: one sentence with file, row and fix; nothing half-written; the old output as it was. And what is accepted."""

from __future__ import annotations

import gzip
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from l2g_ray.config import DataSettings
from l2g_ray.data.checks import as_numbers, clean_sequences, label_texts, show
from l2g_ray.data.dataset import PreparedTask, open_prepared
from l2g_ray.data.options import SourceOptions
from l2g_ray.data.prepare import prepare
from l2g_ray.data.readers import iter_tables, read_table
from l2g_ray.data.sources import open_source
from l2g_ray.data.splits import part_rows
from l2g_ray.errors import UserError

MAX_LENGTH_BP = 20_000


def random_sequences(n: int, length_bp: int = 30, seed: int = 0) -> list[str]:
    generator = np.random.default_rng(seed)
    return ["".join(row) for row in generator.choice(list("ACGT"), (n, length_bp))]


SEQUENCES = random_sequences(40)
ROWS = [f"{text},{i % 2}" for i, text in enumerate(SEQUENCES)]


def csv(rows: list[str], header: str = "sequence,label") -> str:
    return "\n".join([header, *rows, ""])


def replace(row: int, text: str, rows: list[str] = ROWS) -> str:
    """A CSV whose row (from 1) is another."""
    return csv([*rows[: row - 1], text, *rows[row:]])


def fasta(rows: list[tuple[str, object]], newline: str = "\n") -> str:
    return newline.join([f">s{i}|{label}{newline}{text}" for i, (text, label) in enumerate(rows)] + [""])


def jsonl(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


GOOD_FASTA = fasta([(text, i % 2) for i, text in enumerate(SEQUENCES)])
GOOD_JSON = [{"sequence": text, "label": i % 2} for i, text in enumerate(SEQUENCES)]


def put(path: Path, content: str | bytes | pa.Table) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, pa.Table):
        pq.write_table(content, path)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def lay(tmp_path: Path, path: Path, max_length_bp: int = MAX_LENGTH_BP, **options: Any) -> PreparedTask:
    raw = open_source([path], SourceOptions(**options))
    return prepare(raw, tmp_path / "out", DataSettings(max_length_bp=max_length_bp))


@contextmanager
def refuse(tmp_path: Path, said: str) -> Iterator[None]:
    """What runs inside ends in one sentence with a fix; an output that stood before stands as it was, nothing else does."""
    put(tmp_path / "old" / "good.csv", csv(ROWS))
    old = lay(tmp_path, tmp_path / "old" / "good.csv")
    before = {path: path.read_bytes() for path in sorted((tmp_path / "out").rglob("*")) if path.is_file()}
    with pytest.raises(UserError, match=said) as error:
        yield
    message = str(error.value)
    assert message.isprintable(), message
    assert ";" in message or "may hold only" in message, f"no fix in: {message}"
    assert len(message) < 1000
    assert {path: path.read_bytes() for path in sorted((tmp_path / "out").rglob("*")) if path.is_file()} == before
    assert open_prepared(tmp_path / "out").open_test().equals(old.open_test())
    assert {path.name for path in tmp_path.iterdir()} <= {"old", "in", "out"}


def truncated(text: str, kind: str) -> bytes:
    whole = gzip.compress(text.encode()) if kind == "gz" else pa.Codec("zstd").compress(text.encode(), asbytes=True)
    return whole[: len(whole) // 2]


def not_utf8() -> pa.Table:
    """Text that is none, as a Parquet file may hold it."""
    raw = pa.array([b"ACG\xff"] * 4)
    return pa.table({"sequence": pa.Array.from_buffers(pa.string(), 4, raw.buffers()), "label": [0, 1, 0, 1]})


TEXT = csv([f"{text},{i % 2}" for i, text in enumerate(random_sequences(2000))])
NUCLEOTIDE = "is no nucleotide letter; use A C G T"
BAD: dict[str, tuple[str, str | bytes | pa.Table, str]] = {
    "csv.gz cut": ("t.csv.gz", truncated(TEXT, "gz"), r"t\.csv\.gz: the compressed file is cut short or damaged"),
    "csv.zst cut": ("t.csv.zst", truncated(TEXT, "zst"), r"t\.csv\.zst: the compressed file is cut short or damaged"),
    "fa.gz cut": ("t.fa.gz", truncated(GOOD_FASTA * 20, "gz"), r"t\.fa\.gz: the compressed file is cut short or dam"),
    "fa.zst cut": ("t.fa.zst", truncated(GOOD_FASTA * 20, "zst"), r"t\.fa\.zst: the compressed file is cut short"),
    "jsonl.gz cut": ("t.jsonl.gz", truncated(jsonl(GOOD_JSON * 20), "gz"), r"t\.jsonl\.gz: the compressed file is cut"),
    "jsonl.zst cut": (
        "t.jsonl.zst",
        truncated(jsonl(GOOD_JSON * 20), "zst"),
        r"t\.jsonl\.zst: the compressed file is c",
    ),
    "no gzip": ("t.csv.gz", TEXT, r"t\.csv\.gz: the compressed file is cut short or damaged"),
    "empty gzip": ("t.csv.gz", gzip.compress(b""), r"t\.csv\.gz: the file is empty; give a header"),
    "extra column": ("t.csv", replace(23, f"{SEQUENCES[0]},1,7"), r"t\.csv, row 23: 3 columns .* header has 2; quote"),
    "extra after blank lines": (
        "t.csv",
        csv([*ROWS[:4], "", "", *ROWS[4:6], "ACGT,1,7", *ROWS[6:]]),
        r"t\.csv, row 7: 3 columns",
    ),
    "column lost": ("t.tsv", csv(["ACGT\t1", "ACGA"], "sequence\tlabel"), r"t\.tsv, row 2: 1 column .* header has 2"),
    "open quote": ("t.csv", replace(4, '"ACGT,1'), r"t\.csv, row 4: 1 column where the header has 2"),
    "two columns of one name": (
        "t.csv",
        csv(["ACGT,1,2"], "sequence,label,label"),
        r"t\.csv: two columns .* 'label'; re",
    ),
    "other delimiter": (
        "t.csv",
        csv(ROWS).replace(",", ";"),
        r"t\.csv: no column 'sequence' .did you mean 'sequence;la",
    ),
    "Latin-1 cell": (
        "t.csv",
        csv([*ROWS[:5], "", "ACGT,\u00e9"]).encode("latin-1"),
        r"t\.csv, row 6: the file is not UTF-8 text; save",
    ),
    "Latin-1 header": ("t.csv", csv(ROWS, "sequence,\u00e9").encode("latin-1"), r"t\.csv: the file is not UTF-8 text"),
    "UTF-16": ("t.csv", csv(ROWS).encode("utf-16"), r"t\.csv: the file is UTF-16, not UTF-8 text; save it as UTF-8"),
    "Latin-1 FASTA": ("t.fa", b">a|0\nACGT\n>\xe9|1\nACGA\n", r"t\.fa: the file is not UTF-8 text .byte 11."),
    "Latin-1 JSON": (
        "t.jsonl",
        b'{"sequence": "ACGT"}\n{"sequence": "\xe9"}\n',
        r"t\.jsonl: the file is not UTF-8 text .byte 35.",
    ),
    "no UTF-8 in Parquet": ("t.parquet", not_utf8(), r"t\.parquet: the file is not UTF-8 text .*string index 0"),
    "NUL in a sequence": (
        "t.csv",
        replace(3, "AC\0GT,1"),
        r"t\.csv, row 3: column 'sequence' holds a NUL byte.*; write",
    ),
    "NUL in a label": ("t.csv", replace(40, "ACGT,\0"), r"t\.csv, row 40: column 'label' holds a NUL byte"),
    "NUL in FASTA": ("t.fa", fasta([("ACGT", 0), ("AC\0GT", 1)]), r"t\.fa, row 2: '\\x00' at base 3 " + NUCLEOTIDE),
    "newline in a sequence": ("t.csv", replace(3, '"ACG\nT",1'), r"t\.csv, row 3: '\\n' at base 4 " + NUCLEOTIDE),
    "protein": ("t.fa", fasta([("ACGT", 0), ("MKVLAAGE", 1)]), r"t\.fa, row 2: 'L' at base 4 " + NUCLEOTIDE),
    "gap": ("t.csv", replace(9, "ACGT--ACGT,1"), r"t\.csv, row 9: '-' at base 5 " + NUCLEOTIDE),
    "letter with an accent": ("t.csv", replace(9, "ACGT\u00e9,1"), "t\\.csv, row 9: '\u00e9' at base 5 " + NUCLEOTIDE),
    "over the limit": (
        "t.csv",
        csv([*ROWS, "ACGTA" * 1_000_000 + ",1"]),
        r"t\.csv, row 41: the sequence is 5,000,000 bp long, over the limit of 20,000 bp; cut it, or raise",
    ),
    "empty sequence": ("t.fa", ">a|0\nACGT\n>b|1\n>c|0\nACGA\n", r"t\.fa, row 2: the sequence is empty; fill it in"),
    "null sequences": (
        "t.jsonl",
        jsonl([{"sequence": None, "label": i % 2} for i in range(4)]),
        r"t\.jsonl, row 1: the s",
    ),
    "only a header": ("t.csv", "sequence,label\n", r"t\.csv: .* give .*at least one"),
    "only blank lines": ("t.jsonl", "\n\n", r"t\.jsonl: the file has no rows; give at least one"),
    "no rows in Parquet": (
        "t.parquet",
        pa.table({"sequence": SEQUENCES, "label": ["a"] * 40}).slice(0, 0),
        "no rows|empty",
    ),
    "one row": ("t.csv", csv(ROWS[:1]), r"t\.csv: the only row has the label '0'; add rows"),
    "one row of numbers": ("t.csv", csv(["ACGT,0.5"]), r"t\.csv: 1 row is too few to cut a test split from; add rows"),
    "decimal comma": (
        "t.csv",
        csv([*(f"{text},{i / 7}" for i, text in enumerate(SEQUENCES * 2)), 'ACGT,"1,5"']),
        r"t\.csv, row 81: column 'label' holds '1,5', which is no number; write the decimal point as '\.'",
    ),
    "too great": (
        "t.csv",
        csv([*(f"{text},{i / 7}" for i, text in enumerate(SEQUENCES)), "ACGT,1e39"]),
        r"t\.csv, row 41: column 'label' is infinite, or too great for 32 bits; correct",
    ),
    "long label": (
        "t.csv",
        csv([*(f"{text},{i / 7}" for i, text in enumerate(SEQUENCES * 2)), "ACGT," + "x" * 9999]),
        r"t\.csv, row 81: column 'label' holds 'x{40}\.\.\.', which is no number",
    ),
    "labels of mixed types": (
        "t.jsonl",
        jsonl([*GOOD_JSON[:5], {"sequence": "ACGT", "label": "x"}]),
        r"t\.jsonl: .*\(Column\(/label\) changed from number to string in row 6\); correct that row",
    ),
    "no object": ("t.jsonl", jsonl([*GOOD_JSON[:5], 3]), r"t\.jsonl: not one JSON object a line.* in row 6\); correct"),
    "an array": ("t.jsonl", json.dumps(GOOD_JSON), r"t\.jsonl: not one JSON object a line.* in row 1\); correct"),
    "nothing but null": ("t.jsonl", "null\n", r"t\.jsonl: not one JSON object a line.* .no object in row 1.; correct"),
    "broken JSON": (
        "t.jsonl",
        jsonl(GOOD_JSON[:5]) + '{"sequence": "AC\n',
        r"t\.jsonl: .* in row 6\); correct that row",
    ),
    "key twice": ("t.jsonl", '{"sequence":"A","sequence":"C"}\n', r"t\.jsonl: .*specified twice in row 1\); correct"),
    "no Parquet": ("t.parquet", "PAR1 and so on", r"t\.parquet: the file cannot be read .*; check that it is whole"),
    "bytes": (
        "t.parquet",
        pa.table({"sequence": [b"ACGT"], "label": [1]}),
        r"t\.parquet: .* holds binary, not text; name",
    ),
    "struct": (
        "t.parquet",
        pa.table({"sequence": ["ACGT"], "label": [{"x": 1}]}),
        r"holds struct.*; give one column a la",
    ),
    "lists of texts": ("t.parquet", pa.table({"sequence": ["ACGT"], "label": [["x"]]}), r"holds lists; give --kind"),
    "ids are lists": (
        "t.parquet",
        pa.table({"id": [[1]], "sequence": ["ACGT"], "label": [1]}),
        r"t\.parquet: the file cannot be read .*; check",
    ),
}


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
        gzip.compress(TEXT.encode()) if compression == "gz" else pa.Codec("zstd").compress(TEXT.encode(), asbytes=True)
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


def test_rows_are_counted_over_blocks(tmp_path: Path) -> None:
    # More than the 16 MB that are read at once.
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
    } | {f"out/splits/{split}_indices.parquet" for split in ("train", "valid", "test")}


# ---- what is accepted ------------------------------------------------------------------------------------------------


def collect(prepared: PreparedTask) -> dict[str, int]:
    tables = [prepared.table("train"), prepared.table("valid"), prepared.open_test()]
    return {row["sequence"]: row["label"] for table in tables for row in table.to_pylist()}


EXPECTED = {text: i % 2 for i, text in enumerate(SEQUENCES)}
ACCEPTED: dict[str, tuple[str, str | bytes]] = {
    "FASTA of CR LF": ("t.fa", GOOD_FASTA.replace("\n", "\r\n")),
    "FASTA in lower case": ("t.fa", fasta([(t[:9] + t[9:].lower(), i % 2) for i, t in enumerate(SEQUENCES)])),
    "FASTA with blank lines": ("t.fa", "\n" + GOOD_FASTA.replace("\n", "\n\n") + "\n"),
    "FASTA with blanks": ("t.fa", fasta([(f" {t[:10]} {t[10:]}\t", i % 2) for i, t in enumerate(SEQUENCES)])),
    "FASTA with a byte-order mark": ("t.fa", b"\xef\xbb\xbf" + GOOD_FASTA.encode()),
    "CSV with a byte-order mark": ("t.csv", b"\xef\xbb\xbf" + csv(ROWS).encode()),
    "CSV of CR LF": ("t.csv", csv(ROWS).replace("\n", "\r\n")),
    "CSV of CR": ("t.csv", csv(ROWS).replace("\n", "\r")),
    "CSV without an end of line": ("t.csv", csv(ROWS).rstrip("\n")),
    "quoted commas": (
        "t.csv",
        csv([f'"{r.partition(",")[0]}",{r[-1]},"a, ""b"", c"' for r in ROWS], "sequence,label,note"),
    ),
    "quoted newlines": ("t.csv", csv([f'{r},"a\nb"' for r in ROWS], "sequence,label,note")),
    "1.0 among 1": ("t.csv", csv([f"{t},{i % 2}{'.0' if i % 3 == 0 else ''}" for i, t in enumerate(SEQUENCES)])),
    "trailing comma": ("t.csv", csv([f"{row}," for row in ROWS], "sequence,label,")),
    "JSON with a byte-order mark": ("t.jsonl", b"\xef\xbb\xbf" + jsonl(GOOD_JSON).encode()),
    "JSON of CR LF, without an end": ("t.jsonl", jsonl(GOOD_JSON).replace("\n", "\r\n").rstrip()),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepted(tmp_path: Path, case: str) -> None:
    name, content = ACCEPTED[case]
    prepared = lay(tmp_path, put(tmp_path / name, content))
    assert prepared.task.labels == ("0", "1")
    assert collect(prepared) == EXPECTED
    assert prepared.manifest["warnings"] == []


def test_numbers_in_many_forms(tmp_path: Path) -> None:
    forms = ["1", "1.0", "1e-3", "-2.5E+2", ".5", "5.", " 7 ", "+3"]
    path = put(tmp_path / "t.csv", csv([f"{t},{forms[i % 8]}" for i, t in enumerate(SEQUENCES)]))
    prepared = lay(tmp_path, path)
    assert prepared.task.kind == "regression"
    found = collect(prepared)
    assert np.allclose([found[t] for t in SEQUENCES], [[float(forms[i % 8])] for i in range(40)])


def test_two_bases(tmp_path: Path) -> None:
    pairs = [a + b for a in "ACGT" for b in "ACGT"]
    prepared = lay(tmp_path, put(tmp_path / "t.csv", csv([f"{text},{i % 2}" for i, text in enumerate(pairs)])))
    assert prepared.length_range() == (2, 2)


def test_five_megabases(tmp_path: Path) -> None:
    long = "ACGTA" * 1_000_000
    path = put(tmp_path / "t.csv", csv([*ROWS, f"{long},1"]))
    prepared = lay(tmp_path, path, max_length_bp=5_000_000)
    assert collect(prepared) == EXPECTED | {long: 1}


def test_rna_is_read_and_said(tmp_path: Path) -> None:
    rows = [row.replace("T", "u") if i % 2 else row for i, row in enumerate(ROWS)]
    prepared = lay(tmp_path, put(tmp_path / "t.csv", csv(rows)))
    assert collect(prepared) == EXPECTED
    assert prepared.manifest["warnings"] == ["The sequences hold RNA letters: U was read as T."]


def test_iupac_letters_are_counted(tmp_path: Path) -> None:
    texts = [f"{text}RYSWKMBDHVN"[:41] for text in SEQUENCES]
    prepared = lay(tmp_path, put(tmp_path / "t.csv", csv([f"{t.lower()},{i % 2}" for i, t in enumerate(texts)])))
    assert set(collect(prepared)) == set(texts)
    for split in ("train", "valid", "test"):
        facts = prepared.manifest["splits"][split]
        assert {letter: facts["letters"][letter] for letter in "RYSWKMBDHVN"} == dict.fromkeys(
            "RYSWKMBDHVN", facts["rows"]
        )
        assert sum(facts["letters"].values()) == 41 * facts["rows"]


def test_classes_that_only_one_split_has(tmp_path: Path) -> None:
    put(tmp_path / "in" / "train.csv", csv([f"{text},{'abc'[i % 3]}" for i, text in enumerate(SEQUENCES)]))
    put(tmp_path / "in" / "test.csv", csv([f"{text},a" for text in random_sequences(5, seed=3)]))
    prepared = lay(tmp_path, tmp_path / "in")
    assert prepared.manifest["warnings"] == ["All test rows have the label 'a': scores on that split mean little."]


def test_a_manifest_that_is_damaged_is_replaced(tmp_path: Path) -> None:
    path = put(tmp_path / "t.csv", csv(ROWS))
    for text in ("[]", "{", "3", ""):
        put(tmp_path / "out" / "task.json", text)
        assert collect(lay(tmp_path, path)) == EXPECTED


# ---- places that cannot be read or written ---------------------------------------------------------------------------


@contextmanager
def as_nobody() -> Iterator[Path]:
    """A folder that all may read, entered by a user who may write nowhere in it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


@contextmanager
def no_rights() -> Iterator[None]:
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_no_permission_to_read() -> None:
    with as_nobody() as folder:
        path = put(folder / "t.csv", csv(ROWS))
        path.chmod(0)
        for options in ({}, {"kind": "binary", "labels": ("0", "1")}):
            with no_rights(), pytest.raises(UserError, match=r"t\.csv: .*permission.*; ch") as error:
                lay(folder, path, **options)
            assert str(error.value).isprintable()
        assert [p.name for p in folder.iterdir()] == ["t.csv"]


def test_no_permission_to_write() -> None:
    with as_nobody() as folder:
        path = put(folder / "t.csv", csv(ROWS))
        folder.chmod(0o555)
        with (
            no_rights(),
            pytest.raises(UserError, match=r"out: cannot be written .Permission denied.; check its permiss"),
        ):
            lay(folder, path)
        assert [p.name for p in folder.iterdir()] == ["t.csv"]


def write_big(path: Path, n_rows: int, numbers: bool) -> Path:
    rows = [f"{t},{i / 7 if numbers else i % 2}" for i, t in enumerate(random_sequences(n_rows, 200))]
    return put(path, csv(rows))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no small file system can be mounted here ({mounted.stderr.strip()})")
    try:
        yield folder
    finally:
        # The exception that a test looks at keeps files open: the mount is taken away all the same.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


# 200 random bases take about 54 bytes: the first is full while rows are read, the second while shards are written.
@pytest.mark.parametrize("n_rows", [40_000, 10_000])
@pytest.mark.parametrize("numbers", [False, True])
def test_a_full_disk(tmp_path: Path, small_disk: Path, n_rows: int, numbers: bool) -> None:
    old = lay(small_disk, put(tmp_path / "good.csv", csv(ROWS)))
    told: list[str] = []
    raw = open_source([write_big(tmp_path / "big.csv", n_rows, numbers)], SourceOptions())
    with pytest.raises(
        UserError, match=r"out: cannot be written .No space left on device.; make room there, or"
    ) as error:
        prepare(raw, small_disk / "out", DataSettings(), progress=lambda doing, rows: told.append(doing))
    assert str(error.value).isprintable()
    assert ("writing shards" in told) == (n_rows == 10_000)
    assert [p.name for p in small_disk.iterdir()] == ["out"]
    assert open_prepared(small_disk / "out").open_test().equals(old.open_test())


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
sys.argv = ["l2g-ray", *sys.argv[2:]]
from l2g_ray.cli.main import run
run()
"""


@pytest.mark.parametrize("numbers", [False, True])
def test_a_file_that_may_not_grow(tmp_path: Path, numbers: bool) -> None:
    old = lay(tmp_path, put(tmp_path / "good.csv", csv(ROWS)))
    path = write_big(tmp_path / "big.csv", 5000, numbers)
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] in (resource.RLIM_INFINITY, -1)
    ended = subprocess.run(
        [sys.executable, "-c", LIMITED, "100000", "data", "prepare", str(path), "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert ended.returncode == 2, ended.stderr
    said = f"error: {tmp_path / 'out'}: cannot be written (File too large); make room there, or choose another folder"
    assert said in ended.stderr.splitlines()
    assert "Traceback" not in ended.stderr
    assert {p.name for p in tmp_path.iterdir()} == {"good.csv", "big.csv", "out"}
    assert open_prepared(tmp_path / "out").open_test().equals(old.open_test())


# ---- whatever may come -----------------------------------------------------------------------------------------------

any_text = st.text(max_size=200)
alphabet = st.sampled_from('ACGTacgtNU>|,\t"\n\r {}[]:0123456789.eE-+\0\ufeff\u00e9x')
odd_text = st.text(alphabet, max_size=200)
often = settings(max_examples=100, deadline=None)


def columns_of(path: Path) -> pa.Table | None:
    """The rows, or None where a UserError says what is wrong."""
    try:
        tables = list(iter_tables(path, batch_rows=3))
    except UserError as error:
        if str(path) not in str(error):
            pytest.fail(f"the file is not named: {error}")
        return None
    for table in tables:
        assert table.column_names[:2] == ["id", "sequence"]
        assert table.schema.field("id").type == pa.string()
        assert table.schema.field("sequence").type == pa.large_string()
        assert 1 <= table.num_rows <= 3
        table.validate(full=True)
    return pa.concat_tables(tables, promote_options="permissive")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("any")


@often
@example(text="null", data=b"\xff\xfe", named=False)
@given(text=st.one_of(any_text, odd_text), data=st.binary(max_size=100), named=st.booleans())
@pytest.mark.parametrize("name", ["t.fa", "t.csv", "t.tsv", "t.jsonl", "t.parquet", "t.csv.gz", "t.fa.zst"])
def test_any_file_reads_or_is_refused(folder: Path, name: str, text: str, data: bytes, named: bool) -> None:
    head = {"t.csv": "sequence,label\n", "t.tsv": "sequence\tlabel\n", "t.fa": ">a|1\n"}.get(name, "") if named else ""
    columns_of(put(folder / name, head + text.encode("utf-8", "replace").decode()))
    columns_of(put(folder / name, head.encode() + data))


values = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), odd_text, st.lists(st.integers(), max_size=2))


@often
@given(
    rows=st.lists(st.dictionaries(st.sampled_from(["sequence", "label", "id", "x"]), values), min_size=1, max_size=6)
)
def test_any_json_reads_or_is_refused(folder: Path, rows: list[dict]) -> None:
    columns_of(put(folder / "t.jsonl", jsonl(rows)))


sequences = st.text("ACGTacgtNURY", min_size=1, max_size=90)


@often
@given(
    records=st.lists(
        st.tuples(st.from_regex(r"[A-Za-z0-9_.:]{1,12}", fullmatch=True), sequences), min_size=1, max_size=12
    ),
    width=st.integers(1, 100),
    newline=st.sampled_from(["\n", "\r\n"]),
    blank=st.booleans(),
    described=st.booleans(),
    last=st.booleans(),
)
def test_fasta_round_trip(
    folder: Path, records: list, width: int, newline: str, blank: bool, described: bool, last: bool
) -> None:
    lines = []
    for name, text in records:
        lines += [
            f">{name}{' some text' if described else ''}",
            *(text[i : i + width] for i in range(0, len(text), width)),
        ]
        lines += [""] * blank
    table = columns_of(put(folder / "t.fa", newline.join(lines) + newline * last))
    assert table is not None
    assert list(zip(table["id"].to_pylist(), table["sequence"].to_pylist(), strict=True)) == records


@often
@given(texts=st.lists(st.one_of(st.none(), st.text("ACGTUNacgtun RYx\n\u00e9", max_size=12)), min_size=1, max_size=12))
def test_clean_sequences_equals_a_loop(texts: list[str | None]) -> None:
    def clean(text: str | None) -> str | None:
        upper = (text or "").strip(" \n").upper().replace("U", "T")
        return upper if upper and not set(upper) - set("ACGTNRYSWKMBDHV") else None

    expected = [clean(text) for text in texts]
    column = pa.chunked_array([pa.array(texts, pa.large_string())])
    if None not in expected:
        assert clean_sequences(column, "t.csv", 100).to_pylist() == expected
        return
    # Empty sequences are looked for before letters.
    empty = [row for row, text in enumerate(texts) if not (text or "").strip(" \n")]
    row = empty[0] if empty else expected.index(None)
    with pytest.raises(UserError, match=rf"^t\.csv, row {row + 8}: ") as error:
        clean_sequences(column, "t.csv", 100, first_row=8)
    assert str(error.value).isprintable()


cells = st.one_of(
    st.none(),
    any_text,
    odd_text,
    st.sampled_from(["NA", "nan", " 1 ", "1.0", "1", "0", "1e5", "inf", "-0", "1,5", "1_0"]),
)


@often
@given(texts=st.lists(cells, max_size=20))
def test_label_texts_of_any_text(texts: list[str | None]) -> None:
    names, codes = label_texts(pa.chunked_array([pa.array(texts, pa.large_string())]))
    assert codes.shape == (len(texts),)
    for text, code in zip(texts, codes, strict=True):
        found = names[code]
        if found is None:
            assert (text or "").strip().lower() in {"", "na", "n/a", "nan", "-nan", "null", "#n/a", "#na"}
        elif found != (text or "").strip():
            assert float(found) == float(text or "")
        assert show(found).isprintable()
        assert len(show(found)) <= 4 * 10 * 40


@often
@given(texts=st.lists(cells, max_size=8))
def test_as_numbers_of_any_text(texts: list[str | None]) -> None:
    found = as_numbers(pa.chunked_array([pa.array(texts, pa.large_string())]))
    if found is None:
        return
    missing = ("", "na", "n/a", "nan", "-nan", "null", "#n/a", "#na")
    expected = [np.nan if (t or "").strip().lower() in missing else float(t or "") for t in texts]
    assert found.dtype == np.float64
    assert np.array_equal(found, np.array(expected, np.float64), equal_nan=True)


@often
@given(
    classes=st.lists(st.integers(0, 3), min_size=20, max_size=80),
    seed=st.integers(0, 5),
    rule=st.sampled_from(["random", "group", "folds", "grouped folds", "given", "chromosome"]),
    data=st.data(),
)
def test_parts_are_disjoint_whole_and_repeatable(classes: list[int], seed: int, rule: str, data: st.DataObject) -> None:
    n_rows = len(classes)
    keys = [f"g{key}" for key in data.draw(st.lists(st.integers(0, 9), min_size=n_rows, max_size=n_rows))]
    keys[:10] = [f"g{key}" for key in range(10)]
    made: dict[str, Callable[[], SourceOptions]] = {
        "random": lambda: SourceOptions(split="random", seed=seed),
        "group": lambda: SourceOptions(group_column="gene", seed=seed),
        "folds": lambda: SourceOptions(split="folds", folds=4, fold=seed % 4, seed=1),
        "grouped folds": lambda: SourceOptions(split="folds", folds=4, fold=seed % 4, group_column="gene"),
        "given": lambda: SourceOptions(split_column="part"),
        "chromosome": lambda: SourceOptions(
            split="chromosome", test_chromosomes=("g1", "g7"), valid_chromosomes=("g2",)
        ),
    }
    options = made[rule]()
    if rule == "given":
        keys = [("train", "Test ", "val", "TRAINING", "dev")[int(key[1:]) % 5] for key in keys]
    given_keys = None if rule in ("random", "folds") else keys
    first, second = (part_rows(n_rows, options, "t", np.array(classes), given_keys) for _ in range(2))
    joined = np.concatenate(list(first.rows.values()))
    assert sorted(joined.tolist()) == list(range(n_rows))
    assert all(len(rows) and (np.diff(rows) > 0).all() for rows in first.rows.values())
    assert first.made == second.made
    assert all(np.array_equal(rows, second.rows[split]) for split, rows in first.rows.items())
    if "group" in rule:
        parts = [{keys[row] for row in rows} for rows in first.rows.values()]
        assert not set.intersection(*parts)
    if rule == "folds":
        options = [SourceOptions(split="folds", folds=4, fold=fold, seed=1) for fold in range(4)]
        tests = [part_rows(n_rows, o, "t", np.array(classes)).rows["test"] for o in options]
        assert sorted(np.concatenate(tests).tolist()) == list(range(n_rows))
        counts = np.array([np.bincount(np.array(classes)[rows], minlength=4) for rows in tests])
        assert (counts.max(0) - counts.min(0)).max() <= 1
        assert np.ptp([len(rows) for rows in tests]) <= 1
