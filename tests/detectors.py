"""A hand-made model that detects one motif and hardly anything else, and sequences in which it is planted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from toys import MOTIF, make_task

from l2g_ray.models.embedder import EmbedderConfig, EmbedderNet
from l2g_ray.models.l2g import save_model
from l2g_ray.sequence import ALPHABET
from l2g_ray.tasks.schema import Task, write_task_file

LENGTH_BP = 80


def make_detector(n_outputs: int = 2) -> EmbedderNet:
    """Its last output is high where MOTIF stands whole; a second, weak channel of random weights makes it noisy."""
    config = EmbedderConfig(
        "deepsea", (2, 2, 2), LENGTH_BP, 16, 64, n_outputs, target_tokens=5, predictor_reads="backbone"
    )
    net = EmbedderNet(config)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        first, *others = net.embedder.backbone.convs
        for i, letter in enumerate(MOTIF):
            first.weight[0, ALPHABET.index(letter), i] = 1.0
        # Half a unit for all seven letters, none for six.
        first.bias[0] = 0.5 - len(MOTIF)
        first.weight[1].normal_(generator=torch.Generator().manual_seed(0))
        for channel, strength in enumerate((10.0, 0.1)):
            for conv in others:
                conv.weight[channel, channel, conv.kernel_size[0] // 2] = 1.0
            net.predictor.hidden[0].weight[channel, channel] = 1.0
            net.predictor.linear.weight[n_outputs - 1, channel] = strength
    return net.eval()


def write_detector(folder: Path, task: Task | None = None) -> Path:
    """A task's folder with `model/`, as a run leaves it."""
    task = task or make_task()
    (folder / "model").mkdir(parents=True)
    save_model(make_detector(task.n_outputs), folder / "model")
    write_task_file(folder / "model", task, True, LENGTH_BP)
    return folder


def plant_sites(rows: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """Random sequences with MOTIF once in each, and where it starts (rows,)."""
    rng = np.random.default_rng(seed)
    letters = rng.choice(list(ALPHABET), (rows, LENGTH_BP))
    starts = rng.integers(5, LENGTH_BP - len(MOTIF) - 5, rows)
    for row, start in enumerate(starts):
        letters[row, start : start + len(MOTIF)] = list(MOTIF)
    return ["".join(row) for row in letters], starts
