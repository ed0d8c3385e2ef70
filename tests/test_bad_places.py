from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from bad_files import (
    GOOD_FASTA,
    GOOD_JSON,
    ROWS,
    SEQUENCES,
    csv,
    fasta,
    jsonl,
    lay,
    put,
    random_sequences,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

from l2g_ray.config import DataSettings
from l2g_ray.data.checks import NA_VALUES, as_numbers, clean_sequences, label_texts, show
from l2g_ray.data.dataset import PreparedTask, open_prepared
from l2g_ray.data.prepare import prepare
from l2g_ray.data.raw import SourceOptions
from l2g_ray.data.readers import iter_tables
from l2g_ray.data.sources import open_source
from l2g_ray.data.splits import part_rows
from l2g_ray.errors import UserError

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
        if (text or "").strip(" \n") in NA_VALUES:
            return None
        upper = (text or "").strip(" \n").upper().replace("U", "T")
        return upper if upper and not set(upper) - set("ACGTNRYSWKMBDHV") else None

    expected = [clean(text) for text in texts]
    column = pa.chunked_array([pa.array(texts, pa.large_string())])
    if None not in expected:
        assert clean_sequences(column, "t.csv", 100).to_pylist() == expected
        return
    # Missing sequences are looked for before letters.
    empty = [row for row, text in enumerate(texts) if (text or "").strip(" \n") in {"", *NA_VALUES}]
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
            assert (text or "").strip() in {"", *NA_VALUES}
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
    expected = [np.nan if (t or "").strip() in {"", *NA_VALUES} else float(t or "") for t in texts]
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
