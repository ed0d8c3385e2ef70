"""The suite in virtual time: its own loop over tasks, its own pipelines, ASHA's own order of trials; only Ray and the
stages' functions are stood in for.

What is real: `_Run._run_tasks` (which task starts when), `Pipeline.run` (stages, and what waits for what), `OrderedSearch`
(which trial waits for which), `order_tasks` and `count_at_once`. What is stood in for: Ray's slots, given in the order of
asking; a trial, which waits for the recorded seconds; the store, which begins empty; the driver's rows and MLflow.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
from rich.console import Console

from benchmarks.simulation.clock import Clock, Result, Slots, wait_any
from benchmarks.simulation.lengths import Script
from l2g_ray.counts import default_architecture
from l2g_ray.monitor.events import SlotUse, measure_use
from l2g_ray.monitor.outline import Step
from l2g_ray.orchestrate import pipeline, suite
from l2g_ray.orchestrate.cluster import Slots as SlotCount
from l2g_ray.orchestrate.spec import SearchTrial, Site, TaskSpec
from l2g_ray.orchestrate.tune import OrderedSearch
from l2g_ray.plan.order import Length, count_at_once, order_tasks
from l2g_ray.store.results import StageResult, Store
from l2g_ray.tasks.schema import Task

# What the pipeline reads of the text's stage; nothing is trained on it here.
REFERENCE = {"described": "", "width": 1, "max_tokens": 1, "norm_eps": 0.0, "norm": ""}

TASK = Task(bench="simulation", name="task", kind="binary", labels=("0", "1"))


@dataclass(frozen=True)
class Overheads:
    """Seconds that are lost: `task_s` from a pipeline's start to its first stage, `stage_s` and `search_s` before the
    trials of a stage and of the ASHA search."""

    task_s: float = 0.0
    stage_s: float = 0.0
    search_s: float = 0.0


@dataclass(frozen=True)
class Simulated:
    """The use of the slots, and when each trial began and ended."""

    use: SlotUse
    intervals: list[tuple[float, float]]


def simulate(
    scripts: list[Script], slots: int, overheads: Overheads | None = None, given_order: bool = False
) -> Simulated:
    """Run all tasks on `slots` slots. `given_order`: in the order of `scripts`, slots + 1 at once."""
    world = _World(Clock(), slots, overheads or Overheads(), {one.name: one for one in scripts})
    run = _Run(world, given_order)
    with world.stood_in():
        run._run_tasks(world, SlotCount(slots, 1, 0.0), SimpleNamespace(record=lambda event: None, count_waiting=int))
    use = measure_use(world.intervals, slots)
    assert use is not None
    return Simulated(use, world.intervals)


class _Run(suite._Run):
    """A suite's run without data, MLflow and rows: what is left is which task starts when."""

    def __init__(self, world: _World, given_order: bool) -> None:
        self.world, self.given_order = world, given_order
        self.settings = {name: one.settings for name, one in world.scripts.items()}
        self.prepared = {  # type: ignore[misc]
            name: SimpleNamespace(folder=Path(name), task=TASK) for name in world.scripts
        }
        self.request = SimpleNamespace(  # type: ignore[assignment]
            name="simulation", out=Path(), remote=None, data_dir=None, verbose=False
        )
        self.scratch, self.console, self.remote_stages = Path(), Console(file=io.StringIO()), None
        self.store = Store(Path())
        self.status = mock.MagicMock()

    def _make_scratch(self) -> None:
        pass

    def _outline(self, site: Site) -> list[Step]:
        return []

    def _order(self, slots: SlotCount) -> tuple[list[str], int]:
        if self.given_order:
            return list(self.prepared), slots.count + 1
        lengths = {name: Length(one.work, one.chain) for name, one in self.world.scripts.items()}
        return order_tasks(lengths), count_at_once(lengths, slots.count)

    def _take(self, ray: Any, reference: Any, *rest: Any) -> None:
        ray.get(reference)


class _World:
    """Replaces the module `ray` in the driver, and slots, store and trials in the pipelines."""

    def __init__(self, clock: Clock, slots: int, overheads: Overheads, scripts: dict[str, Script]) -> None:
        self.clock, self.slots, self.overheads, self.scripts = clock, Slots(clock, slots), overheads, scripts
        self.count = slots
        self.intervals: list[tuple[float, float]] = []
        self.asked: Counter[tuple[str, str]] = Counter()  # trials so far, by task and stage

    # ---- what the driver asks of Ray

    def remote(self, **options: Any) -> Callable[[Any], Any]:
        """`ray.remote(...)`: an actor's class makes the board, a function a pipeline."""

        def wrap(called: Any) -> Any:
            if isinstance(called, type):
                return SimpleNamespace(remote=lambda: SimpleNamespace(drain=SimpleNamespace(remote=list)))
            return SimpleNamespace(remote=lambda spec, board: self.clock.spawn(lambda: self._run_task(spec)))

        return wrap

    def get_runtime_context(self) -> Any:
        """`ray.get_runtime_context`: the one machine."""
        return SimpleNamespace(get_node_id=lambda: "0" * 56)

    def wait(self, references: list[Result], timeout: float) -> tuple[list[Result], list[Result]]:
        """`ray.wait`."""
        done = wait_any(self.clock, references, timeout)
        return done, [one for one in references if one not in done]

    def get(self, value: Any) -> Any:
        """`ray.get`."""
        return value.get() if isinstance(value, Result) else value

    # ---- what a pipeline asks of its trials

    @contextmanager
    def stood_in(self) -> Iterator[None]:
        """Have pipelines ask here."""
        with (
            mock.patch.object(suite, "POLL_S", 1e9),  # nothing to pick up from the board meanwhile
            mock.patch.object(suite, "SuiteMetrics", mock.MagicMock()),
            mock.patch.object(suite, "StorageWatch", mock.MagicMock()),
            mock.patch.object(suite, "find_cpu_precision", mock.MagicMock(return_value="fp32")),
            mock.patch.object(pipeline, "run_jobs", self._run_jobs),
            mock.patch.object(pipeline.Pipeline, "_finetune", lambda pipe, shape, inputs: self._finetune(pipe)),
            mock.patch.object(pipeline.Pipeline, "_beside", lambda _, call: self.clock.spawn(call).get),
        ):
            yield

    def _run_task(self, spec: TaskSpec) -> None:
        script = self.scripts[spec.site.task]
        self.clock.sleep(self.overheads.task_s)
        place = SimpleNamespace(
            site=spec.site, task=script.name, slots=spec.slots, held={"train": None}, emit=lambda event: None
        )
        prepared = SimpleNamespace(
            task=TASK,
            fingerprint=lambda split: split,
            length_range=lambda: (1, 1),
            row_groups=lambda: np.arange(2),
        )
        reference = StageResult("reference", "", Path(), REFERENCE)
        pipeline.Pipeline(place, prepared, script.settings, reference).run()  # type: ignore[arg-type]

    def _trial(self, seconds: float) -> None:
        with self.slots:
            begin = self.clock.now
            self.clock.sleep(seconds)
            self.intervals.append((begin, self.clock.now))

    def _run_jobs(self, place: Any, stage: str, jobs: list[Any], runner: str = "process") -> list[StageResult]:
        script = self.scripts[place.task]
        self.clock.sleep(self.overheads.stage_s)
        trials = []
        for job in jobs:
            name = job.args.get("name", job.stage)  # a simple arm goes by its own name
            trials.append(script.trial(name, self.asked[place.task, name]))
            self.asked[place.task, name] += 1
        for result in [self.clock.spawn(lambda seconds=seconds: self._trial(seconds)) for seconds in trials]:  # type: ignore[misc]
            result.get()
        backbone = script.settings.select.backbones[0]
        values = {"score": 0.0, "architecture": default_architecture(backbone), "history": []}
        return [StageResult(job.stage, job.key, Path(), values) for job in jobs]

    def _finetune(self, pipe: pipeline.Pipeline) -> tuple[list[SearchTrial], SearchTrial]:
        """Return what Ray Tune does with `OrderedSearch`; ASHA has already decided the epochs of each trial."""
        stage, script = pipe.settings.finetune, self.scripts[pipe.place.task]
        self.clock.sleep(self.overheads.search_s)
        search, at_once = _Order(stage.parallel_trials), min(stage.parallel_trials, self.count)
        running: dict[Result, str] = {}
        started = 0
        while running or started < stage.trials:
            if started < stage.trials and len(running) < at_once and search.suggest(str(started)) is not None:
                seconds = script.trial("trials", started)
                running[self.clock.spawn(lambda seconds=seconds: self._trial(seconds))] = str(started)  # type: ignore[misc]
                started += 1
                continue
            for one in wait_any(self.clock, list(running)):
                search.on_trial_complete(running.pop(one), {"best_score": 0.0})
        trial = SearchTrial({"alpha": pipe.settings.align.alphas[0]}, "", 0.0)
        pipe.results.append(StageResult("finetune", "", Path(), {"trials": [trial.to_json()]}))
        return [trial], trial


class _Order(OrderedSearch):
    """Proposes nothing, in the very order."""

    def __init__(self, in_flight: int) -> None:
        self.inner = SimpleNamespace(suggest=lambda trial_id: {}, on_trial_complete=lambda trial_id, result: None)
        self.in_flight, self.n_reported = in_flight, 0
        self.order, self.configs, self.ended = [], {}, {}
