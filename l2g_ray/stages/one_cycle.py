"""Training to the end of a fixed schedule: no validation row has a say in it."""

from __future__ import annotations

from torch import nn

from l2g_ray.config import OneCycleSettings, Settings
from l2g_ray.stages.common import TaskData, count_steps, make_batches, make_losses, make_validate
from l2g_ray.stages.loop import LoopSettings, Runtime, TrainResult, train
from l2g_ray.stages.optim import make_optimizer, make_schedule


def train_one_cycle(
    net: nn.Module, data: TaskData, settings: Settings, runtime: Runtime, stage: OneCycleSettings, seed: int
) -> TrainResult:
    """Train `net`, which is on the runtime's device, on batches that are augmented as `settings.data` says.

    The result is the exponential moving average of the weights over about the last epoch; where the loss ceases to be finite,
    that of the epoch before.
    """
    epochs, steps = stage.count_epochs(data.train.n_rows), count_steps(data, stage.batch_size)
    return train(
        net,
        make_optimizer(stage.optim, [(net.parameters(), stage.optim.lr)]),
        make_schedule(stage.optim, epochs, steps),
        LoopSettings(epochs, steps, seed, clip_norm=stage.optim.clip_norm, keep_last=True, average_weights=True),
        runtime,
        batches=make_batches(settings, data, stage.batch_size, seed, team=runtime.team),
        losses=make_losses(net, data.task, data.label_scale),
        validate=make_validate(net, data, runtime),
    )
