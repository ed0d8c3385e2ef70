"""What a plan counts, as numbers: of a stage, of a task, and what is known of a run that has begun."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from l2g_ray.plan.rows import Rows


@dataclass(frozen=True)
class Amount:
    """What a stage takes, over all its trials. `tokens` go through the language model, forward or forward and
    backward. `memory_bytes` is of one trial; `disk_bytes` stays, `scratch_bytes` is gone when the stage ends. `start_s` is
    what trials take to start and end: processes, imports, Tune, Train."""

    trials: int = 0
    epochs: float = 0.0
    steps: float = 0.0
    tokens: float = 0.0
    flops: float = 0.0
    memory_bytes: float = 0.0
    disk_bytes: float = 0.0
    scratch_bytes: float = 0.0
    start_s: float = 0.0


@dataclass(frozen=True)
class StagePlan:
    """One stage: what is expected, and what it can be at most."""

    stage: str
    expected: Amount
    most: Amount


@dataclass(frozen=True)
class TaskPlan:
    """One task. `prepared_bytes`: its shards. `output_bytes`: models and predictions in the run's folder and in MLflow."""

    task: str
    rows: Rows
    precision: str
    stages: tuple[StagePlan, ...]
    prepared_bytes: float
    output_bytes: float

    def total(self, which: str = "most") -> Amount:
        """Sums over stages; memory and scratch are the largest of any stage."""
        return add_amounts(getattr(stage, which) for stage in self.stages)

    @property
    def disk_bytes(self) -> float:
        """All that the task needs on disk at the worst moment."""
        total = self.total()
        return self.prepared_bytes + self.output_bytes + total.disk_bytes + total.scratch_bytes


@dataclass(frozen=True)
class Found:
    """What a finished run has found: its backbone and architecture stand in for the candidates."""

    backbone: str
    architecture: tuple[tuple[int, int], ...]


def add_amounts(amounts: Iterable[Amount]) -> Amount:
    """Sums; of memory and scratch the largest."""
    every = list(amounts)
    largest = {"memory_bytes", "scratch_bytes"}
    return Amount(
        **{
            f.name: (max if f.name in largest else sum)([getattr(a, f.name) for a in every] or [0])
            for f in fields(Amount)
        }
    )
