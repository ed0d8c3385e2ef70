"""ASHA with HyperOpt whose outcome does not depend on which trial happens to be faster.

Plain asynchronous halving compares a trial with whatever has been reported by then, so two runs of one seed may choose
different winners. Here trial i learns only from trials 0 .. i - `in_flight`, all of which ended before it was drawn:
its proposal, and whether it goes on at a rung. Everything else is ASHA's stopping rule and HyperOpt's TPE. A run that
was killed and started again replays the same trials and ends with the same result.

Sources: Li et al., "A System for Massively Parallel Hyperparameter Tuning" (MLSys 2020); the stopping variant of
`ray.tune.schedulers.AsyncHyperBandScheduler`.
"""

from __future__ import annotations

import math
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from l2g_ray.orchestrate.halving import rung_epochs, survives

WORST_SCORE = -1e6  # stands for -inf, which HyperOpt's density estimate cannot take


class OrderedSearch(Searcher):
    """HyperOpt that is told of trial results in trial order, `in_flight` trials late."""

    def __init__(self, space: dict[str, Any], in_flight: int, initial_random: int, seed: int) -> None:
        from ray.tune.search.hyperopt import HyperOptSearch

        super().__init__(metric="best_score", mode="max")
        self.inner = HyperOptSearch(
            space, metric="best_score", mode="max", n_initial_points=initial_random, random_state_seed=seed
        )
        self.in_flight = in_flight
        self.order: list[str] = []
        self.configs: dict[str, dict[str, Any]] = {}
        self.ended: dict[str, float] = {}
        self.told = 0

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next trial's config, or None while the trials it may learn from are not all over."""
        known = len(self.order) + 1 - self.in_flight
        while self.told < known:
            earlier = self.order[self.told]
            if earlier not in self.ended:
                return None
            score = self.ended[earlier]
            self.inner.on_trial_complete(
                earlier, {"best_score": score if math.isfinite(score) else WORST_SCORE, "training_iteration": 1}
            )
            self.told += 1
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
        """The metric is fixed: best validation score so far, maximised."""
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
