"""CONTRIBUTING's recipes for a distance, a backbone and a benchmark, followed on a toy. Those for a stage are in test_registry.py,
for a baseline in test_baseline_table.py, for a metric in test_metric_direction.py, for a reported number in test_board.py."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import yaml
from every_stage import make_rows
from toys import tiny_config, tiny_reference, tiny_settings, toy_data

from l2g_ray import counts
from l2g_ray.config import ModelSettings
from l2g_ray.counts import default_architecture, find_channels
from l2g_ray.errors import UserError
from l2g_ray.models.backbones import BACKBONES, Architecture, Features, SearchableConv1d
from l2g_ray.models.layers import apply_mask
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


class Plain(torch.nn.Module):
    """Two convolutions, nothing else."""

    n_layers = 2
    default_kernel_size = 5
    predictor_width: int | None = None

    def __init__(
        self, in_channels: int, channels: Sequence[int], architecture: Architecture, *, causal: bool = False
    ) -> None:
        super().__init__()
        widths = (in_channels, *channels)
        self.convs = torch.nn.ModuleList(
            SearchableConv1d(widths[i], widths[i + 1], k, d, causal=causal) for i, (k, d) in enumerate(architecture)
        )
        self.out_channels = widths[-1]

    def out_length(self, length_bp: int) -> int:
        """As many as bases."""
        return length_bp

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> Features:
        """One-hot to features of the same length."""
        for conv in self.convs:
            x = apply_mask(torch.relu(conv(x)), mask)
        return x, mask


def test_a_backbone_is_a_class_and_its_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKBONES, "plain", Plain)  # type: ignore[arg-type]
    monkeypatch.setitem(counts.LAYERS, "plain", (Plain.default_kernel_size, Plain.n_layers))
    monkeypatch.setattr(ModelSettings, "plain_channels", (6, None), raising=False)
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
