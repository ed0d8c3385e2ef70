"""The report: means over models, what was made later, and what a real browser makes of the page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from check_parts import draw, make_part, make_task
from commands import Cli

from l2g_ray.data.check.splits import check_splits
from l2g_ray.presets import find_base, flatten, resolve
from l2g_ray.results import suite_figures
from l2g_ray.results.explained import read_explained
from l2g_ray.results.report import TaskDetails, write_report
from l2g_ray.results.report_tables import tabulate_profile, tabulate_types

SVG = (
    '<?xml version="1.0"?><svg width="72pt" height="36pt" viewBox="0 0 72 36" xmlns="http://www.w3.org/2000/svg">'
    '<defs><clipPath id="c"><rect width="70" height="30"/></clipPath></defs><g clip-path="url(#c)"><path d="M0 0h9v9z"/></g></svg>'
)


def make_row(task: str, score: float, published: dict[str, tuple[float, bool]], **changes: Any) -> dict[str, Any]:
    return {
        "task": task,
        "kind": "binary",
        "metric": "mcc",
        "test": {"mean": score, "ci95": [score - 0.1, score + 0.1], "per_seed": [score]},
        "validation": {"mean": score},
        "embedder_only": {"mean": score - 0.05, "ci95": [score - 0.15, score + 0.05], "per_seed": [score - 0.05]},
        "n_train": 100,
        "n_test": 50,
        "published": [{"model": m, "value": v, "comparable": c, "source": "s"} for m, (v, c) in published.items()],
        "backbone": "resnet",
        "architecture": [{"kernel_size": 3, "dilation": 1}],
        "trials": 2,
        "wall_s": 1.0,
        "cpu_s": 1.0,
        "gpu_s": 0.0,
        "model_uri": None,
        "warnings": [],
    } | changes


def make_score(mean: float | None, seeds: int = 1) -> dict[str, Any]:
    bounds = [None, None] if mean is None else [mean - 0.1, mean + 0.1]
    return {"mean": mean, "ci95": bounds, "per_seed": [mean] * seeds}


def add_arms(row: dict[str, Any], used: float = 0.781, **weights: float) -> dict[str, Any]:
    """The row with an ensemble whose test score is `used`: of these arms, or of a CNN, k-mers, and L2G, which has no weight.

    The arms' scores are 0.01 apart, on held-out rows 0.004 higher.
    """
    weights = weights or {"cnn": 1.2, "gapped_kmer": 0.6, "kmer_boosting": 0.2, "l2g": 0.0}
    paired = {"ci95": [0.011, 0.032], "p": 0.0}
    arms = {
        arm: {
            "test": make_score(used - 0.01 * i),
            "oof": make_score(used - 0.01 * i + 0.004),
            "weight": weight,
            "adds": {"mean": 0.0213, **paired} if weight else {"mean": 0.0, "ci95": [0.0, 0.0], "p": 1.0},
            "difference": {"mean": 0.0217, **paired},
        }
        for i, (arm, weight) in enumerate(weights.items(), 1)
    }
    about = {"ensemble": "stack", "folds": 5, "models": 15, "bytes": 2_340_000, "rows_per_s": 1234.5}
    oof = make_score(used + 0.005)
    return row | {"used": {"arm": "ensemble", "test": make_score(used), "oof": oof, **about}, "arms": arms}


def make_board() -> dict[str, Any]:
    used = {"arm": "average", "validation": {"l2g": 0.71, "average": 0.73}, "test": {"mean": 0.72, "ci95": [0.6, 0.8]}}
    simple = {"one_hot_linear": {"mean": 0.61, "validation": 0.6}, "majority": {"mean": 0.0, "validation": 0.0}}
    rows = [
        make_row("beta", 0.7, {"Big (2.5B)": (0.8, True), "Partial": (0.99, True)}, group="marks")
        | {"chosen": used, "baselines": simple},
        add_arms(
            make_row(
                "alpha", 0.9, {"Big (2.5B)": (0.8, True), "Other 500M": (0.6, False)}, group="marks", backbone="unet"
            )
        ),
        make_row(
            "gamma", 0.5, {"Big (2.5B)": (0.6, True), "Other 500M": (0.7, False)}, kind="multiclass", group="sites"
        ),
        make_row("delta", 0.95, {}, warnings=["odd"]),
    ]
    return {"schema": 1, "bench": "toy", "preset": "fast", "language_model": "tiny", "tasks": rows}


def test_figures_over_tasks_say_which_they_leave_out(tmp_path: Path) -> None:
    board, note = make_board(), "Left out, since lower is better: omega."
    write_report(tmp_path, board, [])
    assert "Left out" not in (tmp_path / "report.html").read_text()
    board["tasks"].append(make_row("omega", 0.4, {}, kind="regression", metric="mse_mean"))
    write_report(tmp_path, board, [])
    assert (tmp_path / "report.html").read_text().count(note) >= 3


@pytest.mark.filterwarnings("error")
def test_a_suite_without_a_finished_task_has_a_report(tmp_path: Path) -> None:
    write_report(tmp_path, make_board() | {"tasks": []}, [])
    assert "No task has a result yet." in (tmp_path / "report.html").read_text()


def test_means_are_over_the_same_tasks() -> None:
    assert suite_figures.common_tasks(suite_figures.gather_standings({"tasks": []})) == ([], [])
    standings = suite_figures.gather_standings(make_board(), {"L2G": 5e6})
    assert standings[0].model == "used"
    assert standings[0].scores == {"beta": 0.72, "alpha": 0.781}  # the other rows do not say
    tasks, complete = suite_figures.common_tasks(standings)
    assert tasks == ["beta", "alpha", "gamma"]  # delta: nobody else has it
    assert {s.model: (round(s.mean(tasks), 3), s.comparable, s.parameters) for s in complete} == {
        "L2G": (0.7, True, 5e6),
        "embedder only": (0.65, True, None),
        "Big (2.5B)": (0.733, True, 2.5e9),
    }
    assert [suite_figures.read_size(n) for n in ("NT 500M", "HyenaDNA-1kb", "x (1.6M), own", "None")] == [
        5e8,
        None,
        1.6e6,
        None,
    ]
    profile = suite_figures.measure_profile(complete, tasks)
    assert profile["L2G"] == pytest.approx([0, 0.1, 0.1])
    assert tabulate_profile(complete, tasks).lines[0] == ["L2G", "33%", "33%", "33%", "33%", "100%"]
    types = {"beta": "marks", "alpha": "marks", "gamma": "sites"}
    assert ["sites", "1", "Other 500M", "0.7", "no"] in tabulate_types(standings, types).lines
    assert not any("Partial" in line for line in tabulate_types(standings, types).lines)


def write_explanation(task_folder: Path, **changes: Any) -> Path:
    """Files as `l2g-ray explain` leaves them."""
    folder = task_folder / "explain" / "l2g"
    (folder / "present" / "logos").mkdir(parents=True, exist_ok=True)
    (folder / "present" / "logos" / "pos_0_contribution.svg").write_text(SVG)
    motif = {
        "motif": "pos_0", "seqlets": 12, "mean_contribution": 0.4, "consensus": "TGACTCA", "match": "AP-1", "q_value": 1e-4,
    }  # fmt: skip
    summary = {
        "output": "present", "folder": "present", "explained": "log-odds", "method": "deeplift-shap", "motifs": [motif],
        "completeness": {"median": 1e-6, "max": 1e-3}, "notes": ["50 sequences."], "warnings": [],
    }  # fmt: skip
    path = folder / "explain.json"
    path.write_text(json.dumps({"schema": 1, "facts": {}, "outputs": [summary | changes]}))
    return path


def test_explained_parts_are_read_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    path = write_explanation(tmp_path)
    (part,) = read_explained(tmp_path)
    assert part.tables[0][1].lines == [["pos_0", "12", "0.4", "TGACTCA", "AP-1", "1.0e-04"]]
    assert [shown.svg for shown in part.pictures] == [SVG]
    assert "median 1.0e-06" in part.text[0]
    write_explanation(tmp_path, motifs=[], notes=["No motif: too few seqlets."])
    (part,) = read_explained(tmp_path)
    assert part.tables == []
    assert "No motif: too few seqlets." in part.text
    path.write_text("{")
    assert "explain.json could not be read" in read_explained(tmp_path)[0].warnings[0]


def test_command_writes_the_report_again(cli: Cli, suite_of_three: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(suite_of_three, out, ignore=shutil.ignore_patterns("tune"))
    run, first = out / "three", (suite_of_three / "three" / "report.html").read_text()
    (out / "mlflow.db").unlink()
    said = cli("report", run)
    assert said.code == 0, said.err
    assert "not put into MLflow" in said.out
    again = (run / "report.html").read_text()
    assert again.replace(str(out), str(suite_of_three)) == first
    assert cli("mutate", run, "--task", "planted", "--sequence", "ACGTTGACTCATTGCA").code == 0
    study = tmp_path / "study"
    study.mkdir()
    assert "study.json: no such file; give the folder of a finished study" in cli("report", run, "--study", study).err
    score = {"mean": 0.5, "ci95": [0.4, 0.6]}
    compared = [
        {"task": "planted", "metric": "mcc", "arm": arm, "test": score, "difference": None} for arm in ("dash", "orca")
    ]
    compared[1]["difference"] = {"mean": -0.1, "ci95": [-0.2, 0.0]}
    (study / "study.svg").write_text(SVG)
    (study / "study.json").write_text(
        json.dumps({"study": "embedder", "about": "What DASH adds", "compared": compared})
    )
    assert cli("report", run, "--study", study, "--no-mlflow").code == 0
    text = (run / "report.html").read_text()
    assert "Mutagenesis of sequence" in text
    assert "What DASH adds" in text
    assert "-0.100 [-0.200, 0.000]" in text
    # A board of an earlier version has fewer keys.
    board = json.loads((run / "leaderboard.json").read_text())
    new = ("check", "test_without_near_duplicates", "chosen", "difference", "baselines")
    old = board | {"tasks": [{k: v for k, v in row.items() if k not in new} for row in board["tasks"]]}
    (run / "leaderboard.json").write_text(json.dumps(old))
    assert cli("report", run, "--no-mlflow").code == 0
    assert "give the suite's folder" in cli("report", run / "planted").err
    assert "leaderboard.json: no such file" in cli("report", tmp_path).err


@pytest.fixture(scope="module")
def page_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_explanation(folder / "alpha", warnings=["does not add up"])
    details = TaskDetails("alpha", "binary", ("no", "yes"), explained=read_explained(folder / "alpha"))
    board = make_board()
    board["tasks"][3]["n_test"] = 20  # a red light
    return write_report(folder, board, [details])


def make_details() -> TaskDetails:
    """Everything that a task of a finished run has."""
    generator = np.random.default_rng(0)
    truth, scores = generator.integers(2, size=300), generator.random(300)
    frame = pd.DataFrame({"label": np.array(["no", "yes"])[truth], "prediction": np.array(["no", "yes"])[truth]})
    frame["probability_yes"], frame["probability_no"] = scores, 1 - scores
    texts = draw(240, 70)  # ten test rows are in train
    parts = {"train": make_part(texts[:160], np.arange(160) % 2), "test": make_part(texts[150:], np.arange(90) % 2)}
    settings = resolve("fast", {}, {"folds": 4}).model_dump(mode="json")
    trials = []
    for i in range(4):
        rows = [{"score": 0.5 + 0.1 * i + 0.01 * epoch} for epoch in range(3)]
        best = {"lr_embedder": 10.0 ** (i - 5), "train_layers": ("all", "lora")[i % 2], "dropout": 0.1}
        trials.append({"trial": best, "epochs": 3, "best_score": 0.52 + 0.1 * i, "error": "", "history": rows})
    history = [
        {
            "stage": stage,
            "trial": f"{trial:02d}",
            "epoch": epoch + 1,
            "metric": "mcc",
            "value": 0.1 * trial,
            "loss": 1.0,
        }
        for stage, epochs in (("select", 1), ("warmup", 4), ("align", 6), ("finetune", 3), ("refit", 3))
        for trial in range(4)
        for epoch in range(epochs)
    ]
    return TaskDetails(
        "alpha",
        "binary",
        ("no", "yes"),
        metrics={arm: {"mcc": 0.5, "auroc": 0.8} for arm in ("ensemble", "cnn", "gapped_kmer", "kmer_boosting", "L2G")},
        history=history,  # type: ignore[arg-type]
        predictions=frame,
        trials=trials,
        check=check_splits(make_task(labels=["no", "yes"]), parts),
        settings=flatten(settings),
        preset=find_base(settings, strand_specific=False),
    )


@pytest.fixture(scope="module")
def full_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    board = make_board()
    board["tasks"][1]["hyperparameters"] = {"lr_embedder": 0.01, "train_layers": "lora"}
    return write_report(tmp_path_factory.mktemp("full"), board, [make_details()])


def test_the_page_begins_with_the_verdict_and_has_every_part(full_page: Path) -> None:
    text = full_page.read_text()
    top = text[text.index("<main>") : text.index('id="leaderboard"')]
    assert "4 tasks, preset fast" in top
    assert top.count('class="light ') == 4  # a line a task
    for level in ("amber", "red"):
        assert f'class="light {level}"' in text
    for heading in ("Data checks", "Winning settings", "Arms", "All metrics", "Test predictions", "Search", "Training"):
        assert f"<h3>{heading}</h3>" in text, heading
    assert "weight 60%" in text
    assert "--set finetune.trials=1 \\\n--set folds=4" in text
    assert "<td>4</td><td>3</td>" in text  # the folds among all settings, and the preset's
    assert "Stage select: 4 trials of one epoch" in text
    for name in ("roc", "precision", "calibration", "parallel", "composition", "learning"):
        assert (full_page.parent / "figures" / "alpha" / f"{name}.svg").exists(), name


@pytest.mark.browser
def test_a_browser_sorts_and_filters_without_errors_or_requests(
    watched: tuple[Any, list[str], list[str]], page_path: Path
) -> None:
    page, problems, requests = watched
    page.goto(page_path.as_uri())

    def shown() -> list[str]:
        return page.eval_on_selector_all("#board tbody tr:not([hidden])", "rows => rows.map(r => r.dataset.task)")

    assert shown() == ["beta", "alpha", "gamma", "delta"]
    page.get_by_role("button", name="L2G").click()
    assert shown() == ["delta", "alpha", "beta", "gamma"]
    assert page.get_by_role("columnheader", name="L2G", exact=True).get_attribute("aria-sort") == "descending"
    page.get_by_role("button", name="L2G").press("Enter")  # by keyboard
    assert shown() == ["gamma", "beta", "alpha", "delta"]
    page.get_by_role("button", name="Published").click()
    assert shown()[-1] == "delta"  # what is not known stays at the end
    page.get_by_role("button", name="Published").click()
    assert shown()[-1] == "delta"
    rows = {
        name: page.get_by_role("row", name=name).get_by_role("cell").all_inner_texts() for name in ("alpha", "beta")
    }
    assert [rows["beta"][i] for i in (0, 4, 7)] == ["0.720\n[0.600, 0.800]\naverage", "–", "0.610\none_hot_linear"]
    used = "0.781\n[0.681, 0.881]\ncnn 60%, gapped_kmer 30%, kmer_boosting 10%"
    assert [rows["alpha"][i] for i in (0, 4, 7)] == [used, "0.761\n[0.661, 0.861]\n30%", "–"]
    for column, best in (("Used", "alpha"), ("gapped_kmer", "alpha"), ("Baseline", "beta")):
        page.get_by_role("button", name=column).click()
        assert shown()[0] == best
    page.get_by_role("button", name="Task").click()
    assert shown() == ["alpha", "beta", "delta", "gamma"]
    page.get_by_label("Task or backbone").fill("UNET")
    assert shown() == ["alpha"]
    assert page.get_by_role("status").inner_text() == "1 of 4 tasks"
    page.get_by_label("Task or backbone").fill("")
    page.get_by_label("Kind").select_option("multiclass")
    assert shown() == ["gamma"]
    page.get_by_label("Kind").select_option("")
    assert len(shown()) == 4
    page.locator("summary").first.click()
    assert page.get_by_role("cell", name="0.900", exact=True).first.is_visible()
    for text in (
        "0.720 [0.600, 0.800]: average",
        "Used is the arm with the best score on validation: L2G 0.710, average 0.730.",
        "0.781 [0.681, 0.881]: ensemble of cnn 60%, gapped_kmer 30%, kmer_boosting 10%",
    ):
        assert page.get_by_text(text).is_visible()
    arms = page.get_by_role("table", name="The arms of alpha, mcc")
    cnn = arms.get_by_role("row", name="cnn").get_by_role("cell").all_inner_texts()
    assert cnn[:4] == ["0.775", "0.771 [0.671, 0.871]", "60%", "+0.021 [0.011, 0.032]"]
    assert problems == []
    assert requests == [page_path.as_uri()]
    page.close()


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_and_the_dark_are_readable(browser: Any, page_path: Path, scheme: str) -> None:
    page = browser.new_page(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    page.goto(page_path.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 360  # only tables scroll sideways
    luminance = """selector => {
      const told = getComputedStyle(document.querySelector(selector));
      const of = text => { const c = text.match(/[0-9.]+/g).slice(0, 3).map(v => v / 255)
        .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126*c[0] + 0.7152*c[1] + 0.0722*c[2]; };
      const own = told.backgroundColor === "rgba(0, 0, 0, 0)" ? document.body : document.querySelector(selector);
      const ground = getComputedStyle(own).backgroundColor;
      const [a, b] = [of(told.color), of(ground)].sort((x, y) => y - x); return (a + 0.05) / (b + 0.05); }"""
    # WCAG AA for text; figures take the text's colour.
    for selector in ("body", ".soft", "a", "summary", "figcaption", "svg text", ".light.amber", ".light.red"):
        assert page.evaluate(luminance, selector) >= 4.5, selector
    assert (page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)") == (
        scheme == "light"
    )
    page.close()


@pytest.mark.browser
def test_figures_have_text_of_twelve_pixels(browser: Any, full_page: Path) -> None:
    for width in (1280, 390):
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.goto(full_page.as_uri())
        sizes = page.eval_on_selector_all(
            "figure:not(.stored) svg text",
            "texts => texts.map(t => parseFloat(getComputedStyle(t).fontSize) * Math.hypot(t.getScreenCTM().a, t.getScreenCTM().b))",
        )
        assert len(sizes) > 100
        assert min(sizes) > 11.9, (width, min(sizes))
        page.close()


@pytest.mark.browser
def test_a_figure_that_scrolls_on_a_phone_has_a_hint(browser: Any, full_page: Path) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.goto(full_page.as_uri())
    found = page.eval_on_selector_all(
        "figure:has(.drawing)",
        """figures => figures.map(f => {
            const drawing = f.querySelector('.drawing'), caption = f.querySelector('figcaption');
            const hint = getComputedStyle(caption, '::before').content;
            return [drawing.scrollWidth > drawing.clientWidth, hint.startsWith('"Scroll')];
        })""",
    )
    assert {tuple(one) for one in found} == {(True, True), (False, False)}


@pytest.mark.browser
def test_the_board_of_a_phone_is_cards_that_sort(browser: Any, full_page: Path) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.goto(full_page.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate("document.querySelector('#board').parentElement.scrollWidth") <= 390  # nothing to scroll to
    edges = page.eval_on_selector_all(
        "#board tbody tr, #board tbody td *", "all => all.map(one => one.getBoundingClientRect().right)"
    )
    assert max(edges) <= 390
    lines = page.eval_on_selector_all("#board tbody tr", "rows => rows.map(r => r.getBoundingClientRect().top)")
    assert lines == sorted(set(lines))
    label = "cell => getComputedStyle(cell, '::before').content"
    assert page.eval_on_selector("#board tbody tr td", label) == '"Used"'
    page.get_by_role("button", name="L2G").click()
    assert page.eval_on_selector("#board tbody tr", "row => row.dataset.task") == "delta"
    page.close()


@pytest.mark.browser
def test_options_are_copied_and_a_print_is_light(browser: Any, full_page: Path) -> None:
    page = browser.new_page(color_scheme="dark")
    page.goto(full_page.as_uri())
    page.get_by_role("button", name="Copy these options").click()
    done = page.locator("#options-2-done")
    done.filter(has_text=".").wait_for()
    assert done.inner_text() in ("Copied.", "Selected: copy it with your keyboard.")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.get_by_role("button", name="Copy these options").is_visible()
    page.set_viewport_size({"width": 720, "height": 1000})  # A4
    assert page.evaluate("document.documentElement.scrollWidth") <= 720
    page.close()
