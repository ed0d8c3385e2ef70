"""A new stage is an entry of the registry and a module: jobs, store, keys, memory and costs need no change."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from pkgutil import resolve_name
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from bad_files import ROWS as FEW_ROWS
from bad_files import csv, lay, put
from test_plan import ROWS
from toys import make_site, make_task, tiny_settings

from l2g_ray.data.splits import make_folds
from l2g_ray.errors import UserError
from l2g_ray.models.baselines import Baseline, BaselineConfig
from l2g_ray.models.l2g import save_model
from l2g_ray.orchestrate.jobs import run_job
from l2g_ray.orchestrate.memory import memory_key
from l2g_ray.orchestrate.spec import JobSpec, Site
from l2g_ray.plan.costs import Amount
from l2g_ray.plan.encoder import read_shape
from l2g_ray.plan.plan import Sizer, Variant, plan_task
from l2g_ray.stages.context import HELD_OUT, Context
from l2g_ray.stages.registry import STAGES, Stage, find_shown, find_stage, list_versions, show_stage
from l2g_ray.store.results import Job, Store, make_key

# Stages of which a plan counts nothing, and why.
UNCOUNTED = {"finetune": "its trials are counted", "precision": "a second a run"}
TOY = Stage("toy", 1, "toy_stage:run", "toy_stage:count", arm=True, beside=True, kind="finetune", shown="toys")


def run_toy(context: Context, args: dict[str, Any]) -> dict[str, Any]:
    """Reports one epoch and keeps a model that knows the bias of `args`."""
    context.runtime.report({"epoch": 0, "score": args["bias"], "train_loss": 0.0})
    model = Baseline(BaselineConfig("constant", "none", context.prepared.task.n_outputs, context.data.length_bp))
    model.bias.fill_(args["bias"])
    save_model(model, context.work)
    return {"score": args["bias"], "rows": context.data.train.n_rows, "history": []}


def count_toy(sizer: Sizer, variant: Variant, name: str) -> dict[str, Amount]:
    """A trial for each model of an arm."""
    return {show_stage(name): Amount(trials=sizer.members, flops=1e9)}


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Stage:
    module = ModuleType("toy_stage")
    module.run = run_toy  # type: ignore[attr-defined]
    module.count = count_toy  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toy_stage", module)
    monkeypatch.setitem(STAGES, "toy", TOY)
    return TOY


def lay_site(folder: Path) -> Site:
    return make_site(folder, prepared=str(lay(folder, put(folder / "in" / "rows.csv", csv(FEW_ROWS))).folder))


def test_a_registered_stage_runs_and_is_stored(toy: Stage, tmp_path: Path) -> None:
    site, store, told = lay_site(tmp_path), Store(tmp_path / "stages"), list[dict[str, Any]]()
    prepared = lay(tmp_path, tmp_path / "in" / "rows.csv")
    (fold,) = make_folds(prepared, 0, 0)
    job = Job("toy", "seed-0", {"bias": 0.5, "fold": asdict(fold)}, {}, {})
    run_job(JobSpec(site, job), told.append)
    found = store.find("toy", job.key)
    assert found is not None
    assert (found.values["score"], found.values["rows"]) == (0.5, prepared.n_rows("train"))
    assert [row["score"] for row in told] == [0.5]
    held_out = np.load(found.folder / HELD_OUT)
    assert held_out.shape == (2, prepared.n_rows("valid"), prepared.task.n_outputs)
    assert np.isfinite(held_out).all()


def test_what_is_no_arm_predicts_no_held_out_rows(toy: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STAGES, "toy", replace(TOY, arm=False))
    site = lay_site(tmp_path)
    job = Job("toy", "seed-0", {"bias": 0.5, "fold": {"number": 0, "of": 0, "seed": 0}}, {}, {})
    run_job(JobSpec(site, job), lambda row: None)
    assert not (Store(tmp_path / "stages").folder("toy", job.key) / HELD_OUT).exists()


def test_the_registry_is_all_that_others_read_of_a_stage(toy: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make_key("toy", {})
    assert list_versions()["toy"] == 1
    assert show_stage("toy") == "toys"
    assert find_shown("toys") is toy
    job, trial = (Job(stage, "", {}, {}, {"length_bp": 9}) for stage in ("toy", "trial"))
    assert memory_key(job) == memory_key(trial)
    assert memory_key(job) != memory_key(replace(job, stage="align"))
    monkeypatch.setitem(STAGES, "toy", replace(TOY, version=2))
    assert make_key("toy", {}) != first


def test_a_plan_counts_what_the_entry_names(toy: Stage, tiny_lm: Path) -> None:
    settings = tiny_settings(tiny_lm, folds=3)
    plan = plan_task(make_task(), settings, ROWS, read_shape(str(tiny_lm)))
    (planned,) = (one for one in plan.stages if one.stage == "toys")
    assert (planned.most.trials, planned.most.flops) == (3, 1e9)


def test_a_plan_counts_every_stage_that_computes() -> None:
    assert {name for name, stage in STAGES.items() if not stage.count} == UNCOUNTED.keys()
    assert all(callable(resolve_name(stage.count)) for stage in STAGES.values() if stage.count)


def test_a_stage_that_nobody_registered_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown stage 'alignn': did you mean 'align'\?; register it"):
        run_job(JobSpec(make_site(tmp_path), Job("alignn", "", {}, {}, {})), lambda row: None)
    with pytest.raises(UserError, match="unknown stage 'toy'"):
        make_key("toy", {})
    with pytest.raises(UserError, match="unknown stage 'toy'"):
        find_stage("toy")


@pytest.mark.parametrize("name", [name for name, stage in STAGES.items() if stage.run])
def test_every_stage_has_the_function_that_it_names(name: str) -> None:
    assert callable(STAGES[name].load())


def test_the_registry_imports_neither_torch_nor_ray() -> None:
    code = "import sys, l2g_ray.stages.registry; sys.exit(any(name in sys.modules for name in ('torch', 'ray')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
