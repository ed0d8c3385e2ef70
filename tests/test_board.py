"""What the board says of a row, and that it says it whole on a terminal of any width."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bad_files import ROWS, lay, put
from bad_files import csv as table
from commands import Cli
from rich.console import Console
from test_record import close, open_recorder
from test_report import add_arms, make_row, make_score
from toys import make_site

from l2g_ray.monitor.events import End, Epoch, StageBegan, TrialName
from l2g_ray.monitor.progress import Progress
from l2g_ray.orchestrate.spec import JobSpec, TuneReport
from l2g_ray.orchestrate.tune import _EmitRows
from l2g_ray.plan.finished import render_plan, render_spent
from l2g_ray.results.comparison import compare_boards, render_comparison, render_study
from l2g_ray.results.leaderboard import render_table, write_leaderboard
from l2g_ray.results.report import write_report
from l2g_ray.results.rows import (
    describe_result,
    describe_weights,
    warn_of_baseline,
)
from l2g_ray.results.terminal import print_fitted
from l2g_ray.store.results import Job

WIDTHS = (40, 60, 80, 100, 120)
NUMBER = re.compile(r"[+-]?\d+\.\d{3}")


def show(renderable: Any, width: int, live: bool) -> str:
    out = io.StringIO()
    print_fitted(Console(width=width, file=out, force_terminal=live, color_system=None, highlight=False), renderable)
    return out.getvalue()


def earlier_row(task: str, **changes: Any) -> dict[str, Any]:
    """A row of the version that chose one arm on validation."""
    row = make_row(task, 0.612, {"A-Model-With-A-Long-Name-500M (2.5B)": (0.701, True), "Other": (0.456, False)})
    simple = {"mean": 0.333, "ci95": [0.301, 0.366], "per_seed": [0.333], "validation": 0.345}
    return (
        row
        | {
            "difference": {"mean": 0.051, "ci95": [-0.011, 0.112]},
            "chosen": {"arm": "average", "validation": {"average": 0.7}, "test": {"mean": 0.654, "ci95": [0.6, 0.7]}},
            "baselines": {"kmer_linear": simple},
            "warnings": ["12 train rows were dropped."],
        }
        | changes
    )


def full_row(task: str, **changes: Any) -> dict[str, Any]:
    row = earlier_row(task)
    del row["chosen"]
    return add_arms(row) | changes


def full_board(**changes: Any) -> dict[str, Any]:
    rows = [full_row("splice_junction"), full_row("a_task_with_a_very_long_name_indeed_of_48_letters", synthetic=True)]
    return {"schema": 1, "bench": "toy", "preset": "fast", "language_model": "tiny", "tasks": rows, **changes}


EARLIER = full_board(tasks=[earlier_row("splice_junction"), earlier_row("other_task_of_an_earlier_version")])
SHOWN = "0.612 [0.512, 0.712] 0.562 [0.462, 0.662] +0.051 [-0.011, 0.112] 0.701"
EXPECTED = {
    "now": (full_board(), f"{SHOWN} 0.781 [0.681, 0.881] 0.761 [0.661, 0.861] +0.021 0.000"),
    "earlier": (EARLIER, f"{SHOWN} 0.654 [0.600, 0.700] 0.333 [0.301, 0.366]"),
}


@pytest.mark.parametrize("version", EXPECTED)
@pytest.mark.parametrize("live", [True, False], ids=["live", "piped"])
@pytest.mark.parametrize("width", WIDTHS)
def test_every_number_of_the_board_is_whole_at_any_width(width: int, live: bool, version: str) -> None:
    board, expected = EXPECTED[version]
    text = show(render_table(board), width, live)
    shown = text if live else ""
    assert all(len(line.rstrip()) <= width for line in shown.splitlines())
    assert "…" not in text
    joined = re.sub(r"\s+", " ", text)  # the difference is in a paragraph
    for interval in re.findall(r"\[[^]]*\]", expected):
        assert joined.count(interval) >= 2, interval  # in one piece, of each task
    for number in NUMBER.findall(expected):
        assert NUMBER.findall(text).count(number) >= 2, number
    assert "splice_junction" in text
    assert "1 seed" in joined


def test_the_board_shows_what_is_used_and_what_each_arm_adds() -> None:
    board = full_board(tasks=[full_row("one")])
    text = show(render_table(board), 120, live=True)
    shares = re.sub(r"\s+", " ", text.split("arms, mcc")[0])
    assert "cnn 60%" in shares
    assert "kmer_boosting 10%" in shares
    assert describe_weights(board["tasks"][0]) == "cnn 60%, gapped_kmer 30%, kmer_boosting 10%"  # L2G has no weight
    assert describe_weights(board["tasks"][0], 2) == "cnn 60%, gapped_kmer 30% and 1 more"
    arms = re.findall(r"^(\S+)(?: \(used\))? +0\.\d{3}", text.split("arms, mcc")[1], re.MULTILINE)
    assert arms == ["ensemble", "cnn", "gapped_kmer", "kmer_boosting", "L2G"]
    assert "0.786 0.781 [0.681, 0.881]" in text  # OOF, test
    assert re.search(r"cnn +0\.775 0\.771 \[0\.671, 0\.871\] +60% \+0\.021 \[0\.011, 0\.032\]", text)
    assert re.search(r"L2G +0\.745 0\.741 \[0\.641, 0\.841\] +– +\+0\.000 \[0\.000, 0\.000\]", text)
    told = re.sub(r"\s+", " ", text)
    assert "weights by ridge regression on out-of-fold (OOF) predictions" in told
    assert "Rows of the validation split do not count for the OOF score, because settings were chosen on them." in told
    assert "15 models, 2.3 MB, 1,234 sequences per second" in told
    assert "Best k-mer arm" in text
    assert "Baseline" not in text  # k-mers are an arm here
    single = full_row("one")
    single["used"] |= {"folds": 0, "ensemble": "mean"}
    told = re.sub(r"\s+", " ", show(render_table(full_board(tasks=[single])), 120, live=True))
    assert "equal weights, not fitted to the predictions for the validation rows" in told
    assert "OOF" not in told


def test_the_line_at_the_end_of_a_task_names_what_is_used() -> None:
    assert describe_result(full_row("now")) == (
        "ensemble of cnn 60%, gapped_kmer 30%, kmer_boosting 10%, test mcc 0.781 [0.681, 0.881]; "
        "best k-mer arm gapped_kmer 0.761"
    )
    assert describe_result(earlier_row("earlier")) == "average, test mcc 0.654 [0.600, 0.700]"
    assert describe_result(earlier_row("first", chosen=None)) == "L2G, test mcc 0.612 [0.512, 0.712]"


def test_arms_of_many_tasks_are_left_to_the_report() -> None:
    few, many = (full_board(tasks=[full_row(f"task_{i}") for i in range(n)]) for n in (4, 5))
    assert "arms, mcc" in show(render_table(few), 120, live=False)
    text = show(render_table(many), 120, live=False)
    assert "arms, mcc" not in text
    assert "leaderboard.md" in text


def test_a_board_without_l2g_has_no_column_for_it(tmp_path: Path) -> None:
    row = add_arms(full_row("a", test=None, embedder_only=None, difference=None, backbone=""), cnn=1.0, gapped_kmer=0.5)
    board = full_board(tasks=[row])
    text = show(render_table(board), 120, live=True)
    assert not re.search(r"L2G|Embedder|embedder", text)
    assert re.search(r"^mcc +\[", text, re.MULTILINE)  # no backbone, no comma
    page = write_report(tmp_path, board, []).read_text()
    head = page[page.index("<thead") : page.index("</thead>")]
    assert not re.search(r">(L2G|Embedder only|Difference)<", head)
    assert ">Used<" in head
    assert "<dt>Backbone</dt>" not in page


@pytest.mark.parametrize("version", ["no_l2g", "l2g_alone", "mixed", "undefined"])
def test_rows_without_some_arms_are_shown_everywhere(version: str, tmp_path: Path) -> None:
    nothing = {"test": None, "embedder_only": None, "difference": None}
    rows = {
        "no_l2g": [full_row("a", **nothing)],
        "l2g_alone": [add_arms(full_row("a", baselines={}, embedder_only=None, difference=None), l2g=1.0)],
        "mixed": [full_row("a", **nothing), earlier_row("b"), earlier_row("c", chosen=None, baselines={})],
        "undefined": [full_row("a", test=make_score(None), baselines={"majority": None})],
    }[version]
    if version == "l2g_alone":
        rows[0]["arms"]["l2g"] |= {"oof": None, "adds": None, "difference": None}
    board = full_board(tasks=rows)
    text = show(render_table(board), 80, live=True)
    assert "None" not in text
    for path in (*write_leaderboard(board, tmp_path), write_report(tmp_path, board, [])):
        assert path.suffix == ".json" or "None" not in path.read_text(), path
    render = show(render_comparison(compare_boards({"one": board, "two": board})), 60, live=True)
    assert "None" not in render


def test_the_csv_has_a_column_an_arm(tmp_path: Path) -> None:
    write_leaderboard(full_board(tasks=[full_row("now"), earlier_row("earlier")]), tmp_path)
    now, earlier = csv.DictReader((tmp_path / "leaderboard.csv").open())
    assert (now["used"], now["used_mean"], now["used_oof"]) == ("ensemble", "0.781", "0.786")
    assert [float(now[f"used_{end}"]) for end in ("lo", "hi")] == pytest.approx([0.681, 0.881])
    assert (now["ensemble"], now["folds"], now["used_models"]) == ("stack", "5", "15")
    assert [float(now[f"cnn_{part}"]) for part in ("test", "oof", "weight")] == pytest.approx([0.771, 0.775, 1.2])
    assert now["l2g_weight"] == "0.0"
    assert not [name for name in now if name.startswith("chosen")]
    assert (earlier["used"], earlier["used_mean"], earlier["used_oof"], earlier["cnn_test"]) == (
        "average",
        "0.654",
        "",
        "",
    )


def test_what_is_piped_has_no_lines_and_no_wrapped_sentences() -> None:
    board = full_board()
    board["tasks"][0]["warnings"] = ["word " * 60 + "end."]
    text = show(render_table(board), 110, live=False)
    assert not {"─", "│", "━"} & set(text)
    assert f"! splice_junction: {'word ' * 60}end.\n" in text
    assert "\na_task_with_a_very_long_name_indeed_of_48_letters " in text


def test_a_baseline_that_wins_on_validation_is_a_warning_in_a_row_of_an_earlier_version() -> None:
    used = {"arm": "l2g", "validation": {"l2g": 0.0, "average": 0.0}, "test": {"mean": 0.0, "ci95": [0.0, 0.0]}}
    row = earlier_row("lost", chosen=used)
    (warning,) = warn_of_baseline(row)
    assert "kmer_linear 0.345 (test 0.333)" in warning
    assert "L2G 0.000 (test 0.000)" in warning
    # The test split decides nothing: a baseline that is better only there is no warning.
    assert warn_of_baseline(earlier_row("won")) == []
    tie = {"arm": "l2g", "validation": {"l2g": 0.345}, "test": {"mean": 0.0, "ci95": [0.0, 0.0]}}
    assert warn_of_baseline(earlier_row("tie", chosen=tie)) == []
    assert warn_of_baseline(earlier_row("old", chosen=None)) == []
    undefined = {"kmer_linear": {"mean": 0.3, "validation": None}, "plain": 0.9}
    assert warn_of_baseline(earlier_row("undefined", chosen=used, baselines=undefined)) == []


def test_an_arm_of_k_mers_that_beats_what_is_used_on_held_out_rows_is_a_warning() -> None:
    assert warn_of_baseline(full_row("won")) == []
    row = full_row("lost")
    row["arms"]["gapped_kmer"]["oof"] = make_score(0.79)
    (warning,) = warn_of_baseline(row)
    assert "arm gapped_kmer has a better mcc on held-out rows" in warning
    assert "gapped_kmer 0.790 (test 0.761), ensemble 0.786 (test 0.781)" in warning
    tie = full_row("tie")
    tie["arms"]["gapped_kmer"]["oof"] = make_score(tie["used"]["oof"]["mean"])
    assert warn_of_baseline(tie) == []
    other = full_row("other")
    other["arms"]["cnn"]["oof"] = make_score(0.79)  # no simple arm: one that the ensemble is made of
    assert warn_of_baseline(other) == []


@pytest.mark.parametrize("metric", ["mcc", "mse_mean"])
@pytest.mark.parametrize(("bounds", "clear"), [([-0.03, -0.01], True), ([-0.03, 0.0], False), ([None, None], False)])
def test_what_is_clearly_better_on_test_than_what_is_used_is_a_warning(metric: str, bounds: list, clear: bool) -> None:
    """The interval is of used minus the other; with one seed too."""
    if metric == "mse_mean":  # lower is better
        bounds = [None if bound is None else -bound for bound in reversed(bounds)]
    row = full_row("lost", metric=metric)
    for one in row["arms"].values():
        one |= {"oof": make_score(0.9 if metric == "mse_mean" else 0.1), "difference": None}
    assert warn_of_baseline(row) == []
    for better, kept in (("arms", "cnn"), ("baselines", "kmer_linear")):
        changed = row | {
            better: row[better] | {kept: row[better][kept] | {"difference": {"mean": -0.02, "ci95": bounds}}}
        }
        found = warn_of_baseline(changed)
        assert len(found) == clear, kept
        assert all(f" {kept} has a better {metric} on test" in text for text in found)
    assert warn_of_baseline(row | {"baselines": {"plain": 0.99, "none": None}}) == []


def test_the_interval_of_a_difference_is_wherever_the_difference_is(tmp_path: Path) -> None:
    board = full_board()
    for path in write_leaderboard(board, tmp_path):
        text = path.read_text()
        assert "-0.011" in text, path
        assert "0.112" in text, path
    (line, _) = csv.DictReader((tmp_path / "leaderboard.csv").open())
    assert (line["difference_lo"], line["difference_hi"], line["verdict"]) == ("-0.011", "0.112", "1 seed")
    write_report(tmp_path, board, [])
    assert "[-0.011, 0.112]" in (tmp_path / "report.html").read_text()
    rows = compare_boards({"one": board, "two": board})
    assert "[-0.011, 0.112]" in show(render_comparison(rows), 60, live=True)


def test_a_number_that_a_stage_reports_arrives_in_events_and_mlflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from l2g_ray.orchestrate import jobs

    def stage(context: Any, args: dict[str, Any]) -> dict[str, Any]:
        row = {"epoch": 0, "score": 0.5, "best_score": 0.5, "best_epoch": 0, "train_loss": 0.7, "wall_s": 1.0}
        context.runtime.report(row | args)
        return {"history": []}

    monkeypatch.setattr("l2g_ray.stages.select.run", stage)
    prepared = lay(tmp_path, put(tmp_path / "in" / "good.csv", table(ROWS)))
    site = make_site(tmp_path, prepared=str(prepared.folder))

    def run(args: dict[str, Any]) -> dict[str, Any]:
        told: list[dict[str, Any]] = []
        jobs.run_job(JobSpec(site, Job("select", "toy", args, {}, {})), told.append)
        return told[0]

    for wrong in ({"words": "none"}, {"at": 1.0}, {"lost": None}):
        with pytest.raises(ValueError, match=repr(next(iter(wrong)))):
            run(wrong)
    row = run({"grad_norm": 2.5})
    name = TrialName("planted", "select", "toy", "key", {})
    events = [Epoch.from_row(name, row)]
    place: Any = SimpleNamespace(task="planted", emit=events.append)
    # Tune puts numbers of its own beside the row, some of them under names that a stage may use too.
    result = TuneReport(name, row, 1.0).to_tune() | {"training_iteration": 1, "done": False}
    _EmitRows(place).on_trial_result(0, [], SimpleNamespace(), result)
    assert events[0] == events[1]
    assert events[1].row["grad_norm"] == 2.5
    assert "training_iteration" not in events[1].row
    assert events[1].began_at is not None
    assert events[1].at is not None
    assert events[1].began_at <= events[1].at
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    recorder = open_recorder(tmp_path / "home")
    recorder.record(events[1])
    recorder.record(End(name, 1.0, 2.0, "finished"))
    metrics = close(recorder)["select/toy"].data.metrics
    assert metrics["grad_norm"] == 2.5
    assert "began_at" not in metrics


STUDY = {
    "study": "loss", "about": "joint or task loss", "command": "l2g-ray ablate", "arms": {"joint": {}, "task": {}},
    "compared": [
        {"task": "splice_junction", "arm": arm, "metric": "mcc", "validation": 0.812, "cpu_s": 1234.0,
         "test": {"mean": 0.801, "ci95": [0.751, 0.851], "per_seed": [0.8]}, "difference": difference}
        for arm, difference in (("joint", None), ("task", {"mean": -0.021, "ci95": [-0.041, -0.011], "p_holm": 0.012}))
    ],
}  # fmt: skip


@pytest.mark.parametrize("width", WIDTHS)
def test_other_tables_keep_their_numbers(width: int) -> None:
    text = show(render_study(STUDY), width, live=True)
    for part in ("0.801", "[0.751, 0.851]", "0.812", "-0.021", "[-0.041, -0.011]", "0.012", "1,234", "1 seed"):
        assert part in text, part
    text = show(render_comparison(compare_boards({"one": full_board(), "two": full_board()})), width, live=True)
    for part in ("0.786", "0.781", "[0.681, 0.881]", "0.612", "0.562", "+0.051", "[-0.011, 0.112]"):
        assert part in text, part
    assert "…" not in text


PLANNED = {
    "expected": {"epochs": 12, "steps": 1234, "tokens": 5.67e9, "flops": 8.91e15},
    "most": {"trials": 4, "epochs": 24, "steps": 2468, "memory_bytes": 3.21e9, "disk_bytes": 4.32e8},
    "hours": (1.5, 2.5),
    "fits": "yes",
}
SPENT = {"spent": {"trials": 4, "epochs": 24, "wall_s": 61.0, "cpu_s": 7300.0, "gpu_s": None}, "planned": PLANNED}


@pytest.mark.parametrize("width", WIDTHS)
def test_tables_of_the_plan_and_of_progress_keep_their_numbers(width: int) -> None:
    shown = {
        show(render_plan("own/planted: 1,234 train", {"align": PLANNED}, PLANNED), width, live=True): (
            ["12 ≤ 24", "1,234 ≤ 2,468", "5.67 G", "8.91 P", "1.5 h", "2.5 h", "3.21 GB", "432 MB"]
        ),
        show(render_spent("planted", {"align": SPENT | {"planned": {"epochs": 12, "hours": 1.5}}}), width, live=True): (
            ["24", "12", "1.0 min", "2.0 h", "1.5 h", "1.35"]
        ),
        show(watch_a_trial(width), width, live=True): ["0.876", "7", "0.345", "splice_junction", "finetune"],
    }
    for text, parts in shown.items():
        assert "…" not in text
        assert all(len(line.rstrip()) <= width for line in text.splitlines())
        for part in parts:
            assert part in text, part


def watch_a_trial(width: int) -> Any:
    tasks = {"splice_junction": "mcc", "enhancer_grammar": "mse_mean"}
    progress = Progress(Console(width=width, file=io.StringIO()), tasks, "demo-fast")
    progress.update(StageBegan("splice_junction", "finetune", 2))
    name = TrialName("splice_junction", "trial", "00", "k", {})
    progress.update(Epoch(name, {"epoch": 6, "best_score": 0.876}))
    name = TrialName("enhancer_grammar", "align", "alpha-1", "k", {})
    progress.update(Epoch(name, {"epoch": 2, "best_score": -0.345}))  # in events higher is better
    assert progress.snapshot()["enhancer_grammar"].best == 0.345
    return progress.render()


@pytest.mark.parametrize("arguments", [["tasks", "nt"], ["data", "list"], ["ablate", "--list"], ["baseline", "--list"]])
def test_listings_that_are_piped_have_a_line_a_row(cli: Cli, arguments: list[str]) -> None:
    said = cli(*arguments)
    assert said.code == 0, said.err
    assert not {"─", "│", "…"} & set(said.out)
    known = {"tasks": "promoter_no_tata", "data": "nt/promoter_no_tata", "ablate": "weights", "baseline": "kmer_linear"}
    assert any(line.startswith(f"{known[arguments[0]]} ") for line in said.out.splitlines())


def test_a_warning_of_all_tasks_is_printed_once() -> None:
    board = full_board()
    board["tasks"][0]["warnings"] = ["Both.", "First."]
    board["tasks"][1]["warnings"] = ["Both."]
    text = show(render_table(board), 120, live=False)
    assert "! all tasks: Both.\n! splice_junction: First.\n" in text
