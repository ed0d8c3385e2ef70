"""A suite's numbers for Prometheus, through Ray's own exporter: every node of a cluster serves them beside Ray's.

Ray puts `ray_` before each name. docs/cluster.md says how to scrape them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from l2g_ray.tasks.metrics import find_metric, name_stage_metric

STATES = ("waiting", "running", "done", "failed")


class SuiteMetrics:
    """Gauges and counters of one suite, set by its driver; `task_metrics` names each task's metric. Needs a connected Ray."""

    def __init__(self, suite: str, task_metrics: Mapping[str, str]) -> None:
        from ray.util import metrics

        self._tags, self._task_metrics = {"suite": suite}, task_metrics
        self._tasks = metrics.Gauge("l2g_ray_tasks", "Tasks of a suite, by state.", ("suite", "state"))
        self._waiting = metrics.Gauge("l2g_ray_mlflow_events", "Events that MLflow has not got yet.", ("suite",))
        self._best = metrics.Gauge(
            "l2g_ray_best_score", "Best validation score so far, by task and stage.", ("suite", "task", "stage")
        )
        place = ("suite", "task", "stage")
        self._epochs = metrics.Counter("l2g_ray_epochs", "Epochs that trials have reported.", place)
        self._failures = metrics.Counter("l2g_ray_trial_failures", "Trials that failed, attempts counted.", place)

    def record(self, event: dict[str, Any]) -> None:
        """Take one event of the board."""
        if event["type"] not in ("trial", "failure"):
            return
        tags = self._tags | {"task": event["task"], "stage": event["stage"]}
        if event["type"] == "failure":
            self._failures.inc(1, tags)
            return
        self._epochs.inc(1, tags)
        best = event["row"].get("best_score", -math.inf)
        if math.isfinite(best):
            # Events have it with the sign that makes higher better.
            metric = find_metric(name_stage_metric(event["stage"], self._task_metrics[event["task"]]))
            self._best.set(metric.sign * best, tags)

    def show(self, tasks: Mapping[str, dict[str, Any]], waiting_events: int) -> None:
        """How the tasks stand (`Progress.snapshot`), and how much MLflow has not got."""
        counted = Counter(task["state"] for task in tasks.values())
        for state in STATES:
            self._tasks.set(counted[state], self._tags | {"state": state})
        self._waiting.set(waiting_events, self._tags)
