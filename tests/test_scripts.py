"""Scripts that take a day: that their commands are commands, for tasks and studies that there are."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from l2g_ray.cli.main import main
from l2g_ray.studies.study import find_study, read_baseline_arms
from l2g_ray.tasks.catalogue import find_tasks

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "reproduce_results.sh"


def print_commands(*parts: str) -> list[list[str]]:
    environment = {**os.environ, "DATA": "some data"}
    said = subprocess.run([SCRIPT, "--print", *parts], env=environment, capture_output=True, text=True, check=True)
    return [shlex.split(line.replace("some data", "'some data'"))[1:] for line in said.stdout.splitlines()]


@pytest.mark.parametrize("words", print_commands(), ids=lambda words: words[words.index("--name") + 1])
def test_each_command_of_the_results_can_be_run(words: list[str]) -> None:
    group = click.Context(main)
    command = main.get_command(group, words[0])
    assert command is not None
    given = command.make_context(words[0], words[1:]).params
    assert (given["seeds"], given["data_dir"]) == (3, Path("some data"))
    if words[0] == "suite":
        assert find_tasks(given["bench"], given["tasks"].split(",") if given["tasks"] else None)
        return
    for task in given["tasks"]:
        bench, _, name = task.partition("/")
        assert find_tasks(bench, [name])
    if words[0] == "ablate":
        assert all(name == "all" or find_study(name) for name in given["studies"])
    else:
        assert set(given["names"].split(",")) - {"simple"} <= read_baseline_arms().keys()


def test_a_part_that_is_none_is_refused() -> None:
    environment = {**os.environ, "DATA": "x"}
    said = subprocess.run([SCRIPT, "nothing"], env=environment, capture_output=True, text=True, check=False)
    assert said.returncode == 2
    assert "no part 'nothing'; parts are: demo predictors small" in said.stderr
    del environment["DATA"]
    said = subprocess.run([SCRIPT], env=environment, capture_output=True, text=True, check=False)
    assert said.returncode != 0
    assert "set DATA to the folder" in said.stderr


def test_the_tables_of_the_docs_are_those_of_the_ledger() -> None:
    command = [sys.executable, "-m", "scripts.results_tables", "--check"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
