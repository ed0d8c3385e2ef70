"""Test rows that are near-duplicates of train rows: kept by the check, scored apart, said on the board."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from check_parts import compare_all, draw, flip, substitute
from sklearn.metrics import matthews_corrcoef
from test_board import full_board, full_row
from toys import make_task

from l2g_ray.config import DataSettings
from l2g_ray.data.dataset import NEAR_ROWS, open_prepared
from l2g_ray.data.prepare import prepare
from l2g_ray.data.raw import SourceOptions
from l2g_ray.data.sources import open_source
from l2g_ray.orchestrate.outcome import count_findings, score_apart
from l2g_ray.presets import resolve
from l2g_ray.results.intervals import ArmScores
from l2g_ray.results.leaderboard import write_leaderboard
from l2g_ray.results.report import write_report
from l2g_ray.results.rows import warn_of_findings, warn_of_near_duplicates


@pytest.fixture
def leaky(tmp_path: Path) -> tuple[Path, set[int]]:
    """A folder whose test rows 3, 8 and 20 are a train row with two substitutions, its reverse complement, a copy."""
    generator = np.random.default_rng(0)
    train, test = draw(80, 100), draw(30, 100, 1)
    test[3], test[8], test[20] = substitute(train[10], 2, generator), flip(train[11]), train[12]
    folder = tmp_path / "leaky"
    folder.mkdir()
    for name, texts in (("train", train), ("test", test)):
        lines = [f"{text},{i % 2}" for i, text in enumerate(texts)]
        (folder / f"{name}.csv").write_text("\n".join(["sequence,label", *lines, ""]))
    assert set(np.flatnonzero((compare_all(train, test, 12) >= 0.5).any(0))) == {3, 8, 20}
    return folder, {3, 8, 20}


def test_the_check_keeps_the_rows_that_it_found(leaky: tuple[Path, set[int]], tmp_path: Path) -> None:
    folder, rows = leaky
    prepared = prepare(open_source([folder], SourceOptions()), tmp_path / "out", DataSettings())
    found = prepared.near_train_rows()
    assert found is not None
    assert set(found) == rows
    assert count_findings(prepared)["near_duplicates"] == len(rows)
    assert "other_near_rows" not in (tmp_path / "out" / "task.json").read_text()
    (tmp_path / "out" / NEAR_ROWS).unlink()  # as an earlier version left it
    assert open_prepared(tmp_path / "out").near_train_rows() is None


def _predictions(rows: int) -> pd.DataFrame:
    generator = np.random.default_rng(1)
    labels = generator.integers(2, size=rows)
    parts = []
    for arm, right in (("ensemble", 0.7), ("l2g", 0.8), ("embedder_only", 0.6)):
        for seed in (0, 1, 2):
            predicted = np.where(generator.random(rows) < right, labels, 1 - labels)
            predicted[:10] = labels[:10]  # what leaks is right
            names = {"label": labels, "prediction": predicted}
            frame = pd.DataFrame({k: np.array(["absent", "present"])[v] for k, v in names.items()})
            parts.append(frame.assign(id=range(rows), arm=arm, seed=seed))
    return pd.concat(parts)


def test_scores_without_near_duplicates_are_those_of_the_rest() -> None:
    frame = _predictions(60)
    arms = ArmScores(make_task(), frame, 200, 0)
    found = score_apart(arms, np.arange(10))
    assert found is not None
    assert (found["dropped"], found["n"]) == (10, 50)
    rest = frame[frame["id"] >= 10]
    for name, arm in (("l2g", "l2g"), ("embedder_only", "embedder_only"), ("used", "ensemble")):
        own = rest[rest["arm"] == arm]
        by_seed = [matthews_corrcoef(part["label"], part["prediction"]) for _, part in own.groupby("seed")]
        assert found[name]["per_seed"] == pytest.approx(by_seed)
        lo, hi = found[name]["ci95"]
        assert lo <= found[name]["mean"] <= hi
        assert found[name]["mean"] < arms.summarise(arm)["mean"]
    assert score_apart(arms, np.arange(0)) is None
    assert score_apart(arms, np.arange(60)) is None
    alone = score_apart(ArmScores(make_task(), frame[frame["arm"] == "ensemble"], 200, 0), np.arange(10))
    assert alone is not None
    assert alone.keys() == {"dropped", "n", "used"}  # neither L2G nor the control among the arms


APART: dict[str, Any] = {
    "n": 39,
    "dropped": 11,
    **{
        name: {"mean": mean, "ci95": [mean - 0.1, mean + 0.1], "per_seed": [mean]}
        for name, mean in (("used", 0.401), ("l2g", 0.402), ("embedder_only", 0.403))
    },
}


def test_the_board_says_what_leaks(tmp_path: Path) -> None:
    row = full_row("leaky", check={"warnings": 2, "notes": 1, "near_duplicates": 11})
    row |= {"test_without_near_duplicates": APART}
    (near,) = warn_of_near_duplicates(row)
    assert "11 of 50 test rows" in near
    assert "mcc of ensemble is 0.401 [0.301, 0.501], with them 0.781 [0.681, 0.881]" in near
    assert warn_of_findings(row) == ["The data check has 2 warnings and 1 note, which the report lists."]
    assert warn_of_near_duplicates(full_row("old")) == warn_of_findings(full_row("old")) == []
    (unknown,) = warn_of_near_duplicates(row | {"test_without_near_duplicates": None})
    assert "no score without them" in unknown
    alone = full_row("alone", test=None, embedder_only=None, difference=None)
    alone |= {"test_without_near_duplicates": {name: APART[name] for name in ("n", "dropped", "used")}}
    board = full_board(tasks=[row, full_row("old"), alone])
    for path in write_leaderboard(board, tmp_path):
        assert "0.401" in path.read_text(), path
    write_report(tmp_path, board, [])
    page = (tmp_path / "report.html").read_text()
    for number in ("0.401", "0.402", "0.403"):
        assert f"{number} [" in page
    assert page.count("Without near-duplicates") == 2


def test_settings_whose_scores_mean_nothing_say_so(tmp_path: Path) -> None:
    smoke = resolve("smoke")
    assert "mean nothing" in smoke.caution
    mine = tmp_path / "mine.yaml"
    mine.write_text(smoke.model_dump_json())  # YAML holds JSON; what `config show` prints has the same keys
    assert resolve(str(mine)).caution == smoke.caution
    assert resolve("fast").caution == resolve("paper").caution == ""
