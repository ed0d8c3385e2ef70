"""One real suite, read back: leaderboard, predictions, MLflow, report; and the same command again."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from runs import Sources, environment, execute, read_board, stage_folders, without_times
from scipy import stats
from sklearn import metrics

from l2g_ray.data.dataset import open_prepared
from l2g_ray.models.ensemble import Combination, to_predictions
from l2g_ray.places import find_place
from l2g_ray.predict import find_model, load_predictor
from l2g_ray.results.intervals import read_outputs
from l2g_ray.results.schema import validate_leaderboard
from l2g_ray.tasks.metrics import compute_metrics

ARMS = ("ensemble", "l2g", "embedder_only")


@pytest.fixture(scope="module")
def run(suite_of_three: Path) -> Path:
    """The folder of the shared suite."""
    return suite_of_three / "three"


def read_deployed(task_folder: Path) -> dict[str, Any]:
    deployed: dict[str, Any] = json.loads((task_folder / "stages.json").read_text())["deployed"]
    return deployed


def rows_of(run: Path) -> dict[str, dict[str, Any]]:
    return {row["task"]: row for row in read_board(run)["tasks"]}


# ---- leaderboard, predictions, report --------------------------------------------------------------------------------


def test_leaderboard_fits_its_schema(run: Path) -> None:
    board = read_board(run)
    assert validate_leaderboard(board) == board
    assert [row["task"] for row in board["tasks"]] == ["planted", "composition"]
    for row in board["tasks"]:
        seeds = {"planted": 2, "composition": 1}[row["task"]]
        for arm in ("test", "embedder_only"):
            low, high = row[arm]["ci95"]
            assert low <= high
            assert len(row[arm]["per_seed"]) == seeds
            assert row[arm]["mean"] == pytest.approx(np.mean(row[arm]["per_seed"]))
        assert len(row["validation"]["per_seed"]) == seeds
        difference = row["difference"]["mean"]
        assert difference == pytest.approx(row["test"]["mean"] - row["embedder_only"]["mean"], abs=1e-12)
        assert (row["n_train"], row["n_valid"], row["n_test"]) == (144, 16, 40)
        assert row["trials"] == 3
        assert row["backbone"] == "resnet"
        assert row["cpu_s"] > 0
    assert (run / "leaderboard.csv").read_text().count("\n") == 3
    assert "planted" in (run / "leaderboard.md").read_text()


def score_with_libraries(frame: pd.DataFrame, labels: list[str], prefix: str) -> dict[str, float]:
    """Every metric from the columns of `predictions.parquet` alone, by scikit-learn and SciPy."""
    if f"{prefix}prediction" in frame:
        true, guessed = frame["label"], frame[f"{prefix}prediction"]
        positive = frame[f"{prefix}probability_{labels[1]}"]
        return {
            "mcc": metrics.matthews_corrcoef(true, guessed),
            "accuracy": metrics.accuracy_score(true, guessed),
            "f1_macro": metrics.f1_score(true, guessed, labels=labels, average="macro", zero_division=0),
            "f1_positive": metrics.f1_score(true, guessed, pos_label=labels[1], zero_division=0),
            "auroc": metrics.roc_auc_score(true == labels[1], positive),
            "auprc": metrics.average_precision_score(true == labels[1], positive),
        }
    found: dict[str, float] = {}
    for label in labels:
        true = frame[f"label_{label}"].to_numpy(np.float64)
        guessed = frame[f"{prefix}prediction_{label}"].to_numpy(np.float64)
        found[f"pearson[{label}]"] = stats.pearsonr(true, guessed).statistic
        found[f"spearman[{label}]"] = stats.spearmanr(true, guessed).statistic
        found[f"mse[{label}]"] = metrics.mean_squared_error(true, guessed)
    for name in ("pearson", "spearman", "mse"):
        found[f"{name}_mean"] = float(np.mean([found[f"{name}[{label}]"] for label in labels]))
    return found


@pytest.mark.parametrize(("task", "labels"), [("planted", ["0", "1"]), ("composition", ["gc", "a"])])
def test_predictions_reproduce_every_metric(run: Path, task: str, labels: list[str]) -> None:
    frame = pd.read_parquet(run / task / "predictions.parquet")
    row = rows_of(run)[task]
    stored = json.loads((run / task / "metrics.json").read_text())["metrics"]
    assert {(entry["arm"], entry["seed"]) for entry in stored} == set(zip(frame["arm"], frame["seed"], strict=True))
    for arm in ARMS:
        parts = [part for _, part in frame[frame["arm"] == arm].groupby("seed")]
        for prefix, key, board_key in (("", "test", "metrics"), ("plain_", "test_plain", "metrics_plain")):
            computed = [score_with_libraries(part, labels, prefix) for part in parts]
            entries = [entry[key] for entry in stored if entry["arm"] == arm]
            for ours, theirs in zip(entries, computed, strict=True):
                assert ours == pytest.approx(theirs, abs=1e-9, rel=0)
            means = {name: np.mean([values[name] for values in computed]) for name in computed[0]}
            assert row[board_key][arm] == pytest.approx(means, abs=1e-9, rel=0)
        headline = row["used" if arm == "ensemble" else "arms"]
        headline = (headline if arm == "ensemble" else headline[arm])["test"]
        shown = [score_with_libraries(part, labels, "")[row["metric"]] for part in parts]
        assert headline["per_seed"] == pytest.approx(shown, abs=1e-9, rel=0)


@pytest.mark.parametrize("task", ["planted", "composition"])
def test_what_is_used_is_what_predicts(run: Path, sources: Sources, task: str) -> None:
    """The ensemble of the arms' predictions, by the weights that were fitted to held-out rows."""
    row, frame = rows_of(run)[task], pd.read_parquet(run / task / "predictions.parquet")
    stored = json.loads((run / task / "metrics.json").read_text())
    for seed, one in stored["combinations"].items():
        combination, of_seed = Combination(**one), frame[frame["seed"] == int(seed)]
        parts = {arm: of_seed[of_seed["arm"] == arm] for arm in (*combination.arms, "ensemble")}
        kept = load_predictor(find_model(run, task)).task
        outputs = {arm: read_outputs(kept, part)[1] for arm, part in parts.items()}
        combined = combination.combine({arm: torch.from_numpy(outputs[arm]) for arm in combination.arms})
        expected = to_predictions(kept.kind, combined).numpy()
        np.testing.assert_allclose(outputs["ensemble"], expected, rtol=1e-5, atol=1e-6)
        assert all(row["arms"][arm]["weight"] > 0 for arm in combination.arms)
    seed = json.loads((run / task / "stages.json").read_text())["deployed"]["seed"]
    sequences = pd.read_csv(getattr(sources, task) / "test.csv")["sequence"].tolist()
    columns = [name for name in frame if name.startswith(("probability_", "prediction_"))]
    for arm in {"ensemble", *row["arms"]}:
        name = "best" if arm == "ensemble" else arm
        predicted = load_predictor(find_model(run, task, name)).predict(sequences)
        expected = frame[(frame["arm"] == arm) & (frame["seed"] == seed)]
        np.testing.assert_allclose(predicted[columns].to_numpy(), expected[columns].to_numpy(), rtol=1e-4, atol=1e-4)


def test_every_row_is_held_out_once(run: Path) -> None:
    """By models that have not seen it; of the validation split, by which settings were chosen, no score is reported."""
    row, oof = rows_of(run)["planted"], pd.read_parquet(run / "planted" / "oof.parquet")
    prepared = open_prepared(find_place(read_deployed(run / "planted")["prepared"], run / "planted"))
    train = prepared.table("train")
    for (arm, seed), part in oof.groupby(["arm", "seed"]):
        assert part["id"].tolist() == train["id"].to_pylist(), (arm, seed)
        assert set(part["fold"]) == {0, 1}
    arms = {"gapped_kmer", "cnn", "embedder_only", "l2g"}
    assert set(oof["arm"]) == {"ensemble", *arms, *(f"without_{arm}" for arm in arms)}
    assert row["arms"].keys() == arms
    for arm, found in row["arms"].items():
        parts = [part for _, part in oof[oof["arm"] == arm].groupby("seed")]
        scores = [score_with_libraries(part, ["0", "1"], "")["mcc"] for part in parts]
        assert found["oof"]["per_seed"] == pytest.approx(scores, abs=1e-9)
        assert found["adds"]["ci95"][0] <= found["adds"]["mean"] <= found["adds"]["ci95"][1]
    # Nothing of a fold's own rows is in its predictions: the k-mer arm, refitted here to the other fold.
    other = json.loads((run / "composition" / "metrics.json").read_text())["combinations"]["0"]
    assert set(other["arms"]) <= {"embedder_only", "l2g"}
    held = pd.read_parquet(run / "composition" / "oof.parquet")
    assert (held["arm"] == "ensemble").sum() == rows_of(run)["composition"]["n_valid"], "one split: its validation rows"


def test_baselines_stand_in_the_row(run: Path) -> None:
    for row in rows_of(run).values():
        assert list(row["baselines"]) == ["majority", "kmer_linear"]
        for name, found in row["baselines"].items():
            low, high = found["ci95"]
            assert low <= high, name
            assert found["difference"]["mean"] == pytest.approx(row["used"]["test"]["mean"] - found["mean"], abs=1e-12)
    assert rows_of(run)["planted"]["baselines"]["majority"]["mean"] == 0


def test_predictions_are_of_the_test_file(run: Path, sources: Sources) -> None:
    frame = pd.read_parquet(run / "planted" / "predictions.parquet")
    labels = pd.read_csv(sources.planted / "test.csv")["label"].astype(str).tolist()
    for _, part in frame.groupby(["arm", "seed"]):
        assert part["label"].tolist() == labels
        assert part["id"].tolist() == [str(i + 1) for i in range(40)]


def test_report_stands_alone(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert "planted" in page
    assert "composition" in page
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!data:|#)[^"']*["']""", page)
    assert "@import" not in page
    assert not re.findall(r"url\((?!['\"]?(?:data:|#))", page)


def test_nothing_half_made_is_left(suite_of_three: Path) -> None:
    assert not list(suite_of_three.rglob("*.work"))
    assert not list(suite_of_three.rglob("*.tmp"))
    assert not list(suite_of_three.glob("tune/*"))


# ---- two tasks at once, and one that fails ---------------------------------------------------------------------------


def test_a_task_that_fails_leaves_the_others_running(suite_of_three: Path, run: Path) -> None:
    failures = json.loads((suite_of_three / "failures.json").read_text())
    assert failures.keys() == {"lost"}
    assert failures["lost"].startswith("nowhere.txt: no such text corpus; give")
    assert f"lost: failed: {failures['lost']}" in (suite_of_three / "log.txt").read_text()
    assert json.loads((run / "suite.json").read_text())["state"] == "failed"


def test_tasks_that_run_at_once_do_not_mix(run: Path) -> None:
    """Tune registers trainables by name for the whole Ray job: the tasks' trials must not share one."""
    log = (run.parent / "log.txt").read_text()
    spans = {}
    for task in ("planted", "composition"):
        lines = [
            i
            for i, line in enumerate(log.splitlines())
            if re.search(rf"\b{task}: (baseline|embedder|warmup|align|finetune|refit) ", line)
        ]
        spans[task] = (lines[0], lines[-1])
    assert max(s[0] for s in spans.values()) < min(s[1] for s in spans.values()), "they did not run side by side"
    folders = {}
    for task, labels in (("planted", ["0", "1"]), ("composition", ["gc", "a"])):
        stages = json.loads((run / task / "stages.json").read_text())
        folders[task] = set(stages["results"].values())
        assert len(stages["trials"]) == 3
        for part in (path.parent for path in (run / task).glob("**/config.json")):
            assert json.loads((part / "task.json").read_text())["task"]["labels"] == labels
    assert not folders["planted"] & folders["composition"]
    rows = rows_of(run)
    assert {layer["kernel_size"] for layer in rows["planted"]["architecture"]} >= {3}
    assert rows["planted"]["metrics"]["l2g"].keys() != rows["composition"]["metrics"]["l2g"].keys()


def test_a_refit_by_ray_train_gives_the_numbers_of_the_trial(run: Path) -> None:
    """The winning trial ran in its own process, its refit of the same seed as a Ray Train run fed by Ray Data."""
    stages = json.loads((run / "composition" / "stages.json").read_text())
    best = max(stages["trials"], key=lambda trial: trial["best_score"])
    refits = [history for name, history in stages["histories"].items() if name.startswith("refit/")]
    numbers = [[(row["epoch"], row["train_loss"], row["score"]) for row in rows] for rows in refits]
    trained = [(row["epoch"], row["train_loss"], row["score"]) for row in best["history"]]
    assert trained in [rows[: len(trained)] for rows in numbers]


# ---- MLflow ----------------------------------------------------------------------------------------------------------


class Tree:
    """The runs of a store by name, and their children by `mlflow.parentRunId`."""

    def __init__(self, run: Path) -> None:
        self.folder = run
        self.uri = json.loads((run / "suite.json").read_text())["tracking_uri"]
        self.client = MlflowClient(self.uri, self.uri)
        self.experiment = self.client.get_experiment_by_name("l2g_ray").experiment_id
        (self.suite,) = self.find(f"attributes.run_name = '{run.name}'")
        self.tasks = {task.info.run_name: task for task in self.children(self.suite)}

    def find(self, query: str) -> list[Run]:
        return list(self.client.search_runs([self.experiment], query, max_results=1000))

    def children(self, parent: Run) -> list[Run]:
        return self.find(f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")

    def artifacts(self, node: Run) -> set[str]:
        return {found.path for found in self.client.list_artifacts(node.info.run_id)}


STAGES = {
    "planted": {"warmup": 1, "baseline": 4, "embedder_only": 4, "align": 6, "trial": 3, "refit": 4},
    "composition": {"search": 1, "warmup": 1, "embedder_only": 1, "align": 1, "trial": 3, "refit": 1},
}


def check_task(tree: Tree, name: str, row: dict[str, Any]) -> None:
    """A finished task's run and those of its trials."""
    task = tree.tasks[name]
    assert task.info.status == "FINISHED"
    check_scores(tree, name, row)
    assert task.data.params["metric"] == row["metric"]
    assert task.data.params["finetune.trials"] == "3"
    assert tree.artifacts(task) >= {"config.yaml", "metrics.json", "predictions.parquet", "stages.json"}
    trials = tree.children(task)
    counted = [trial.data.tags["l2g_ray.stage"] for trial in trials]
    assert {stage: counted.count(stage) for stage in counted} == STAGES[name]
    for trial in trials:
        assert trial.info.status == "FINISHED"
        history = tree.client.get_metric_history(trial.info.run_id, "train_loss")
        assert [point.step for point in history] == list(range(1, len(history) + 1))
        assert history
        assert trial.data.metrics.keys() >= {"train_loss", f"valid_{row['metric']}", "lr"}
        assert not trial.data.metrics.keys() & {"score", "best_score"}
        assert trial.data.metrics["epochs"] == len(history)
        assert 1 <= trial.data.metrics.get("best_epoch", 1) <= len(history)
        if trial.data.tags["l2g_ray.stage"] == "trial":
            assert float(trial.data.params["lr_embedder"]) > 0


def check_scores(tree: Tree, name: str, row: dict[str, Any]) -> None:
    """The scores of a task's run: of the arms as in the leaderboard, and of the model that is stored there."""
    task, metric, folder = tree.tasks[name], row["metric"], tree.folder / name
    scores = task.data.metrics
    for arm, part in row["arms"].items():
        assert scores[f"test_{arm}_{metric}"] == pytest.approx(part["test"]["mean"])
        assert scores[f"valid_{arm}_{metric}"] == pytest.approx(part["oof"]["mean"])
    for baseline, part in row["baselines"].items():
        assert scores[f"test_{baseline}_{metric}"] == pytest.approx(part["mean"])
    # The stored model's own, recomputed with that very model.
    predictor = load_predictor(folder / "best")
    kept, frame = predictor.task, pd.read_parquet(folder / "predictions.parquet")
    used = {one.tags[0].value: one.dataset for one in task.inputs.dataset_inputs}
    sequences = pa.array(pd.read_csv(json.loads(used["test"].source)["uri"])["sequence"])
    labels, _ = read_outputs(kept, frame[(frame["arm"] == "l2g") & (frame["seed"] == 0)])
    own = compute_metrics(kept.kind, labels, predictor.predict_array(sequences), list(kept.labels))
    assert scores[f"test_{metric}"] == pytest.approx(own[metric], abs=1e-4)
    model = tree.client.get_logged_model(row["model_uri"].removeprefix("models:/"))
    linked = {found.key: (found.value, found.dataset_name) for found in model.metrics}
    assert linked[f"test_{metric}"] == (scores[f"test_{metric}"], f"{kept.name} test")
    assert scores[f"valid_{metric}"] in row["used"]["oof"]["per_seed"]
    arm = "ensemble"
    assert (model.name, model.tags["l2g_ray.chosen_arm"]) == (name, arm)
    assert task.data.tags["l2g_ray.chosen_arm"] == arm
    assert tree.suite.data.metrics[f"{name}/test_{metric}"] == scores[f"test_{metric}"]
    assert tree.suite.data.metrics[f"{name}/test_l2g_{metric}"] == scores[f"test_l2g_{metric}"]
    assert {context: json.loads(data.profile)["num_rows"] for context, data in used.items()} == {
        "training": row["n_train"],
        "validation": row["n_valid"],
        "test": row["n_test"],
    }
    assert f"| test {metric} |" in task.data.tags["mlflow.note.content"]


def check_search(tree: Tree, name: str) -> None:
    """Trials of the search have one number everywhere, and the times at which they ran."""
    task = tree.tasks[name]
    found = json.loads((tree.folder / name / "stages.json").read_text())
    trials = found["trials"]
    runs = {run.data.params["trial"]: run for run in tree.children(task) if run.data.tags["l2g_ray.stage"] == "trial"}
    winner = trials.index(found["best_trial"])
    whole, rungs = int(task.data.params["finetune.epochs"]), {1: "ASHA, rung 1 (epoch 1)"}
    for number, trial in enumerate(trials):
        run = runs[f"{number:02d}"]
        assert float(run.data.params["lr_embedder"]) == trial["trial"]["lr_embedder"]
        assert f"finetune/{number:02d}" in found["histories"]
        won = number == winner
        assert run.info.run_name == f"trial/{number:02d}" + (" ★" if won else "")
        assert run.data.tags.get("l2g_ray.winner") == ("true" if won else None)
        assert run.data.tags["l2g_ray.stopped"] == ("finished" if trial["epochs"] == whole else rungs[trial["epochs"]])
        assert run.data.metrics[f"best_valid_{task.data.params['metric']}"] == pytest.approx(trial["best_score"])
        times = [round(1000 * trial[at]) for at in ("began_at", "ended_at")]
        assert [run.info.start_time, run.info.end_time] == pytest.approx(times, abs=1)
        assert task.info.start_time - 1000 <= run.info.start_time <= run.info.end_time <= task.info.end_time


def test_mlflow_holds_suite_task_and_trial(run: Path) -> None:
    tree, rows = Tree(run), rows_of(run)
    assert tree.tasks.keys() == {"planted", "composition", "lost"}
    for name in ("planted", "composition"):
        check_task(tree, name, rows[name])
        check_search(tree, name)
    note = tree.suite.data.tags["mlflow.note.content"]
    assert all(f"| {row['task']} | {row['metric']} |" in note for row in rows.values())
    assert (tree.suite.info.status, tree.tasks["lost"].info.status) == ("FAILED", "FAILED")
    assert tree.artifacts(tree.suite) >= {"leaderboard.json", "leaderboard.csv", "report.html", "suite.json"}
    assert tree.suite.data.tags["l2g_ray.version.ray"]


def test_the_mlflow_model_predicts_what_the_command_predicts(
    run: Path, sources: Sources, tmp_path: Path, use_store: Callable[[str], None]
) -> None:
    tree, row = Tree(run), rows_of(run)["planted"]
    test_file = sources.planted / "test.csv"
    command = [sys.executable, "-m", "l2g_ray.cli.main", "predict", str(run), "--task", "planted"]
    said = execute([*command, "--input", str(test_file), "--output", str(tmp_path / "out.parquet")])
    assert "40 predictions" in said
    expected = pd.read_parquet(tmp_path / "out.parquet").drop(columns="id")
    use_store(tree.uri)
    model = mlflow.pyfunc.load_model(row["model_uri"])
    found = model.predict(pd.read_csv(test_file)["sequence"].tolist())
    pd.testing.assert_frame_equal(found, expected)
    # What is kept is of the seed that was best on held-out rows.
    kept = int(np.argmax(row["used"]["oof"]["per_seed"]))
    assert read_deployed(run / "planted")["seed"] == kept


# ---- the same again, and less than the same --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def out(suite_of_three: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the shared suite's stages, for tests that run more."""
    copy = tmp_path_factory.mktemp("again") / "out"
    shutil.copytree(suite_of_three / "stages", copy / "stages")
    return copy


def test_a_second_run_trains_nothing_and_says_so(run: Path, out: Path, sources: Sources) -> None:
    """`l2g-ray run` of one of the suite's folders finds its stages; once more, there is nothing to do at all."""
    before = stage_folders(out)
    said = execute(sources.command("planted", out))
    assert stage_folders(out) == before
    assert "begins" not in said
    assert "starting Ray on this machine..." in said
    assert "planted: select has one candidate, resnet: nothing to train" in said
    for stage in ("embedder only", "align", "finetune", "refit", "evaluate"):
        assert f"planted: {stage} is there already" in said
    own = out / "user-planted-smoke"
    assert without_times(rows_of(own)["planted"]) == without_times(rows_of(run)["planted"])
    tree = Tree(own)
    assert tree.suite.info.status == "FINISHED"
    check_task(tree, "planted", rows_of(own)["planted"])

    files = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    said = execute(sources.command("planted", out))
    assert "Nothing to do: all results exist." in said
    assert "starting Ray" not in said
    assert "report.html" in said
    asked = [*sources.command("planted", out), "--json"]
    printed = subprocess.run(asked, env=environment(), capture_output=True, text=True, check=True, timeout=300)
    assert json.loads(printed.stdout) == json.loads((own / "leaderboard.json").read_text())
    assert "Nothing to do: all results exist." in printed.stderr
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == files


@pytest.mark.slow
def test_d8_test_labels_touch_nothing_but_the_evaluation(
    run: Path, out: Path, sources: Sources, tmp_path: Path
) -> None:
    noise = tmp_path / "planted"
    noise.mkdir()
    shutil.copy(sources.planted / "train.csv", noise)
    frame = pd.read_csv(sources.planted / "test.csv")
    frame["label"] = np.random.default_rng(0).permutation(frame["label"])
    frame.to_csv(noise / "test.csv", index=False)
    before = stage_folders(out)
    changed = Sources(noise, sources.composition, sources.language_model)
    execute([*changed.command("planted", out), "--name", "noise"])
    after = stage_folders(out)
    assert {name: after[name] for name in before} == before
    assert [name.partition("/")[0] for name in after if name not in before] == ["evaluate"]
    row, noisy = rows_of(run)["planted"], rows_of(out / "noise")["planted"]
    for key in ("validation", "architecture", "hyperparameters", "backbone", "n_train", "n_valid"):
        assert noisy[key] == row[key]
    columns = ["arm", "seed", "prediction", "probability_0", "probability_1"]
    one, other = (pd.read_parquet(f / "planted" / "predictions.parquet") for f in (run, out / "noise"))
    pd.testing.assert_frame_equal(one[columns], other[columns])
    assert one["label"].tolist() != other["label"].tolist()


@pytest.mark.slow
def test_trials_as_train_runs_give_the_same_numbers(run: Path, out: Path, sources: Sources, tmp_path: Path) -> None:
    shutil.copytree(out / "stages", tmp_path / "stages", ignore=shutil.ignore_patterns("trial", "finetune"))
    said = execute(sources.command("composition", tmp_path, finetune__trial_runner="train"))
    assert "composition: finetune begins, 3 trials" in said
    own = tmp_path / "user-composition-smoke"
    assert without_times(rows_of(own)["composition"]) == without_times(rows_of(run)["composition"])
    by_process, by_train = (
        json.loads((folder / "composition" / "stages.json").read_text())["trials"] for folder in (run, own)
    )
    for one, other in zip(by_process, by_train, strict=True):
        assert one["trial"] == other["trial"]
        assert one["epochs"] == other["epochs"]
        numbers = [[(row["train_loss"], row["score"]) for row in trial["history"]] for trial in (one, other)]
        assert numbers[0] == numbers[1]


# ---- requests that cannot be met -------------------------------------------------------------------------------------


def test_a_gpu_that_is_not_there_is_refused_at_once(sources: Sources, tmp_path: Path) -> None:
    command = [*sources.command("planted", tmp_path / "out"), "--gpus-per-trial", "64"]
    said = execute([*command, "--name", "impossible"], expected=2)
    assert said.splitlines()[-1] == "starting Ray on this machine..."
    assert not (tmp_path / "out" / "impossible").exists()
    assert not (tmp_path / "out" / "stages").exists()
