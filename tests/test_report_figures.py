"""Figures of the report: curves against scikit-learn, learning curves, the search, winning settings, composition."""

from __future__ import annotations

import math
import shlex
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from check_parts import draw, make_part, make_task
from scipy import stats
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score, roc_curve

from l2g_ray.data.check import composition as counting
from l2g_ray.data.check.composition import ALL_ROWS, measure_composition
from l2g_ray.orchestrate.pipeline import Pipeline
from l2g_ray.orchestrate.tune import OrderedSearch
from l2g_ray.presets import find_base, flatten, parse_assignments, resolve
from l2g_ray.results import curves, learning
from l2g_ray.results.composition import plot_composition, tabulate_composition
from l2g_ray.results.details import TaskDetails
from l2g_ray.results.intervals import bootstrap_interval, correlate
from l2g_ray.results.search_figures import measure_importance, plot_parallel, read_parameters
from l2g_ray.results.task_pictures import SEARCH, TRAINING, draw_task, tabulate_metrics
from l2g_ray.results.winning import describe_architecture, list_settings, list_winning

# --- curves ---


def planted(n: int, seed: int = 0, digits: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Labels that follow their probabilities: calibrated scores."""
    generator = np.random.default_rng(seed)
    scores = generator.beta(0.8, 0.8, n)
    scores = scores if digits is None else scores.round(digits)
    return generator.random(n) < scores, scores


@pytest.mark.parametrize(("n", "digits"), [(400, None), (400, 1), (5000, None)])
def test_areas_are_those_of_scikit_learn_with_bootstrap_intervals(n: int, digits: int | None) -> None:
    truth, scores = planted(n, digits=digits)
    found = curves.measure_curves("a", truth, scores)
    assert found is not None
    expected = (
        (found.auroc, roc_auc_score),
        (found.auprc, average_precision_score),
        (found.brier, brier_score_loss),
    )
    for area, function in expected:
        assert area.value == pytest.approx(function(truth, scores))
        low, high = bootstrap_interval(lambda rows, f=function: f(truth[rows], scores[rows]), n, 400, seed=3)
        # Two bootstraps of one statistic: their ends differ by noise.
        assert abs(area.low - low) < 0.15 * (high - low)
        assert abs(area.high - high) < 0.15 * (high - low)
    fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
    inside = [i for i in range(1, 100) if not np.any(np.isclose(fpr, curves.GRID[i]))]
    assert found.roc[0][inside] == pytest.approx(np.interp(curves.GRID, fpr, tpr)[inside], abs=0.01)
    assert (found.roc[1] <= found.roc[2]).all()
    again = curves.measure_curves("a", truth, scores)
    assert again is not None
    assert np.array_equal(again.roc, found.roc)


def test_calibrated_scores_lie_on_the_diagonal_and_others_do_not() -> None:
    truth, scores = planted(20_000)
    good = curves.measure_curves("a", truth, scores)
    bad = curves.measure_curves("a", truth, scores**3)
    assert good is not None
    assert bad is not None
    mean, share, low, high, rows = good.calibration
    assert rows.sum() == 20_000
    assert rows == pytest.approx(np.full(10, 2000), rel=0.02)
    assert ((low - 0.02 <= mean) & (mean <= high + 0.02)).all()
    assert share == pytest.approx(mean, abs=0.05)
    assert np.abs(bad.calibration[1] - bad.calibration[0]).max() > 0.2
    assert bad.brier.low > good.brier.high


def test_one_class_alone_has_no_curve_and_few_scores_do() -> None:
    assert curves.measure_curves("a", np.ones(5, bool), np.linspace(0, 1, 5)) is None
    found = curves.measure_curves("a", np.array([True, False]), np.array([0.5, 0.5]))
    assert found is not None
    assert found.auroc.value == 0.5
    assert found.calibration.shape == (5, 1)


def test_curves_are_of_the_second_class_of_each_class_or_of_each_label() -> None:
    generator = np.random.default_rng(0)
    names = [f"c{i}" for i in range(8)]
    frame = pd.DataFrame({f"probability_{name}": generator.random(60) for name in names})
    frame["label"] = frame["prediction"] = generator.choice(names[:4], 60)
    assert [c.name for c in curves.list_curves("multiclass", frame, names)] == names[:4]  # the others do not occur
    assert [c.name for c in curves.list_curves("binary", frame, names[:2])] == ["c1"]
    for name in names:
        frame[f"label_{name}"] = generator.choice([0.0, 1.0, math.nan], 60)
    found = curves.list_curves("multilabel", frame, names)
    assert [c.name for c in found] == names[:6]
    assert found[0].rows == frame["label_c0"].notna().sum()
    assert curves.list_curves("regression", frame, names) == []
    assert curves.list_curves("binary", frame.drop(columns="probability_c0"), names[:2]) == []
    for figure in (curves.plot_roc(found), curves.plot_precision(found), curves.plot_calibration(found)):
        assert len(figure.axes[0].get_legend().get_texts()) == 6
        assert figure.axes[0].get_xlabel()


def test_pearson_has_an_interval() -> None:
    generator = np.random.default_rng(1)
    x = generator.normal(size=300)
    y = x + generator.normal(size=300)
    r, low, high = correlate(x, y)
    assert r == pytest.approx(stats.pearsonr(x, y).statistic)
    exact = stats.pearsonr(x, y).confidence_interval()
    assert (low, high) == pytest.approx((exact.low, exact.high), abs=0.03)
    assert all(math.isnan(v) for v in correlate(x[:1], y[:1]))


# --- learning curves ---


def make_history(**stages: list[int]) -> list[Any]:
    return [
        {
            "stage": stage,
            "trial": f"{stage}{trial}",
            "epoch": epoch + 1,
            "metric": "mcc",
            "value": None if stage == "refit" else 0.5 + 0.01 * epoch + 0.1 * trial,
            "loss": 1 / (epoch + 1),
        }
        for stage, reached in stages.items()
        for trial, epochs in enumerate(reached)
        for epoch in range(epochs)
    ]


def test_stages_are_in_the_order_they_run_wrapped_and_without_panels_of_one_point() -> None:
    history = make_history(refit=[3, 3], baseline=[5], finetune=[3, 1], align=[4], select=[1, 1], toy=[2])
    figure = learning.plot_learning_curves(history)
    titles = [axes.get_title("left") for axes in figure.axes if axes.get_visible()]
    assert titles == [
        "align: training loss", "align: validation mcc", "finetune: training loss", "finetune: validation mcc",
        "baseline: training loss", "baseline: validation mcc", "refit: training loss", "toy: training loss",
        "toy: validation mcc",
    ]  # fmt: skip
    first = {round(axes.get_position().x0, 2) for axes in figure.axes}
    assert len(first) <= 2 * learning.COLUMNS  # axes of a column may differ by their labels
    assert figure.axes[0].get_gridspec().ncols == 3
    assert all(len(line.get_xdata()) > 1 for line in figure.axes[0].lines)
    assert learning.describe_short_stages(history) == [
        "Stage select: 2 trials of one epoch, best validation mcc 0.600."
    ]
    assert not learning.has_curves(make_history(select=[1]))


# --- the search ---


def make_trials(n: int, seed: int = 0, noise: float = 0.0) -> list[dict[str, Any]]:
    """Trials whose score hangs on the learning rate alone, or on nothing."""
    generator = np.random.default_rng(seed)
    trials = []
    for _ in range(n):
        lr = float(np.exp(generator.uniform(np.log(1e-4), np.log(1e-2))))
        score = generator.normal() if noise else float(np.log10(lr))
        row = {"score": score, "train_loss": 1.0}
        settings = {"lr_embedder": lr, "dropout": float(generator.choice([0.0, 0.1])), "train_layers": "all"}
        trials.append({"trial": settings, "epochs": 1, "best_score": score, "error": "", "history": [row]})
    return trials


def test_importance_names_the_parameter_that_matters_and_only_with_enough_trials() -> None:
    found = measure_importance(make_trials(40))
    assert list(found.values) == ["lr_embedder", "dropout"]
    assert found.values["lr_embedder"] > 0.5 > 0.1 > abs(found.values["dropout"])
    assert "over 40 trials" in found.text
    few = measure_importance(make_trials(19))
    assert few.values == {}
    assert few.text == "The importance of hyper-parameters is shown from 20 trials on; this search has 19 trials."
    noise = measure_importance(make_trials(40, noise=1.0))
    assert noise.values == {}
    assert "not shown: a random forest explains" in noise.text


def test_importance_compares_trials_after_the_epochs_that_all_have() -> None:
    trials = make_trials(30)
    for trial in trials[:10]:  # a long trial has a score that no parameter explains
        trial["history"] = [*trial["history"], {"score": 100.0}]
        trial["best_score"] = 100.0
    assert next(iter(measure_importance(trials).values)) == "lr_embedder"
    assert "after 1 epoch." in measure_importance(trials).text


def test_parallel_coordinates_mark_the_winner_and_leave_out_what_is_the_same() -> None:
    trials = make_trials(5)
    varying, same = read_parameters(trials)
    assert [p.name for p in varying] == ["lr_embedder", "dropout"]
    assert same == {"train_layers": "all"}
    rates = [t["trial"]["lr_embedder"] for t in trials]
    scale = np.log(rates)
    assert varying[0].places == pytest.approx((scale - scale.min()) / np.ptp(scale))
    assert [text for _, text in varying[1].ticks] == ["0", "0.1"]
    figure = plot_parallel([*trials, {"trial": {}, "best_score": None}], "mcc")
    strong = [line for line in figure.axes[0].lines if line.get_linewidth() > 2]
    assert len(strong) == 1
    assert strong[0].get_ydata()[0] == pytest.approx(varying[0].places[int(np.argmax(rates))])
    assert strong[0].get_ydata()[-1] == 1.0


def make_search(trials: list[dict[str, Any]], architecture: list[dict[str, int]], **row: Any) -> Any:
    base = {
        "task": "t", "metric": "mcc", "architecture": architecture, "backbone": "resnet", "architecture_from": "uniform 3x1"
    }  # fmt: skip
    return draw_task(base | row, TaskDetails("t", "binary", ("a", "b"), trials=trials), "task0")


def test_a_uniform_architecture_is_a_sentence_and_another_a_figure() -> None:
    uniform = [{"kernel_size": 3, "dilation": 1}] * 9
    found = make_search(make_trials(4), uniform)
    assert [p.name for p in found.pictures] == ["task0-parallel"]
    assert (
        "Architecture: resnet, 9 searchable layers, each with kernel size 3, a uniform network."
        in found.notes[TRAINING]
    )
    assert found.notes[SEARCH] == [
        "The same in all trials: train_layers all.",
        "The importance of hyper-parameters is shown from 20 trials on; this search has 4 trials.",
    ]
    assert make_search(make_trials(1), uniform).notes[SEARCH] == ["One trial: nothing was searched."]
    mixed = [*uniform, {"kernel_size": 7, "dilation": 2}]
    assert "task0-architecture" in [p.name for p in make_search([], mixed).pictures]
    assert describe_architecture([{"kernel_size": 5, "dilation": 3}], "searched") == (
        "1 searchable layer, with kernel size 5 and dilation 3, found by the search."
    )
    assert "task0-importance" in [p.name for p in make_search(make_trials(30), uniform).pictures]


# --- settings ---


def test_winning_options_give_the_settings_that_won() -> None:
    run = resolve("fast", {"fast": {"arms": "all"}}, {"folds": 4, "cluster.storage_wait_s": 7}).for_task(False)
    settings, preset = flatten(run.model_dump(mode="json")), find_base(run.model_dump(mode="json"), False)
    trial = {"alpha": 0.1, "lr_embedder": 0.00038153578846044067, "batch_size": 64, "train_layers": "top_half"}
    row = {"hyperparameters": trial, "backbone": "unet", "architecture_from": "uniform 11x1"}
    options = " ".join(one.option for one in list_winning(row, settings, preset))
    given = shlex.split(options)
    assert given[::2] == ["--set"] * (len(given) // 2)
    again = resolve("fast", {}, parse_assignments(given[1::2]))
    assert (again.finetune.lr_embedder, again.finetune.trials) == ((0.00038153578846044067,) * 2, 1)
    assert (again.align.alphas, again.finetune.batch_size, again.finetune.train_layers) == (
        (0.1,),
        (64,),
        ("top_half",),
    )
    assert (again.select.backbones, again.select.kernel_sizes) == (("unet",), (11,))
    assert (again.folds, again.arms) == (4, run.arms)
    assert "cluster" not in options
    assert again.finetune.dropout == run.finetune.dropout  # the trial does not say
    listed = list_settings(settings, preset)
    assert {one.key for one in listed[:3]} == {"arms", "folds", "cluster.storage_wait_s"}
    assert len(listed) == len(settings)


def test_a_range_of_one_value_can_be_searched() -> None:
    """As the winning options give it; HyperOpt alone refuses one."""
    ranges = {"finetune.lr_embedder": [0.0005, 0.0005], "finetune.dropout": [0.2], "align.alphas": [0.1]}
    space = Pipeline._space(SimpleNamespace(settings=resolve("fast", {}, ranges)))  # type: ignore[arg-type]
    config = OrderedSearch(space, in_flight=1, initial_random=1, seed=0).suggest("first")
    assert config is not None
    assert {name: config[name] for name in ("lr_embedder", "dropout", "alpha")} == {
        "lr_embedder": 0.0005, "dropout": 0.2, "alpha": 0.1
    }  # fmt: skip
    assert 2e-5 <= config["lr_language_model"] <= 2e-4


def test_a_searched_architecture_and_a_file_of_settings() -> None:
    settings = flatten(resolve("fast").model_dump(mode="json"))
    preset = find_base({"preset": "mine"}, False)
    assert preset["preset"] == "fast"
    row = {"hyperparameters": {}, "backbone": "", "architecture_from": "searched"}
    assert list_winning(row, settings | {"a.setting.of.old": 1}, settings) == []


# --- metrics ---


def test_each_arm_with_weight_is_a_column_with_the_interval_of_the_board() -> None:
    score = {"mean": 0.7, "ci95": [0.6, 0.8], "per_seed": [0.7]}
    arms = {
        arm: {"test": score, "oof": None, "weight": weight, "adds": None, "difference": None}
        for arm, weight in (("cnn", 3.0), ("l2g", 1.0))
    }
    row = {"metric": "mcc", "arms": arms, "used": {"arm": "ensemble", "test": score, "folds": 3}}
    metrics = {"ensemble": {"mcc": 0.7, "auroc": 0.9}, "cnn": {"mcc": 0.7}, "L2G": {"mcc": 0.7, "auroc": math.nan}}
    table = tabulate_metrics(TaskDetails("t", "binary", (), metrics=metrics), row)
    assert table["arms"] == [("ensemble", ""), ("cnn", "weight 75%"), ("L2G", "weight 25%")]
    assert table["lines"]["mcc"] == [("0.700", "[0.600, 0.800]")] * 3
    assert table["lines"]["auroc"] == [("0.900", ""), ("–", ""), ("–", "")]


# --- composition ---


def count_plainly(texts: list[str], bins: int) -> list[list[float]]:
    table = np.zeros((bins, 4))
    for text in texts:
        for place, letter in enumerate(text):
            if letter in "ACGT":
                table[place * bins // len(text), "ACGT".index(letter)] += 1
    return (table / table.sum(1, keepdims=True)).round(4).tolist()


@pytest.mark.parametrize("lengths", [(70, 70), (70, 91)])
def test_composition_is_counted_by_class_and_position(
    lengths: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "_BLOCK_BP", 1000)
    one, other = draw(60, lengths[0], 1), [text.replace("A", "N") for text in draw(40, lengths[1], 2)]
    texts, labels = [*one, *other], np.r_[np.zeros(60, int), np.ones(40, int)]
    order = np.random.default_rng(0).permutation(100)
    part = make_part([texts[i] for i in order], labels[order])
    found = measure_composition(make_task(), {"train": part, "test": make_part(draw(5), np.zeros(5, int))})
    assert (found["bins"], found["relative"], found["sampled"]) == (50, lengths[0] != lengths[1], False)
    for name, rows in (("negative", one), ("positive", other), (ALL_ROWS, texts)):
        assert np.allclose(found["positions"][name], count_plainly(rows, 50), atol=1e-4)
        assert np.allclose(found["splits"]["train"][name], count_plainly(rows, 1)[0], atol=1e-4)
    assert found["splits"]["test"]["positive"] is None
    check = {"composition": found, "kind": "binary"}
    figure = plot_composition(check)
    assert [axes.get_title("left") for axes in figure.axes] == ["negative", "positive"]
    lines = tabulate_composition(check)[1]
    assert ["test, positive", "–", "–", "–", "–"] in lines
    monkeypatch.setattr(counting, "MAX_BASES", part.facts.length_bp.sum() // 2)
    half = measure_composition(make_task(), {"train": part, "test": part})
    assert half["sampled"]
    kept = [texts[i] for i in order][::2] if half["sampled"] else []
    assert np.allclose(half["splits"]["train"][ALL_ROWS], count_plainly(kept, 1)[0], atol=1e-4)


@pytest.mark.parametrize("kind", ["multilabel", "regression"])
def test_composition_of_outputs(kind: str) -> None:
    texts = ["AAAA", "CCCC", "GGGG", "TTTT"] * 5
    values = np.tile(np.array([[0, 0], [0, 1], [1, 1], [np.nan, 0]], np.float32), (5, 1))
    part = make_part(texts, values)
    found = measure_composition(make_task(kind=kind, labels=["x", "y"]), {"train": part, "test": part})
    shares = found["splits"]["train"]
    if kind == "multilabel":
        assert (shares["x"], shares["y"]) == ([0, 0, 1, 0], [0, 0.5, 0.5, 0])
    else:
        assert shares["x, lowest quarter"] == [0.5, 0.5, 0, 0]
        assert shares["x, highest quarter"] == [0, 0, 1, 0]
