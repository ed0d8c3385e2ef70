"""A metric is an entry of the table and its function: a toy of which lower is better, in all that compares, sorts and draws."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_board import STUDY, earlier_row, full_board, full_row, show
from toys import make_task

from l2g_ray.monitor.events import Epoch, TrialName
from l2g_ray.orchestrate.cluster import SuiteMetrics
from l2g_ray.results import figures, suite_figures
from l2g_ray.results.comparison import compare_boards, render_comparison, render_study
from l2g_ray.results.intervals import ArmScores
from l2g_ray.results.leaderboard import write_leaderboard
from l2g_ray.results.report import write_report
from l2g_ray.results.report_tables import tabulate_trials
from l2g_ray.results.rows import (
    best_baseline,
    best_published,
    subtract_arms,
    warn_of_baseline,
)
from l2g_ray.tasks.metrics import METRICS, Metric, compute_metrics, signed_score


@pytest.fixture
def toy_metric(monkeypatch: pytest.MonkeyPatch) -> str:
    """A metric whose name does not say that lower is better; one entry of the table and its function are all of it."""

    def mean_absolute_error(labels: Any, predictions: Any) -> float:
        return float(abs(labels - predictions).mean())

    monkeypatch.setitem(METRICS, "mae_mean", Metric(False, ("regression",), mean_absolute_error))
    return "mae_mean"


def test_direction_is_the_metrics_own(toy_metric: str, tmp_path: Path) -> None:
    seeds = {"per_seed": [0.5] * 3}
    row = earlier_row(
        "lower",
        kind="regression",
        metric=toy_metric,
        test={"mean": 0.5, "ci95": [0.4, 0.6], **seeds},
        embedder_only={"mean": 0.7, "ci95": [0.6, 0.8], **seeds},
        difference={"mean": -0.2, "ci95": [-0.3, -0.1]},
        chosen={"arm": "l2g", "validation": {"l2g": 0.5}, "test": {"mean": 0.5, "ci95": [0.4, 0.6]}},
        baselines={"bad": {"mean": 0.9, "validation": 0.9}, "good": {"mean": 0.3, "validation": 0.3}},
        published=[
            {"model": m, "value": v, "comparable": True, "source": ""} for m, v in (("high", 0.9), ("low", 0.1))
        ],
    )
    assert subtract_arms(row).verdict == "better"
    name, _ = best_baseline(row) or ("", {})
    assert name == "good"
    assert "good has a better mae_mean on validation" in warn_of_baseline(row)[0]
    best = best_published(row)
    assert best is not None
    assert best["model"] == "low"
    board = full_board(tasks=[row])
    assert suite_figures.gather_standings(board) == []  # a mean with scores of the other direction means nothing
    history = [
        {"stage": "finetune", "trial": trial, "epoch": epoch, "metric": toy_metric, "value": value, "loss": 1.0}
        for trial, values in (("a", [0.9, 0.8]), ("b", [0.4, 0.3]))
        for epoch, value in enumerate(values)
    ]
    drawn = figures.plot_trials(history).axes[0]
    assert [label.get_text() for label in drawn.get_yticklabels()] == ["b", "a"]
    assert [text.get_text() for text in drawn.texts] == ["0.300", "0.800"]
    write_report(tmp_path, board, [])
    assert "better" in (tmp_path / "report.html").read_text()
    write_leaderboard(board, tmp_path)
    assert pd.read_csv(tmp_path / "leaderboard.csv")["verdict"].item() == "better"


def test_a_metric_is_an_entry_of_the_table_and_a_function(toy_metric: str) -> None:
    """Two arms of which the first has the smaller error: in their scores, difference, warning, comparison and order."""
    task = make_task("regression", labels=("y",), metric=toy_metric)
    labels = np.linspace(-1, 1, 60)
    frames = [
        pd.DataFrame({"arm": arm, "seed": seed, "label_y": labels, "prediction_y": labels + off})
        for arm, off in (("l2g", 0.1), ("embedder_only", 0.4))
        for seed in range(3)
    ]
    for frame in frames:
        frame["prediction_y"] += np.random.default_rng(0).normal(0, 0.01, 60)
    assert compute_metrics("regression", labels, labels + 0.5, ["y"])["mae[y]"] == pytest.approx(0.5)
    assert signed_score("regression", toy_metric, labels, labels + 0.5) == pytest.approx(-0.5)
    arms = ArmScores(task, pd.concat(frames), 100, 0)
    difference = arms.subtract("l2g", "embedder_only")
    assert difference["mean"] == pytest.approx(-0.3, abs=0.01)
    assert difference["p"] == 0  # in no resample is the first worse
    test, alone = arms.summarise("l2g"), arms.summarise("embedder_only")
    row = full_row("t", kind="regression", metric=toy_metric, test=test, embedder_only=alone, difference=difference)
    worse = arms.subtract("embedder_only", "l2g")
    row["arms"]["cnn"]["difference"] = worse
    assert "arm cnn has a better mae_mean on test" in " ".join(warn_of_baseline(row))
    (one, _) = compare_boards({"first": full_board(tasks=[row]), "second": full_board(tasks=[row])})
    assert (one["verdict"], one["metric"]) == ("better", toy_metric)
    text = re.sub(r"\s+", " ", show(render_comparison([one]), 300, live=True))
    assert "lower is better for mse_mean, mae_mean." in text
    study = STUDY | {
        "compared": [
            {
                "task": "t",
                "arm": arm,
                "metric": toy_metric,
                "validation": 0.1,
                "cpu_s": 1.0,
                "test": score,
                "difference": d,
            }
            for arm, score, d in (("joint", test, None), ("task", alone, worse))
        ]
    }
    assert "worse" in show(render_study(study), 200, live=True)
    records = [
        {"stage": "finetune", "trial": trial, "epoch": epoch, "metric": toy_metric, "value": value, "loss": 1.0}
        for trial, values in (("long", [0.9, 0.4]), ("short", [0.4]), ("best", [0.3, 0.5]))
        for epoch, value in enumerate(values)
    ]
    lines = tabulate_trials([], (), records).lines
    assert [(line[0], line[2]) for line in lines] == [("best", "0.3"), ("long", "0.4"), ("short", "0.4")]


def test_the_gauge_of_the_best_score_has_the_metrics_own_sign(toy_metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = SuiteMetrics("suite", {"t": toy_metric, "u": "mcc"})
    told: list[tuple[str, str, float]] = []
    monkeypatch.setattr(metrics._best, "set", lambda value, tags: told.append((tags["task"], tags["stage"], value)))
    monkeypatch.setattr(metrics._epochs, "inc", lambda value, tags: None)
    for task, stage in (("t", "trial"), ("u", "align"), ("u", "pretrain")):
        score = 0.25 if (task, stage) == ("u", "align") else -0.25
        metrics.record(Epoch(TrialName(task, stage, "", "", {}), {"best_score": score}))
    assert told == [("t", "trial", 0.25), ("u", "align", 0.25), ("u", "pretrain", 0.25)]
