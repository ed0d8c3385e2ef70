"""What the report shows of a task beyond its row of the leaderboard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from l2g_ray.results.explained import Part
from l2g_ray.results.figures import Epoch


@dataclass(frozen=True)
class TaskDetails:
    """What the report shows of one task beyond its row of the leaderboard.

    `task` is the row's name. `labels` are the classes or outputs. `metrics` maps an arm ("ensemble", "L2G", ...)
    to its metrics; a metric is a number or a score {mean, ci95}. `history` holds the records that `figures` draws.
    `predictions` has one row a test sequence: classification, the class names in the columns `label` and
    `prediction`; regression, the columns `label_<output>` and `prediction_<output>`. Curves are drawn where it has
    `probability_<class>` too. Other frames are not drawn.
    `group` is the type of task that means are taken over. `trials` are those of the fine-tuning search in order (`trial`
    its settings, `epochs`, `best_score`, `history`, `error`), `rungs` the epochs at which they were compared. `findings`
    are those of the data check (`level`, `text`), and `check` is all of it (`data.check.splits.check_splits`).
    `settings` and `preset` map dotted keys to the task's settings and to those of its preset. `explained` was made of the
    model later (see `explained`). `manifest` is shown as it is: counts, splits, dropped rows.
    """

    task: str
    kind: str
    labels: Sequence[str]
    title: str = ""
    description: str = ""
    source: str = ""
    licence: str = ""
    group: str = ""
    metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    history: Sequence[Epoch] = ()
    predictions: pd.DataFrame | None = None
    trials: Sequence[Mapping[str, Any]] = ()
    rungs: Sequence[int] = ()
    findings: Sequence[Mapping[str, Any]] = ()
    check: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    preset: Mapping[str, Any] = field(default_factory=dict)
    explained: Sequence[Part] = ()
    manifest: Mapping[str, Any] = field(default_factory=dict)
