"""Every kind of task through all arms, folds and the ensemble, at the smallest size; and labels that mean nothing."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from runs import SETTINGS, execute, read_board

from l2g_ray.predict import find_model, load_predictor

MOTIFS = ("TGACTCA", "CACGTG", "GGGCGG")
ALL = {"gapped_kmer", "kmer_boosting", "cnn", "embedder_only", "l2g"}
ROWS = {"train": 240, "test": 60}


def make_rows(rows: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Return sequences of 40 to 48 bp, and which of the motifs each has (rows, 3)."""
    rng = np.random.default_rng(seed)
    has = rng.random((rows, len(MOTIFS))) < 0.4
    sequences = []
    for row in has:
        letters = rng.choice(list("ACGT"), rng.integers(40, 49))
        for place, (motif, inside) in enumerate(zip(MOTIFS, row, strict=True)):
            if inside:
                start = 13 * place + rng.integers(0, 4)
                letters[start : start + len(motif)] = list(motif)
        sequences.append("".join(letters))
    return sequences, has


def write_kinds(root: Path) -> dict[str, Path]:
    """A folder a kind: some labels are missing where that may be."""
    folders = {name: root / name for name in ("multiclass", "multilabel", "regression", "stranded", "shuffled")}
    for seed, (split, rows) in enumerate(ROWS.items()):
        sequences, has = make_rows(rows, seed)
        rng = np.random.default_rng(10 + seed)
        flags = pd.DataFrame(has.astype(object), columns=["a", "b", "c"]).astype(float)
        values = pd.DataFrame({"x": 5 * has[:, 0] - 2 * has[:, 1], "y": 0.1 * has[:, 2]}) + rng.normal(
            0, 0.01, (rows, 2)
        )
        for table in (flags, values):
            table.iloc[::9, 1] = np.nan
        labels = {
            "multiclass": pd.DataFrame({"label": np.where(has[:, 0], "one", np.where(has[:, 1], "two", "none"))}),
            "multilabel": flags,
            "regression": values,
            "stranded": pd.DataFrame({"label": has[:, 0].astype(int)}),
            "shuffled": pd.DataFrame({"label": rng.permutation(has[:, 0].astype(int))}),
        }
        for name, folder in folders.items():
            folder.mkdir(exist_ok=True)
            labels[name].assign(sequence=sequences).to_csv(folder / f"{split}.csv", index=False)
    (folders["multilabel"] / "task.yaml").write_text("kind: multilabel\nlabels: [a, b, c]\n")
    (folders["regression"] / "task.yaml").write_text("kind: regression\nlabels: [x, y]\n")
    (folders["stranded"] / "task.yaml").write_text("strand_specific: true\n")
    return folders


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_lm: Path) -> Path:
    """The `--out` folder of a run a kind, side by side in one suite."""
    root = tmp_path_factory.mktemp("kinds")
    folders = write_kinds(root)
    execute([sys.executable, __file__, str(root / "out"), str(tiny_lm), *map(str, folders.values())])
    return root / "out" / "kinds"


def run_kinds(out: Path, language_model: Path, folders: list[Path]) -> None:
    """All folders as tasks of one suite."""
    from rich.console import Console

    from l2g_ray.data.raw import SourceOptions
    from l2g_ray.data.sources import open_source
    from l2g_ray.orchestrate.suite import run_suite
    from l2g_ray.request import SuiteRequest

    sources = {folder.name: open_source([folder], SourceOptions()) for folder in folders}
    tasks = [source.task.model_copy(update={"name": name}) for name, source in sources.items()]
    own = {"folds": 2, "arms": "all", "finetune.trials": 1, "search.enabled": False, "align.source": "vocabulary"}
    assignments = SETTINGS | own | {"model.language_model": str(language_model)}
    request = SuiteRequest("kinds", "user", tasks, sources, "smoke", assignments, out, cpus=2)
    result = run_suite(request, Console(width=110))
    assert not result.failures, result.failures


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["multiclass", "multilabel", "regression", "stranded"])
def test_every_kind_of_task_goes_through_all_arms(runs: Path, kind: str, tmp_path: Path) -> None:
    row = next(row for row in read_board(runs)["tasks"] if row["task"] == kind)
    assert row["arms"].keys() == ALL | ({"positional_kmer"} if kind == "stranded" else set())
    for arm, found in row["arms"].items():
        assert np.isfinite(found["oof"]["mean"]), arm
        assert np.isfinite(found["test"]["mean"]), arm
    simple = [found["oof"]["mean"] for arm, found in row["arms"].items() if arm.endswith(("kmer", "boosting"))]
    sign = -1 if row["metric"].startswith("mse") else 1
    assert sign * row["used"]["oof"]["mean"] >= sign * max(simple) - 0.1
    oof = pd.read_parquet(runs / kind / "oof.parquet")
    used = oof[oof["arm"] == "ensemble"]
    assert used["id"].is_unique
    assert len(used) == row["n_train"]
    sequences, _ = make_rows(20, 7)
    predictions = load_predictor(find_model(runs, kind)).predict(sequences)
    assert len(predictions) == 20
    assert np.isfinite(predictions.select_dtypes("number").to_numpy()).all()


@pytest.mark.slow
def test_labels_that_mean_nothing_give_a_score_of_nothing(runs: Path) -> None:
    row = next(row for row in read_board(runs)["tasks"] if row["task"] == "shuffled")
    for part in ("oof", "test"):
        low, high = row["used"][part]["ci95"]
        assert low <= 0 <= high, part
    weights = json.loads((runs / "shuffled" / "metrics.json").read_text())["combinations"]["0"]["weights"]
    assert sum(weights) < 0.5, "evidence that means nothing is hardly used"


if __name__ == "__main__":
    out_, model_, *folders_ = sys.argv[1:]
    run_kinds(Path(out_), Path(model_), [Path(folder) for folder in folders_])
