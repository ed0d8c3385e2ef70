"""What the tests of test_bad_input.py and test_bad_places.py share."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from l2g_ray.config import DataSettings
from l2g_ray.data.dataset import PreparedTask, open_prepared
from l2g_ray.data.prepare import prepare
from l2g_ray.data.raw import SourceOptions
from l2g_ray.data.sources import open_source
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
    whole = (
        gzip.compress(text.encode(), mtime=0)
        if kind == "gz"
        else pa.Codec("zstd").compress(text.encode(), asbytes=True)
    )
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
    "open quote": (
        "t.csv",
        replace(4, '"ACGT,1'),
        r"t\.csv, row 4: a quote does not enclose a whole cell, or is never closed; put",
    ),
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
    "Latin-1 FASTA": ("t.fa", b">a|0\nACGT\n>\xe9|1\nACGA\n", r"t\.fa, line 3: the file is not UTF-8 text; save"),
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
