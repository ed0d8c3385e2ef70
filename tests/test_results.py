"""Intervals against known answers, the leaderboard's schema and files, figures, and the report's self-containment."""

from __future__ import annotations

import csv
import json
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from l2g_ray.errors import UserError
from l2g_ray.results import figures, learning
from l2g_ray.results.intervals import (
    bootstrap_interval,
    confusion_bootstrap,
    confusion_difference,
    paired_difference,
    summarise_seeds,
)
from l2g_ray.results.leaderboard import write_leaderboard
from l2g_ray.results.report import TaskDetails, format_duration, write_report
from l2g_ray.results.rows import subtract_arms
from l2g_ray.results.schema import LeaderboardRow, build_leaderboard, validate_leaderboard
from l2g_ray.tasks import metrics

CLASSES = ["exon→intron", "intron→exon", "neither"]


# --- bootstrap ---


def test_interval_equals_scipy_on_a_mean() -> None:
    values = np.random.default_rng(0).exponential(size=400)
    ours = bootstrap_interval(lambda rows: float(values[rows].mean()), 400, resamples=4000, seed=1)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=2).confidence_interval
    assert ours == pytest.approx(tuple(theirs), abs=0.01)


def test_interval_covers_the_truth_at_its_rate() -> None:
    generator = np.random.default_rng(3)
    covered = 0
    for trial in range(200):
        values = generator.normal(size=100)
        lo, hi = bootstrap_interval(lambda rows, v=values: float(v[rows].mean()), 100, resamples=200, seed=trial)
        covered += lo <= 0 <= hi
    # 200 draws of a nominal 95 %: four standard errors below it, and never a sure thing.
    assert 176 <= covered < 200


def test_interval_is_reproducible_and_widens_with_confidence() -> None:
    values = np.random.default_rng(0).normal(size=50)

    def score(rows: np.ndarray) -> float:
        return float(values[rows].mean())

    assert bootstrap_interval(score, 50, seed=4) == bootstrap_interval(score, 50, seed=4)
    narrow, wide = (bootstrap_interval(score, 50, seed=4, confidence=c) for c in (0.5, 0.99))
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_undefined_resamples_are_dropped_and_counted() -> None:
    labels = np.array([0, 0, 0, 1])

    def score(rows: np.ndarray) -> float:
        return float(labels[rows].mean()) if 0 < labels[rows].sum() < 4 else math.nan

    summary = summarise_seeds([score], 4, resamples=2000, seed=0)
    # No positive row among four draws: (3/4)^4; only positives: (1/4)^4.
    assert summary["dropped_resamples"] / 2000 == pytest.approx(0.75**4 + 0.25**4, abs=0.04)
    assert not np.isnan(summary["ci95"]).any()
    assert np.isnan(bootstrap_interval(lambda rows: math.nan, 4, resamples=10)).all()


def test_three_seeds_add_their_own_spread() -> None:
    values = np.random.default_rng(0).normal(size=2000)

    def seed_with(offset: float) -> Any:
        return lambda rows: float(values[rows].mean()) + offset

    def width(offsets: list[float]) -> float:
        lo, hi = summarise_seeds([seed_with(o) for o in offsets], 2000, resamples=500)["ci95"]
        return hi - lo

    assert width([0, 0, 0]) == pytest.approx(width([0]), rel=0.01)
    assert width([-1, 0, 1]) > 5 * width([0, 0, 0])
    assert width([-1, 1]) == pytest.approx(width([0]), rel=0.01)  # two seeds are not resampled


def test_a_difference_pairs_the_seeds_of_arms_that_have_as_many() -> None:
    values = np.random.default_rng(0).normal(size=200)

    def arm(offsets: list[float]) -> list[Any]:
        return [lambda rows, o=offset: float(values[rows].mean()) + o for offset in offsets]

    same = paired_difference(arm([0.9, 0.1, 0.5]), arm([0.8, 0.0, 0.4]), 200)
    assert same["ci95"] == pytest.approx([0.1, 0.1])  # each seed gains as much, however far the seeds lie apart
    apart = paired_difference(arm([0.9, 0.1, 0.5]), arm([0.4, 0.4, 0.4]), 200)
    assert apart["ci95"][0] < 0 < apart["ci95"][1]  # one seed loses: three seeds do not agree
    one = paired_difference(arm([0.9]), arm([0.8]), 200)
    assert one["ci95"] == pytest.approx([0.1, 0.1])


def _classify(n_rows: int, rights: list[float], n_classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(5)
    labels = generator.integers(n_classes, size=n_rows)
    wrong = (labels + generator.integers(1, n_classes, size=(len(rights), n_rows))) % n_classes
    right = generator.random((len(rights), n_rows)) < np.array(rights)[:, None]
    return labels, np.where(right, labels, wrong)


def test_confusion_bootstrap_is_the_loop_in_distribution() -> None:
    labels, predictions = _classify(250, [0.8, 0.75, 0.85])

    def seed_with(predicted: np.ndarray) -> Any:
        return lambda rows: float(metrics.mcc(metrics.confusion_matrix(labels[rows], predicted[rows], 3)))

    loop = summarise_seeds([seed_with(p) for p in predictions], 250, resamples=3000, seed=1)
    fast = confusion_bootstrap(labels, predictions, 3, {"mcc": metrics.mcc}, resamples=3000, seed=2)["mcc"]
    assert fast["per_seed"] == pytest.approx(loop["per_seed"], abs=1e-12)
    assert fast["mean"] == pytest.approx(loop["mean"], abs=1e-12)
    assert fast["ci95"] == pytest.approx(loop["ci95"], abs=0.012)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_confusion_bootstrap_scores_all_rows_like_the_metric(data: st.DataObject) -> None:
    n_classes, n_seeds = data.draw(st.integers(2, 4)), data.draw(st.integers(1, 3))
    rows = st.lists(st.integers(0, n_classes - 1), min_size=n_seeds + 1, max_size=n_seeds + 1)
    table = np.array(data.draw(st.lists(rows, min_size=1, max_size=30))).T
    names = {"mcc": metrics.mcc, "accuracy": metrics.accuracy, "f1_macro": lambda c: metrics.f1(c).mean(-1)}
    out = confusion_bootstrap(table[0], table[1:], n_classes, names, resamples=20)
    for name, metric in names.items():
        expected = [float(metric(metrics.confusion_matrix(table[0], p, n_classes))) for p in table[1:]]
        assert out[name]["per_seed"] == pytest.approx(expected)
        lo, hi = out[name]["ci95"]
        assert lo <= hi


def test_paired_difference_knows_better_from_equal() -> None:
    labels, (good, bad, same) = _classify(2000, [0.9, 0.8, 0.9])
    better = confusion_difference(labels, good, bad, 3, metrics.mcc)
    assert better["ci95"][0] > 0
    assert better["p"] < 0.001
    unclear = confusion_difference(labels, good, same, 3, metrics.mcc)
    assert unclear["ci95"][0] < 0 < unclear["ci95"][1]
    nothing = confusion_difference(labels, good, good, 3, metrics.mcc)
    assert nothing["mean"] == 0
    assert nothing["p"] == 1  # a tie is not better


def test_pairing_makes_the_interval_of_a_difference_narrow() -> None:
    generator = np.random.default_rng(0)
    hard = generator.normal(size=300)
    arms = [hard + 0.01 * generator.normal(size=300), hard + 0.01 * generator.normal(size=300) + 0.1]
    first, second = ([lambda rows, a=arm: float(a[rows].mean())] for arm in arms)
    paired = paired_difference(first, second, 300, higher_is_better=False)
    assert paired["ci95"] == pytest.approx([-0.1, -0.1], abs=0.01)
    assert paired["p"] == 0
    assert paired_difference(first, second, 300)["p"] == 1


def test_bootstrap_refuses_what_it_cannot_draw() -> None:
    with pytest.raises(ValueError, match="need rows"):
        bootstrap_interval(lambda rows: 0.0, 0)
    with pytest.raises(ValueError, match="confidence"):
        bootstrap_interval(lambda rows: 0.0, 3, confidence=95)
    with pytest.raises(ValueError, match="classes must be in"):
        confusion_bootstrap([0, 3], [0, 1], 3, {})
    with pytest.raises(ValueError, match="labels must be"):
        confusion_bootstrap([0, 1], [0, 1, 1], 3, {})


# --- leaderboard ---


def _row(**changes: Any) -> LeaderboardRow:
    row: dict[str, Any] = {
        "task": "splice_junction",
        "kind": "multiclass",
        "metric": "mcc",
        "test": {"mean": 0.943, "ci95": [0.921, 0.961], "per_seed": [0.94, 0.946]},
        "validation": {"mean": 0.95},
        "embedder_only": {"mean": 0.931, "ci95": [0.91, 0.95], "per_seed": [0.931]},
        "difference": {"mean": 0.012, "ci95": [-0.004, 0.03], "p": 0.08},
        "baselines": {"logistic regression": 0.92},
        "n_train": 2297,
        "n_test": 638,
        "published": [],
        "backbone": "resnet",
        "architecture": [{"kernel_size": 3, "dilation": 1}, {"kernel_size": 11, "dilation": 7}],
        "trials": 8,
        "wall_s": 184.2,
        "cpu_s": 340.1,
        "gpu_s": 0,
        "model_uri": None,
        "warnings": [],
    }
    return LeaderboardRow.model_validate(row | changes)


def _board() -> dict[str, Any]:
    published = [
        {"model": "NT-Multispecies (2.5B)", "value": 0.58, "comparable": True, "source": "caduceus_table2"},
        {"model": "Other data", "value": 0.99, "comparable": False, "source": "a|b"},
    ]
    nothing = {"mean": math.nan, "ci95": [math.nan, math.nan], "per_seed": [math.nan]}
    rows = [
        _row(),
        _row(task="enhancer_grammar", kind="regression", metric="pearson_mean", synthetic=True),
        _row(task="enhancers", test=nothing, embedder_only=None, difference=None, published=published).model_copy(
            update={"warnings": ("100 <test> sequences stood in train [dropped]",)}
        ),
    ]
    return build_leaderboard("demo", "fast", "minilm", rows, command="l2g-ray suite --bench demo")


DESIGN_KEYS = {
    "task", "kind", "metric", "test", "validation", "embedder_only", "baselines", "n_train", "n_test", "published",
    "backbone", "architecture", "trials", "wall_s", "cpu_s", "gpu_s", "model_uri", "warnings",
}  # fmt: skip


def test_leaderboard_is_of_the_designs_form_and_round_trips(tmp_path: Path) -> None:
    board = _board()
    paths = write_leaderboard(board, tmp_path / "run")
    assert [p.name for p in paths] == ["leaderboard.json", "leaderboard.csv", "leaderboard.md"]
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == sorted(p.name for p in paths)  # no scratch left
    read = json.loads(paths[0].read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert read == board == validate_leaderboard(read)
    assert read["schema"] == 1
    assert set(read) >= {"schema", "bench", "preset", "language_model", "tasks"}
    assert all(set(row) >= DESIGN_KEYS for row in read["tasks"])
    assert read["tasks"][0]["difference"]["p"] == 0.08
    assert read["tasks"][2]["test"]["ci95"] == [None, None]

    records = list(csv.DictReader(paths[1].open()))
    assert [r["task"] for r in records] == ["splice_junction", "enhancer_grammar", "enhancers"]
    assert records[0]["architecture"] == "3x1 11x7"
    assert records[2]["published_model"] == "NT-Multispecies (2.5B)"
    text = paths[2].read_text()
    assert "| enhancer_grammar (synthetic) |" in text
    assert "## Warnings" in text


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"kind": "ranking"}, "tasks.0.kind"),
        ({"test": {"mean": 0.9, "ci95": [0.95, 0.9], "per_seed": [0.9]}}, "tasks.0.test"),
        ({"test": {"mean": 0.9, "per_seed": [0.9]}}, "tasks.0.test.ci95"),
        ({"architecture": [{"kernel_size": 0, "dilation": 1}]}, "tasks.0.architecture.0.kernel_size"),
        ({"wall_s": None}, "tasks.0.wall_s"),
    ],
)
def test_a_board_that_does_not_fit_is_refused_and_nothing_written(change: dict, where: str, tmp_path: Path) -> None:
    board = _board()
    board["tasks"][0] |= change
    with pytest.raises(UserError, match=f"at '{where}'"):
        write_leaderboard(board, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_task_stands_once() -> None:
    with pytest.raises(ValueError, match="twice"):
        build_leaderboard("demo", "fast", "minilm", [_row(), _row()])


def test_a_folder_that_cannot_be_written_to_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_leaderboard(_board(), tmp_path / "file")


@pytest.mark.parametrize(
    ("metric", "ci95", "seeds", "verdict"),
    [
        ("mcc", [0.1, 0.2], 3, "better"),
        ("mcc", [-0.2, -0.1], 3, "worse"),
        ("mcc", [-0.2, 0.1], 3, "unclear"),
        ("mse_mean", [0.1, 0.2], 3, "worse"),
        ("mse_mean", [-0.2, -0.1], 4, "better"),
        ("mcc", [0.1, 0.2], 1, "1 seed"),
        ("mcc", [0.1, 0.2], 2, "2 seeds"),
        ("mcc", None, 3, ""),
    ],
)
def test_verdict_of_the_difference(metric: str, ci95: list | None, seeds: int, verdict: str) -> None:
    scores = {name: {"mean": 0.9, "ci95": [0.8, 1.0], "per_seed": [0.9] * seeds} for name in ("test", "embedder_only")}
    row = _row(metric=metric, difference={"mean": 0.5, "ci95": ci95}, **scores).model_dump(mode="json")
    found = subtract_arms(row)
    assert (found.mean, found.verdict) == (0.5, verdict)
    assert str(found).startswith("+0.500 [" if ci95 else "+0.500")


# --- figures and report ---


TRIALS = [
    {"trial": {"alpha": 1.0, "batch_size": 16}, "epochs": epochs, "best_score": 0.7 - 0.01 * i, "error": ""}
    for i, epochs in enumerate((6, 1, 3, 6))
]


def _history() -> list[dict[str, Any]]:
    records = []
    for stage, reached in (("select", [1, 1]), ("search", [4]), ("finetune", [6, 1, 3, 6])):
        for trial, epochs in enumerate(reached):
            for epoch in range(epochs):
                value = None if (stage, epoch) == ("search", 0) else 0.5 + 0.05 * epoch - 0.01 * trial
                record = {"stage": stage, "trial": f"{stage}-{trial}", "epoch": epoch, "metric": "mcc"}
                records.append(record | {"value": value, "loss": 1 / (epoch + 1)})
    return records


def _details() -> list[TaskDetails]:
    generator = np.random.default_rng(0)
    names = np.array(CLASSES)
    labels, (predicted,) = _classify(100, [0.9])
    classified = pd.DataFrame({"label": names[labels], "prediction": names[predicted]})
    outputs = ["developmental", "housekeeping"]
    measured = {f"{kind}_{o}": generator.normal(size=2000) for kind in ("label", "prediction") for o in outputs}
    arms = {"L2G": {"mcc": {"mean": 0.943, "ci95": [0.921, 0.961]}, "auroc": math.nan}, "embedder only": {"mcc": 0.931}}
    return [
        TaskDetails(
            "splice_junction", "multiclass", CLASSES, title="<script>alert(1)</script>", source="UCI",
            licence="CC BY 4.0", metrics=arms, history=_history(), predictions=classified, manifest={"train": 2297},
            trials=TRIALS, rungs=(1, 3), findings=[{"level": "warning", "text": "labels follow <GC>"}],
        ),
        TaskDetails("enhancer_grammar", "regression", outputs, predictions=pd.DataFrame(measured)),
    ]  # fmt: skip


class _Page(HTMLParser):
    """Collects ids, references to anything outside, tables, pictures and scripts of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.unnamed_pictures = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.tags.append(tag)
        self.ids += [named["id"] or ""] if "id" in named else []
        self.links += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "srcset", "action", "data")]
        self.unnamed_pictures += tag == "svg" and not named.get("aria-label")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "suite.json").write_text(json.dumps({"versions": {"torch": "2.13.0"}, "git_revision": "abc1234"}))
    assert write_report(folder, _board(), _details()) == folder / "report.html"
    return folder


def test_report_is_self_contained_and_well_named(run_folder: Path) -> None:
    text = (run_folder / "report.html").read_text()
    page = _Page()
    page.feed(text)
    assert all(link.startswith(("#", "data:image/")) for link in page.links)
    assert not re.search(r"url\((?!#)|@import", text)
    assert page.tags.count("script") == 1  # sorting and filtering, inline
    assert re.search(r"Content-Security-Policy\" content=\"default-src 'none';", text)
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert page.unnamed_pictures == 0
    assert page.tags.count("table") == page.tags.count("caption")
    assert page.tags.count("svg") == 8  # scores; confusion, curves, trials, kernels; measured, kernels; kernels
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text


def test_report_tells_scores_warnings_cost_and_how_to_reproduce(run_folder: Path) -> None:
    text = (run_folder / "report.html").read_text()
    for expected in (
        "[0.921, 0.961]", "100 &lt;test&gt; sequences stood in train", "synthetic", "3 min 4 s wall", "CC BY 4.0",
        "l2g-ray suite --bench demo", "abc1234", "2.13.0", "labels follow &lt;GC&gt;", "stopped at the rung of epoch 3", "NT-Multispecies (2.5B)", "&lt;script&gt;", "2,297 train",
    ):  # fmt: skip
        assert expected in text


def test_figures_are_saved_as_svg_and_png(run_folder: Path) -> None:
    folder = run_folder / "figures" / "splice_junction"
    expected = {f"{n}.{k}" for n in ("confusion", "learning", "trials", "architecture") for k in ("svg", "png")}
    assert {path.name for path in folder.iterdir()} == expected
    ElementTree.parse(folder / "learning.svg")
    assert (folder / "learning.png").read_bytes().startswith(b"\x89PNG")


def test_confusion_figure_shows_the_counts() -> None:
    figure = figures.plot_confusion(["a", "a", "b"], ["a", "b", "b"], ["a", "b"])
    assert [text.get_text() for text in figure.axes[0].texts] == ["1\n50%", "1\n50%", "0\n0%", "1\n100%"]


def test_trials_figure_ranks_trials_and_their_epochs() -> None:
    figure = figures.plot_trials(_history(), rungs=(1, 3))
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [f"finetune-{i}" for i in (0, 3, 2, 1)]
    assert [text.get_text() for text in axes.texts] == [
        "0.750",
        "0.720",
        "0.580 stopped",
        "0.490 stopped",
        "rung",
        "rung",
    ]
    assert [line.get_xdata()[0] for line in axes.lines] == [1, 3]
    assert [bar.get_width() for bar in axes.patches] == [6, 6, 3, 1]


def test_every_figure_labels_its_axes() -> None:
    drawn = [
        figures.plot_scores(_board()),
        figures.plot_trials(_history()),
        figures.plot_confusion(["a"], ["a"], ["a", "b"]),
        figures.plot_measured(np.arange(6.0), np.arange(6.0), ["out"]),
        figures.plot_architecture([{"kernel_size": 3, "dilation": 5}]),
    ]
    assert all(figure.axes[0].get_xlabel() for figure in drawn)
    assert learning.plot_learning_curves(_history()).axes[0].get_xlabel() == "epoch"


def test_duration_is_said_as_people_do() -> None:
    assert [format_duration(s) for s in (0.4, 59.6, 184.2, 7500)] == ["0 s", "1 min 0 s", "3 min 4 s", "2 h 5 min"]


def test_results_never_import_torch_and_matplotlib_late() -> None:
    code = "import sys, l2g_ray.results.report; assert not {'torch', 'matplotlib', 'jinja2'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)
