"""The arms of a run: predictors that are trained side by side on the same rows, and of which the ensemble is made.

Kept free of torch. What each of them is: `stages.baseline` (k-mers, trees), `stages.cnn`, `stages.embedder_only`, and the
whole method, L2G.
"""

from __future__ import annotations

from dataclasses import dataclass

from l2g_ray.config import Settings
from l2g_ray.counts import use_rc
from l2g_ray.tasks.schema import Task

# What a run predicts with: its arms, weighted.
ENSEMBLE = "ensemble"
# In the table of held-out rows: the ensemble without an arm.
WITHOUT = "without_"


@dataclass(frozen=True)
class ArmKind:
    """What an arm is.

    simple : k-mers and trees, which any larger model must beat to be worth its cost.
    seeded : another seed gives another model.
    tuned : a strength is chosen on the validation split before the folds are fitted.
    """

    simple: bool = False
    seeded: bool = True
    tuned: bool = False


ARMS: dict[str, ArmKind] = {
    "gapped_kmer": ArmKind(simple=True, seeded=False, tuned=True),
    "kmer_boosting": ArmKind(simple=True),
    "positional_kmer": ArmKind(simple=True, seeded=False, tuned=True),
    "cnn": ArmKind(),
    "embedder_only": ArmKind(),
    "l2g": ArmKind(),
}


def find_arms(settings: Settings, task: Task) -> list[str]:
    """The arms that a task is trained with: words have places only where the label belongs to one strand."""
    return [name for name in settings.arms if name != "positional_kmer" or not use_rc(settings, task)]


def count_splits(settings: Settings) -> int:
    """How many models of each arm and seed there are: one a fold, or one."""
    return max(1, settings.folds)
