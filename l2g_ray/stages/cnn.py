"""The small CNN: one cycle of the learning rate, averaged weights, a length of training that no validation row chooses."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from l2g_ray.config import OptimSettings, Settings
from l2g_ray.models.cnn import SmallCNN, SmallCNNConfig
from l2g_ray.stages.baseline import NotApplicable
from l2g_ray.stages.common import TaskData, count_steps, make_batches, make_losses, make_validate, use_rc
from l2g_ray.stages.loop import LoopSettings, Runtime, TrainResult, train
from l2g_ray.stages.optim import make_optimizer, make_schedule


@dataclass(frozen=True)
class Recipe:
    """How one form of the network trains: enough epochs for `rows` rows to pass, within `epochs` (least, most)."""

    lr: float
    batch_size: int
    steps: int
    epochs: tuple[int, int]

    def count_epochs(self, n_rows: int) -> int:
        """Epochs for so many training rows."""
        least, most = self.epochs
        return min(max(round(self.steps * self.batch_size / n_rows), least), most)


ANYWHERE = Recipe(lr=4e-3, batch_size=32, steps=1400, epochs=(8, 12))
BY_POSITION = Recipe(lr=2e-3, batch_size=64, steps=1000, epochs=(8, 16))


def build_cnn(data: TaskData, settings: Settings, seed: int) -> SmallCNN:
    """A new network: read out by position where the label belongs to one strand (and motifs have their places)."""
    torch.manual_seed(seed)
    by_position = not use_rc(settings, data.task)
    net = SmallCNN(SmallCNNConfig(data.length_bp, data.task.n_outputs, by_position))
    net.predictor.set_label_scale(data.label_offset, data.label_scale)
    return net


def train_cnn(data: TaskData, settings: Settings, runtime: Runtime, seed: int) -> TrainResult:
    """Train to the end of the schedule; the result is the average of the weights of about the last epoch.

    Raises NotApplicable where the loss ceases to be finite.
    """
    net = build_cnn(data, settings, seed).to(runtime.device)
    recipe = BY_POSITION if net.config.by_position else ANYWHERE
    epochs, steps = recipe.count_epochs(data.train.n_rows), count_steps(data, recipe.batch_size)
    optim = OptimSettings(lr=recipe.lr, weight_decay=0.02, betas=(0.9, 0.999), warmup_fraction=0.2, decay="cosine")
    result = train(
        net,
        make_optimizer(optim, [(net.parameters(), optim.lr)]),
        make_schedule(optim, epochs, steps),
        LoopSettings(epochs, steps, seed, clip_norm=1.0, keep_last=True, average_weights=True),
        runtime,
        batches=make_batches(settings, data, recipe.batch_size, seed),
        losses=make_losses(net, data.task, data.label_scale),
        validate=make_validate(net, data, runtime),
    )
    if not math.isfinite(result.history[-1]["train_loss"]):
        raise NotApplicable("cnn: the loss ceased to be finite")
    return result
