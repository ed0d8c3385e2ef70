"""What a run's ensemble is and what its arms add: in pictures, in the report's details, and in MLflow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file
from test_board import earlier_row, full_row
from test_report import add_arms, make_row, make_score
from toys import make_task

from l2g_ray.orchestrate.reporting import count_parameters, read_details
from l2g_ray.results import figures
from l2g_ray.results.rows import describe_ensemble, describe_size, explain_used, list_arms
from l2g_ray.tracking.record import MAX_CHARS, describe_task, read_scores


def test_the_picture_has_a_point_and_an_interval_an_arm() -> None:
    row = full_row("one")
    row["arms"]["kmer_boosting"]["adds"] = {"mean": -0.01, "ci95": [-0.03, 0.02], "p": 0.7}
    row["arms"]["gapped_kmer"]["adds"] = None
    (axes,) = figures.plot_arms(row).axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["L2G", "kmer_boosting, 10%", "gapped_kmer, 30%", "cnn, 60%"]  # the largest weight on top
    points = {names[int(bar[0].get_ydata()[0])]: bar[0] for bar in axes.containers}
    assert points.keys() == {"L2G", "kmer_boosting, 10%", "cnn, 60%"}
    assert points["cnn, 60%"].get_xdata().tolist() == [0.0213]
    assert points["L2G"].get_markerfacecolor() == "none"
    assert points["cnn, 60%"].get_markerfacecolor() != "none"
    spans = [
        bar[2][0].get_segments()[0][:, 0].tolist() for bar in axes.containers if bar[0] is points["kmer_boosting, 10%"]
    ]
    assert spans == [pytest.approx([-0.03, 0.02])]
    assert "better" not in axes.get_xlabel()
    assert axes.get_xlabel().startswith("OOF mcc")
    error = full_row("two", metric="mse_mean")
    error["used"]["folds"] = 0
    label = figures.plot_arms(error).axes[0].get_xlabel()
    assert label.startswith("Validation mse_mean")
    assert label.endswith("below 0 is better")


def test_what_is_used_is_drawn_beside_l2g_where_there_is_one() -> None:
    board = {"tasks": [full_row("a", test=None, embedder_only=None), earlier_row("b", chosen=None)]}
    (axes,) = figures.plot_scores(board).axes
    found = {bar.get_label(): bar[0].get_xdata().tolist() for bar in axes.containers}
    assert found["used"] == [0.781]
    assert found["L2G"] == [0.612]
    nothing = {"tasks": [full_row("a", test=None, embedder_only=None, published=[])]}
    assert [bar.get_label() for bar in figures.plot_scores(nothing).axes[0].containers] == ["used"]


def test_arms_are_ranked_by_weight() -> None:
    row = add_arms(make_row("a", 0.7, {}), cnn=0.5, l2g=0.0, gapped_kmer=1.5, embedder_only=0.0)
    assert [(arm.name, arm.share) for arm in list_arms(row)] == [
        ("gapped_kmer", 0.75),
        ("cnn", 0.25),
        ("embedder_only", 0.0),
        ("l2g", 0.0),
    ]
    assert list_arms(earlier_row("old")) == []


@pytest.mark.parametrize(
    ("ensemble", "words"),
    [("stack", "ridge regression"), ("greedy", "greedy"), ("mean", "equal weights"), ("best", "lowest loss")],
)
def test_every_way_to_combine_has_its_words(ensemble: str, words: str) -> None:
    row = full_row("one")
    row["used"] |= {"ensemble": ensemble, "folds": 3}
    assert words in explain_used(row)
    assert "trained 3 times" in explain_used(row)
    row["used"] |= {"folds": 0}
    assert words in explain_used(row)
    assert "optimistic" in explain_used(row)


def test_size_and_speed_are_told_as_far_as_they_are_known() -> None:
    row = full_row("one")
    assert describe_size(row) == "Size and speed: 15 models, 2.3 MB, 1,234 sequences per second."
    row["used"] |= {"models": 1, "rows_per_s": None}
    assert describe_size(row) == "Size and speed: 1 model, 2.3 MB."
    assert describe_size(earlier_row("old")) == ""
    assert describe_ensemble(earlier_row("old", chosen=None, embedder_only=None, difference=None)) == ""


def write_task(folder: Path, metrics: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps({"metrics": metrics}))
    stages = {"histories": {}, "trials": [], "cpu_s": {}, "deployed": {"seed": 1}}
    (folder / "stages.json").write_text(json.dumps(stages))
    manifest = {"task": {"labels": ["absent", "present"]}, "splits": {}, "valid": {}, "leakage": {}}
    (folder / "task.json").write_text(json.dumps(manifest))
    rows = [
        {"arm": arm, "seed": seed, "label": "absent", "prediction": "present"}
        for arm in ("ensemble", "l2g")
        for seed in (0, 1)
    ]
    pd.DataFrame(rows).to_parquet(folder / "predictions.parquet")


METRICS = [
    {"arm": arm, "seed": seed, "test": {"mcc": value + 0.1 * seed, "auroc": None if (arm, seed) == ("cnn", 1) else 0.5}}
    for arm, value in (("ensemble", 0.8), ("cnn", 0.6), ("gapped_kmer", 0.5), ("kmer_boosting", 0.4), ("l2g", 0.3))
    for seed in (0, 1)
]  # fmt: skip


def test_details_have_all_metrics_of_every_used_arm(tmp_path: Path) -> None:
    write_task(tmp_path / "one", METRICS)
    row = full_row("one", metrics={"ensemble": {"mcc": 0.85}, "l2g": {"mcc": 0.35}})
    found = read_details(tmp_path / "one", row, {})
    assert list(found.metrics) == ["ensemble", "cnn", "gapped_kmer", "kmer_boosting", "L2G"]
    assert found.metrics["cnn"]["mcc"] == pytest.approx(0.65)
    assert found.metrics["cnn"]["auroc"] is None  # undefined for one seed
    assert found.predictions is not None
    assert found.predictions[["arm", "seed"]].to_numpy().tolist() == [["ensemble", 1]]
    (tmp_path / "one" / "metrics.json").unlink()  # a row of an earlier version has all that is shown
    earlier = read_details(tmp_path / "one", earlier_row("one", metrics={"l2g": {"mcc": 0.35}}), {})
    assert earlier.metrics == {"L2G": {"mcc": 0.35}}
    assert earlier.predictions is not None
    assert earlier.predictions["arm"].tolist() == ["l2g"]


def test_mlflow_has_the_scores_of_the_stored_seed_and_of_every_arm(tmp_path: Path) -> None:
    write_task(tmp_path / "one", METRICS)
    row = full_row("one")
    row["used"]["oof"] = {"mean": 0.85, "per_seed": [0.82, 0.88]}
    row["arms"]["l2g"]["oof"] = None
    found = read_scores(tmp_path / "one", make_task(), row)
    assert found.arm == "ensemble"
    assert found.model["test_mcc"] == pytest.approx(0.9)  # of seed 1, which is the one that is stored
    assert found.model["valid_mcc"] == 0.88
    assert found.arms["test_cnn_mcc"] == pytest.approx(0.65)
    assert found.arms["valid_cnn_mcc"] == pytest.approx(0.775)
    assert found.arms["valid_kmer_linear_mcc"] == 0.345
    assert "valid_l2g_mcc" not in found.arms
    assert np.isnan(found.arms["test_cnn_auroc"])


def test_the_note_of_a_task_says_what_is_used_and_what_each_arm_adds() -> None:
    note = describe_task(full_row("one"))
    assert note.startswith("The model is the ensemble of cnn 60%, gapped_kmer 30%, kmer_boosting 10%.\n")
    assert "| arm | OOF mcc | test mcc | 95 % interval | weight | adds |" in note
    assert "| **ensemble** (used) | 0.786 | 0.781 | [0.681, 0.881] |  |  |" in note
    assert "| cnn | 0.775 | 0.771 | [0.671, 0.871] | 60% | +0.021 [0.011, 0.032] |" in note
    assert "| kmer_linear (validation) | 0.345 | 0.333 | [0.301, 0.366] |  |  |" in note
    assert "out-of-fold (OOF) predictions" in note
    assert "12 train rows were dropped." in note
    bare = full_row("one", baselines={"plain": 0.5}, warnings=["word " * 2000], test=None, embedder_only=None)
    bare["arms"]["cnn"] |= {"oof": None, "adds": None}
    bare["used"]["test"] = make_score(0.7, seeds=3)
    assert len(describe_task(bare)) <= MAX_CHARS
    assert "| cnn | – | 0.771 |" in describe_task(bare)
    assert "Means over 3 seeds" in describe_task(bare)


def write_model(folder: Path, arm: str, numbers: int) -> None:
    folder.mkdir(parents=True)
    save_file({"w": np.zeros((numbers, 2), np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"schema": 1, "form": "l2g", "arm": arm}))
    (folder / "task.json").write_text("{}")


def test_sizes_are_of_what_is_used_with_all_its_arms(tmp_path: Path) -> None:
    best = tmp_path / "one" / "best"
    write_model(best, "ensemble", 0)
    write_model(best / "cnn", "cnn", 3)
    write_model(best / "l2g", "l2g", 10)
    write_model(tmp_path / "one" / "arms" / "embedder_only", "embedder_only", 2)
    write_model(tmp_path / "earlier" / "model", "l2g", 12)  # as an earlier version left it
    found = count_parameters(tmp_path, {"tasks": [{"task": "one"}, {"task": "earlier"}, {"task": "failed"}]})
    assert found == {"used": 26, "L2G": 24, "embedder only": 4}
