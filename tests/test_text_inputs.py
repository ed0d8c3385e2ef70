"""What the commands on a finished run read: whole ids, all rows, and no text that means "no value" taken for bases."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from commands import Cli
from explained import write_model
from source_files import N_ROWS, SEQUENCES, collect, fasta, lay, own, read_all, write_text

from l2g_ray.data.genome import Genome
from l2g_ray.explain.request import read_candidates
from l2g_ray.predict import load_predictor

# Trinity, Ensembl, NCBI.
HEADERS = ["TR20|c0_g1_i1 len=29", "TR20|c0_g1_i2 len=10", "ENSG0001|ENST0002", "gi|49175990|ref|NC_000913.2| whole"]
IDS = [header.split()[0] for header in HEADERS]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("run") / "toy")


@pytest.fixture
def piped(tmp_path: Path) -> Path:
    return write_text(tmp_path / "in.fa", fasta(HEADERS, SEQUENCES[:4]))


# ---- ids -------------------------------------------------------------------------------------------------------------


def test_ids_with_bars_stay_whole(cli: Cli, run: Path, piped: Path, tmp_path: Path) -> None:
    assert cli("predict", run, "--input", piped, "--output", tmp_path / "out.csv").code == 0
    assert pd.read_csv(tmp_path / "out.csv")["id"].tolist() == IDS
    said = cli("mutate", run, "--input", piped, "--id", IDS[1], "--out", tmp_path / "mutated")
    assert said.code == 0, said.err
    assert json.loads(next((tmp_path / "mutated").rglob("*.json")).read_text())["id"] == IDS[1]
    predictor = load_predictor(run / "model")
    assert read_candidates(predictor, piped, None).ids == IDS
    with Genome(piped) as genome:
        assert list(genome.chromosomes()) == IDS
        assert genome.fetch(IDS[3], 0, 9) == SEQUENCES[3][:9]


def test_labels_are_joined_by_whole_ids(tmp_path: Path) -> None:
    ids = [f"TR{i // 2}|c0_i{i % 2}" for i in range(N_ROWS)]
    path = write_text(tmp_path / "t.fa", fasta([f"{name} len=30" for name in ids], SEQUENCES))
    lines = [f"{name},{'ab'[i % 3 == 0]}" for i, name in enumerate(ids)]
    table = write_text(tmp_path / "labels.csv", "\n".join(["id,label", *lines, ""]))
    prepared = lay(tmp_path, own(path, label_table=table))
    assert collect(prepared) == {text: int(i % 3 == 0) for i, text in enumerate(SEQUENCES)}
    assert {row["id"] for rows in read_all(prepared).values() for row in rows} == set(ids)


def test_ids_of_one_file_a_class_stay_whole(tmp_path: Path) -> None:
    ids = [f"gi|{i}|ref" for i in range(N_ROWS)]
    files = [
        write_text(tmp_path / f"{name}.fa", fasta(ids[part], SEQUENCES[part]))
        for name, part in (("pos", slice(30)), ("neg", slice(30, None)))
    ]
    rows = [row for found in read_all(lay(tmp_path, own(*files))).values() for row in found]
    assert {row["id"]: row["label"] for row in rows} == {name: int(i >= 30) for i, name in enumerate(ids)}


# ---- rows ------------------------------------------------------------------------------------------------------------


def test_quotes_in_a_tsv_lose_no_prediction(cli: Cli, run: Path, tmp_path: Path) -> None:
    notes = ['"similar to 5 prime end', "x", '12" probe', "y"]
    rows = [f"o{i}\t{SEQUENCES[i]}\t{note}" for i, note in enumerate(notes)]
    path = write_text(tmp_path / "in.tsv", "\n".join(["id\tsequence\tnote", *rows, ""]))
    assert "4 predictions" in cli("predict", run, "--input", path, "--output", tmp_path / "out.csv").out
    assert pd.read_csv(tmp_path / "out.csv")["id"].tolist() == ["o0", "o1", "o2", "o3"]
    pairs = [f"{note}\t{SEQUENCES[i]}\t{SEQUENCES[i + 1]}" for i, note in enumerate(notes)]
    path = write_text(tmp_path / "pairs.tsv", "\n".join(["note\tref\talt", *pairs, ""]))
    assert "4 pairs scored" in cli("variants", run, "--input", path, "--output", tmp_path / "pairs.csv").out
    text = path.read_text().replace("\t", ",").replace("ref", "sequence")
    said = cli("predict", run, "--input", write_text(tmp_path / "in.csv", text), "--output", tmp_path / "o.csv")
    assert (said.code, "in.csv, row 1: a quote does not enclose a whole cell" in said.err) == (2, True)
    assert not (tmp_path / "o.csv").exists()


# ---- missing sequences -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["NA", "NaN", "null"])
def test_a_missing_sequence_is_not_predicted(cli: Cli, run: Path, tmp_path: Path, word: str) -> None:
    path = write_text(tmp_path / "in.csv", f"sequence\n{SEQUENCES[0]}\n{word}\n")
    said = cli("predict", run, "--input", path, "--output", tmp_path / "out.csv")
    assert (said.code, f"in.csv, row 2: the sequence is missing: '{word}' means no value" in said.err) == (2, True)
    pairs = write_text(tmp_path / "pairs.csv", f"ref,alt\n{SEQUENCES[0]},{word}\n")
    said = cli("variants", run, "--input", pairs, "--output", tmp_path / "out.csv")
    assert (said.code, "column 'alt', row 1: the sequence is missing" in said.err) == (2, True)
    assert not (tmp_path / "out.csv").exists()
