"""What travels between a suite, a task's pipeline and its workers."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from l2g_ray.config import Settings
from l2g_ray.monitor.events import TIMES, TrialName
from l2g_ray.orchestrate.cluster import Slots
from l2g_ray.store.results import Job, StageResult, Store
from l2g_ray.store.shared import open_store

# What a search draws for a trial.
HyperParameters = dict[str, float | str]


@dataclass(frozen=True)
class Site:
    """What all jobs of a task have in common.

    Parameters
    ----------
    prepared : folder of the prepared task.
    root, remote : the store of stage results: its folder on every machine, and its URI where it is shared.
    scratch : folder for Tune's own files and for notes of trials.
    threads, gpus : what a job has, of CPU threads and of GPUs.
    data_dir : where text corpora may be.
    reference : the text reference, which all stages but the first need.
    pretrained : folder of the language model after continued pre-training, where there was any.
    """

    task: str
    prepared: str
    settings: Settings
    root: Path
    scratch: Path
    threads: int = 1
    device: str = "cpu"
    gpus: float = 0.0
    precision: str = "fp32"
    remote: str | None = None
    data_dir: Path | None = None
    reference: StageResult | None = None
    pretrained: Path | None = None

    def open_store(self) -> Store:
        """Return the store of stage results."""
        return open_store(self.root, self.remote, self.settings.cluster.storage_wait_s)


@dataclass(frozen=True)
class TaskSpec:
    """One task of a suite, for its pipeline; `tasks_at_once` is how many pipelines share the object store."""

    site: Site
    slots: Slots
    tasks_at_once: int
    verbose: bool


@dataclass(frozen=True)
class JobSpec:
    """One job, for the worker that runs it. `drawn`: the hyper-parameters that a search has drawn for it; `note`: the
    name under which it notes where its process writes (`monitor.trial_logs`), by default its key."""

    site: Site
    job: Job
    drawn: HyperParameters | None = None
    note: str = ""

    @property
    def name(self) -> TrialName:
        """Return the readable name of the job and the key that identifies it."""
        params = self.job.args if self.drawn is None else self.drawn
        return TrialName(self.site.task, self.job.stage, self.job.label, self.job.key, params)


@dataclass(frozen=True)
class TuneReport:
    """An epoch of a trial as Tune carries it: the row with its times, CPU seconds of all epochs, and the trial's GPUs
    where memory decided how many."""

    name: TrialName
    row: dict[str, float]
    cpu_s_total: float
    gpus: float | None = None

    def to_tune(self) -> dict[str, Any]:
        """Return the row, apart from Tune's own numbers, and beside it what a search looks at."""
        return {name: self.row[name] for name in ("epoch", "best_score")} | asdict(self)

    @classmethod
    def from_tune(cls, result: dict[str, Any] | None) -> TuneReport | None:
        """Return the last report of a trial; None of one that has not reported."""
        if not result or "row" not in result:
            return None
        found = {one.name: result[one.name] for one in fields(cls)}
        return cls(**found | {"name": TrialName(**result["name"])})

    @property
    def times(self) -> tuple[float, float] | None:
        """When the trial began and when it reported; None of one that reported what the store has."""
        found = [self.row[name] for name in TIMES if name in self.row]
        return (found[0], found[1]) if found else None


@dataclass(frozen=True)
class SearchTrial:
    """A trial of the hyper-parameter search, as the search's result keeps it.

    `trial` are its hyper-parameters, None where it failed; times are seconds since 1970, None where it never began.
    """

    trial: HyperParameters | None
    key: str
    best_score: float = float("-inf")
    epochs: int = 0
    cpu_s: float = 0.0
    wall_s: float = 0.0
    gpu_s: float = 0.0
    error: str = ""
    history: list[dict[str, float]] = field(default_factory=list)
    began_at: float | None = None
    ended_at: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> SearchTrial:
        """Read a stored search; those of earlier versions may lack times."""
        return cls(**{one.name: stored[one.name] for one in fields(cls) if one.name in stored})
