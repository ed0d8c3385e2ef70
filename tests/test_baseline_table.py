"""A new baseline is an entry of `arms.BASELINES` and a function: settings, keys, stages and tables need no change."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from bad_files import ROWS, csv, lay, put
from commands import Cli
from test_board import full_board
from torch import nn
from toys import make_site, make_task, tiny_settings

from l2g_ray.arms import ARMS, BASELINES, ModelKind, is_seeded, name_arm
from l2g_ray.config import OneCycleSettings, Settings
from l2g_ray.data.dataset import PreparedTask
from l2g_ray.errors import UserError
from l2g_ray.models.l2g import load_model
from l2g_ray.orchestrate.jobs import run_job
from l2g_ray.orchestrate.keys import make_baseline_job
from l2g_ray.orchestrate.spec import JobSpec
from l2g_ray.plan.costs import Counted
from l2g_ray.plan.encoder import read_shape
from l2g_ray.plan.plan import plan_task
from l2g_ray.plan.rows import Rows
from l2g_ray.presets import resolve
from l2g_ray.results.leaderboard import write_leaderboard
from l2g_ray.results.rows import MIN_SEEDS_FOR_A_VERDICT, subtract_baseline
from l2g_ray.stages.baseline import NotApplicable, refuse_unfit
from l2g_ray.stages.context import Context
from l2g_ray.stages.registry import STAGES, find_shown
from l2g_ray.store.results import Store
from l2g_ray.tasks.schema import Task

TOY = ModelKind("a bias that does not learn", "toy_baseline:fit", net="toy_baseline:ToyNet", title="Toy", trained=True)


class ToyConfig:
    """The bias of all outputs."""

    def __init__(self, n_outputs: int) -> None:
        self.n_outputs = n_outputs

    def to_dict(self) -> dict[str, Any]:
        return {"n_outputs": self.n_outputs}


class ToyNet(nn.Module):
    """One number an output, whatever the sequence."""

    config_type = ToyConfig

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config
        self.bias = nn.Parameter(torch.zeros(config.n_outputs))

    def forward(self, codes: torch.Tensor, lengths_bp: torch.Tensor) -> torch.Tensor:
        return self.bias.expand(len(codes), -1)


def fit(context: Context, args: dict[str, Any]) -> tuple[ToyNet, dict[str, Any]]:
    net = ToyNet(ToyConfig(context.prepared.task.n_outputs))
    nn.init.constant_(net.bias, args["seed"] + 2.0)
    return net, {"score": 0.25, "chosen": {}}


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> ModelKind:
    module = ModuleType("toy_baseline")
    module.fit, module.ToyNet = fit, ToyNet  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toy_baseline", module)
    monkeypatch.setitem(BASELINES, "toy", TOY)
    return TOY


@pytest.fixture
def prepared(tmp_path: Path) -> PreparedTask:
    return lay(tmp_path, put(tmp_path / "in" / "rows.csv", csv(ROWS)))


def fit_toy(prepared: PreparedTask, folder: Path) -> dict[str, Any]:
    site = make_site(folder, prepared=str(prepared.folder))
    return run_job(JobSpec(site, make_baseline_job(prepared, tiny_settings(), "toy")), lambda row: None)


def test_a_baseline_of_the_table_is_fitted_stored_and_loaded(
    toy: ModelKind, prepared: PreparedTask, tmp_path: Path
) -> None:
    values = fit_toy(prepared, tmp_path)
    assert (values["name"], values["score"]) == ("toy", 0.25)
    job = make_baseline_job(prepared, tiny_settings(), "toy")
    model = load_model(Store(tmp_path / "stages").folder("baseline", job.key))
    assert isinstance(model, ToyNet)
    assert model.bias.tolist() == [2.0, 2.0]


def test_its_key_has_what_the_table_says(toy: ModelKind, prepared: PreparedTask, set_toy: SetToy) -> None:
    def key(precision: str = "fp32", **changes: Any) -> str:
        settings = tiny_settings(**changes)
        return make_baseline_job(prepared, settings, "toy", precision=precision).key

    plain = key()
    assert key("bf16") != plain
    assert key(baselines__cnn_steps=9) == plain
    set_toy(own=("cnn_steps",))
    assert key(baselines__cnn_steps=9) != key()
    set_toy(key=lambda settings: {"epochs": settings.select.epochs})
    assert key(select__epochs=99) != key()


def test_where_it_is_not_made_for_a_task_it_says_why(
    toy: ModelKind, prepared: PreparedTask, tmp_path: Path, set_toy: SetToy
) -> None:
    set_toy(one_strand="it wants one strand")
    assert fit_toy(prepared, tmp_path)["skipped"] == "toy: it wants one strand"
    with pytest.raises(NotApplicable):
        refuse_unfit("toy", tiny_settings(), make_task())


def test_settings_and_command_line_know_its_name(toy: ModelKind, cli: Cli) -> None:
    assert resolve("fast", None, {"baselines.names": ["toy"]}).baselines.names == ("toy",)
    assert "a bias that does not learn" in cli("baseline", "--list").out
    with pytest.raises(UserError, match=r"key 'baselines.names': unknown baseline 'toi': did you mean 'toy'\?"):
        resolve("fast", None, {"baselines.names": ["toi"]})
    with pytest.raises(UserError, match=r"key 'arms': unknown arm 'cnnn': did you mean 'cnn'\?"):
        resolve("fast", None, {"arms": ["cnnn"]})
    assert "unknown baseline 'toi'" in cli("baseline", "toi").err


def test_an_arm_is_counted_in_the_plan(toy: ModelKind, tiny_lm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def count(settings: Settings, task: Task, rows: Rows, precision: str) -> tuple[OneCycleSettings, Counted]:
        return OneCycleSettings(epochs=3, batch_size=10), Counted(1.0, 3.0, 8.0, 0.0, 0.0, 2, 2)

    monkeypatch.setattr(sys.modules["toy_baseline"], "count", count, raising=False)
    monkeypatch.setitem(ARMS, "toy", replace(TOY, count="toy_baseline:count"))
    rows, settings = Rows(90, 10, 10, 60, 60.0, 60, True, "counted"), tiny_settings(tiny_lm, arms=["toy"], folds=2)
    plan = plan_task(make_task(), settings, rows, read_shape(str(tiny_lm)))
    (found,) = [stage.most for stage in plan.stages if stage.stage == "toy"]
    assert (found.trials, found.epochs, found.steps) == (2, 6, 6 * 5)
    assert find_shown("toy").beside


def test_tables_know_its_name_and_that_it_has_seeds(toy: ModelKind, tmp_path: Path, set_toy: SetToy) -> None:
    assert name_arm("toy") == "Toy"
    board = full_board()
    row = board["tasks"][0]
    score = row["baselines"].pop("kmer_linear")
    interval = {"difference": {"mean": 0.1, "ci95": [0.05, 0.15]}}
    row["baselines"]["toy"] = score | interval
    row["used"]["test"]["per_seed"] = [0.5] * MIN_SEEDS_FOR_A_VERDICT
    write_leaderboard(board, tmp_path)
    assert "toy" in json.loads((tmp_path / "leaderboard.json").read_text())["tasks"][0]["baselines"]
    assert subtract_baseline(row, "toy").verdict == "1 seed"
    set_toy(seeded=False)
    assert subtract_baseline(row, "toy").verdict == "better"


@pytest.mark.parametrize("name", ["cnn", "deepstarr", "genomic_lm", "kmer_boosting"])
def test_a_baseline_that_another_seed_changes_is_seeded(name: str) -> None:
    assert is_seeded(name)
    assert not is_seeded("kmer_linear")
    assert not is_seeded("published")


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_has_the_function_that_it_names(name: str) -> None:
    assert callable(BASELINES[name].load_fit())


def test_arms_are_baselines_or_stages() -> None:
    assert all(ARMS[name] is BASELINES[name] for name in ARMS.keys() & BASELINES.keys())
    assert {name for name, kind in ARMS.items() if not kind.fit} == {"embedder_only", "l2g"}
    assert STAGES["embedder_only"].arm


def test_the_table_imports_no_torch() -> None:
    code = "import sys, l2g_ray.arms, l2g_ray.config; sys.exit(any(name in sys.modules for name in ('torch', 'ray')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


SetToy = Callable[..., None]


@pytest.fixture
def set_toy(monkeypatch: pytest.MonkeyPatch) -> SetToy:
    """Change fields of the toy's entry."""
    return lambda **changes: monkeypatch.setitem(BASELINES, "toy", replace(BASELINES["toy"], **changes))
