"""The suite in virtual time (`python -m benchmarks utilisation`), against manually added times."""

from __future__ import annotations

from dataclasses import replace

import pytest
from scipy.stats import spearmanr

from benchmarks.simulation.lengths import Script, read_recorded, script_as_recorded, script_paper
from benchmarks.simulation.virtual import Overheads, simulate
from l2g_ray.presets import resolve

STAGES = {
    "select": [1.0, 2.0],
    "search": [4.0],
    "warmup": [5.0],
    "embedder_only": [20.0],
    "align": [1.0, 2.0, 3.0],
    "trials": [6.0, 2.0, 4.0],
    "refit": [7.0],
    "evaluate": [1.0],
}
# Two trials of the search at once: the third begins when the first, of which it learns, has ended.
CHAIN_S = 2 + 4 + 5 + 3 + (6 + 4) + 7 + 1
WORK_S = sum(map(sum, STAGES.values()))


@pytest.fixture
def script() -> Script:
    return Script(
        "one",
        resolve(
            "fast",
            None,
            {
                "finetune.trials": 3,
                "search.enabled": True,
                "select.kernel_sizes": [],
                "folds": 0,
                "arms": ["embedder_only", "l2g"],
            },
        ),
        STAGES,
        1.0,
        0.5,
    )


def test_a_task_takes_its_chain_of_stages(script: Script) -> None:
    use = simulate([script], 100).use
    assert (use.span_s, use.busy_s) == pytest.approx((CHAIN_S, WORK_S))
    # The embedder-only control trains beside the others; longer than they are, the evaluation waits for it.
    longer = replace(script, stages=STAGES | {"embedder_only": [40.0]})
    assert simulate([longer], 100).use.span_s == pytest.approx(2 + 4 + 40 + 1)


def test_what_is_lost_before_a_stage_lengthens_the_chain(script: Script) -> None:
    lost = simulate([script], 100, Overheads(task_s=9.0, stage_s=1.0, search_s=2.0)).use
    assert lost.span_s == pytest.approx(CHAIN_S + 5 * 1 + 2)  # from the first trial on


def test_one_slot_is_never_idle_and_many_tasks_fill_many(script: Script) -> None:
    copies = [replace(script, name=str(i)) for i in range(6)]
    alone = simulate(copies, 1).use
    assert (alone.busy, alone.span_s) == pytest.approx((1.0, 6 * WORK_S))
    two = simulate(copies, 2).use
    assert two.busy > 0.9
    assert two.busy_s == pytest.approx(6 * WORK_S)
    assert simulate(copies, 2).intervals == simulate(copies, 2).intervals


def test_long_tasks_first_shorten_the_run(script: Script) -> None:
    short = [replace(script, name=f"short {i}") for i in range(5)]
    stages = {stage: [5 * s for s in trials] for stage, trials in STAGES.items()}
    tasks = [*short, Script("long", script.settings, stages, 5.0, 2.5)]
    assert simulate(tasks, 2).use.span_s < simulate(tasks, 2, given_order=True).use.span_s


def test_recorded_tasks_and_the_shape_of_paper() -> None:
    tasks = read_recorded()
    assert any("l2g" in task.arms for task in tasks)
    for task in tasks:
        recorded = script_as_recorded(task)
        assert 0 < recorded.chain <= recorded.work
        # A member a fold and seed; an arm that no seed changes has one a fold, after a fit to the given split.
        assert len(task.trials["cnn"]) == task.seeds * recorded.settings.folds
        assert len(task.trials["gapped_kmer"]) == 1 + recorded.settings.folds
        if "l2g" not in task.arms:
            continue
        paper = script_paper(task)
        assert len(paper.stages["trials"]) == paper.settings.finetune.trials == 24
        # Of 25 epochs, the first trials to stop have the 3 before the first rung.
        assert min(paper.stages["trials"]) == pytest.approx(max(paper.stages["trials"]) * 3 / 25)
    # The plan ranks the tasks as their costs in benchmarks/simulation/recorded.json do, which is a file: nothing is timed.
    costs, work = [task.total_s / task.seeds for task in tasks], [task.work for task in tasks]
    assert work.index(max(work)) == costs.index(max(costs))
    assert spearmanr(work, costs).statistic > 0.85
