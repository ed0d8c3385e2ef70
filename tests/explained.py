"""A model's folder without training: random weights, known task."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from toys import make_task, plant

from l2g_ray.arms import ENSEMBLE
from l2g_ray.models.baselines import Baseline, BaselineConfig, SmallCNN, SmallCNNConfig
from l2g_ray.models.embedder import EmbedderConfig, EmbedderNet
from l2g_ray.models.ensemble import AverageModel, Combination, Ensemble
from l2g_ray.models.l2g import L2GConfig, L2GModel, load_model, save_model
from l2g_ray.models.language_model import LanguageModel, load_transformer
from l2g_ray.sequence import encode
from l2g_ray.tasks.schema import Task, write_task_file

LENGTH_BP = 40


def make_net(n_outputs: int, length_bp: int = LENGTH_BP, seed: int = 0) -> EmbedderNet:
    """A small embedder whose outputs depend on every base: large random weights in the predictor."""
    torch.manual_seed(seed)
    config = EmbedderConfig("resnet", (8, 8, 8), length_bp, 16, 64, n_outputs, target_tokens=8)
    net = EmbedderNet(config)
    with torch.no_grad():
        net.predictor.linear.weight.normal_(0, 1)
    return net.eval()


def write_model(folder: Path, task: Task | None = None, strand_averaged: bool = True) -> Path:
    """A task's folder with `model/` alone, as the first versions left it."""
    task = task or make_task()
    (folder / "model").mkdir(parents=True)
    save_model(make_net(task.n_outputs), folder / "model")
    write_task_file(folder / "model", task, strand_averaged, LENGTH_BP)
    return folder


def write_arms(folder: Path, language_model: Path, best: str | None = "average", kind: str = "binary") -> Path:
    """A task's folder as it was before ensembles: L2G in `model/`, `embedder_only/` and, unless None, the chosen one in
    `best/`, a copy or the average of both."""
    task = make_task(kind)
    for name, model in {
        "model": make_l2g(task, language_model, 1),
        "embedder_only": make_net(task.n_outputs, seed=2),
    }.items():
        (folder / name).mkdir(parents=True)
        save_model(model, folder / name)
    if best == "average":
        (folder / "best").mkdir()
        members = [load_model(folder / name) for name in ("model", "embedder_only")]
        save_model(AverageModel(kind, members), folder / "best")
    elif best is not None:
        shutil.copytree(folder / {"l2g": "model"}.get(best, best), folder / "best")
    for path in folder.iterdir():
        write_task_file(path, task, True, LENGTH_BP)
    return folder


def make_l2g(task: Task, language_model: Path, seed: int) -> L2GModel:
    net = make_net(task.n_outputs, seed=seed)
    whole = L2GModel(L2GConfig(net.config), net, LanguageModel(load_transformer(str(language_model))))
    torch.nn.init.normal_(whole.head.linear.weight)
    return whole.eval()


def make_linear(task: Task, features: str, canonical: bool, seed: int = 0) -> Baseline:
    """A linear model with the words of a few sequences and random weights."""
    model = Baseline(BaselineConfig("linear", features, task.n_outputs, LENGTH_BP, canonical=canonical))
    codes, _ = encode(plant(30, LENGTH_BP, seed)["sequence"])
    model.features.fit(model.features.count(torch.from_numpy(codes)))
    model.weight = torch.randn(task.n_outputs, model.features.n_features, generator=torch.Generator().manual_seed(seed))
    return model.eval()


# What most of the ensemble's arms are worth in tests; the others have no weight.
WEIGHTS = {"gapped_kmer": 0.6, "embedder_only": 0.3, "cnn": 0.1}


def write_ensemble(
    folder: Path,
    language_model: Path,
    weights: Mapping[str, float] = WEIGHTS,
    kind: str = "binary",
    both_strands: bool = True,
    arms: tuple[str, ...] = ("gapped_kmer", "cnn", "embedder_only", "l2g"),
) -> Path:
    """A task's folder as a run leaves it: in `best/` an ensemble of the arms with weight, two fold models each (the small CNN
    one), in `arms/` the others."""
    task = make_task(kind, strand_specific=not both_strands)
    torch.manual_seed(3)
    made: dict[str, list[nn.Module]] = {
        "gapped_kmer": [make_linear(task, "gapped", both_strands, seed) for seed in (0, 1)],
        "positional_kmer": [make_linear(task, "places", False, seed) for seed in (0, 1)],
        "cnn": [SmallCNN(SmallCNNConfig(LENGTH_BP, task.n_outputs, not both_strands)).eval()],
        "embedder_only": [make_net(task.n_outputs, seed=seed) for seed in (4, 5)],
        "l2g": [make_l2g(task, language_model, seed) for seed in (6, 7)],
    }
    joined = {name: made[name][0] if len(made[name]) == 1 else AverageModel(kind, made[name]) for name in arms}
    flat = (0.0,) * task.n_outputs, (1.0,) * task.n_outputs
    combination = Combination(kind, tuple(weights), tuple(weights.values()), (0.0,) * task.n_outputs, *flat)
    (folder / "best").mkdir(parents=True)
    save_model(Ensemble(combination, joined, both_strands), folder / "best", ENSEMBLE)
    for name in joined.keys() - weights.keys():
        (folder / "arms" / name).mkdir(parents=True)
        save_model(joined[name], folder / "arms" / name, name)  # type: ignore[arg-type]
    for config in folder.glob("**/config.json"):
        write_task_file(config.parent, task, both_strands, LENGTH_BP)
    return folder
