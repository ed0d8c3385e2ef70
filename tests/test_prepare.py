from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from l2g_ray.config import DataSettings
from l2g_ray.data.checks import clean_sequences
from l2g_ray.data.dataset import open_prepared
from l2g_ray.data.prepare import prepare
from l2g_ray.data.raw import RawTask, SourceOptions
from l2g_ray.data.readers import iter_tables, read_table
from l2g_ray.data.sources import open_source
from l2g_ray.data.sources.files import open_folder
from l2g_ray.data.splits import cut_validation, hash_indices
from l2g_ray.data.spool import find_overlap, measure_facts, reverse_complement_text
from l2g_ray.errors import UserError
from l2g_ray.storage import as_location
from l2g_ray.tasks.catalogue import find_tasks, parse_task
from l2g_ray.tasks.schema import Task

SHARED = Path(__file__).parents[2] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no real data at {SHARED}")


def make_task(**fields) -> Task:
    base = {"bench": "user", "name": "own", "kind": "binary", "labels": ["negative", "positive"]}
    return parse_task({**base, **fields}, "test")


def raw(task: Task, folder: Path) -> RawTask:
    """The files of a folder, read as a given task."""
    return open_folder(as_location(folder), SourceOptions(), task)


def own(folder: Path, **options) -> RawTask:
    """The files of a folder, read as whatever task they are."""
    return open_source([folder], SourceOptions(**options))


def random_sequences(n: int, length: int = 30, seed: int = 0) -> list[str]:
    generator = np.random.default_rng(seed)
    return ["".join(row) for row in generator.choice(list("ACGT"), (n, length))]


def write_csv(path: Path, sequences: list[str], labels: list) -> None:
    rows = [f"{sequence},{label}" for sequence, label in zip(sequences, labels, strict=True)]
    path.write_text("\n".join(["sequence,label", *rows, ""]))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    write_csv(folder / "train.csv", random_sequences(100), [int(i % 5 == 0) for i in range(100)])
    write_csv(folder / "test.csv", random_sequences(20, seed=1), [i % 2 for i in range(20)])
    return folder


def leave_nothing(tmp_path: Path) -> bool:
    return {path.name for path in tmp_path.iterdir()} <= {"source"}


# ---- what is written -------------------------------------------------------------------------------------------------


def test_shards_and_manifest(tmp_path: Path, source: Path) -> None:
    prepared = prepare(raw(make_task(), source), tmp_path / "out", DataSettings(), rows_per_shard=25)
    assert [pq.read_metadata(path).num_rows for path in prepared.shard_paths("train")] == [22, 23, 23, 22]
    table = prepared.table("train")
    assert table.column_names == ["id", "sequence", "label"]
    assert table["label"].type == pa.int64()
    facts = prepared.manifest["splits"]
    assert [facts[split]["rows"] for split in ("train", "valid", "test")] == [90, 10, 20]
    assert facts["train"]["classes"] == {"negative": 72, "positive": 18}
    assert facts["train"]["length_bp"] == {"min": 30, "median": 30.0, "max": 30}
    assert sum(facts["test"]["letters"].values()) == 600
    assert prepared.length_range() == (30, 30)
    assert prepared.task == make_task()
    assert json.loads((tmp_path / "out" / "task.json").read_text())["schema"] == 2


def test_the_test_split_opens_only_by_name(tmp_path: Path, source: Path) -> None:
    prepared = prepare(raw(make_task(), source), tmp_path / "out", DataSettings())
    for call in (prepared.table, prepared.shard_paths):
        with pytest.raises(ValueError, match="evaluate"):
            call("test")
    assert prepared.open_test().num_rows == 20


def test_preparing_again_does_nothing_and_changes_are_noticed(tmp_path: Path, source: Path) -> None:
    first = prepare(raw(make_task(), source), tmp_path / "out", DataSettings())
    stamp = (tmp_path / "out" / "task.json").stat().st_mtime_ns
    again = prepare(raw(make_task(), source), tmp_path / "out", DataSettings())
    assert (tmp_path / "out" / "task.json").stat().st_mtime_ns == stamp
    assert again.manifest == first.manifest
    # Settings of batches do not matter, the seed of the split does.
    prepare(raw(make_task(), source), tmp_path / "out", DataSettings(shift_bp=0))
    assert (tmp_path / "out" / "task.json").stat().st_mtime_ns == stamp
    other = prepare(raw(make_task(), source), tmp_path / "out", DataSettings(split_seed=1))
    assert other.fingerprint("valid") != first.fingerprint("valid")
    assert other.fingerprint("test") == first.fingerprint("test")
    assert {path.name for path in tmp_path.iterdir()} == {"source", "out"}


def test_fingerprint_does_not_depend_on_shards_or_format(tmp_path: Path, source: Path) -> None:
    one = prepare(raw(make_task(), source), tmp_path / "one", DataSettings(), rows_per_shard=7)
    other_source = tmp_path / "other"
    other_source.mkdir()
    for split in ("train", "test"):
        table = read_table(source / f"{split}.csv")
        records = [
            f">{i}|{label}\r\n{text[:11].lower()}\r\n\r\n{text[11:]}"
            for i, text, label in zip(*table.to_pydict().values())
        ]
        with gzip.open(other_source / f"{split}.fa.gz", "wt", newline="") as file:
            file.write("\r\n".join(records))
    two = prepare(raw(make_task(), other_source), tmp_path / "two", DataSettings())
    for split in ("train", "valid", "test"):
        assert one.fingerprint(split) == two.fingerprint(split)


def test_an_old_output_stays_when_the_new_one_fails(tmp_path: Path, source: Path) -> None:
    prepare(raw(make_task(), source), tmp_path / "out", DataSettings())
    (source / "test.csv").write_text("sequence,label\nACGX,1\n")
    with pytest.raises(UserError, match=r"test\.csv, row 1"):
        prepare(raw(make_task(), source), tmp_path / "out", DataSettings())
    assert open_prepared(tmp_path / "out").n_rows("test") == 20


def test_a_folder_of_other_files_is_not_replaced(tmp_path: Path, source: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="holds other files"):
        prepare(raw(make_task(), source), tmp_path / "out", DataSettings())
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_a_place_that_cannot_be_written(tmp_path: Path, source: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written.*choose another folder"):
        prepare(raw(make_task(), source), tmp_path / "file" / "out", DataSettings())


# ---- labels ----------------------------------------------------------------------------------------------------------


def test_label_names_and_codes_give_the_same(tmp_path: Path, source: Path) -> None:
    coded = prepare(raw(make_task(), source), tmp_path / "coded", DataSettings())
    for split in ("train", "test"):
        table = read_table(source / f"{split}.csv")
        names = ["negative" if int(code) == 0 else "positive" for code in table["label"].to_pylist()]
        write_csv(source / f"{split}.csv", table["sequence"].to_pylist(), names)
    named = prepare(raw(make_task(), source), tmp_path / "named", DataSettings())
    assert named.fingerprint("train") == coded.fingerprint("train")


def test_labels_that_are_whole_numbers_are_names_not_codes(tmp_path: Path, source: Path) -> None:
    for split, seed in (("train", 2), ("test", 3)):
        write_csv(source / f"{split}.csv", random_sequences(30, seed=seed), [1 + i % 3 for i in range(30)])
    task = make_task(kind="multiclass", labels=["1", "2", "3"])
    prepared = prepare(raw(task, source), tmp_path / "out", DataSettings())
    assert prepared.open_test()["label"].to_pylist() == [i % 3 for i in range(30)]


def test_regression_with_missing_values(tmp_path: Path, source: Path) -> None:
    for split, seed in (("train", 2), ("test", 3)):
        rows = [f"{text},{i / 7},{'' if i % 4 else i}" for i, text in enumerate(random_sequences(30, seed=seed))]
        (source / f"{split}.csv").write_text("\n".join(["sequence,a,b", *rows]))
    prepared = prepare(raw(make_task(kind="regression", labels=["a", "b"]), source), tmp_path / "out", DataSettings())
    table = prepared.open_test()
    assert table["label"].type == pa.list_(pa.float32(), 2)
    values = np.array(table["label"].to_pylist())
    assert np.allclose(values[:, 0], np.arange(30) / 7)
    assert np.isnan(values[:, 1]).sum() == 22
    assert prepared.manifest["splits"]["test"]["outputs"]["b"]["missing"] == 22


# ---- bad input: one sentence with file, row and fix; nothing left ---------------------------------------------------

GOOD = "ACGTACGTACGT"
BAD_TRAIN = {
    "no nucleotide": (f"sequence,label\n{GOOD},0\nACGEFG,1\n", {}, r", row 2: 'E' at base 4 .*use A C G T"),
    "empty sequence": (f"sequence,label\n{GOOD},0\n,1\n", {}, r", row 2: the sequence is empty; fill it in"),
    "too long": (f"sequence,label\nACGT,0\n{GOOD * 3},1\n", {}, r", row 2: .*36 bp.*limit of 20 bp; cut it"),
    "unknown label": (f"sequence,label\n{GOOD},0\n{GOOD}A,2\n", {}, r", row 2: label '2'.*negative.*[Cc]orrect"),
    "missing label": (f"sequence,label\n{GOOD},0\n{GOOD}A,\n", {}, r", row 2: the label is missing; fill it in"),
    "nan label": (f"sequence,label\n{GOOD},0\n{GOOD}A,NaN\n", {}, r", row 2: the label is missing"),
    "one class": (f"sequence,label\n{GOOD},1\n{GOOD}A,1\n{GOOD}C,1\n", {}, r": all .* label 'positive'; add rows"),
    "no label column": (f"sequence,lable\n{GOOD},0\n", {}, r": no column 'label' .did you mean 'lable'.*rename"),
    "no sequence column": (f"sequenze,label\n{GOOD},0\n", {}, r": no column 'sequence' .did you mean 'sequenze'"),
    "ragged": (f"sequence,label\n{GOOD},0\n{GOOD},0,5\n", {}, r", row 2: 3 columns .* header has 2; quote"),
    "empty file": ("", {}, r": the file is empty; give"),
    "no rows": ("sequence,label\n", {}, r": the file has no rows; give"),
    "one row": (f"sequence,label\n{GOOD},0\n", {}, r": 1 row is too few.*add rows"),
    "no number": (f"sequence,y\n{GOOD},0.5\n{GOOD}A,high\n", {"y"}, r", row 2: column 'y' holds 'high'.*correct"),
    "infinite": (f"sequence,y\n{GOOD},0.5\n{GOOD}A,inf\n", {"y"}, r", row 2: column 'y' is infinite"),
    "all missing": (f"sequence,y\n{GOOD},0.5\n{GOOD}A,\n", {"y"}, r", row 2: all labels are missing"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_TRAIN)
def test_bad_rows_are_named(tmp_path: Path, source: Path, case: str) -> None:
    text, outputs, message = BAD_TRAIN[case]
    (source / "train.csv").write_text(text)
    task = make_task(kind="regression", labels=["activity"], label_columns=list(outputs)) if outputs else make_task()
    if outputs:
        (source / "test.csv").write_text("sequence,y\nTTTTTT,1\n")
    with pytest.raises(UserError, match=r"train\.csv" + message) as error:
        prepare(raw(task, source), tmp_path / "out", DataSettings(max_length_bp=20 if case == "too long" else 100))
    assert "\n" not in str(error.value)
    assert leave_nothing(tmp_path)


def test_missing_doubled_and_damaged_files(tmp_path: Path, source: Path) -> None:
    def refuse(message: str) -> None:
        with pytest.raises(UserError, match=message):
            prepare(raw(make_task(), source), tmp_path / "out", DataSettings())
        assert leave_nothing(tmp_path)

    whole = gzip.compress((source / "train.csv").read_bytes())
    (source / "train.csv.gz").write_bytes(whole[: len(whole) // 2])
    refuse(r"several train files \(train.csv, train.csv.gz\); keep one")
    (source / "train.csv").unlink()
    refuse(r"train\.csv\.gz: the compressed file is cut short or damaged.*copy it again")
    (source / "train.csv.gz").unlink()
    whole = gzip.compress("".join(f">{i}|1\n{text}\n" for i, text in enumerate(random_sequences(500))).encode())
    (source / "train.fa.gz").write_bytes(whole[: len(whole) // 2])
    refuse(r"train\.fa\.gz: the compressed file is cut short or damaged.*copy it again")
    (source / "train.fa.gz").rename(source / "train.parquet")
    refuse(r"train\.parquet: the file cannot be read")
    (source / "train.parquet").rename(source / "train.fasta")
    refuse(r"train\.fasta, line 1: the file is not UTF-8 text")
    (source / "train.fasta").write_text("ACGT\n>one|1\nACGT\n")
    refuse(r"train\.fasta, line 1: a FASTA file starts with a '>' header")
    (source / "train.fasta").unlink()
    refuse("no train file; add train.csv")
    with pytest.raises(UserError, match="no such folder"):
        prepare(raw(make_task(), tmp_path / "nowhere"), tmp_path / "out", DataSettings())


def test_multilabel_values(tmp_path: Path, source: Path) -> None:
    (source / "train.csv").write_text("sequence,a,b\nACGT,0,1\nAACC,,1\nAGGA,2,0\n")
    task = make_task(kind="multilabel", labels=["a", "b"])
    with pytest.raises(UserError, match=r"train\.csv, row 3: column 'a' holds 2; a multilabel column holds 0, 1"):
        prepare(raw(task, source), tmp_path / "out", DataSettings())


# ---- readers ---------------------------------------------------------------------------------------------------------


def test_streams_are_cut_but_whole(tmp_path: Path, source: Path) -> None:
    table = read_table(source / "train.csv")
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=9)
    (tmp_path / "t.fasta").write_text(
        "".join(f">s{i} some text\n{text}\n" for i, text in enumerate(table["sequence"].to_pylist()))
    )
    (tmp_path / "t.tsv").write_text((source / "train.csv").read_text().replace(",", "\t"))
    for name in ("t.parquet", "t.fasta", "t.tsv"):
        parts = list(iter_tables(tmp_path / name, batch_rows=7))
        assert max(part.num_rows for part in parts) <= 7
        joined = pa.concat_tables(parts)
        assert joined["sequence"].to_pylist() == table["sequence"].to_pylist()
        assert joined.column_names[:2] == ["id", "sequence"]
    assert read_table(tmp_path / "t.fasta")["id"].to_pylist()[:2] == ["s0", "s1"]
    assert read_table(tmp_path / "t.tsv")["id"].to_pylist()[:2] == ["1", "2"]


def test_csv_with_byte_order_mark_quotes_and_another_column_name(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes('\ufeff"seq",label,note\r\nacgu,1,"a,b"\r\n\r\nNA,0,x\r\n'.encode())
    table = read_table(tmp_path / "t.csv", "seq")
    assert table.to_pylist() == [
        {"id": "1", "sequence": "acgu", "label": "1", "note": "a,b"},
        {"id": "2", "sequence": "NA", "label": "0", "note": "x"},
    ]
    assert clean_sequences(table["sequence"], "t.csv", 10, missing=frozenset()).to_pylist() == ["ACGT", "NA"]


def test_unknown_kinds_of_file(tmp_path: Path) -> None:
    (tmp_path / "t.xlsx").write_text("x")
    with pytest.raises(UserError, match="unknown kind of file"):
        read_table(tmp_path / "t.xlsx")
    with pytest.raises(UserError, match="no such file"):
        read_table(tmp_path / "t.csv")
    pq.write_table(pa.table({"sequence": [1, 2]}), tmp_path / "t.parquet")
    with pytest.raises(UserError, match="holds int64, not text"):
        read_table(tmp_path / "t.parquet")


# ---- splits and leakage ----------------------------------------------------------------------------------------------


def test_validation_is_stratified_seeded_and_saved(tmp_path: Path, source: Path) -> None:
    prepared = prepare(raw(make_task(), source), tmp_path / "out", DataSettings())
    assert prepared.manifest["splits"]["valid"]["classes"] == {"negative": 8, "positive": 2}
    rows = pq.read_table(tmp_path / "out" / "splits" / "valid_indices.parquet")["row"].to_numpy()
    assert prepared.manifest["valid"]["sha256"] == hash_indices(rows)
    original = read_table(source / "train.csv")["sequence"].to_pylist()
    assert prepared.table("valid")["sequence"].to_pylist() == [original[row] for row in rows]
    assert np.array_equal(
        cut_validation(100, 0.1, 0, np.arange(100) % 5), cut_validation(100, 0.1, 0, np.arange(100) % 5)
    )
    assert not np.array_equal(cut_validation(100, 0.1, 0), cut_validation(100, 0.1, 1))


def test_rare_classes_stay_in_train() -> None:
    classes = np.array([0] * 50 + [1] * 2 + [2])
    chosen = cut_validation(len(classes), 0.1, 0, classes)
    assert np.bincount(classes[chosen], minlength=3).tolist() == [5, 1, 0]


def test_a_given_validation_split_is_used(tmp_path: Path, source: Path) -> None:
    write_csv(source / "dev.csv", random_sequences(12, seed=5), [i % 2 for i in range(12)])
    prepared = prepare(raw(make_task(), source), tmp_path / "out", DataSettings())
    assert prepared.manifest["valid"] == {"made": "given", "file": "dev.csv"}
    assert [prepared.n_rows(split) for split in ("train", "valid", "test")] == [100, 12, 20]
    assert not (tmp_path / "out" / "splits").exists()


def leaky(source: Path) -> None:
    train, test = read_table(source / "train.csv"), read_table(source / "test.csv")
    texts, held = train["sequence"].to_pylist(), test["sequence"].to_pylist()
    texts[3], texts[4] = held[0], held[0]
    texts[7] = reverse_complement_text(test["sequence"]).to_pylist()[5]
    write_csv(source / "train.csv", texts, train["label"].to_pylist())
    write_csv(source / "valid.csv", [*random_sequences(10, seed=9), texts[50], held[9]], [i % 2 for i in range(12)])


def test_overlaps_leave_train_and_valid(tmp_path: Path, source: Path) -> None:
    leaky(source)
    prepared = prepare(raw(make_task(), source), tmp_path / "out", DataSettings())
    leakage = prepared.manifest["leakage"]
    assert leakage["train_in_test"] == {
        "exact": 2,
        "reverse_complement": 1,
        "other_exact": 1,
        "other_reverse_complement": 1,
    }
    assert leakage["valid_in_test"]["exact"] == 1
    assert leakage["train_in_valid"]["exact"] == 1
    assert [prepared.n_rows(split) for split in ("train", "valid", "test")] == [96, 11, 20]
    assert prepared.manifest["warnings"] == [
        "1 valid row that is also in the test split was dropped.",
        "3 train rows that are also in the test split (1 of them as reverse complement) were dropped.",
        "1 train row that is also in the valid split was dropped.",
    ]


def test_overlaps_can_be_kept(tmp_path: Path, source: Path) -> None:
    leaky(source)
    prepared = prepare(raw(make_task(), source), tmp_path / "out", DataSettings(keep_duplicates=True))
    assert [prepared.n_rows(split) for split in ("train", "valid", "test")] == [100, 12, 20]
    assert prepared.manifest["leakage"]["kept"] is True
    assert any("were kept" in warning for warning in prepared.manifest["warnings"])


def test_a_train_set_that_is_the_test_set(tmp_path: Path, source: Path) -> None:
    (source / "train.csv").write_text((source / "test.csv").read_text())
    with pytest.raises(UserError, match=r"train\.csv: every row is also in the test split; give other rows"):
        prepare(raw(make_task(), source), tmp_path / "out", DataSettings())
    assert leave_nothing(tmp_path)


def test_a_palindrome_is_an_exact_overlap() -> None:
    overlap = find_overlap(measure_facts(pa.array(["ACGT", "AAAA"])), measure_facts(pa.array(["ACGT", "TTTT"])))
    assert overlap.count() == {"exact": 1, "reverse_complement": 1, "other_exact": 1, "other_reverse_complement": 1}


REAL = [("nt", "enhancers", 100), ("nt", "splice_sites_all", 31), ("gue", "prom_core_all", 42), ("gue", "mouse_2", 0)]


@needs_shared
@pytest.mark.parametrize(("bench", "name", "dropped"), REAL)
def test_d8_split_hashes_disjoint(tmp_path: Path, bench: str, name: str, dropped: int) -> None:
    (task,) = find_tasks(bench, [name])
    prepared = prepare(raw(task, SHARED / task.folder), tmp_path / "out", DataSettings())
    found = prepared.manifest["leakage"]["train_in_test"]
    assert (found["exact"], found["reverse_complement"]) == (dropped, 0)
    columns = {"train": prepared.table("train"), "valid": prepared.table("valid"), "test": prepared.open_test()}
    for one, other in (("train", "valid"), ("train", "test"), ("valid", "test")):
        assert not find_overlap(*(measure_facts(columns[s]["sequence"]) for s in (one, other))).any.any()


@pytest.mark.slow
@needs_shared
def test_every_real_set_prepares(tmp_path: Path) -> None:
    for bench in ("nt", "mpra", "uci", "genomic_benchmarks"):
        for task in find_tasks(bench):
            if (SHARED / task.folder).is_dir():
                prepared = prepare(raw(task, SHARED / task.folder), tmp_path / bench / task.name, DataSettings())
                assert prepared.length_range()[1] <= task.length_bp


# ---- a folder of one's own -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "kind", "names"),
    [
        ([0, 1, 1, 0], "binary", ("0", "1")),
        (["no", "yes", "no", "no"], "binary", ("no", "yes")),
        ([3, 10, 2, 3], "multiclass", ("2", "3", "10")),
        (["b", "c", "a", "b"], "multiclass", ("a", "b", "c")),
        ([0.5, 1.25, 3.0, 2.0], "regression", ("label",)),
        (list(range(60)), "regression", ("label",)),
    ],
)
def test_kind_follows_from_the_labels(tmp_path: Path, source: Path, labels: list, kind: str, names: tuple) -> None:
    n_rows = max(len(labels), 24)
    for split, seed in (("train", 2), ("test", 3)):
        write_csv(
            source / f"{split}.csv",
            random_sequences(n_rows, seed=seed),
            [labels[i % len(labels)] for i in range(n_rows)],
        )
    found = own(source)
    task = found.task
    assert (task.kind, task.labels, task.bench, task.name) == (kind, names, "user", "source")
    prepared = prepare(found, tmp_path / "out", DataSettings())
    assert prepared.n_rows("test") == n_rows


def test_columns_of_numbers_are_outputs(source: Path) -> None:
    for split in ("train", "test"):
        (source / f"{split}.csv").write_text("id,sequence,note,dev,hk\na,ACGT,x,1.5,2\n")
    with pytest.raises(UserError, match=r"no column 'label', and 2 columns of numbers .*: --label-column dev --label-"):
        own(source)
    task = own(source, label_columns=("dev", "hk")).task
    assert (task.kind, task.labels, task.label_columns) == ("regression", ("dev", "hk"), ("dev", "hk"))


def test_a_label_of_test_that_train_does_not_have(tmp_path: Path, source: Path) -> None:
    write_csv(source / "test.csv", random_sequences(3, seed=8), [0, 1, 7])
    found = own(source)
    with pytest.raises(UserError, match=r"test\.csv, row 3: label '7'"):
        prepare(found, tmp_path / "out", DataSettings())


def test_a_task_yaml_is_obeyed(tmp_path: Path, source: Path) -> None:
    (source / "task.yaml").write_text("name: mine\nkind: binary\nlabels: [closed, open]\nstrand_specific: true\n")
    task = own(source).task
    assert (task.name, task.labels, task.strand_specific) == ("mine", ("closed", "open"), True)
    (source / "task.yaml").write_text("strand_specific: true\n")
    assert own(source).task.kind == "binary"
    (source / "task.yaml").write_text("name: ../../up\n")
    with pytest.raises(UserError, match=r"task\.yaml: key 'name': .*may hold only letters"):
        own(source)
    (source / "task.yaml").write_text("kinds: binary\n")
    with pytest.raises(UserError, match=r"task\.yaml: unknown key 'kinds': did you mean 'kind'"):
        own(source)
    (source / "task.yaml").write_text("[")
    with pytest.raises(UserError, match=r"task\.yaml: not valid YAML"):
        own(source)


def test_labels_that_fit_no_kind(source: Path) -> None:
    write_csv(source / "train.csv", random_sequences(60), [f"gene{i}" for i in range(60)])
    with pytest.raises(
        UserError, match="60 different texts, more than 50, and some in fewer than 3 rows; name another"
    ):
        own(source)
    write_csv(source / "train.csv", random_sequences(60), ["one"] * 60)
    with pytest.raises(UserError, match="all 60 rows have the label 'one'"):
        own(source)
    (source / "train.csv").write_text("sequence,text\nACGT,a\n")
    with pytest.raises(UserError, match="no column 'label' and no column of numbers"):
        own(source)
