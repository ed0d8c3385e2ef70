from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from source_files import (
    N_ROWS,
    lay,
    make_table,
    own,
    read_all,
    write,
)

from l2g_ray.api.requests import make_options
from l2g_ray.cli.main import main
from l2g_ray.config import DataSettings
from l2g_ray.data.dataset import PreparedTask, open_prepared
from l2g_ray.data.prepare import check_raw, prepare
from l2g_ray.data.raw import SourceOptions
from l2g_ray.data.sources import open_source
from l2g_ray.data.splits import hash_indices, part_rows
from l2g_ray.errors import UserError

# ---- splits ----------------------------------------------------------------------------------------------------------


def indices(tmp_path: Path) -> dict[str, np.ndarray]:
    folder = tmp_path / "out" / "splits"
    return {p.name.removesuffix("_indices.parquet"): pq.read_table(p)["row"].to_numpy() for p in folder.iterdir()}


def place(tmp_path: Path, **options: Any) -> tuple[Path, PreparedTask]:
    """Prepare a table with every column that can split rows."""
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
    assert "split by: chromosome" in said
    prepared = open_prepared(tmp_path / "out")
    assert prepared.task.labels == ("no", "yes")
    assert prepared.n_rows("test") == 20
    shown = cli("data", "inspect", tmp_path / "out")
    for text in ("no ", "yes ", "peaks.csv", "split by: chromosome"):
        assert text in shown
    assert json.loads(cli("data", "inspect", tmp_path / "out", "--json")) == prepared.manifest
    for arguments, text in (
        (("prepare", tmp_path / "out", "--out", tmp_path / "x"), "is already prepared; show it with"),
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
