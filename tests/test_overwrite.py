"""No command writes over what it reads, whatever way the output is named; what `--keep-columns` keeps instead."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import Cli
from explained import write_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toys import make_task

from l2g_ray.data.table_writer import refuse_overwrite
from l2g_ray.errors import UserError
from l2g_ray.predict import load_predictor, predict_file

SEQUENCES = ["ACGTACGTACGTACGT", "GATTACAGATTACAGA"]
CONTIG = "ACGT" * 40


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("run") / "toy")


def same(path: Path) -> Path:
    return path


def spelled(path: Path) -> Path:
    return path.parent / ".." / path.parent.name / "." / path.name


def linked(path: Path) -> Path:
    link = path.with_name(f"link{path.suffix}")
    link.symlink_to(path.name)
    return link


def hard_linked(path: Path) -> Path:
    link = path.with_name(f"hard{path.suffix}")
    os.link(path, link)
    return link


def in_linked_folder(path: Path) -> Path:
    link = path.parent.with_name(f"{path.parent.name}-link")
    link.symlink_to(path.parent)
    return link / path.name


WAYS = [same, spelled, linked, hard_linked, in_linked_folder]


def refused(cli: Cli, source: Path, *command: object) -> None:
    """The command stops, and what it would have read is as it was."""
    before = source.read_bytes()
    said = cli(*command)
    assert said.code == 2, said
    assert "would overwrite" in said.err
    assert "choose another output" in said.err
    assert source.read_bytes() == before
    assert not [path for path in source.parent.iterdir() if path.name.startswith(".")]


def write_table(path: Path, **columns: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    pq.write_table(table, path) if path.suffix == ".parquet" else table.to_pandas().to_csv(path, index=False)
    return path


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["my.csv", "my.parquet"])
def test_predict(cli: Cli, run: Path, tmp_path: Path, way: Callable[[Path], Path], name: str) -> None:
    source = write_table(tmp_path / "in" / name, sequence=SEQUENCES, mine=[1, 2])
    refused(cli, source, "predict", run, "--input", source, "--output", way(source))


@pytest.mark.parametrize("way", WAYS)
def test_variants(cli: Cli, run: Path, tmp_path: Path, way: Callable[[Path], Path]) -> None:
    genome = tmp_path / "genome.fa"
    genome.write_text(f">chr1\n{CONTIG}\n")
    vcf = tmp_path / "in" / "my.vcf"
    vcf.parent.mkdir()
    vcf.write_text(f"chr1\t50\t.\t{CONTIG[49]}\tT\n")
    refused(cli, vcf, "variants", run, "--input", vcf, "--genome", genome, "--output", way(vcf))
    pairs = write_table(tmp_path / "pairs" / "my.csv", ref=SEQUENCES, alt=SEQUENCES[::-1])
    refused(cli, pairs, "variants", run, "--input", pairs, "--output", way(pairs))


def test_the_genome_is_an_input_too(cli: Cli, run: Path, tmp_path: Path) -> None:
    genome, vcf, link = tmp_path / "genome.fa", tmp_path / "my.vcf", tmp_path / "scores.tsv"
    genome.write_text(f">chr1\n{CONTIG}\n")
    vcf.write_text(f"chr1\t50\t.\t{CONTIG[49]}\tT\n")
    link.symlink_to(genome)
    refused(cli, genome, "variants", run, "--input", vcf, "--genome", genome, "--output", link)


def test_two_outputs_of_one_place(cli: Cli, run: Path, tmp_path: Path) -> None:
    pairs = write_table(tmp_path / "my.csv", ref=SEQUENCES, alt=SEQUENCES[::-1])
    twice = ["--output", tmp_path / "o.csv", "--output", tmp_path / "." / "x" / ".." / "o.csv"]
    (tmp_path / "x").mkdir()
    said = cli("variants", run, "--input", pairs, *twice)
    assert said.code == 2
    assert "is given as an output twice" in said.err


def test_mutate(cli: Cli, run: Path, tmp_path: Path) -> None:
    pytest.importorskip("logomaker")
    source = tmp_path / "out" / "matrix.tsv"
    source.parent.mkdir()
    source.write_text(f"id\tsequence\nx\t{SEQUENCES[0]}\n")
    refused(cli, source, "mutate", run, "--input", source, "--out", tmp_path / "out")
    config = run / "model" / "config.json"
    for kind in ("svg", "png"):
        (tmp_path / "linked").mkdir(exist_ok=True)
        (tmp_path / "linked" / f"logo.{kind}").unlink(missing_ok=True)
        (tmp_path / "linked" / f"logo.{kind}").symlink_to(config)
        refused(cli, config, "mutate", run, "--sequence", SEQUENCES[0], "--out", tmp_path / "linked")


def test_explain(cli: Cli, run: Path, tmp_path: Path) -> None:
    command = ["explain", run, "--no-motifs", "--out", tmp_path / "out"]
    source = tmp_path / "new.fa"
    source.write_text("".join(f">s{i}\n{text}\n" for i, text in enumerate(SEQUENCES)))
    assert cli(*command, "--input", source).code == 0
    (written,) = tmp_path.glob("out/*/sequences.csv")
    refused(cli, written, *command, "--input", written)
    own = tmp_path / "other" / written.parent.name / "mine.txt"
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    said = cli("explain", run, "--no-motifs", "--out", tmp_path / "other", "--input", source)
    assert said.code == 2
    assert "holds other files, which would be replaced" in said.err
    assert own.read_text() == "mine"


def test_data_prepare(cli: Cli, tmp_path: Path) -> None:
    rows = {"sequence": [f"ACGT{a}{b}{c}{d}ACGTACG" for a in "ACGT" for b in "ACGT" for c in "ACGT" for d in "ACGT"]}
    rows["label"] = [i % 2 for i in range(256)]
    source = write_table(tmp_path / "mine" / "all.csv", **rows)
    assert cli("data", "prepare", source, "--out", tmp_path / "prepared").code == 0
    inside = write_table(tmp_path / "prepared" / "all.csv", **rows)
    refused(cli, inside, "data", "prepare", inside, "--out", tmp_path / "prepared")


def test_other_files_of_a_name_are_replaced_as_ever(cli: Cli, run: Path, tmp_path: Path) -> None:
    source = write_table(tmp_path / "my.csv", sequence=SEQUENCES)
    target = tmp_path / "out.csv"
    target.write_text("old")
    assert cli("predict", run, "--input", source, "--output", target).code == 0
    assert target.read_text().startswith('"id"')


PARTS = st.lists(st.sampled_from(["a", "b", ".", ".."]), max_size=4).map(lambda parts: "/".join([*parts, "f.csv"]))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(source=PARTS, target=PARTS)
def test_any_spelling_of_a_path(tmp_path_factory: pytest.TempPathFactory, source: str, target: str) -> None:
    root = tmp_path_factory.mktemp("r") / "x" / "y" / "z" / "u"
    for folder in ("a/a/a/a", "a/b/a/b", "b/a/b/a", "b/b/b/b", "a/a/b/b", "b/b/a/a"):
        (root / folder).mkdir(parents=True)
    is_same = os.path.normpath(root / source) == os.path.normpath(root / target)
    try:
        refuse_overwrite([root / source], [root / target])
        assert not is_same
    except UserError:
        assert is_same


def test_objects_in_a_store_are_compared_by_their_addresses() -> None:
    refuse_overwrite(["s3://b/in.csv", None], ["s3://b/out.csv", "in.csv"])
    for target in ("s3://b/in.csv", "s3://b"):
        with pytest.raises(UserError, match=r"would overwrite s3://b/in\.csv"):
            refuse_overwrite(["s3://b/in.csv"], [target])


# ---- --keep-columns --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["out.csv", "out.tsv", "out.parquet"])
@pytest.mark.parametrize("name", ["in.csv", "in.parquet"])
def test_all_columns_pass_through_before_the_predictions(
    cli: Cli, run: Path, tmp_path: Path, name: str, output: str
) -> None:
    mine = {"gene": ["α, β", 'x "y"'], "dna": SEQUENCES, "sequence": ["not", "these"], "score": [0.5, 2.0]}
    source, target = write_table(tmp_path / name, **mine), tmp_path / output
    command = ["predict", run, "--input", source, "--sequence-column", "dna"]
    assert cli(*command, "--output", target, "--keep-columns").code == 0
    assert cli(*command, "--output", tmp_path / "plain.parquet").code == 0
    found = pd.read_parquet(target) if output == "out.parquet" else pd.read_csv(target, sep="\t,"[output != "out.tsv"])
    plain = pd.read_parquet(tmp_path / "plain.parquet")
    assert list(found.columns) == ["id", *mine, *plain.columns[1:]]
    for column, values in mine.items():
        assert found[column].tolist() == values or found[column].astype(float).tolist() == values
    assert found["prediction"].tolist() == plain["prediction"].tolist()


def test_ids_stay_where_they_are(cli: Cli, run: Path, tmp_path: Path) -> None:
    source = write_table(tmp_path / "in.csv", sequence=SEQUENCES, id=["a", "b"])
    assert cli("predict", run, "--input", source, "--output", tmp_path / "o.csv", "--keep-columns").code == 0
    assert list(pd.read_csv(tmp_path / "o.csv").columns[:3]) == ["sequence", "id", "prediction"]


def test_columns_that_cannot_be_kept_are_named(cli: Cli, run: Path, tmp_path: Path) -> None:
    def said(source: Path, output: str = "o.csv") -> str:
        answer = cli("predict", run, "--input", source, "--output", tmp_path / output, "--keep-columns")
        assert answer.code == 2
        assert not (tmp_path / output).exists()
        return answer.err

    clash = write_table(tmp_path / "in.csv", sequence=SEQUENCES, prediction=["x", "y"])
    assert f"{clash}: has a column 'prediction', as the predictions will; rename it" in said(clash)
    lists = write_table(tmp_path / "in.parquet", sequence=SEQUENCES, values=[[1], [2]])
    assert "o.csv: these columns cannot be written as csv" in said(lists)
    assert cli("predict", run, "--input", lists, "--output", tmp_path / "o.parquet", "--keep-columns").code == 0


def test_json_lines_whose_types_change_along_the_way(run: Path, tmp_path: Path) -> None:
    predictor = load_predictor(run / "model")
    long = "ACGT" * 10
    first = "".join(f'{{"sequence": "{long}", "x": {i}, "pad": "{"p" * 2000}"}}\n' for i in range(2200))
    source = tmp_path / "in.jsonl"
    for last, told in (
        ('"x": 0.5, "pad": ""', "column 'x' holds int64 first and double from row"),
        ('"x": 1, "pad": "", "new": 1', "only some rows have a column 'new'"),
    ):
        source.write_text(f'{first}{{"sequence": "{long}", {last}}}\n')
        with pytest.raises(UserError, match=told):
            predict_file(predictor, source, tmp_path / "o.csv", keep_columns=True)
        assert not (tmp_path / "o.csv").exists()


def test_the_other_output_of_a_task(cli: Cli, tmp_path: Path) -> None:
    """Two outputs of one sequence, mutated one after the other, do not share a folder."""
    pytest.importorskip("logomaker")
    run = write_model(tmp_path / "toy", make_task("regression"))
    for output in ("gc", "a"):
        assert cli("mutate", run, "--sequence", SEQUENCES[0], "--target", output).code == 0
    found = sorted(path.parent.name for path in run.glob("mutagenesis/*/sequence/*/mutagenesis.json"))
    assert found == ["a", "gc"]
