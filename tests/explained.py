"""A model's folder without training: random weights, known task."""

from __future__ import annotations

from pathlib import Path

import torch
from toys import make_task

from l2g_ray.models.embedder import EmbedderConfig, EmbedderNet
from l2g_ray.models.l2g import L2GConfig, L2GModel, save_model
from l2g_ray.models.language_model import LanguageModel, load_transformer
from l2g_ray.orchestrate.outcome import write_best
from l2g_ray.tasks.schema import Task
from l2g_ray.tasks.stored import write_task_file

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
    """A task's folder with `model/`, as a run leaves it."""
    task = task or make_task()
    (folder / "model").mkdir(parents=True)
    save_model(make_net(task.n_outputs), folder / "model")
    write_task_file(folder / "model", task, strand_averaged, LENGTH_BP)
    return folder


def write_arms(folder: Path, language_model: Path, best: str | None = "average", kind: str = "binary") -> Path:
    """A task's folder with L2G in `model/`, `embedder_only/` and, unless None, the chosen one in `best/`; see `write_best`."""
    task = make_task(kind)
    torch.manual_seed(1)
    net = make_net(task.n_outputs, seed=1)
    whole = L2GModel(L2GConfig(net.config), net, LanguageModel(load_transformer(str(language_model))))
    torch.nn.init.normal_(whole.head.linear.weight)
    for name, model in {"model": whole.eval(), "embedder_only": make_net(task.n_outputs, seed=2)}.items():
        (folder / name).mkdir(parents=True)
        save_model(model, folder / name)
    if best is not None:
        members = {"l2g": ["model"], "embedder_only": ["embedder_only"]}.get(best, ["model", "embedder_only"])
        write_best(folder / "best", [folder / name for name in members], kind)
    for path in folder.iterdir():
        write_task_file(path, task, True, LENGTH_BP)
    return folder
