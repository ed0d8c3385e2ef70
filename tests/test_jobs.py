"""docs/cluster.md followed word for word on a real local cluster with token authentication, and every file of jobs/."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import pytest
import yaml
from local_cluster import ROOT, Shell, local_shell
from runs import read_board, stage_folders
from test_suite import Tree

from l2g_ray.errors import UserError
from l2g_ray.monitor.status import STATUS_FILE, read_status
from l2g_ray.results.schema import validate_leaderboard

PAGE = (ROOT / "docs" / "cluster.md").read_text()
COMMANDS = re.findall(r"^\$ (.+)$", PAGE, flags=re.MULTILINE)
JOBS = sorted(path.stem for path in (ROOT / "jobs").glob("*.yaml"))
T = TypeVar("T")
TASK = "splice_junction"
# What makes the page's suite one of seconds. The name is the one that the page's own command gives.
QUICK = {
    "folds": 0,
    "arms": ["embedder_only", "l2g"],
    "select.backbones": ["resnet"],
    "select.kernel_sizes": [],
    "search.enabled": False,
    "align.source": "vocabulary",
    "align.alphas": [1.0],
    "finetune.trials": 1,
    "finetune.epochs": 1,
    "embedder_only.epochs": 1,
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storage that all nodes see."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def cluster(shared: Path) -> Iterator[tuple[Shell, int]]:
    """A shell beside a cluster that the page's first lines have started, and the port of its metrics."""
    with local_shell(shared) as (shell, metrics):
        shell.variables.pop("RAY_AUTH_MODE", None)
        for line in COMMANDS[: COMMANDS.index("export RAY_AUTH_MODE=token")]:
            shell.type(line)
        yield shell, metrics


@pytest.fixture(scope="module")
def quick(tiny_lm: Path) -> str:
    """Options at the end of every command that trains."""
    options = ["--preset", "smoke", "--language-model", str(tiny_lm)]
    for key, value in QUICK.items():
        options += ["--set", f"{key}={json.dumps(value)}"]
    return shlex.join(options)


def find(start: str) -> str:
    """The one command of the page that begins so."""
    (line,) = [line for line in COMMANDS if line.startswith(start)]
    return line


# ---- without a cluster -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", JOBS)
def test_a_job_is_complete_and_its_upload_small(name: str) -> None:
    job = yaml.safe_load((ROOT / "jobs" / f"{name}.yaml").read_text())
    assert job.keys() == {"entrypoint", "submission_id", "metadata", "runtime_env"}
    assert job["entrypoint"].startswith(f"python jobs/{name}.py")
    assert job["runtime_env"]["excludes"][:4] == ["/.git", "/.venv", "/runs", "/data"]
    # Unanchored, it would leave out the package's own folder of that name.
    assert "data" not in job["runtime_env"]["excludes"]
    assert int(job["runtime_env"]["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]) >= 30


def test_every_job_has_a_program_a_page_and_a_yaml() -> None:
    programs = {path.stem for path in (ROOT / "jobs").glob("*.py")} - {"submit"}
    assert programs == set(JOBS)
    assert {name for name in JOBS if f"| `jobs/{name}.yaml` |" in PAGE} == programs
    quoted = yaml.safe_load(PAGE.split("```yaml\n")[1].split("```")[0].replace(", ...]", "]"))
    suite = yaml.safe_load((ROOT / "jobs" / "suite.yaml").read_text())
    assert set(quoted["runtime_env"].pop("excludes")) <= set(suite["runtime_env"].pop("excludes"))
    assert quoted == suite


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("entrypoint: [a\n", "cannot be read"),
        ("submission_id: a\n", "has no 'entrypoint'"),
        ("entrypoint: a\nruntime-env: {}\n", "unknown field 'runtime-env'; did you mean 'runtime_env'?"),
        ("entrypoint: a\n", "--env NAME: has no value"),
    ],
)
def test_a_job_that_is_none_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "job.yaml").write_text(text)
    with pytest.raises(UserError) as refusal:
        load_program("submit").read_job(tmp_path / "job.yaml", env=("NAME",))
    assert complaint in str(refusal.value)


def test_what_is_typed_is_added_to_the_job(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("entrypoint: run it\nsubmission_id: a\nruntime_env: {working_dir: ..}\n")
    job = load_program("submit").read_job(tmp_path / "job.yaml", ("--set", "a=[1, 2]"), ("URI=http://a?b=c",))
    assert shlex.split(job["entrypoint"]) == ["run", "it", "--set", "a=[1, 2]"]
    assert re.fullmatch(r"a-\d{8}-\d{6}", job["submission_id"])
    assert job["runtime_env"] == {"working_dir": str(tmp_path.parent), "env_vars": {"URI": "http://a?b=c"}}


def load_program(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"jobs_{name}", ROOT / "jobs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- on a cluster ----------------------------------------------------------------------------------------------------


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_page_word_for_word(cluster: tuple[Shell, int], shared: Path, quick: str, tiny_lm: Path) -> None:
    shell, metrics_port = cluster
    run = shared / "runs" / "demo-fast"
    quick += f" --out {run.parent}"  # the files of jobs/ name a folder that is not here
    one_task = f"--tasks {TASK} --name {run.name} {quick}"

    refuse_without_token(shell)
    for line in COMMANDS[COMMANDS.index("export RAY_AUTH_MODE=token") :][:3]:
        shell.type(line)

    # Submitted, watched and stopped.
    shell.type(find("ray job submit --no-wait"), one_task)
    wait_until((run / STATUS_FILE).exists)
    wait_until(lambda: read_status(run).tasks[0].status.trials_begun)
    said = shell.type("l2g-ray status /shared/runs/demo-fast")
    for part in ("demo-fast: running (trains)", TASK, "driver      alive", "dashboard   http://127.0.0.1:"):
        assert part in said
    assert json.loads(shell.type("l2g-ray status /shared/runs --json"))["state"] == "running"
    shell.type("ray job stop demo-1")
    *_, last = shell.type("ray job logs demo-1").strip().splitlines()
    assert "interrupted (SIGTERM); its MLflow runs are marked KILLED" in last
    assert "the same command goes on from here: l2g-ray suite --bench demo" in last
    status = read_status(run)
    assert (status.state, status.tasks[0].status.state) == ("stopped", "interrupted")
    tree = Tree(run)
    assert {found.info.status for found in tree.find("")} <= {"KILLED", "FINISHED"}
    assert tree.suite.info.status == "KILLED"
    kept = stage_folders(shared / "runs")

    # Prepared, and gone on with, by the code of this checkout.
    said = shell.type(
        find("python jobs/submit.py jobs/prepare_data.yaml"), f"--tasks {TASK} --preset smoke --out {run.parent}"
    )
    assert f"1 of 1  {TASK}: " in said
    prepared = {path.name for path in (shared / "runs" / "prepared" / "demo").iterdir()}
    line = find("python jobs/submit.py jobs/suite.yaml")
    job = shell.start(line, one_task)
    # Each process exports its own at its own time: the driver's is the one waited for.
    wait_until(lambda: scrape(metrics_port, "ray_l2g_ray_tasks{", f'suite="{run.name}"'))
    said = shell.said[line] = shell.finish(job)
    source = json.loads((run / TASK / "task.json").read_text())["source"]
    assert all("_ray_pkg_" in facts["file"] for facts in source.values())
    assert {path.name for path in (shared / "runs" / "prepared" / "demo").iterdir()} == prepared
    check_suite(run, said)
    assert stage_folders(shared / "runs").items() >= kept.items()
    trained = stage_folders(shared / "runs")

    # The same task once more: everything is there.
    shell.type(find("python jobs/submit.py jobs/task.yaml"), quick)
    assert stage_folders(shared / "runs") == trained

    # Two variants, one of which the suite was.
    said = shell.type(find("python jobs/submit.py jobs/sweep.yaml"), quick)
    rows = json.loads((shared / "runs" / "sweep" / "comparison.json").read_text())["rows"]
    assert [(row["task"], row["variant"]) for row in rows] == [(TASK, "aligned"), (TASK, "unaligned")]
    assert rows[0]["test"] == read_board(run)["tasks"][0]["used"]["test"]["mean"]
    assert rows[1]["change_test"] == rows[1]["test"] - rows[0]["test"]
    new = {name.partition("/")[0] for name in stage_folders(shared / "runs").keys() - trained.keys()}
    assert new == {"align", "trial", "finetune", "refit", "evaluate"}, "the warm-up is of both variants"
    assert "unaligned" in said.split("Task, metric")[1]

    # Scaling, which trains on sequences of its own.
    small = "--rows 32 --batch-size 16 --epochs 2 --trials 2 --slots 2 --length-bp 60"
    said = shell.type(
        find("python jobs/submit.py jobs/scaling_sweep.yaml"),
        f"{small} --language-model {tiny_lm} --out {run.parent}",
    )
    scaling = json.loads((shared / "runs" / "scaling" / "scaling.json").read_text())
    assert [row["workers"] for row in scaling["strong"]] == [1, 2]
    assert "strong: one batch" in said
    (measured,) = Tree(run).find("attributes.run_name = 'scaling'")
    assert measured.info.status == "FINISHED"

    typed = {line for line in COMMANDS if not line.startswith("export ")}
    assert shell.said.keys() == typed


def refuse_without_token(shell: Shell) -> None:
    """Neither Ray's own command nor ours gets in without the token, or with another; both say why."""
    address = shell.replaced["127.0.0.1:8265"]
    submit = f"python jobs/submit.py jobs/suite.yaml --address http://{address}"
    assert "Missing authentication token" in shell.finish(
        shell.start(f"ray job submit --address http://{address} -- true"), expected=1
    )
    for variables in ("", "RAY_AUTH_MODE=token RAY_AUTH_TOKEN=0123456789abcdef0123456789abcdef"):
        said = shell.finish(shell.start(f"{variables} {submit}"), expected=2)
        assert said.strip().splitlines()[-1].startswith("error: the cluster refused the token, or got none; export")
        assert "Traceback" not in said


def check_suite(run: Path, said: str) -> None:
    """A finished suite: what its job said, its leaderboard, and its tree in MLflow."""
    for part in ("l2g-suite-", "dashboard  http://127.0.0.1:", "mlflow     l2g-ray ui", ": succeeded"):
        assert part in said
    board = read_board(run)
    assert validate_leaderboard(board) == board
    (row,) = board["tasks"]
    tree = Tree(run)
    task = tree.tasks[TASK]
    assert tree.suite.info.status == task.info.status == "FINISHED"
    assert task.data.metrics[f"test_{row['metric']}"] == pytest.approx(row["used"]["test"]["mean"])
    stages = [trial.data.tags["l2g_ray.stage"] for trial in tree.children(task)]
    assert sorted(stages) == ["align", "embedder_only", "refit", "trial", "warmup"]
    assert {trial.info.status for trial in tree.children(task)} == {"FINISHED"}
    status = read_status(run)
    assert (status.state, status.driver.alive) == ("finished", False)
    assert [task.status.state for task in status.tasks] == ["done"]


def scrape(port: int, name: str, label: str) -> list[str]:
    """The lines of a node's metrics of that name that carry the label."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return [line for line in answer.read().decode().splitlines() if line.startswith(name) and label in line]


def wait_until(look: Callable[[], T], limit_s: float = 120) -> T:
    limit = time.monotonic() + limit_s
    while not (found := look()):
        assert time.monotonic() < limit
        time.sleep(0.3)
    return found
