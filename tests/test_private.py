"""Private parts of Ray and MLflow: each in one module, and in the installed version."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
import ray
from mlflow import MlflowClient
from ray.job_config import JobConfig
from ray.tune.execution import class_cache

import l2g_ray
from l2g_ray.orchestrate import ray_private
from l2g_ray.tracking import mlflow_private

PACKAGE = Path(l2g_ray.__file__).parent
ROOMS = {"ray": PACKAGE / "orchestrate" / "ray_private.py", "mlflow": PACKAGE / "tracking" / "mlflow_private.py"}
# Without an underscore, and of no documentation.
INTERNAL = ("ray.tune.execution", "mlflow.db", "mlflow.store", "mlflow.server", "mlflow.utils")


def private_parts(source: str) -> Iterator[str]:
    """What a module takes from Ray or MLflow that has no public name; where it imports one, also attributes `_x` of others."""
    tree = ast.parse(source)
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and not _is_foreign(node)}
    own |= {n.target.id for n in ast.walk(tree) if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}
    imported = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            imported += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
    imported = [name for name in imported if name.split(".")[0] in ROOMS]
    for name in imported:
        if any(part.startswith("_") for part in name.split(".")) or name.startswith(INTERNAL):
            yield name
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or not _is_foreign(node) or node.attr in own:
            continue
        if imported or any(isinstance(part, ast.Name) and part.id == "ray" for part in ast.walk(node)):
            yield ast.unparse(node)


def _is_foreign(node: ast.Attribute) -> bool:
    return (
        node.attr.startswith("_")
        and not node.attr.startswith("__")
        and not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls", "os"))
    )


def test_private_parts_are_in_one_module_each() -> None:
    found = {path: sorted(private_parts(path.read_text())) for path in PACKAGE.rglob("*.py")}
    assert {path for path, parts in found.items() if parts} == set(ROOMS.values()), found


def test_the_search_for_private_parts_finds_them() -> None:
    source = "from mlflow.db import commands\nimport ray._private.worker\nconfig._sys_path = []\nself._mine = 1\n"
    assert sorted(private_parts(source)) == ["config._sys_path", "mlflow.db.commands", "ray._private.worker"]


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("ray._private.worker", "get_dashboard_url"),
        ("ray.tune.execution.class_cache", "ENV_VARS_TO_PROPAGATE"),
        ("mlflow.db", "commands"),
        ("mlflow.store.db_migrations", "__path__"),
    ],
)
def test_the_installed_versions_have_the_private_parts(module: str, name: str) -> None:
    library = module.partition(".")[0]
    version = f"{library} {importlib.import_module(library).__version__}"
    try:
        there = hasattr(importlib.import_module(module), name)
    except ImportError:
        there = False
    assert there, f"{version} has no {module}.{name}: replace it in {ROOMS[library].relative_to(PACKAGE.parent)}"


def test_workers_of_this_ray_import_from_no_folder_of_the_driver() -> None:
    hint = f"ray {ray.__version__} keeps the driver's folders elsewhere: see ray_private.make_job_config"
    assert JobConfig()._py_driver_sys_path == [], hint
    config = ray_private.make_job_config()
    config._py_driver_sys_path.extend(["/somewhere"])
    assert list(config._get_proto_job_config().py_driver_sys_path) == [], hint


def test_this_ray_takes_a_session_folder() -> None:
    missing = set(ray_private.place_sessions("/somewhere")) - set(inspect.signature(ray.init).parameters)
    hint = f"ray {ray.__version__}: ray.init has no {missing}; see ray_private.place_sessions"
    taken = inspect.getsource(inspect.unwrap(ray.init))
    assert all(f'"{name}"' in taken for name in missing), hint


def test_tune_passes_no_secrets_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_cache, "ENV_VARS_TO_PROPAGATE", {"AWS_SECRET_ACCESS_KEY", "CUDA_VISIBLE_DEVICES"})
    ray_private.keep_secrets_from_trials()
    assert {"CUDA_VISIBLE_DEVICES"} == class_cache.ENV_VARS_TO_PROPAGATE


def test_this_mlflow_opens_the_tables_that_are_made_for_it(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    mlflow_private.upgrade_tables(uri)
    hint = f"mlflow {mlflow.__version__}: see l2g_ray/tracking/mlflow_private.py"
    assert MlflowClient(uri, uri).search_experiments(), hint
    from sqlalchemy import create_engine, text

    with create_engine(uri).connect() as connection:
        found = connection.execute(text("select version_num from alembic_version")).scalar()
    assert found == mlflow_private.find_latest_revision(), hint


def test_this_mlflow_has_the_tags_of_its_pages() -> None:
    hint = f"mlflow {mlflow.__version__} names its tags otherwise: see l2g_ray/tracking/mlflow_private.py"
    pages = Path(mlflow.__file__).parent / "server" / "js" / "build" / "static" / "js"
    view = mlflow_private.VIEW_TAG.removesuffix(mlflow_private.VIEW)
    wanted = {mlflow_private.KIND_TAG, mlflow_private.TRAINING, view}
    for page in pages.glob("*.js"):
        text = page.read_text(errors="replace")
        wanted = {word for word in wanted if word not in text}
        if not wanted:
            break
    assert not wanted, hint
