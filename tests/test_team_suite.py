"""A whole suite whose every trial has two workers, beside the one whose trials have one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from runs import Sources, execute, read_board, stage_folders

ROWS = ("n_train", "n_valid", "n_test")


def results(out: Path) -> dict[str, dict[str, Any]]:
    """Stage and key to `result.json`."""
    return {name: json.loads((out / "stages" / name / "result.json").read_text()) for name in stage_folders(out)}


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(1200)
def test_a_suite_of_trials_with_two_workers(suite_of_three: Path, sources: Sources, tmp_path: Path) -> None:
    """Regression, backbone selection, DASH, warm-up, MMD, ASHA, refit: each a Ray Train run of two workers."""
    out = tmp_path / "out"
    said = execute([*sources.command("composition", out), "--workers-per-trial", "2"])
    assert "1 trial slot" in said
    (row,) = read_board(out / "user-composition-smoke")["tasks"]
    (expected,) = (one for one in read_board(suite_of_three / "three")["tasks"] if one["task"] == "composition")
    assert row["trials"] == 3
    assert math.isfinite(row["test"]["mean"])
    assert [row[rows] for rows in ROWS] == [expected[rows] for rows in ROWS]

    found, alone = results(out), results(suite_of_three)
    shared = {name for name in found if not name.startswith("reference")} & alone.keys()
    assert any(name.startswith("search") for name in shared), "workers are in no key"
    for name in shared:
        losses = [[epoch["train_loss"] for epoch in values[name].get("history", [])] for values in (found, alone)]
        # Other rows in each batch, and another draw of dropout, so other numbers.
        assert len(losses[0]) == len(losses[1]), name
        assert all(math.isfinite(loss) for loss in losses[0]), name
        if name.startswith("embedder_only"):  # a few steps from the same weights
            assert losses[0] == pytest.approx(losses[1], rel=0.15)
    assert not list(out.rglob("*.work"))
    assert not list(out.glob("tune/*"))
