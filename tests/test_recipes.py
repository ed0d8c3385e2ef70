"""CONTRIBUTING's recipes for a distance, a backbone and a benchmark, followed on a toy. Those for a stage are in test_registry.py,
for a baseline in test_baseline_table.py, for a metric in test_metric_direction.py, for a reported number in test_board.py."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch_counts
import yaml
from every_stage import make_rows
from test_plan import ROWS, shape_of
from test_plan_counts import compare
from toys import make_pipeline, make_task, tiny_config, tiny_reference, tiny_settings, toy_data

from l2g_ray.config import BACKBONES, Backbone, ModelSettings, Settings
from l2g_ray.counts import Candidate, default_architecture, find_channels
from l2g_ray.data.splits import Fold
from l2g_ray.errors import UserError
from l2g_ray.explain.rules import apply_rules
from l2g_ray.models.backbones import Architecture, Features, SearchableConv1d
from l2g_ray.models.embedder import EmbedderConfig, EmbedderNet
from l2g_ray.models.layers import Composed, apply_mask
from l2g_ray.plan.costs import Shape
from l2g_ray.plan.encoder import read_shape
from l2g_ray.plan.network import Costs, count_net
from l2g_ray.plan.plan import plan_task
from l2g_ray.stages import distances
from l2g_ray.stages.align import train_aligned
from l2g_ray.stages.loop import Runtime
from l2g_ray.stages.search import search_architecture
from l2g_ray.stages.select import train_backbone
from l2g_ray.tasks import catalogue

ROOT = Path(__file__).parents[1]


def test_a_distance_is_a_function_and_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def means(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        seen.append((source.shape, target.shape))
        return (source.mean(0) - target.mean(0)).square().sum()

    monkeypatch.setitem(distances.SAMPLE_DISTANCES, "means", means)
    data = toy_data(64)
    settings = tiny_settings(align__task_only_epochs=0, align__epochs=1)
    settings = settings.model_copy(update={"align": settings.align.model_copy(update={"distance": "means"})})
    config = tiny_config(data, settings)
    trained = train_aligned(data, settings, tiny_reference(), Runtime(), config=config, alpha=1.0, seed=0)
    assert len(trained.history) == 1
    assert seen
    assert all(source == target for source, target in seen)


class Plain(Composed):
    """Two convolutions, nothing else."""

    options: tuple[str, ...] = ("causal",)
    predictor_width: int | None = None

    def __init__(
        self, in_channels: int, channels: Sequence[int], architecture: Architecture, *, causal: bool = False
    ) -> None:
        super().__init__()
        widths = (in_channels, *channels)
        self.convs = torch.nn.ModuleList(
            SearchableConv1d(widths[i], widths[i + 1], k, d, causal=causal) for i, (k, d) in enumerate(architecture)
        )
        self.activations = torch.nn.ModuleList(torch.nn.ReLU() for _ in architecture)
        self.out_channels = widths[-1]

    def out_length(self, length_bp: int) -> int:
        """As many as bases."""
        return length_bp

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> Features:
        """One-hot to features of the same length."""
        for conv, activation in zip(self.convs, self.activations, strict=True):
            x = apply_mask(activation(conv(x)), mask)
        return x, mask


class PlainCosts(Costs):
    """Of `Plain`."""

    def add_layers(self, x: Shape) -> Shape:
        """Two convolutions, each with its ReLU."""
        for out in self.net.channels:
            x = self.tally.activate(self.convolve(x, out))
        return x


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Plain` as a backbone: its entry, its widths, and a module with both classes."""
    module = ModuleType("plain")
    module.Plain, module.PlainCosts = Plain, PlainCosts  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "plain", module)
    monkeypatch.setitem(BACKBONES, "plain", Backbone("plain:Plain", "plain:PlainCosts", 5, 2))
    monkeypatch.setattr(ModelSettings, "plain_channels", (6, None), raising=False)


@pytest.mark.usefixtures("plain")
def test_a_backbone_is_a_class_and_its_entry() -> None:
    data, settings = make_rows("binary"), tiny_settings(search__enabled=True)
    assert find_channels(settings.model, "plain", 8) == (6, 8)
    trained = train_backbone(
        data,
        settings,
        tiny_reference(),
        Runtime(),
        backbone="plain",
        architecture=default_architecture("plain"),
        seed=0,
    )
    assert any(name.startswith("embedder.backbone.convs.1") for name in trained.best_state)
    found = search_architecture(data, settings, tiny_reference(), Runtime(), backbone="plain", seed=0)
    assert len(found.architecture) == 2


@pytest.mark.usefixtures("plain")
def test_settings_plans_and_contributions_need_no_more_of_a_backbone(tiny_lm: Path) -> None:
    settings = tiny_settings(tiny_lm, select__backbones=["plain"])
    with pytest.raises(UserError, match="unknown backbone 'plane': did you mean 'plain'"):
        tiny_settings(select__backbones=["plane"])
    plan = plan_task(make_task(), settings, ROWS, read_shape(str(tiny_lm)))
    assert {stage.stage for stage in plan.stages} >= {"align", "trials"}
    config = EmbedderConfig("plain", (6, 16), 60, 16, 64, 2, target_tokens=8)
    compare(count_net(shape_of(config), 50), torch_counts.count_net(config, 50), 0.01)
    net = EmbedderNet(config)
    assert apply_rules(net) is not net
    net.embedder.backbone.activations[0] = Unruled()
    with pytest.raises(UserError, match=r"embedder.backbone.activations.0' \(Unruled\) has no DeepLIFT rule"):
        apply_rules(net)


class Unruled(Plain):
    """What a subclass computes nobody knows, so it has no rule of its base's."""

    def __init__(self) -> None:
        super().__init__(4, (4, 4), ((3, 1), (3, 1)))


class WiderModel(ModelSettings):
    plain_channels: tuple[int, int | None] = (6, None)


class WiderSettings(Settings):
    model: WiderModel = WiderModel()


@pytest.mark.usefixtures("plain")
def test_widths_of_a_new_backbone_are_in_the_keys_of_its_own_embedders_alone() -> None:
    def list_keys(settings: Settings, backbone: str) -> list[str]:
        pipeline, shape = make_pipeline(settings), Candidate(backbone, backbone, [(3, 1)])
        warmup, fold = pipeline._warmup(shape, 0), Fold(0, 0, 0)
        jobs = [warmup, pipeline._align(shape, 1.0, 0), pipeline._embedder_only(shape, 0, fold)]
        return [job.key for job in jobs]

    settings = tiny_settings()
    first = WiderSettings.model_validate(settings.model_dump())
    model = first.model.model_copy(update={"plain_channels": (8, None)})
    wider = first.model_copy(update={"model": model})
    assert list_keys(settings, "resnet") == list_keys(first, "resnet") == list_keys(wider, "resnet")
    assert not set(list_keys(first, "plain")) & set(list_keys(wider, "plain"))


def test_a_benchmark_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = yaml.safe_load((ROOT / "l2g_ray" / "tasks" / "benches" / "uci.yaml").read_text())
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(shipped | {"name": "toy"}))
    monkeypatch.setattr(catalogue, "_bench_folder", lambda: tmp_path)
    assert catalogue.list_benches() == ["toy"]
    assert [(task.bench, task.name) for task in catalogue.find_tasks("toy")] == [("toy", "splice_junction")]
    (tmp_path / "other.yaml").write_text((tmp_path / "toy.yaml").read_text())
    with pytest.raises(UserError, match="write other, the name of the file"):
        catalogue.load_bench("other")


def test_every_file_of_a_recipe_is_there() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    recipes = page[page.index("## Adding") :]
    named = set(re.findall(r"`((?:l2g_ray|tests|docs)/[\w/.]+\.(?:py|yaml|md))`", recipes))
    assert len(named) > 15
    assert not [name for name in named if not (ROOT / name).exists()]
