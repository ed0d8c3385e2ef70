"""Saturation mutagenesis equals predictions of changed strings, and the command leaves all its files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from commands import Cli
from explained import make_net, write_model
from toys import make_task

from l2g_ray.explain.mutagenesis import count_mutants, mutate, saturation_mutagenesis
from l2g_ray.explain.scores import score_sequences
from l2g_ray.sequence import encode

SEQUENCES = ["ACGTTGCANNACGT", "TTGACTCA"]


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_every_mutant_is_the_changed_string_scored_alone(batch_size: int) -> None:
    net = make_net(2)
    codes, lengths = encode(pa.array(SEQUENCES, pa.large_string()))
    seen = []

    def score(c: torch.Tensor, n: torch.Tensor) -> np.ndarray:
        seen.append(len(c))
        with torch.inference_mode():
            return net(c, n).double().numpy()

    told: list[int] = []
    reference, mutants = saturation_mutagenesis(score, codes, lengths, batch_size, progress=told.append)
    assert max(seen) <= batch_size
    assert told[-1] == count_mutants(codes, lengths) == 3 * 12 + 4 * 2 + 3 * 8
    for row, sequence in enumerate(SEQUENCES):
        for position in range(len(sequence)):
            for base, letter in enumerate("ACGT"):
                text = sequence[:position] + letter + sequence[position + 1 :]
                alone = score(*map(torch.from_numpy, encode(pa.array([text], pa.large_string()))))[0]
                np.testing.assert_allclose(mutants[row, position, base], alone, atol=1e-5)
                if text == sequence:
                    assert (mutants[row, position, base] == reference[row]).all()
    assert np.isnan(mutants[1, 8:]).all()


def test_region_and_contributions() -> None:
    task, net = make_task(), make_net(2)
    (whole,) = mutate(net, task, SEQUENCES[0], [1], both_strands=True)
    (part,) = mutate(net, task, SEQUENCES[0], [1], both_strands=True, region=(3, 9))
    np.testing.assert_allclose(part.differences, whole.differences[3:9], atol=1e-5)
    assert part.sequence == SEQUENCES[0][3:9]
    for i, letter in enumerate(whole.sequence):
        if letter != "N":
            others = [whole.differences[i, b] for b in range(4) if "ACGT"[b] != letter]
            assert whole.contributions[i].sum() == pytest.approx(-np.mean(others))
            assert whole.differences[i, "ACGT".index(letter)] == 0
    assert (whole.contributions[8:10] == 0).all()
    best = whole.strongest(1)[0]
    changed = SEQUENCES[0][: best["position"] - 1] + best["to"] + SEQUENCES[0][best["position"] :]
    scores = score_sequences(net, task, [SEQUENCES[0], changed], both_strands=True)
    assert scores.log_odds is not None
    assert best["difference"] == pytest.approx(scores.log_odds[1, 1] - scores.log_odds[0, 1], abs=1e-4)
    assert abs(best["difference"]) == pytest.approx(np.abs(whole.differences).max())


def test_command(cli: Cli, tmp_path: Path) -> None:
    run = write_model(tmp_path / "toy", make_task("regression"))
    fasta = tmp_path / "some.fa"
    fasta.write_text(f">one\n{SEQUENCES[0]}\n>two\n{SEQUENCES[1].lower()}\n")
    said = cli("mutate", run, "--input", fasta, "--id", "two")
    assert said.code == 0, said.err
    for output in ("gc", "a"):
        folder = run / "mutagenesis" / "embedder_only" / "two" / output
        names = {"heatmap.png", "heatmap.svg", "logo.png", "logo.svg", "matrix.npz", "matrix.tsv", "mutagenesis.json"}
        assert {path.name for path in folder.iterdir()} == names
        summary = json.loads((folder / "mutagenesis.json").read_text())
        assert (summary["output"], summary["strand"], summary["region"]) == (output, "both", [1, 8])
        lines = [line.split("\t") for line in (folder / "matrix.tsv").read_text().splitlines()]
        assert [line[1] for line in lines[1:]] == list(SEQUENCES[1])
        stored = np.load(folder / "matrix.npz")
        np.testing.assert_allclose(np.array([line[2:] for line in lines[1:]], float), stored["differences"], rtol=1e-4)
    assert "2 sequences; choose one with --id" in cli("mutate", run, "--input", fasta).err
    assert "no sequence 'tow' (did you mean 'two'?)" in cli("mutate", run, "--input", fasta, "--id", "tow").err
    assert (
        "region '5-99': give START-END within 1-8"
        in cli("mutate", run, "--sequence", SEQUENCES[1], "--region", "5-99").err
    )
    assert "--target 'cg'" in cli("mutate", run, "--sequence", SEQUENCES[1], "--target", "cg").err
    assert "at base 2 is no nucleotide" in cli("mutate", run, "--sequence", "AXC").err
