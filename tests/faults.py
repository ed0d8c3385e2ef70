"""What the tests of faults share: one small run, what it must end with, and stages that go wrong."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from runs import Sources, read_board, without_times

from l2g_ray.stages import registry

RUN = "user-composition-smoke"
# Of the registry; the run of these tests asks for no continued pre-training, and its simple models are done in no time.
STAGES = tuple(s.name for s in registry.STAGES.values() if s.run and s.name not in ("pretrain", "baseline"))
# Two candidates, so that there is something to select.
SETTINGS_OF_FAULTS: dict[str, Any] = {
    "select__backbones": ["resnet", "unet"],
    "finetune__trials": 2,
}
BROKEN = Path(__file__).with_name("broken")


def command(sources: Sources, out: Path, **changes: Any) -> list[str]:
    return sources.command("composition", out, **SETTINGS_OF_FAULTS | changes)


def check_same(out: Path, undisturbed: Path) -> None:
    """The same leaderboard, and nothing half-made."""
    rows = [[without_times(row) for row in read_board(folder / RUN)["tasks"]] for folder in (out, undisturbed)]
    assert rows[0] == rows[1]
    check_tidy(out)
    assert json.loads((out / RUN / "suite.json").read_text())["state"] == "finished"


def check_tidy(out: Path) -> None:
    assert not [path for pattern in ("*.work", "*.tmp", "stalled.txt") for path in out.rglob(pattern)]
    assert not list(out.glob("tune/*"))
    assert not (out / f".{RUN}.lock").exists()


def copy_stages(source: Path, out: Path, *but: str) -> Path:
    """Begin with the results of all stages but some."""
    shutil.copytree(source / "stages", out / "stages", ignore=lambda folder, names: set(but) & set(names))
    return out


def plant(tmp_path: Path, *faults: dict[str, Any]) -> dict[str, str]:
    marks = tmp_path / "marks"
    marks.mkdir()
    path = os.pathsep.join([str(BROKEN), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {"PYTHONPATH": path, "L2G_RAY_TEST_FAULTS": json.dumps([f | {"marks": str(marks)} for f in faults])}
