"""Batches that were cut for lack of memory: told once each, and in the leaderboard; trials with several workers."""

from __future__ import annotations

import pytest

from l2g_ray.errors import UserError
from l2g_ray.monitor.events import Board, Epoch, Note, TrialName, warn_of_cuts
from l2g_ray.orchestrate.cluster import Slots, measure_slots


def test_a_cut_is_told_when_it_begins_and_when_it_deepens() -> None:
    board = Board()
    name = TrialName("toy", "refit", "seed-0", "k", {})
    for epoch, micro in enumerate((1, 2, 2, 4)):
        row = {"epoch": epoch, "train_loss": 0.5} | ({"micro_batches": micro} if micro > 1 else {})
        board.put(Epoch.from_row(name, row))
    events = board.drain()
    notes = [event.text for event in events if isinstance(event, Note)]
    assert [note.partition(";")[0] for note in notes] == [
        "toy: refit seed-0: memory did not suffice in epoch 2",
        "toy: refit seed-0: memory did not suffice in epoch 4",
    ]
    assert "4 micro-batches" in notes[1]
    assert [event.row.get("micro_batches") for event in events if isinstance(event, Epoch)] == [None, 2, 2, 4]


def test_the_leaderboard_is_warned_with_the_price() -> None:
    rows = [{"epoch": 0}, {"epoch": 1, "micro_batches": 2}, {"epoch": 2, "micro_batches": 4}]
    assert warn_of_cuts({"align/abc": [{"epoch": 0}]}) == []
    (warning,) = warn_of_cuts({"refit/a": rows, "refit/b": rows[:2], "finetune/00": rows[:2], "align/c": []})
    assert "refit (up to 4), finetune (up to 2)" in warning
    assert "batch norm" in warning


def test_slots_of_trials_with_several_workers() -> None:
    nodes = [{"CPU": 4.0}, {"CPU": 3.0}]
    assert measure_slots(nodes, workers=2) == Slots(3, 1, 0.0, 2)
    assert measure_slots([{"CPU": 8, "GPU": 2.0}, {"CPU": 8, "GPU": 1.0}], 1, 1.0, workers=2).count == 1
    with pytest.raises(UserError, match="8 workers needs 8 times 1 CPU and 0 GPU, but the cluster has room for 7"):
        measure_slots(nodes, workers=8)
