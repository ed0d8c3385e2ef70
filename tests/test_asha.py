"""The search over hyper-parameters: whichever trial is faster, the same trials are drawn and the same survive."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

import pytest
from hyperopt import hp
from ray.tune.schedulers import TrialScheduler

from l2g_ray.counts import rung_epochs, survives
from l2g_ray.orchestrate.tune import OrderedASHA, OrderedSearch

SPACE = {
    "lr": hp.loguniform("lr", math.log(1e-5), math.log(1e-1)),
    "dropout": hp.choice("dropout", [0.0, 0.1, 0.2]),
}
EPOCHS, TRIALS = 9, 10


@dataclass(frozen=True)
class Trial:
    """What a scheduler sees of a Tune trial."""

    trial_id: str


def objective(config: dict[str, Any], epoch: int) -> float:
    """Best at lr 1e-3, better with every epoch."""
    return -abs(math.log10(config["lr"]) + 3) - config["dropout"] - 1 / (epoch + 1)


def run_search(
    order: random.Random, in_flight: int, slots: int, failing: frozenset[int] = frozenset()
) -> list[tuple[dict[str, Any], int]]:
    """Config and trained epochs of every trial, when trials advance in a random order; `failing` ones break."""
    search = OrderedSearch(SPACE, in_flight, initial_random=3, seed=0)
    asha = OrderedASHA(search, 1, EPOCHS, 3)
    configs: dict[str, dict[str, Any]] = {}
    epochs: dict[str, int] = {}
    running: list[str] = []
    while len(epochs) < TRIALS or running:
        may_start = len(running) < slots and len(epochs) < TRIALS
        if may_start and (not running or order.random() < 0.5):
            name = f"{order.getrandbits(32):08x}"
            config = search.suggest(name)
            if config is not None:
                configs[name], epochs[name] = config, 0
                running.append(name)
                continue
        assert running, "no trial runs and none can start: the search waits for ever"
        name = order.choice(running)
        if list(epochs).index(name) in failing:
            running.remove(name)
            search.on_trial_complete(name, None, error=True)
            continue
        row = {"epoch": epochs[name], "best_score": objective(configs[name], epochs[name])}
        decision = asha.on_trial_result(None, Trial(name), row)
        epochs[name] += 1
        if decision == TrialScheduler.STOP or epochs[name] == EPOCHS:
            running.remove(name)
            search.on_trial_complete(name, row)
    return [(configs[name], epochs[name]) for name in search.order]


@pytest.mark.parametrize("in_flight", [1, 2, 4])
def test_outcome_does_not_depend_on_the_order_of_completion(in_flight: int) -> None:
    first = run_search(random.Random(0), in_flight, in_flight)
    assert len(first) == TRIALS
    for seed in range(1, 6):
        # Fewer slots than trials in flight: a smaller machine draws the same trials.
        order = random.Random(seed)
        assert run_search(order, in_flight, order.randint(1, in_flight)) == first


def test_outcome_with_a_failed_trial_does_not_depend_on_the_order_either() -> None:
    failing = frozenset({1, 4})
    first = run_search(random.Random(0), 3, 3, failing)
    assert [epochs for _, epochs in first].count(0) == 2
    for seed in range(1, 5):
        assert run_search(random.Random(seed), 3, 3, failing) == first


def test_the_search_learns_and_the_schedule_stops() -> None:
    found = run_search(random.Random(0), 2, 2)
    epochs = [n for _, n in found]
    assert set(epochs) <= {1, 3, EPOCHS}, "a trial stops at a rung or not at all"
    assert 1 <= epochs.count(EPOCHS) < TRIALS
    longest = [config for config, n in found if n == EPOCHS]
    best = max(found, key=lambda pair: objective(pair[0], EPOCHS))[0]
    assert best in longest, "the best configuration was trained to its end"
    assert run_search(random.Random(0), 1, 1) != run_search(random.Random(0), 4, 4), "more in flight, less known"


def test_more_seeds_draw_other_trials() -> None:
    drawn = [OrderedSearch(SPACE, 1, 1, seed).suggest("a") for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_score_that_is_not_finite_counts_as_the_worst() -> None:
    search = OrderedSearch(SPACE, 1, initial_random=1, seed=0)
    for name, score in (("a", -math.inf), ("b", 0.5), ("c", 0.1)):
        assert search.suggest(name) is not None
        search.on_trial_complete(name, {"best_score": score})
    assert search.suggest("d") is not None


def test_the_search_waits_for_the_trials_it_learns_from() -> None:
    search = OrderedSearch(SPACE, 2, initial_random=1, seed=0)
    assert search.suggest("a") is not None
    assert search.suggest("b") is not None
    assert search.suggest("c") is None
    search.on_trial_complete("b", {"best_score": 1.0})
    assert search.suggest("c") is None, "trial b is known, but a comes first"
    search.on_trial_complete("a", {"best_score": 0.0})
    assert search.suggest("c") is not None
    assert search.order == ["a", "b", "c"]


def test_rungs_lie_below_the_last_epoch() -> None:
    assert rung_epochs(1, 9, 3) == [1, 3]
    assert rung_epochs(1, 10, 3) == [1, 3, 9]
    assert rung_epochs(2, 8, 2) == [2, 4]
    assert rung_epochs(3, 3, 3) == []


def test_the_best_share_of_peers_survives() -> None:
    assert survives(0.0, [], 3)
    assert survives(0.9, [0.1, 0.5], 3)
    assert not survives(0.5, [0.1, 0.9], 3)
    assert survives(0.5, [0.5, 0.5], 3), "equals survive"
    peers = [0.1, 0.2, 0.3, 0.4, 0.5]
    assert survives(0.45, peers, 3), "two of six"
    assert not survives(0.35, peers, 3)
    assert survives(-math.inf, [-math.inf], 2)
