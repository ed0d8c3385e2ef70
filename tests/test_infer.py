"""What a table's columns are taken for when nobody says it, and how to say it: kinds, label columns, missing values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import Cli
from hypothesis import given, settings
from hypothesis import strategies as st
from source_files import SEQUENCES, collect, lay, own, random_sequences, write, write_text

from l2g_ray.errors import UserError
from l2g_ray.tasks.schema import Task

MANY = random_sequences(240, seed=3)


def task_of(path: Path, label: list[Any], **options: Any) -> Task:
    pq.write_table(pa.table({"sequence": MANY[: len(label)], "label": label}), path / "t.parquet")
    return own(path / "t.parquet", **options).task


# ---- kinds -----------------------------------------------------------------------------------------------------------


def test_sixty_classes(tmp_path: Path) -> None:
    codes = [i % 60 for i in range(240)]
    for labels in (codes, [float(code) for code in codes], [str(code) for code in codes]):
        task = task_of(tmp_path, labels)
        assert (task.kind, task.labels) == ("multiclass", tuple(map(str, range(60))))
        assert "60 different whole numbers; --kind regression reads them as amounts" in task.notes[0]
    prepared = lay(tmp_path, own(tmp_path / "t.parquet"))
    assert collect(prepared) == dict(zip(MANY, codes, strict=True))
    assert prepared.task.notes == task.notes
    assert task_of(tmp_path, codes, kind="regression").labels == ("label",)
    names = [f"gene{code}" for code in codes]
    assert task_of(tmp_path, names).labels == tuple(sorted(set(names)))


@pytest.mark.parametrize(
    "labels",
    [
        [i % 61 for i in range(61 * 3 - 1)],  # one class has two rows
        [i % 60 + 1 for i in range(240)],
        [i % 60 + (i % 60 > 30) for i in range(240)],
        [i % 60 * 10 for i in range(240)],
        sorted(np.random.default_rng(0).negative_binomial(1, 0.02, 240).tolist()),  # read counts
    ],
)
def test_amounts_stay_a_regression_unless_told(tmp_path: Path, labels: list[int]) -> None:
    task = task_of(tmp_path, labels)
    assert (task.kind, task.labels) == ("regression", ("label",))
    assert "--kind multiclass makes each a class" in task.notes[0]
    task = task_of(tmp_path, labels, kind="multiclass")
    assert (task.kind, task.labels) == ("multiclass", tuple(map(str, sorted(set(labels)))))
    assert not task.notes


@pytest.mark.parametrize(
    ("labels", "kind", "noted"),
    [
        ([0, 1], "binary", False),
        ([0, 1, 2], "multiclass", True),
        (["a", "b", "c"], "multiclass", False),
        ([0.5, 1], "regression", False),
    ],
)
def test_the_choice_is_noted_where_there_is_one(tmp_path: Path, labels: list, kind: str, noted: bool) -> None:
    task = task_of(tmp_path, labels * 20)
    assert (task.kind, bool(task.notes)) == (kind, noted)


def test_labels_that_are_no_classes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"each of the 240 rows of column 'label' has a different label.*--kind regr"):
        task_of(tmp_path, list(range(240)), kind="multiclass")
    with pytest.raises(UserError, match=r"80 different texts, more than 50.*--kind multiclass"):
        task_of(tmp_path, [f"g{i % 80}" for i in range(160)])
    assert len(task_of(tmp_path, [f"g{i % 80}" for i in range(160)], kind="multiclass").labels) == 80


@settings(max_examples=60, deadline=None)
@given(labels=st.lists(st.integers(0, 70), min_size=2, max_size=240))
def test_whole_numbers_are_classes_by_the_rule(labels: list[int]) -> None:
    from l2g_ray.data.infer import infer_fields

    distinct, rows = np.unique(labels, return_counts=True)
    if len(distinct) == 1:
        return
    coded = distinct.tolist() == list(range(len(distinct))) and rows.min() >= 3
    expected = "binary" if len(distinct) == 2 else "multiclass" if len(distinct) <= 50 or coded else "regression"
    assert infer_fields([pa.table({"label": labels})], "t.csv")["kind"] == expected


def test_the_summaries_tell_the_choice(cli: Cli, tmp_path: Path) -> None:
    lines = [f"{text},{i % 60}" for i, text in enumerate(MANY)]
    path = write_text(tmp_path / "t.csv", "\n".join(["sequence,label", *lines, ""]))
    told = "note: Kind multiclass: column 'label' holds 60 different whole numbers; --kind regression reads them as"
    assert told in cli("data", "check", path, "--out", tmp_path / "check").out
    assert told in cli("data", "prepare", path, "--out", tmp_path / "out").out
    assert told in cli("data", "inspect", tmp_path / "out").out
    said = cli("data", "prepare", path, "--kind", "regression", "--out", tmp_path / "out")
    assert (said.code, "note:" in said.out) == (0, False)
    assert json.loads((tmp_path / "out" / "task.json").read_text())["task"]["kind"] == "regression"


# ---- which columns ---------------------------------------------------------------------------------------------------

ACTIVITY = [round(0.37 * i - 5, 2) for i in range(60)]


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.parquet"])
@pytest.mark.parametrize(
    "extra",
    [
        {"": list(range(60))},
        {"Unnamed: 0": [7 * i for i in range(60)]},
        {"__index_level_0__": [7 * i for i in range(60)]},
        {"index": [59 - i for i in range(60)]},
        {"number": list(range(60))},
        {"row": [60 - i for i in range(60)]},
        {"start": [100 * i for i in range(60)], "end": [100 * i + 30 for i in range(60)]},
        {"chr": [1 + i % 5 for i in range(60)], "chromStart": [9 * i for i in range(60)]},
        {"Pos": [9 * i for i in range(60)], "nothing": [None] * 60},
    ],
)
def test_row_numbers_and_places_are_no_labels(tmp_path: Path, name: str, extra: dict[str, list]) -> None:
    raw = own(write(tmp_path / name, pa.table(extra | {"sequence": SEQUENCES, "activity": ACTIVITY})))
    assert (raw.task.kind, raw.task.label_columns) == ("regression", ("activity",))
    assert all(f"'{column}' (" in raw.task.notes[0] for column in extra if column != "nothing")
    assert np.allclose([collect(lay(tmp_path, raw))[text] for text in SEQUENCES], np.array(ACTIVITY)[:, None])


def test_several_columns_of_numbers_are_asked_for(tmp_path: Path) -> None:
    columns = {"<1h": ACTIVITY, ">1h": ACTIVITY[::-1], "\u03b1": ACTIVITY, "it's": ACTIVITY}
    path = write(tmp_path / "t.csv", pa.table({"": range(60), "sequence": SEQUENCES} | columns))
    said = (
        r"4 columns of numbers that could be it; say which .*: --label-column '<1h' --label-column '>1h' --label-column"
    )
    for kind in (None, "regression", "multilabel"):
        with pytest.raises(UserError, match=said):
            own(path, kind=kind)
    task = own(path, label_columns=tuple(columns)).task
    assert (task.kind, task.labels) == ("regression", tuple(columns))
    assert own(path, label_columns=(">1h",)).task.labels == (">1h",)
    # A row number is a label where it is named.
    assert own(path, label_columns=("",), kind="regression").task.labels == ("",)


def test_flags_are_multilabel_without_asking(tmp_path: Path) -> None:
    flags = {"a": [i % 2 for i in range(60)], "b": [i % 3 % 2 for i in range(60)]}
    path = write(tmp_path / "t.csv", pa.table({"": range(60), "sequence": SEQUENCES} | flags))
    task = own(path).task
    assert (task.kind, task.labels) == ("multilabel", ("a", "b"))
    assert "--kind regression" in " ".join(task.notes)
    assert own(path, kind="regression").task.kind == "regression"


def test_nothing_but_row_numbers_and_places(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", pa.table({"": range(60), "sequence": SEQUENCES, "start": range(60)}))
    with pytest.raises(
        UserError, match=r"no column of numbers \('' \(no name\), 'start' \(place in a genome\)\); name"
    ):
        own(path)


# ---- missing values --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["null", "NA", "None"])
@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl", "t.parquet"])
def test_classes_named_like_missing_values(cli: Cli, tmp_path: Path, word: str, name: str) -> None:
    labels = ["active", word, word, "other"] * 15
    path = write(tmp_path / name, pa.table({"sequence": SEQUENCES, "label": labels}))
    said = f"30 of 60 rows of column 'label' say '{word}', which is read as missing"
    with pytest.raises(UserError, match=f"{said}.* as a class with --na-values ''"):
        own(path)
    raw = own(path, na_values=())
    assert raw.task.labels == tuple(sorted({"active", word, "other"}))
    found = collect(lay(tmp_path, raw))
    assert [raw.task.labels[found[text]] for text in SEQUENCES] == labels
    if name == "t.csv":
        assert cli("data", "prepare", path, "--na-values", "", "--out", tmp_path / "out").code == 0
        assert said in cli("data", "prepare", path, "--na-values", f"{word},x", "--out", tmp_path / "out").err


def test_a_declared_class_is_never_missing(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", pa.table({"sequence": SEQUENCES, "label": ["B", "NK", "NA"] * 20}))
    raw = own(path, kind="multiclass", labels=("B", "NK", "NA"))
    assert list(collect(lay(tmp_path, raw)).values()).count(2) == 20
    with pytest.raises(UserError, match=r"row 3: the label is missing \('NA' means no value, unless --na-values names"):
        lay(tmp_path, own(path, kind="binary", labels=("B", "NK")))


def test_missing_values_of_a_regression_are_ones_own(tmp_path: Path) -> None:
    values = [str(value) for value in ACTIVITY]
    values[7] = "-"
    path = write(tmp_path / "t.csv", pa.table({"sequence": SEQUENCES, "a": values, "b": ACTIVITY}))
    options: dict[str, Any] = {"label_columns": ("a", "b")}
    with pytest.raises(UserError, match=r"row 8: column 'a' holds '-', which is no number"):
        lay(tmp_path, own(path, **options))
    found = collect(lay(tmp_path, own(path, na_values=("-",), **options)))
    assert np.isnan(found[SEQUENCES[7]][0])
    assert sum(np.isnan(row).any() for row in found.values()) == 1


def test_rows_without_a_label_are_told_from_rows_of_one_class(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", pa.table({"sequence": SEQUENCES, "label": ["on", None] * 30}))
    with pytest.raises(UserError, match=r"all 30 rows have the label 'on', and 30 have none; add rows of another"):
        own(path)


@pytest.mark.parametrize("word", ["NA", "NaN", "nan", "null", "None", "N/A", None])
@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl", "t.parquet", "t.fa"])
def test_a_missing_sequence_is_named(tmp_path: Path, word: str | None, name: str) -> None:
    sequences = [*SEQUENCES[:8], word, *SEQUENCES[9:]]
    labels = [i % 2 for i in range(60)]
    if name == "t.fa":
        rows = zip(labels, sequences, strict=True)
        path = write_text(tmp_path / name, "".join(f">x|{label}\n{text or ''}\n" for label, text in rows))
    else:
        path = write(tmp_path / name, pa.table({"sequence": sequences, "label": labels}))
    with pytest.raises(UserError, match=rf"{name}, row 9: the sequence is (missing: '{word}' means|empty;)"):
        lay(tmp_path, own(path))
    if word == "NA":  # bases, where it is said
        assert "NA" in collect(lay(tmp_path, own(path, na_values=())))
