"""How busy the slots were; which task starts first, and how many run at once."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from runs import read_board
from toys import make_task, tiny_settings

from l2g_ray.counts import default_architecture
from l2g_ray.errors import UserError
from l2g_ray.monitor.events import SlotLog, SlotTimes, measure_use
from l2g_ray.orchestrate.cluster import Slots, measure_slots
from l2g_ray.plan.costs import Found
from l2g_ray.plan.encoder import read_shape
from l2g_ray.plan.order import Length, count_at_once, estimate_length, order_tasks
from l2g_ray.plan.plan import plan_task
from l2g_ray.plan.rows import Rows
from l2g_ray.results.leaderboard import describe_slots

ROWS = Rows(160, 40, 40, 60, 60.0, 60, True, "given")


def test_busy_is_what_the_trials_took_of_the_slots_time() -> None:
    # Two slots for 10 s: one busy for 10 s, the other for 3 and 5.
    use = measure_use([(100.0, 110.0), (101.0, 104.0), (105.0, 110.0)], 2)
    assert use is not None
    assert (use.trials, use.busy_s, use.span_s, use.busy) == (3, 18.0, 10.0, 0.9)
    assert use.to_dict() == {"slots": 2, "trials": 3, "busy_s": 18.0, "span_s": 10.0, "busy": 0.9}
    assert measure_use([], 2) is None


def test_a_trial_of_two_tasks_counts_once() -> None:
    log = SlotLog()
    for task in ("a", "b"):
        log.take(SlotTimes(task, {"key": (5.0, 7.0)}))
    use = log.measure(1)
    assert use is not None
    assert (use.trials, use.busy) == (1, 1.0)


def test_the_suite_tells_how_busy_its_slots_were(suite_of_three: Path) -> None:
    run = suite_of_three / "three"
    board, suite = read_board(run), json.loads((run / "suite.json").read_text())
    use = board["slots"]
    assert suite["slots"] == use
    spent = [
        one
        for task in ("planted", "composition")
        for one in json.loads((run / task / "stages.json").read_text())["spent"]
        if one["stage"] != "reference"  # made in the pipeline's own process
    ]
    assert use["slots"] == 2
    assert use["trials"] == len(spent)
    assert 0 < use["busy"] <= 1
    assert use["busy"] == pytest.approx(use["busy_s"] / (use["slots"] * use["span_s"]), abs=1e-3)
    sentence = describe_slots(board)
    assert f"busy {use['busy']:.0%}" in sentence
    for file in ("leaderboard.md", "report.html"):
        assert sentence in html.unescape((run / file).read_text())
    client = MlflowClient(suite["tracking_uri"])
    experiment = client.get_experiment_by_name("l2g_ray")
    assert experiment is not None
    [root] = client.search_runs([experiment.experiment_id], "tags.mlflow.runName = 'three'")
    assert {name: root.data.metrics[f"slots_{name}"] for name in use} == use


def test_long_tasks_start_first() -> None:
    lengths = {"short": Length(1, 1), "long": Length(9, 3), "even": Length(4, 2), "also": Length(4, 1)}
    assert order_tasks(lengths) == ["long", "even", "also", "short"]


def test_tasks_at_once_fill_the_slots_and_do_not_hold_up_the_longest() -> None:
    alike = {str(i): Length(200, 100) for i in range(18)}
    # 3,600 of work: 900 a slot, longer than any chain, so that a queue does no harm.
    assert count_at_once(alike, 4) == 5
    # One of 1,000 in a row, and 4 slots' work is 1,150 in all: still bound by work. On 8 slots by that one.
    mixed = alike | {"long": Length(1000, 1000)}
    assert count_at_once(mixed, 4) == 5
    # The chains are 2,800 of a work of 4,600: a task fills 1.64 slots, 8 slots are 4.9 tasks.
    assert count_at_once(mixed, 8) == 5 + 1
    assert count_at_once({}, 3) == 4


@pytest.fixture
def estimate(tiny_lm: Path) -> Callable[..., Length]:
    def call(changes: dict[str, Any], **of_rows: Any) -> Length:
        settings = tiny_settings(tiny_lm, **{"select__backbones": ["resnet"]} | changes)
        return estimate_length(make_task(), settings, replace(ROWS, **of_rows), False)

    return call


def test_more_rows_and_longer_sequences_are_longer_tasks(tiny_lm: Path, estimate: Callable[..., Length]) -> None:
    base = estimate({})
    assert 0 < base.chain < base.work
    twice = estimate({}, train=320, valid=80, test=80)
    assert twice.work == pytest.approx(2 * base.work, rel=0.2)
    longer = estimate({}, min_bp=120, mean_bp=120.0, max_bp=120)
    assert longer.work == pytest.approx(2 * base.work, rel=0.3)
    # What rounding the length does to the order: little.
    settings = tiny_settings(tiny_lm, select__backbones=["resnet"])
    for bp in (90, 91):
        rows = replace(ROWS, min_bp=bp, mean_bp=float(bp), max_bp=bp)
        found = Found("resnet", tuple(default_architecture("resnet")))
        exact = plan_task(make_task(), settings, rows, read_shape(str(tiny_lm)), on_gpu=False, found=found)
        assert estimate({}, min_bp=bp, mean_bp=float(bp), max_bp=bp).work == pytest.approx(
            exact.total("expected").flops, rel=0.15
        )


def test_trials_beside_each_other_shorten_the_chain_only(estimate: Callable[..., Length]) -> None:
    one, two = (
        estimate({"finetune__trials": 8, "finetune__reduction_factor": 2, "finetune__parallel_trials": n, "seeds": 2})
        for n in (1, 4)
    )
    assert two.chain < one.chain
    assert two.work == pytest.approx(one.work, rel=0.2)  # later trials learn of fewer: a few more epochs


def test_slots_are_what_fits_on_each_machine() -> None:
    assert measure_slots([{"CPU": 4.0}]) == Slots(4, 1, 0.0)
    assert measure_slots([{"CPU": 4.0}, {"CPU": 3.0}], cpus=2) == Slots(3, 2, 0.0)
    assert measure_slots([{"CPU": 8.0, "GPU": 2.0}], gpus=1) == Slots(2, 1, 1)
    assert measure_slots([{"CPU": 1.0, "GPU": 2.0}, {"CPU": 16.0}], gpus=1) == Slots(1, 1, 1)
    assert measure_slots([{"CPU": 16.0, "GPU": 1.0}], gpus=0.1) == Slots(10, 1, 0.1)
    assert measure_slots([{"CPU": 16.0, "GPU": 2.0}], gpus=0.3) == Slots(6, 1, 0.3)


@pytest.mark.parametrize(
    ("nodes", "request_", "parts"),
    [
        ([{"CPU": 4.0}], {"gpus": 1.0}, ["4 CPU and 0 GPU", "missing: 1 GPU"]),
        ([{"CPU": 1.0, "GPU": 1.0}], {"cpus": 4, "gpus": 2.0}, ["1 CPU and 1 GPU", "missing: 3 CPU, 1 GPU"]),
        # Two in the cluster, but none of its machines has both: such a trial would wait for ever.
        ([{"CPU": 4.0, "GPU": 1.0}] * 2, {"gpus": 2.0}, ["the cluster's 2 machines", "missing: 1 GPU"]),
        ([{"CPU": 4.0}, {"GPU": 1.0}], {"gpus": 1.0}, ["0 CPU and 1 GPU", "missing: 1 CPU"]),
        ([], {}, ["0 CPU and 0 GPU", "missing: 1 CPU"]),
        ([{"CPU": 4.0, "GPU": 4.0}], {"gpus": 1.5}, ["cannot have 1.5 GPUs"]),
    ],
)
def test_an_impossible_request_is_refused(
    nodes: list[dict[str, float]], request_: dict[str, Any], parts: list[str]
) -> None:
    with pytest.raises(UserError) as refusal:
        measure_slots(nodes, **request_)
    for part in parts:
        assert part in str(refusal.value)
