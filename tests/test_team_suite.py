"""A whole suite whose every trial has two workers, beside the one whose trials have one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from runs import Sources, execute, read_board, stage_folders

# Stages that train, and that depend on no trained weights of an earlier one.
FIRST = ("search", "embedder_only", "warmup")


def results(out: Path) -> dict[str, dict[str, Any]]:
    """Stage and key to `result.json`."""
    return {name: json.loads((out / "stages" / name / "result.json").read_text()) for name in stage_folders(out)}


@pytest.mark.slow
@pytest.mark.cluster
def test_a_suite_of_trials_with_two_workers(suite_of_three: Path, sources: Sources, tmp_path: Path) -> None:
    """Regression, backbone selection, DASH, warm-up, MMD, ASHA, refit: each a Ray Train run of two workers."""
    out = tmp_path / "out"
    said = execute([*sources.command("composition", out), "--workers-per-trial", "2"])
    assert "1 trial slot" in said
    (row,) = read_board(out / "user-composition-smoke")["tasks"]
    (expected,) = (one for one in read_board(suite_of_three / "three")["tasks"] if one["task"] == "composition")
    assert row["trials"] == 3
    assert row["architecture"] == expected["architecture"]
    assert row["test"]["mean"] == pytest.approx(expected["test"]["mean"], abs=0.05)

    found, alone = results(out), results(suite_of_three)
    shared = {name for name in found if not name.startswith("reference")} & alone.keys()
    assert {name.partition("/")[0] for name in shared} >= {*FIRST, "align"}, "workers are in no key"
    for name in shared:
        stage = name.partition("/")[0]
        if stage in FIRST:
            losses = [[epoch["train_loss"] for epoch in values[name]["history"]] for values in (found, alone)]
            assert losses[0] == pytest.approx(losses[1], rel=1e-4), name
    assert not list(out.rglob("*.work"))
    assert not list(out.glob("tune/*"))
