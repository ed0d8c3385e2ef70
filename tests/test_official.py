"""The official benchmarks in their published forms: small files of exactly that form, and every fault in them."""

from __future__ import annotations

from pathlib import Path

import pytest
from official_files import (
    DEEPSTARR,
    OPTIONS,
    block_sizes,
    labels_task,
    make_task,
    open_form,
    rows,
    write_nt_tables,
    write_shard,
)

from l2g_ray.data.readers import iter_tables, split_header
from l2g_ray.data.sources import official, published
from l2g_ray.data.sources.official import is_official, open_official
from l2g_ray.errors import UserError
from l2g_ray.tasks.catalogue import find_tasks, load_bench
from l2g_ray.tasks.schema import Task

# ---- the hub's Parquet -----------------------------------------------------------------------------------------------


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
    (table,) = iter_tables(tmp_path / "train.fna", header=split_header)
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

LABELS = DEEPSTARR.label_columns


def write_activities(
    path: Path, lines: list[str], columns: str = "set\tSequence\tDev_log2_enrichment\tHk_log2_enrichment\tz"
) -> None:
    path.write_text("\n".join([columns, *lines, ""]))


def test_deepstarr_in_one_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "Sequences_activity_all.txt"
    lines = ["Train\tACGT\t1.5\t-2\t0", "Val\tGGGG\t0\t0\t0", "Train\tCCCC\t-0.25\t3\t0", "Test\tTTTT\t7\t8\t1"]
    write_activities(path, lines)
    monkeypatch.setattr(published, "DEEPSTARR_BLOCK_ROWS", 2)
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
    monkeypatch.setattr(published, "DEEPSTARR_BLOCK_ROWS", 2)
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
