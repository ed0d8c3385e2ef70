"""The verdict in words, and the traffic lights of the data check."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from check_parts import draw, make_part, make_task
from test_report import add_arms, make_row, make_score

from l2g_ray.data.check.splits import check_splits
from l2g_ray.results.lights import LEVELS, LIMITS, Limit, list_lights
from l2g_ray.results.schema import validate_leaderboard
from l2g_ray.results.verdict import describe_suite, judge_task


def solid_row(task: str = "solid", seeds: int = 3, **changes: Any) -> dict[str, Any]:
    """A row that nothing is wrong with: many rows, a narrow interval, better than k-mers."""
    row = add_arms(make_row(task, 0.7, {}, n_train=5000, n_test=2000, baselines={})) | changes
    narrow = {"mean": 0.78, "ci95": [0.76, 0.8], "per_seed": [0.77, 0.78, 0.79][:seeds]}
    row["used"] = row["used"] | {"test": narrow}
    board = {"bench": "toy", "preset": "fast", "language_model": "tiny", "tasks": [row]}
    return validate_leaderboard(board)["tasks"][0]


def test_the_verdict_says_what_was_trained_what_is_used_and_how_sure() -> None:
    verdict = judge_task(solid_row())
    assert (verdict.level, verdict.watch) == ("green", ())
    assert str(verdict) == (
        "Trained: 4 arms (cnn, gapped_kmer, kmer_boosting, L2G), 5 folds, 3 seeds, on 5,000 rows. "
        "Used: ensemble (cnn 60%, gapped_kmer 30%, kmer_boosting 10%). Test mcc: 0.780 [0.760, 0.800], on 2,000 rows. "
        "The 3 seeds score 0.770 to 0.790. Clearly better than the best k-mer arm, gapped_kmer: +0.022 [0.011, 0.032]."
    )
    assert verdict.short == "ensemble, mcc 0.780 [0.760, 0.800], clearly better than the best k-mer arm"
    one = judge_task(solid_row(seeds=1))
    assert one.short.endswith("[0.760, 0.800], +0.022 against the best k-mer arm (1 seed)")
    assert "1 seed: the interval is of the test rows alone, without the noise of training." in one.sure
    assert "Minus the best k-mer arm, gapped_kmer: +0.022 [0.011, 0.032]; no verdict with 1 seed." in one.sure


def change_difference(row: dict[str, Any], ci95: list[float]) -> dict[str, Any]:
    for arm in row["arms"].values():
        arm["difference"] = {"mean": sum(ci95) / 2, "ci95": ci95}
    return row


@pytest.mark.parametrize(
    ("ci95", "words"),
    [([-0.01, 0.03], "Not clearly better than the best k-mer arm"), ([-0.03, -0.01], "Clearly worse than")],
)
def test_a_difference_that_is_not_clear_is_not_called_better(ci95: list[float], words: str) -> None:
    verdict = judge_task(change_difference(solid_row(), ci95))
    assert any(text.startswith(words) for text in verdict.sure)
    assert ("Another arm or baseline scores better on test." in verdict.watch) == (ci95[1] < 0)


def majority(ci95: list[float]) -> dict[str, Any]:
    return {"majority": make_score(0.0) | {"difference": {"mean": 0.0, "ci95": ci95}}}


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        ({"n_test": 200}, "amber", "Few test rows: 200."),
        ({"n_test": 20}, "red", "Very few test rows: 20."),
        ({"n_train": 500}, "amber", "Few train rows: 500."),
        ({"check": {"warnings": 2, "notes": 1, "near_duplicates": 0}}, "amber", "The data check has 2 warnings."),
        ({"check": {"near_duplicates": 40}}, "amber", "2.0% of the test rows have a near-duplicate in train."),
        ({"baselines": majority([-0.01, 0.02])}, "red", "The score may be chance: shuffled labels would score alike."),
        ({"synthetic": True}, "amber", "The sequences are synthetic."),
    ],
)
def test_what_to_watch_is_named(changes: dict[str, Any], level: str, words: str) -> None:
    verdict = judge_task(solid_row(**changes))
    assert (verdict.level, words in verdict.watch) == (level, True), verdict
    assert f"Watch: {verdict.watch[0]}" in str(verdict)


def test_a_score_whose_interval_holds_chance_is_red_and_a_wide_one_amber() -> None:
    row = solid_row()
    row["used"]["test"] = {"mean": 0.05, "ci95": [-0.01, 0.1], "per_seed": [0.05] * 3}
    assert judge_task(row).level == "red"
    row["used"]["test"] = {"mean": 0.5, "ci95": [0.4, 0.6], "per_seed": [0.5] * 3}
    assert judge_task(row).watch == ("The interval is wide: 0.200.",)
    # An error has no chance level, and its interval no known width.
    row["used"]["test"] = {"mean": 0.05, "ci95": [-0.01, 0.5], "per_seed": [0.05] * 3}
    verdict = judge_task(row | {"metric": "mse_mean"})
    assert verdict.level != "red"
    assert not any("interval" in text for text in verdict.watch)


def test_a_suite_has_one_paragraph() -> None:
    rows = [
        solid_row("one"),
        change_difference(solid_row("two", n_test=20), [-0.01, 0.02]),
        solid_row("three", seeds=1),
    ]
    board = {"bench": "toy", "preset": "fast", "language_model": "tiny", "tasks": rows}
    assert describe_suite(board) == (
        "3 tasks, preset fast, 4 arms, 5 folds, 1 to 3 seeds. Against the best simple model: clearly better on 1, not clearly "
        "better on 1, too few seeds for a verdict on 1 of 3. Problems: two."
    )
    assert describe_suite(board | {"tasks": rows[:1]}).endswith("Nothing stands out.")
    assert describe_suite(board | {"tasks": []}) == "No task has a result yet."


@pytest.mark.parametrize("gone", ["used", "arms", "check", "test", "embedder_only"])
def test_rows_of_earlier_versions_and_without_arms_have_a_verdict(gone: str) -> None:
    row = solid_row() | {gone: {} if gone == "arms" else None}
    assert "None" not in str(judge_task(row))
    bare = make_row("bare", 0.5, {}, test=None, embedder_only=None)
    assert "No score is known." in str(judge_task(bare))


def check_of(train: tuple[list[str], np.ndarray], test: tuple[list[str], np.ndarray], **fields: Any) -> dict[str, Any]:
    return check_splits(make_task(**fields), {"train": make_part(*train), "test": make_part(*test)})


def levels_of(check: dict[str, Any], **options: Any) -> dict[str, str]:
    return {light.name: light.level for light in list_lights(check, **options)}


def test_clean_data_has_green_lights_only() -> None:
    parts = [(draw(n, 70, n), np.arange(n) % 2) for n in (2000, 500)]
    lights = list_lights(check_of(*parts))
    assert {light.level for light in lights} == {"green"}
    assert [light.name for light in lights] == [
        "Size", "Balance", "Duplicates", "Near-duplicates", "Conflicts", "Length shortcut", "GC share shortcut", "Shift",
        "Composition",
    ]  # fmt: skip
    assert lights[0].text == "2,000 train, 500 test rows."
    assert (lights[0].symbol, lights[0].word) == LEVELS["green"]


def test_planted_faults_turn_their_lights() -> None:
    texts, labels = draw(900, 70, 1), (np.arange(900) % 100 == 0).astype(int)
    rich = [text.replace("T", "G") if label else text for text, label in zip(texts, labels, strict=True)]
    test = draw(40, 70, 2) + rich[:20]
    found = levels_of(check_of((rich, labels), (test, np.r_[np.zeros(40, int), 1 - labels[:20]])))
    assert found["Size"] == "amber"
    assert found["Balance"] == "amber"
    assert found["Duplicates"] == "red"
    assert found["Conflicts"] == "red"
    assert found["GC share shortcut"] == "red"
    assert found["Length shortcut"] == "green"
    assert found["Shift"] == "red"
    assert found["Composition"] == "red"
    dropped = list_lights(check_of((rich, labels), (test, np.zeros(60, int))), dropped=True)
    assert next(light for light in dropped if light.name == "Duplicates").text.endswith("rows were dropped.")


@pytest.mark.parametrize("kind", ["multilabel", "regression"])
def test_other_kinds_have_lights(kind: str) -> None:
    values = np.tile(np.array([[0.0, 1.0], [1.0, 0.0], [np.nan, 1.0]], np.float32), (40, 1))
    check = check_of((draw(120), values), (draw(60, seed=9), values[:60]), kind=kind, labels=["a", "b"])
    lights = {light.name: light for light in list_lights(check)}
    assert lights["Balance"].text.startswith("'a' lacks 40 of 120" if kind == "regression" else "The most one-sided")
    assert lights["Balance"].level == ("amber" if kind == "regression" else "green")


def test_a_check_of_an_earlier_version_has_the_lights_that_it_can() -> None:
    parts = [(draw(n, 70, n), np.arange(n) % 2) for n in (200, 50)]
    check = check_of(*parts)
    del check["composition"]
    assert "Composition" not in levels_of(check | {"near": None})
    assert "Near-duplicates" not in levels_of(check | {"near": None})
    assert list_lights({}) == []


def test_limits_are_ordered_and_named() -> None:
    for limit in LIMITS.values():
        assert limit.red < limit.amber if limit.below else limit.red > limit.amber
    limit = Limit("rows", 10, 5, below=True)
    assert [limit.find_level(n) for n in (10, 9, 5, 4)] == ["green", "amber", "amber", "red"]
    limit = Limit("share", 0, 0.01)
    assert [limit.find_level(n) for n in (0, 0.001, 0.01)] == ["green", "amber", "red"]
