"""What one row costs the small CNN of the ensemble, by formulas; `tests/test_plan_counts.py` compares with the real module."""

from __future__ import annotations

import math

from l2g_ray.config import OneCycleSettings, Settings
from l2g_ray.counts import CNN_DENSE, CNN_LAYERS, CNN_MOST_PLACES, choose_cnn_schedule, use_rc
from l2g_ray.orchestrate.plan_costs import FLOAT_BYTES, Counted, Shape, Tally
from l2g_ray.orchestrate.plan_rows import Rows
from l2g_ray.tasks.schema import Task


def count_arm(settings: Settings, task: Task, rows: Rows, precision: str) -> tuple[OneCycleSettings, Counted]:
    """Return the schedule and the costs of the arm `cnn`."""
    by_position = not use_rc(settings, task)
    return choose_cnn_schedule(settings, by_position), count_cnn(
        rows.length_bp,
        rows.max_bp,
        task.n_outputs,
        by_position=by_position,
        masked=rows.is_padded,
        precision=precision,
    )


def count_cnn(
    length_bp: int, longest_bp: int, n_outputs: int, *, by_position: bool, masked: bool = False, precision: str = "fp32"
) -> Counted:
    """Costs of `models.cnn.SmallCNN` for rows of `length_bp`, built for sequences of up to `longest_bp`."""
    tally = Tally(2 if precision == "bf16" else FLOAT_BYTES)
    x, places = Shape(4, length_bp, is_input=True), longest_bp
    for filters, kernel, size in CNN_LAYERS[by_position]:
        x = tally.normalise(tally.convolve(x, filters, kernel, x.length), masked)
        x = tally.activate(x)
        x = Shape(filters, x.length) if masked else x
        places = math.ceil(places / size)
        x = tally.pool(x, size, masked) if size > 1 else x
    if not by_position:
        tally.linear(tally.drop(tally.reach_highest(x), 1.0), n_outputs)
        return tally.counted()
    size = math.ceil(places / CNN_MOST_PLACES)
    x = tally.pool(x, size, masked) if size > 1 else x
    flat = Shape(x.channels * math.ceil(places / size), 1)
    hidden = tally.linear(tally.drop(tally.normalise(flat, False), 1.0), CNN_DENSE)
    tally.linear(tally.drop(tally.activate(hidden), 1.0), n_outputs)
    return tally.counted()
