"""The small CNN: one cycle of the learning rate, averaged weights, a length of training that no validation row chooses."""

from __future__ import annotations

import math
from typing import Any

import torch

from l2g_ray.config import Settings
from l2g_ray.counts import choose_cnn_schedule, use_rc
from l2g_ray.models.baselines import SmallCNN, SmallCNNConfig
from l2g_ray.stages.baseline import NotApplicable, keep_best
from l2g_ray.stages.context import Context, TaskData, train_one_cycle
from l2g_ray.stages.loop import Runtime, TrainResult


def build_cnn(data: TaskData, settings: Settings, seed: int) -> SmallCNN:
    """Return a new network: read out by position where the label belongs to one strand (and motifs have their
    places).
    """
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
    stage = choose_cnn_schedule(settings, net.config.by_position)
    result = train_one_cycle(net, data, settings, runtime, stage, seed)
    if not math.isfinite(result.history[-1]["train_loss"]):
        raise NotApplicable("the loss ceased to be finite")
    return result


def fit(context: Context, args: dict[str, Any]) -> tuple[SmallCNN, dict[str, Any]]:
    """Train it, and return the model and the values of its result."""
    training = train_cnn(context.data, context.settings, context.runtime, args["seed"])
    net = build_cnn(context.data, context.settings, args["seed"])
    return net, keep_best(net, training)
