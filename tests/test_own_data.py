"""Every command of docs/own_data.md, on small files of the kinds that the page names."""

from __future__ import annotations

import gzip
import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from runs import SETTINGS
from toys import MOTIF

from l2g_ray.cli.main import main

PAGE = Path(__file__).parents[1] / "docs" / "own_data.md"
COMMANDS = re.findall(r"^\$ (l2g-ray .+)$", PAGE.read_text(), flags=re.MULTILINE)
# What makes a run one of seconds: the page's own command with a tiny model and few trials.
QUICK = SETTINGS | {"search.enabled": False, "align.alphas": [1.0], "finetune.trials": 1, "embedder_only.epochs": 1}


def plant(generator: np.random.Generator, n_rows: int, length_bp: int = 60) -> tuple[list[str], list[int]]:
    """Random sequences, every other one with a motif."""
    letters = generator.choice(list("ACGT"), (n_rows, length_bp))
    labels = [row % 2 for row in range(n_rows)]
    for row in range(1, n_rows, 2):
        start = generator.integers(0, length_bp - len(MOTIF))
        letters[row, start : start + len(MOTIF)] = list(MOTIF)
    return ["".join(row) for row in letters], labels


def write_fasta(path: Path, headers: list[str], sequences: list[str]) -> None:
    text = "".join(f">{header}\n{sequence}\n" for header, sequence in zip(headers, sequences, strict=True))
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with all files that the page names, as the working directory."""
    folder = tmp_path_factory.mktemp("own")
    generator = np.random.default_rng(5)
    (folder / "my_data").mkdir()
    for split, n_rows in (("train", 120), ("dev", 30), ("test", 40)):
        sequences, labels = plant(generator, n_rows)
        frame = pd.DataFrame({"sequence": sequences, "label": labels})
        frame.to_csv(folder / "my_data" / f"{split}.csv", index=False)
    sequences, labels = plant(generator, 160)
    ids = [f"oligo{i}" for i in range(160)]
    active = ["yes" if label else "no" for label in labels]
    pd.DataFrame({"oligo": ids, "seq": sequences, "active": active}).to_csv(
        folder / "screen.tsv", sep="\t", index=False
    )
    values = generator.normal(size=(160, 2)).round(3)
    activity = pd.DataFrame({"sequence": sequences, "dev": values[:, 0], "hk": values[:, 1]})
    activity.loc[::7, "hk"] = np.nan
    activity.to_csv(folder / "activity.csv", index=False)
    marks = pd.DataFrame(generator.integers(0, 2, (160, 3)), columns=["H3K4me3", "H3K27ac", "H3K27me3"], dtype="Int64")
    marks["H3K4me3"] = labels
    marks.loc[::5, "H3K27ac"] = pd.NA
    marks.insert(0, "sequence", sequences)
    marks.to_csv(folder / "marks.csv", index=False)
    write_fasta(folder / "sites.fa", [f"site{i} class={a}" for i, a in enumerate(active)], sequences)
    write_fasta(folder / "reads.fa.gz", [f"read{i} from the lab" for i in range(160)], sequences)
    pd.DataFrame({"name": [f"read{i}" for i in range(160)], "label": active}).to_csv(folder / "labels.csv", index=False)
    write_fasta(folder / "enhancers.fa", ids[1::2], sequences[1::2])
    write_fasta(folder / "background.fa", ids[::2], sequences[::2])
    frame = pd.DataFrame({"sequence": sequences, "label": labels})
    frame.assign(set=["train", "train", "train", "test"] * 40).to_csv(folder / "assigned.csv", index=False)
    chromosomes = np.repeat(["chr1", "chr2", "chr3", "chr4"], 40)
    frame.assign(gene=[f"gene{i // 4}" for i in range(160)], chrom=chromosomes).to_csv(
        folder / "tiles.csv", index=False
    )
    write_genome(folder, generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        yield folder
    import ray

    ray.shutdown()


def write_genome(folder: Path, generator: np.random.Generator) -> None:
    """Three chromosomes of 12 kb and 40 narrow peaks, each with a motif at its summit."""
    lines, peaks = [], []
    for chromosome in ("chr1", "chr2", "chr3"):
        letters = generator.choice(list("ACGT"), 12_000)
        for peak in range(40):
            summit = 250 + peak * 290
            letters[summit : summit + len(MOTIF)] = list(MOTIF)
            peaks.append(f"{chromosome}\t{summit - 40}\t{summit + 60}\tpeak{peak}\t0\t.\t9\t-1\t-1\t40")
        lines.append(f">{chromosome}\n{''.join(letters)}\n")
    (folder / "genome.fa").write_text("".join(lines))
    (folder / "peaks.narrowPeak").write_text("\n".join([*peaks, ""]))


def run(command: str, tiny_lm: Path) -> None:
    """In this process, so that all commands share one Ray."""
    words = shlex.split(command)[1:]
    if words[0] == "run":
        words += ["--preset", "smoke", "--language-model", str(tiny_lm), "--out", "runs", "--cpus", "2"]
        for key, value in QUICK.items():
            words += ["--set", f"{key}={json.dumps(value)}"]
    main.main(words, prog_name="l2g-ray", standalone_mode=False)


def test_the_page_has_the_commands_that_matter() -> None:
    assert len(COMMANDS) >= 18
    told = " ".join(COMMANDS)
    for word in ("run my_data", "run enhancers.fa background.fa", "run peaks.narrowPeak", "run prepared/screen"):
        assert word in told


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("command", COMMANDS, ids=[command[8:70] for command in COMMANDS])
def test_every_command_of_the_page(command: str, here: Path, tiny_lm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Path(os.getcwd()).resolve() == here.resolve()
    run(command, tiny_lm)
    noted = "note: Kind multilabel: the label columns hold only 0 and 1; --kind regression" in capsys.readouterr().out
    assert noted == ("marks.csv" in command)
    words = shlex.split(command)
    if "--out" in words:
        out = here / words[words.index("--out") + 1]
        manifests = list(out.glob("task.json")) + list(out.glob("fold-*/task.json"))
        assert len(manifests) == (3 if "folds" in words else 1)
    if words[1] == "run":
        check_run(here, words[2])


def check_run(here: Path, source: str) -> None:
    """The newest leaderboard has one row, with the labels' names in its predictions."""
    board_path = max((here / "runs").glob("*/leaderboard.json"), key=lambda path: path.stat().st_mtime_ns)
    (row,) = json.loads(board_path.read_text())["tasks"]
    predictions = pd.read_parquet(board_path.parent / row["task"] / "predictions.parquet")
    names = {
        "my_data": ["label", "prediction", "probability_0", "probability_1"],
        "marks.csv": ["label_H3K27ac", "probability_H3K27ac"],
        "enhancers.fa": ["probability_enhancers", "probability_background"],
        "peaks.narrowPeak": ["probability_peak", "probability_background"],
        "prepared/screen": ["probability_yes", "probability_no"],
    }[source]
    assert set(names) <= set(predictions.columns)
    assert np.isfinite(row["test"]["mean"])
    if source == "marks.csv":
        assert predictions["label_H3K27ac"].isna().any(), "missing labels stay missing"
    if source == "peaks.narrowPeak":
        manifest = json.loads((board_path.parent / row["task"] / "task.json").read_text())
        assert manifest["made"] == {
            "rule": "chromosome",
            "test_chromosomes": ["chr3"],
            "train_sha256": manifest["made"]["train_sha256"],
            "test_sha256": manifest["made"]["test_sha256"],
            "valid_sha256": manifest["made"]["valid_sha256"],
        }
