"""A checkout in which commands have left their output: the checks of `make test` see only what is ours."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Folders that commands and MLflow make in the working directory when no other is named.
LEFT = ("runs", "data-check", "mlruns", "mlartifacts", "mlflow-server")


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this checkout with such folders, each with a Python file, as logged models have one."""
    folder = tmp_path_factory.mktemp("clone") / "checkout"
    ignored = shutil.ignore_patterns(".*_cache", "__pycache__", ".venv", ".git", "*.egg-info", "pictures", *LEFT)
    shutil.copytree(ROOT, folder, ignore=ignored)
    shutil.copy(ROOT / ".gitignore", folder)
    subprocess.run(["git", "init", "-q", folder], check=True)  # ruff leaves out what git ignores
    for name in LEFT:
        (folder / name / "artifacts").mkdir(parents=True)
        (folder / name / "artifacts" / "pyfunc.py").write_text("import  sys,os\n")
    return folder


def check(folder: Path, *command: str) -> str:
    program, *options = command
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTEST_ADDOPTS", "PYTHONPATH")}
    done = subprocess.run(
        [sys.executable, "-m", program, *options], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_ruff_takes_no_output_folder_for_a_module(used: Path) -> None:
    check(used, "ruff", "check", ".")
    check(used, "ruff", "format", "--check", ".")


def test_pytest_finds_the_helpers_of_the_tests(used: Path) -> None:
    listed = check(used, "pytest", "--collect-only", "tests/test_resume.py")  # imports tests/runs.py
    assert "test_resume.py::" in listed


def test_git_ignores_what_commands_leave(used: Path) -> None:
    said = subprocess.run(
        ["git", "status", "--porcelain", "--ignored"], cwd=used, capture_output=True, text=True, check=True
    )
    ignored = {line.removeprefix("!! ").rstrip("/") for line in said.stdout.splitlines() if line.startswith("!!")}
    assert ignored >= set(LEFT)


def test_ci_proves_the_order_of_the_readme() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    makes = [line.removeprefix("exec ") for line in lines if line.removeprefix("exec ").startswith("make ")]
    assert [line.split()[1] for line in makes] == ["demo", "test", "test-slow"]
