"""Quotes in text tables: as many rows come out as go in, or the row is named."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from source_files import SEQUENCES, lay, own

from l2g_ray.data import text as delimited
from l2g_ray.data.readers import iter_tables, read_table
from l2g_ray.data.table_writer import TableWriter
from l2g_ray.errors import UserError

often = settings(max_examples=150, deadline=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quotes")


def read(path: Path, text: str, block_bytes: int = 1 << 22) -> list[tuple[str, ...]] | None:
    """The rows of a table without their ids, or None where a message names a row."""
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delimited, "_BLOCK_BYTES", block_bytes)
        try:
            table = pa.concat_tables(iter_tables(path, batch_rows=3))
        except UserError as error:
            if ", row " not in str(error) or not str(error).isprintable():
                pytest.fail(f"no row is named: {error}")
            return None
    return list(zip(*(table[name].to_pylist() for name in table.column_names[1:]), strict=True))


def quoted_text(rows: list[tuple[str, str]], delimiter: str, quoting: int) -> str:
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter, quoting=quoting, lineterminator="\r\n")  # type: ignore[arg-type]
    writer.writerows([("sequence", "label", "note"), *(("ACGT", *row) for row in rows)])
    return file.getvalue()


plain = st.text(st.sampled_from("\"',; a\u00e9\u2028"), max_size=6)
any_cell = st.text(st.sampled_from("\"'\t\n\r,; a\u00e9"), max_size=8)
blocks = st.sampled_from([300, 1 << 22])


@often
@example(rows=[("0", '"similar to 5 prime end'), ("1", "x"), ("0", '12" probe')], block_bytes=1 << 22)
@given(rows=st.lists(st.tuples(plain, plain), min_size=1, max_size=30), block_bytes=blocks)
def test_a_quote_in_a_tsv_is_a_letter(folder: Path, rows: list[tuple[str, str]], block_bytes: int) -> None:
    text = "\n".join(["sequence\tlabel\tnote", *(f"ACGT\t{a}\t{b}" for a, b in rows)])
    assert read(folder / "t.tsv", text, block_bytes) == [("ACGT", *row) for row in rows]


@often
@example(rows=[("0", "two\nlines"), ("1", 'a "word", and\r\nmore')], quoting=csv.QUOTE_MINIMAL, block_bytes=1 << 22)
@given(
    rows=st.lists(st.tuples(any_cell, any_cell), min_size=1, max_size=30),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    block_bytes=blocks,
)
@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
def test_quoted_cells_come_back(
    folder: Path, name: str, rows: list[tuple[str, str]], quoting: int, block_bytes: int
) -> None:
    delimiter = "\t" if name == "t.tsv" else ","
    if delimiter == "\t":
        quoting = csv.QUOTE_ALL  # the header asks for it
    found = read(folder / name, quoted_text(rows, delimiter, quoting), block_bytes)
    if found is None:  # each line of some row has all columns
        assert any(f"{a}{b}".strip("\r\n") and {"\n", "\r"} & set(a + b) and delimiter in a + b for a, b in rows)
    else:
        assert found == [("ACGT", *row) for row in rows]


@often
@example(rows=[("0", '"similar to 5 prime end'), ("1", "x"), ("0", 'probe 12"')], block_bytes=1 << 22)
@example(rows=[("0", '"similar to 5 prime end'), ("1", "x"), ("0", '12" probe')], block_bytes=1 << 22)
@given(
    rows=st.lists(st.tuples(st.text('" a', max_size=4), st.text('" a', max_size=4)), min_size=1, max_size=30),
    block_bytes=blocks,
)
def test_a_stray_quote_in_a_csv_swallows_no_row(folder: Path, rows: list[tuple[str, str]], block_bytes: int) -> None:
    lines = [f"ACGT,{a},{b}" for a, b in rows]
    found = read(folder / "t.csv", "\n".join(["sequence,label,note", *lines, ""]), block_bytes)
    if found is not None:
        assert len(found) == len(rows)
        assert found == [tuple(next(csv.reader([line], strict=True))) for line in lines]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("t.csv", 'sequence,label,note\nACGT,0,5" end\n', r"t\.csv, row 1: a quote does not enclose a whole cell.*TSV"),
        ("t.csv", 'sequence,label,note\nAC,0,"a"\nAC,0,"b" c\n', r"row 2: a quote does not enclose"),
        ("t.csv", 'sequence,label,note\nAC,0,a\nAC,0,"b\nAC,1,c\n', r"row 2: .*or is never closed; put the whole"),
        (
            "t.csv",
            'sequence,label,note\nAC,0,a\n\nAC,0,"b\nAC,1,c"\n',
            r"row 2: a quote there makes one row of 2 lines",
        ),
        ("t.csv", 'sequence,no"te\nAC,0\n', r"t\.csv, the header: a quote does not enclose"),
        ("t.tsv", '"sequence"\t"note"\nAC\t"a\n', r"t\.tsv, row 1: a quote .*; take the quotes out of the header too"),
        ("t.tsv", 'sequence\tnote\nAC\t"a\tb"\n', r"t\.tsv, row 1: 3 columns where the header has 2; take tabs"),
    ],
)
def test_where_a_quote_stands(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=said) as error:
        read_table(tmp_path / name)
    assert "; " in str(error.value)


def test_a_quote_that_is_never_closed_is_named_in_a_large_file(tmp_path: Path) -> None:
    rows = [f"{'A' * 2000},x{i}" for i in range(8000)]
    rows[3000] += '"'
    (tmp_path / "t.csv").write_text("\n".join(["sequence,note", *rows, ""]))
    with pytest.raises(UserError, match=r"t\.csv, row 3001: .*a quote is never closed"):
        read_table(tmp_path / "t.csv")


def test_data_prepare_keeps_rows_with_quotes(tmp_path: Path) -> None:
    notes = ['"similar to 5 prime end' if i == 10 else '12" probe' if i == 50 else "x" for i in range(len(SEQUENCES))]
    lines = [f"{text}\t{i % 2}\t{note}" for i, (text, note) in enumerate(zip(SEQUENCES, notes, strict=True))]
    (tmp_path / "t.tsv").write_text("\n".join(["sequence\tlabel\tnote", *lines, ""]))
    prepared = lay(tmp_path, own(tmp_path / "t.tsv"))
    assert sum(prepared.n_rows(split) for split in ("train", "valid", "test")) == len(SEQUENCES)


@often
@given(ids=st.lists(st.text(st.sampled_from('"\t\n,a'), max_size=5), min_size=1, max_size=8))
@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.parquet"])
def test_what_is_written_can_be_read(folder: Path, name: str, ids: list[str]) -> None:
    with TableWriter(folder / name) as writer:
        writer.write(pa.table({"id": ids, "sequence": ["ACGT"] * len(ids)}))
    try:
        assert read_table(folder / name)["id"].to_pylist() == ids
    except UserError as error:
        if "makes one row of" not in str(error) or "\n" not in "".join(ids):
            pytest.fail(f"refused: {error}")
