"""The stages of a task by number, their epochs and what is left: an outline made from settings, and what progress shows of it."""

from __future__ import annotations

import io
import time
from pathlib import Path

import pytest
from rich.console import Console
from runs import Sources
from toys import tiny_settings

from l2g_ray.config import Settings
from l2g_ray.data.dataset import open_prepared
from l2g_ray.data.prepare import prepare
from l2g_ray.data.raw import SourceOptions
from l2g_ray.data.sources import open_source
from l2g_ray.monitor.events import Epoch, StageBegan, StageDone, TrialName
from l2g_ray.monitor.outline import Outline, Step
from l2g_ray.monitor.progress import Progress
from l2g_ray.orchestrate.cluster import describe_start
from l2g_ray.orchestrate.outline import list_stages, outline_task
from l2g_ray.presets import resolve
from l2g_ray.storage import as_location


def names(settings: Settings) -> list[str]:
    return [name for name, _ in list_stages(settings)]


def test_the_stages_follow_from_settings() -> None:
    whole = ["reference", "select", "baseline", "arms", "embedder", "warmup", "align", "finetune", "refit", "evaluate"]
    assert names(resolve("fast", None, {"arms": "all"})) == whole
    paper = names(resolve("paper"))
    assert paper == [
        "reference",
        "select",
        "search",
        "baseline",
        "embedder",
        "warmup",
        "align",
        "finetune",
        "refit",
        "evaluate",
    ]
    simple = resolve("fast", None, {"arms": ["gapped_kmer", "cnn"], "pretrain.enabled": True})
    assert names(simple) == ["pretrain", "reference", "baseline", "arms", "evaluate"]
    alone = {"arms": ["l2g"], "baselines.names": [], "select.backbones": ["unet"], "select.kernel_sizes": []}
    unaligned = alone | {"align.enabled": False, "align.alphas": [0]}
    assert names(resolve("fast", None, unaligned)) == ["reference", "align", "finetune", "refit", "evaluate"]


def test_a_prepared_task_has_an_outline_with_the_plans_estimates(
    tmp_path: Path, sources: Sources, tiny_lm: Path
) -> None:
    settings = tiny_settings(tiny_lm).model_copy(update={"arms": ("cnn", "embedder_only", "l2g")})
    raw = open_source((str(sources.planted),), SourceOptions())
    prepare(raw, as_location(tmp_path / "prepared"), settings.data)
    prepared = open_prepared(tmp_path / "prepared")
    steps = {step.name: step for step in outline_task(prepared, settings, False, "fp32")}
    assert list(steps) == names(settings)
    for name in ("arms", "embedder", "align", "finetune", "refit"):
        assert sum(steps[name].parts) > 0, name
    assert steps["align"].epochs == settings.align.epochs
    assert steps["embedder"].epochs == settings.embedder_only.count_epochs(prepared.manifest["splits"]["train"]["rows"])
    unknown = settings.model_copy(
        update={"model": settings.model.model_copy(update={"language_model": str(tmp_path / "nowhere")})}
    )
    blind = outline_task(prepared, unknown, False, "fp32")
    assert [step.name for step in blind] == list(steps)
    assert not any(sum(step.parts) for step in blind)


def test_what_is_left_counts_cached_stages_and_shares() -> None:
    outline = Outline([Step("select", 1, (10.0,)), Step("align", 4, (20.0, 40.0)), Step("evaluate", None, (30.0,))])
    assert outline.place("align") == "stage 2 of 3"
    assert outline.place("unheard") == ""
    assert outline.measure("select", 0.5) == (5.0, 95.0)
    outline.finish("select", cached=True)
    assert outline.measure("align", 0.0) == (0.0, 90.0)
    outline.finish("align", cached=False)
    assert outline.measure("align", 0.25) == (30.0, 60.0)
    outline.close()
    assert outline.measure("align", 0.25)[1] == 0.0


STEPS = [Step("select", 1, (10.0,)), Step("align", 4, (20.0,)), Step("evaluate", None, (70.0,))]


def trial(stage: str, epoch: int, score: float = 0.5) -> Epoch:
    return Epoch(TrialName("a", stage, "x", "k", {}), {"epoch": epoch, "best_score": score})


def test_plain_lines_have_the_stages_number_its_epochs_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    said = io.StringIO()
    progress = Progress(Console(file=said, width=120), {"a": "mcc"}, "toy", {"a": STEPS})
    assert progress.describe_left() == ""
    progress.update(StageBegan("a", "select", 2))
    progress.update(trial("select", 0))
    now = 120.0
    progress.update(StageDone("a", "select", False))
    progress.update(StageBegan("a", "align", 1))
    progress.update(trial("align", 1, 0.75))
    # 10 planned seconds took 20: half of the 20 of align are done, 80 are left.
    assert progress.describe_left() == "about 01:20 left by the plan"
    progress.update(StageDone("a", "align", False))
    assert said.getvalue().splitlines() == [
        "00:00 a: select begins, 2 trials of up to 1 epoch, stage 1 of 3",
        "00:20 a: select done, 1 epoch, best validation mcc 0.500, about 03:00 left by the plan",
        "00:20 a: align begins, 1 trial of up to 4 epochs, stage 2 of 3",
        "00:20 a: align done, 2 epochs, best validation mcc 0.750, about 00:46 left by the plan",
    ]


def test_the_table_has_the_stages_number_and_its_epochs() -> None:
    progress = Progress(Console(file=io.StringIO(), width=120), {"a": "mcc"}, "toy", {"a": STEPS})
    progress.update(StageBegan("a", "align", 1))
    progress.update(trial("align", 1))
    shown = io.StringIO()
    Console(file=shown, width=120).print(progress.render())
    assert "align, stage 2 of 3" in shown.getvalue()
    assert "2 of 4" in shown.getvalue()
    assert "left by the plan" in shown.getvalue().splitlines()[0]
    progress.finish("a", "mcc 0.5")
    assert progress.describe_left() == ""


@pytest.mark.parametrize(
    ("address", "said"), [(None, "starting Ray on this machine..."), ("auto", "joining the Ray cluster at auto...")]
)
def test_the_start_of_ray_is_announced(monkeypatch: pytest.MonkeyPatch, address: str | None, said: str) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    assert describe_start() == said
