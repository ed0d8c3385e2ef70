"""Ray Tune runs: the trials of a stage side by side, and the search over hyper-parameters by ASHA with HyperOpt."""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune import Callback
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from l2g_ray.config import FinetuneSettings
from l2g_ray.counts import describe_end, name_trial, rung_epochs, survives
from l2g_ray.errors import UserError
from l2g_ray.monitor.events import TIMES, End, Epoch, StageBegan
from l2g_ray.orchestrate.cluster import MAX_FAILURES
from l2g_ray.orchestrate.memory import most_at_once
from l2g_ray.orchestrate.place import Place, emit_end, emit_failure, emit_slots, raise_first_error
from l2g_ray.orchestrate.ray_private import keep_secrets_from_trials
from l2g_ray.orchestrate.spec import HyperParameters, SearchTrial, TuneReport
from l2g_ray.orchestrate.train import draw_job, make_search_trainable, make_trainable
from l2g_ray.store.results import Job

if TYPE_CHECKING:
    from hyperopt.pyll import Apply

WORST_SCORE = -1e6  # stands for -inf, which HyperOpt's density estimate cannot take


class OrderedSearch(Searcher):
    """HyperOpt that receives trial results in trial order, `in_flight` trials late."""

    def __init__(self, space: dict[str, Apply], in_flight: int, initial_random: int, seed: int) -> None:
        from ray.tune.search.hyperopt import HyperOptSearch

        super().__init__(metric="best_score", mode="max")
        self.inner = HyperOptSearch(
            space, metric="best_score", mode="max", n_initial_points=initial_random, random_state_seed=seed
        )
        self.in_flight = in_flight
        self.order: list[str] = []
        self.configs: dict[str, HyperParameters] = {}
        self.ended: dict[str, float] = {}
        self.n_reported = 0

    def suggest(self, trial_id: str) -> HyperParameters | None:
        """Return the next trial's config, or None while the trials it may learn from are not all over."""
        known = len(self.order) + 1 - self.in_flight
        while self.n_reported < known:
            earlier = self.order[self.n_reported]
            if earlier not in self.ended:
                return None
            score = self.ended[earlier]
            self.inner.on_trial_complete(
                earlier, {"best_score": score if math.isfinite(score) else WORST_SCORE, "training_iteration": 1}
            )
            self.n_reported += 1
        config = self.inner.suggest(trial_id)
        if isinstance(config, dict):
            self.order.append(trial_id)
            self.configs[trial_id] = config
        return config

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Remember how a trial ended; HyperOpt hears of it when its turn comes."""
        self.ended[trial_id] = -math.inf if error or not result else float(result["best_score"])

    def save(self, checkpoint_path: str) -> None:
        """State is not kept: a stage that starts again replays its trials from their own logs."""

    def restore(self, checkpoint_path: str) -> None:
        """See `save`."""


class OrderedASHA(FIFOScheduler):
    """ASHA's stopping rule over peers that are at least `in_flight` trials older."""

    def __init__(self, search: OrderedSearch, grace: int, epochs: int, reduction_factor: int) -> None:
        super().__init__()
        self.search = search
        self.rungs = rung_epochs(grace, epochs, reduction_factor)
        self.reduction_factor = reduction_factor
        self.recorded: dict[int, dict[str, float]] = {rung: {} for rung in self.rungs}

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Accept the properties; the metric is fixed: best validation score so far, maximised."""
        return True

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """CONTINUE or STOP at a rung."""
        epoch = int(result["epoch"]) + 1
        if epoch not in self.recorded:
            return TrialScheduler.CONTINUE
        score = float(result["best_score"])
        order = self.search.order
        older = order[: max(0, order.index(trial.trial_id) + 1 - self.search.in_flight)]
        peers = [self.recorded[epoch][t] for t in older if t in self.recorded[epoch]]
        self.recorded[epoch][trial.trial_id] = score
        return TrialScheduler.CONTINUE if survives(score, peers, self.reduction_factor) else TrialScheduler.STOP


@contextlib.contextmanager
def _experiment(
    place: Place, stage: str, emitter: _EmitRows | None = None
) -> Iterator[tuple[tune.RunConfig, _EmitRows]]:
    """Yield a quiet Tune run whose own files are gone afterwards (results live in the store), and what it emitted."""
    keep_secrets_from_trials()
    emitted = emitter or _EmitRows(place)
    name = f"{place.task}-{stage}"
    shutil.rmtree(place.scratch / name, ignore_errors=True)
    try:
        config = tune.RunConfig(
            name=name,
            storage_path=str(place.scratch.resolve()),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
            callbacks=[emitted],
        )
        yield config, emitted
    except EOFError:  # Tune reads its trials' errors back from files that a full disk has cut
        reason = (
            emitted.reasons[-1]
            if emitted.reasons
            else f"{place.scratch}: a trial failed, and its error could not be written"
        )
        raise UserError(reason.removeprefix(f"{UserError.__module__}.{UserError.__name__}: ")) from None
    finally:
        shutil.rmtree(place.scratch / name, ignore_errors=True)


class _EmitRows(Callback):
    """Passes each trial's epochs, failures and end on as events; keeps the epochs by the job's key, and the reasons.

    `label` names a trial of Tune, where its job's label does not; `on_end` is called with each that ended well.
    """

    def __init__(
        self,
        place: Place,
        label: Callable[[Any], str | None] = lambda trial: None,
        on_end: Callable[[Any], None] = lambda trial: None,
    ) -> None:
        self.place, self.label, self.on_end = place, label, on_end
        self.histories: dict[str, list[dict[str, float]]] = {}
        self.reasons: list[str] = []

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Report one epoch of one trial."""
        if report := TuneReport.from_tune(result):
            name = replace(report.name, trial=self.label(trial) or report.name.trial)
            event = Epoch.from_row(name, report.row | _read_times(self.place, report))
            rows = self.histories.setdefault(name.key, [])
            if len(rows) > event.row["epoch"]:  # a restarted trial reports its first epochs again
                return
            rows.append(event.row)
            self.place.emit(event)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Report that a trial failed and is started again."""
        self._emit_failure(trial, again=True)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Report that a trial ended, or was stopped."""
        self.on_end(trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Report that a trial failed for good."""
        self._emit_failure(trial, again=False)

    def _emit_failure(self, trial: Any, again: bool) -> None:
        # The errors of all attempts so far, with their tracebacks; the last line is the last one's own.
        error = Path(trial.error_file).read_text() if trial.error_file else "no error was kept"
        reason = (error.strip() or "no error was kept").splitlines()[-1].strip()
        self.reasons.append(reason)
        emit_failure(self.place, "trial", trial.trial_id, reason, error, again, self.label(trial))


def run_trials(place: Place, stage: str, jobs: list[Job], runner: str) -> list[Exception]:
    """Run jobs as the trials of one Tune run, as many at once as there are slots; the errors of those that failed for good."""
    emitted = _EmitRows(place, on_end=lambda trial: emit_end(place, jobs[trial.config["index"]]))
    with _experiment(place, stage, emitted) as (run_config, _):
        results = tune.Tuner(
            make_trainable(place.site, jobs, runner, place.slots, place.held),
            param_space={"index": tune.grid_search(list(range(len(jobs))))},
            tune_config=tune.TuneConfig(
                max_concurrent_trials=min(len(jobs), most_at_once(place.slots)), reuse_actors=True
            ),
            run_config=run_config,
        ).fit()
    return list(results.errors)


def run_search(
    place: Place, settings: FinetuneSettings, base: Job, space: dict[str, Apply], seed: int, runner: str
) -> list[SearchTrial]:
    """ASHA over `space`; `base.args['trial']` is replaced by each drawn config. Returns the trials in order.

    A trial that fails is a trial that lost; only when all fail does the stage fail.
    """
    place.emit(StageBegan(place.task, "finetune", settings.trials))
    search = OrderedSearch(space, settings.parallel_trials, settings.initial_random_trials, seed)
    rungs = rung_epochs(settings.grace_epochs, settings.epochs, settings.reduction_factor)

    def report_end(trial: Any) -> None:
        last = TuneReport.from_tune(trial.last_result)
        if last and (times := _read_times(place, last)):
            stopped = describe_end(int(last.row["epoch"]) + 1, last.row["train_loss"], settings.epochs, rungs)
            named = replace(last.name, trial=name(trial))
            place.emit(End(named, times["began_at"], times["at"], stopped))

    def name(trial: Any) -> str:
        return name_trial(search.order.index(trial.trial_id))

    with _experiment(place, "finetune", _EmitRows(place, name, report_end)) as (run_config, emitted):
        results = tune.Tuner(
            make_search_trainable(place.site, base, runner, place.slots, place.held),
            tune_config=tune.TuneConfig(
                search_alg=search,
                scheduler=OrderedASHA(search, settings.grace_epochs, settings.epochs, settings.reduction_factor),
                num_samples=settings.trials,
                max_concurrent_trials=min(settings.parallel_trials, most_at_once(place.slots)),
                reuse_actors=True,
            ),
            run_config=run_config,
        ).fit()
    last = {
        r.metrics["trial_id"]: (r, report) for r in results if r.metrics and (report := TuneReport.from_tune(r.metrics))
    }
    emit_slots(place, {report.name.key: report.times for _, report in last.values() if report.times})
    if results.num_errors == len(results):
        raise_first_error(results.errors, place.task, "finetune")
    ordered: list[SearchTrial] = []
    for trial_id in search.order:
        if trial_id not in last:
            ordered.append(SearchTrial(None, draw_job(base, search.configs[trial_id]).key, error="failed"))
            continue
        result, report = last[trial_id]
        history, times = emitted.histories.get(report.name.key, []), _read_times(place, report)
        wall_s = sum(row["wall_s"] for row in history)
        gpus = place.slots.gpus if report.gpus is None else report.gpus
        ordered.append(
            SearchTrial(
                trial=report.name.params,
                key=report.name.key,
                best_score=report.row["best_score"],
                epochs=int(report.row["epoch"]) + 1,
                cpu_s=report.cpu_s_total,
                wall_s=wall_s,
                gpu_s=wall_s * gpus * place.slots.workers,
                error=str(result.error) if result.error else "",
                history=history,
                began_at=times.get("began_at"),
                ended_at=times.get("at"),
            )
        )
    return ordered


def _read_times(place: Place, report: TuneReport) -> dict[str, float]:
    """`began_at` and `at` of a trial that has reported: its own, or those of the result that it found in the store."""
    times = report.times
    if times is None:
        found = place.store.find(report.name.stage, report.name.key)
        if found is None or not found.values.get("began_at"):
            return {}
        times = found.values["began_at"], found.values["ended_at"]
    return dict(zip(TIMES, times, strict=True))
