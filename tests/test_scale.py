"""`l2g-ray scale`: its arithmetic, its mistakes, and one small measurement that leaves everything behind."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from commands import Cli
from mlflow import MlflowClient
from rich.console import Console
from runs import execute

from l2g_ray.results.comparison import list_rows, render_scaling
from l2g_ray.studies.scale import TrainRun, TrialsRun, compare


def trained(workers: int, rows: int, epoch_s: float) -> TrainRun:
    return TrainRun(workers, rows, 32, epoch_s, [epoch_s], rows / epoch_s, 9.0, [])


def test_speedup_and_efficiency_are_against_the_first() -> None:
    trials = [TrialsRun(n, 8, 60 / n, 8 * n) for n in (1, 2)]
    found = compare([trained(1, 1000, 10), trained(4, 1000, 5)], [trained(2, 2000, 10), trained(4, 4000, 12.5)], trials)
    assert [(row["speedup"], row["efficiency"]) for row in found["strong"]] == [(1, 1), (2, 0.5)]
    assert [row["speedup"] for row in found["weak"]] == pytest.approx([1, 1.6])
    assert [row["efficiency"] for row in found["weak"]] == pytest.approx([1, 0.8]), "against two workers, not one"
    assert [row["efficiency"] for row in found["trials"]] == [1, 1]
    console = Console(width=110, record=True, file=io.StringIO())
    shape = {"language_model": "m", "length_bp": 200, "gpus_per_worker": 0.0}
    console.print(render_scaling({**found, "shape": shape, "machine": {"cores": 2}}))
    assert "strong: one batch" in console.export_text()
    shown = list_rows(found)
    assert shown[1][1:] == ("4", "1,000", "32", "5.00 s", "200 rows/s", "2.00", "50%", "9.0 s")
    assert shown[5][1:6] == ("2", "8 trials", "", "30.0 s", "16 trials/min")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workers", "2,1"], "--workers 2,1: give increasing whole numbers"),
        (["--workers", "1,x"], "--workers 1,x: give increasing"),
        (["--workers", "0"], "--workers 0: give increasing"),
        (["--workers", "1,4", "--batch-size", "2"], "--batch-size 2 is less than 4 workers"),
        (["--name", "../up"], "--name ../up: only letters"),
        (["--set", "finetune.trails=2"], "unknown key 'finetune.trails'"),
        (["--language-model", "./nowhere"], "no such folder"),
    ],
)
def test_mistakes_are_one_sentence(cli: Cli, tiny_lm: Path, tmp_path: Path, flags: list[str], message: str) -> None:
    said = cli("scale", "--quick", "--language-model", str(tiny_lm), "--out", str(tmp_path / "out"), *flags)
    assert said.code == 2
    assert message in said.err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_scaling_of_two_workers_is_measured(tiny_lm: Path, tmp_path: Path) -> None:
    """Real Ray Train runs; the losses of one and two workers show that they trained alike."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "l2g_ray.cli.main", "scale", "--quick", "--workers", "1,2", "--cpus", "2"]
    command += ["--language-model", str(tiny_lm), "--rows", "32", "--batch-size", "16", "--epochs", "2"]
    command += ["--trials", "2", "--slots", "2", "--length-bp", "60", "--out", str(out)]
    said = execute(command)
    found = json.loads((out / "scaling" / "scaling.json").read_text())
    strong, weak, trials = (found[kind] for kind in ("strong", "weak", "trials"))
    assert [(row["workers"], row["rows"], row["batch_size"]) for row in strong] == [(1, 32, 16), (2, 32, 16)]
    assert [(row["workers"], row["rows"], row["batch_size"]) for row in weak] == [(1, 32, 16), (2, 64, 32)]
    assert strong[1]["train_loss"] == pytest.approx(
        strong[0]["train_loss"], rel=0.05
    )  # other draws of dropout, other rows in a batch
    assert all(row["rows_per_s"] == pytest.approx(row["rows"] / row["epoch_s"]) for row in strong + weak)
    assert [(row["slots"], row["trials"]) for row in trials] == [(2, 2)]
    assert "strong: one batch" in said
    for suffix in ("md", "svg", "png"):
        assert (out / "scaling" / f"scaling.{suffix}").stat().st_size > 0
    assert not list((out / "tune").iterdir())

    client = MlflowClient(f"sqlite:///{out / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("l2g_ray").experiment_id])
    history = client.get_metric_history(run.info.run_id, "strong_rows_per_s")
    assert {point.step: point.value for point in history} == {row["workers"]: row["rows_per_s"] for row in strong}
    assert {file.path for file in client.list_artifacts(run.info.run_id)} >= {"scaling.json", "scaling.svg"}
