"""Machines and servers that go away in the middle of a real run."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faults import RUN, check_same, command, copy_stages
from local_cluster import growing_cluster
from runs import Driver, Sources, execute, read_board
from servers import Served, free_port, start_server
from test_suite import Tree

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
DOWN_S = 20.0


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = start_server(tmp_path_factory.mktemp("tracking"))
    yield served
    served.stop()


def start_cluster(head_cpus: int) -> Any:
    from ray.cluster_utils import Cluster

    return Cluster(initialize_head=True, head_node_args={"num_cpus": head_cpus, "include_dashboard": False})


def raylet_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_machine_removed_while_trials_run(
    undisturbed: Path, sources: Sources, tracking: Served, tmp_path: Path
) -> None:
    out = copy_stages(undisturbed, tmp_path / "out", "align", "trial", "finetune", "refit", "evaluate")
    cluster = start_cluster(head_cpus=0)
    try:
        lent = cluster.add_node(num_cpus=2)
        driver = Driver(command(sources, out), RAY_ADDRESS=cluster.address, MLFLOW_TRACKING_URI=tracking.url)
        worker = driver.wait_for_worker("align", out)
        (raylet,) = (info.process.pid for info in lent.all_processes["raylet"])
        assert raylet_of(worker) == raylet
        cluster.remove_node(lent, allow_graceful=False)
        cluster.add_node(num_cpus=2)
        said = driver.finish()
    finally:
        cluster.shutdown()
    assert "; restarts from its last epoch" in said
    check_same(out, undisturbed)


def test_the_head_restarted(undisturbed: Path, sources: Sources, tracking: Served, tmp_path: Path) -> None:
    out = copy_stages(undisturbed, tmp_path / "out", "align", "trial", "finetune", "refit", "evaluate")
    cluster = start_cluster(head_cpus=2)
    try:
        driver = Driver(command(sources, out), RAY_ADDRESS=cluster.address, MLFLOW_TRACKING_URI=tracking.url)
        driver.wait_for_worker("align", out)
    finally:
        cluster.shutdown()
    said = driver.finish(expected=1)
    last = said.splitlines()[-1]
    assert last.startswith("error: the Ray cluster at "), said[-3000:]
    assert last.endswith(
        "does not answer any more; when it is back, run the same command again: finished stages are kept"
    )
    assert json.loads((out / RUN / "suite.json").read_text())["state"] == "stopped"
    cluster = start_cluster(head_cpus=2)
    try:
        Driver(command(sources, out), RAY_ADDRESS=cluster.address, MLFLOW_TRACKING_URI=tracking.url).finish()
    finally:
        cluster.shutdown()
    check_same(out, undisturbed)


def test_the_mlflow_server_down_in_the_middle_of_a_suite(undisturbed: Path, sources: Sources, tmp_path: Path) -> None:
    out = copy_stages(undisturbed, tmp_path / "out", "trial", "finetune", "refit", "evaluate")
    port = free_port()
    served = start_server(tmp_path / "server", port=port)
    driver = Driver(command(sources, out), MLFLOW_TRACKING_URI=served.url, MLFLOW_HTTP_REQUEST_MAX_RETRIES="1")
    driver.wait_for_worker("trial", out)
    served.stop(signal.SIGKILL)
    time.sleep(DOWN_S)
    served = start_server(tmp_path / "server", port=port)
    try:
        said = driver.finish()
        assert "in mlflow-events.jsonl" in said or f"wait in {out}" in said
        assert "MLflow answers again; what waited is being sent" in said
        check_same(out, undisturbed)
        assert not list(out.rglob("mlflow-events.jsonl"))
        tree = Tree(out / RUN)
        assert tree.suite.info.status == "FINISHED"
        (task,) = tree.tasks.values()
        assert task.info.status == "FINISHED"
        trials = tree.children(task)
        stages = [trial.data.tags["l2g_ray.stage"] for trial in trials]
        assert {stage: stages.count(stage) for stage in stages} == {
            "select": 2, "search": 1, "warmup": 1, "embedder_only": 1, "align": 1, "trial": 2, "refit": 1,
        }  # fmt: skip
        for trial in trials:
            history = tree.client.get_metric_history(trial.info.run_id, "train_loss")
            assert [point.step for point in history] == list(range(1, len(history) + 1))
            assert trial.info.status == "FINISHED"
        (row,) = read_board(out / RUN)["tasks"]
        assert row["model_uri"].startswith("models:/")
        assert "Nothing to do" in execute(command(sources, out))
    finally:
        served.stop()


def test_a_cluster_that_begins_without_workers(sources: Sources, tracking: Served, tmp_path: Path) -> None:
    """As `cluster.yaml` does: the head has no CPU, and the autoscaler starts a machine when a suite asks for one."""
    asked = sources.command("planted", tmp_path / "out")
    with growing_cluster(cpus=2) as address:
        environment = {"RAY_ADDRESS": address, "MLFLOW_TRACKING_URI": tracking.url}
        at_once = Driver([*asked, "--name", "refused"], **environment).finish(expected=2)
        too_late = Driver([*asked, "--slots", "2", "--set", "cluster.scale_wait_s=0"], **environment).finish(expected=2)
        said = Driver([*asked, "--slots", "2"], **environment).finish()
    assert "missing: 1 CPU" in at_once
    assert "waited 0 s for one (cluster.scale_wait_s)" in too_late
    assert "waits up to 1200 s for the cluster to grow" in said
    assert "2 trial slots" in said
