"""The models that a run trains side by side: arms, of which the ensemble is made, and baselines, which it is compared with.

A new baseline is an entry of `BASELINES` and the function that fits it; to be an arm too, its name goes into `ARMS`.
Kept free of torch, and of settings, which are checked by these tables.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from l2g_ray.errors import UserError, nearest

if TYPE_CHECKING:
    from l2g_ray.config import Settings

# What a run predicts with: its arms, weighted.
ENSEMBLE = "ensemble"
# In the table of held-out rows: the ensemble without an arm.
WITHOUT = "without_"


@dataclass(frozen=True)
class ModelKind:
    """What a baseline or an arm is.

    Parameters
    ----------
    about : a line for people.
    fit : `module:function` that fits a baseline: (`stages.context.Context`, the job's arguments) to the model and the values
        of its result. Empty for an arm that is a stage of the method.
    options : what `fit` reads of this entry.
    count : `module:function` of what a plan counts: (settings, task, `plan.rows.Rows`, precision) to the schedule and the
        `plan.costs.Counted` of one model. Empty: it takes next to nothing.
    net : `module:class` of the arm's network, as `models.l2g` stores it; the class names its `config_type`.
    title : its name in tables; empty if that is the name in settings.
    explained : how contributions of bases are computed, by 'gradients' or 'exact'; empty if they are not.
    simple : k-mers and trees, which any larger model must beat to be worth its cost.
    seeded : another seed gives another model.
    tuned : a strength is chosen on the validation split before the folds are fitted.
    trained : by gradients, so that its key has the precision.
    embeds : it has an embedder with the selected backbone.
    one_strand : why it fits only tasks whose label belongs to one strand; empty if it fits others too.
    few_outputs : why it fits only tasks of few outputs (`models.baselines.MANY_OUTPUTS`), with `{n}` for their number.
    own : settings of `baselines` that it alone reads; its key has those that are not the default.
    key : settings to further parts of its key.
    language_model : the setting of `baselines` that names its language model, whose files are part of its key.
    """

    about: str = ""
    fit: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    count: str = ""
    net: str = ""
    title: str = ""
    explained: str = ""
    simple: bool = False
    seeded: bool = True
    tuned: bool = False
    trained: bool = False
    embeds: bool = False
    one_strand: str = ""
    few_outputs: str = ""
    own: tuple[str, ...] = ()
    key: Callable[[Settings], dict[str, Any]] = lambda settings: {}
    language_model: str = ""

    def load_fit(self) -> Callable[..., tuple[Any, dict[str, Any]]]:
        """Import and return the function that fits it."""
        return pkgutil.resolve_name(self.fit)  # type: ignore[no-any-return]


def _embedder_only_section(settings: Settings) -> dict[str, Any]:
    return {"embedder_only": settings.embedder_only.model_dump(mode="json")}


def _finetune_section(settings: Settings) -> dict[str, Any]:
    stage = settings.finetune
    optim = stage.optim.model_dump(mode="json")
    return {
        "finetune": {"epochs": stage.epochs, "optim": optim, "lr": stage.lr_predictor},
        "batch_size": min(stage.batch_size),
    }


def _kmers(about: str, form: str, features: str, **others: Any) -> ModelKind:
    options = {"form": form, "features": features}
    return ModelKind(
        about, "l2g_ray.stages.baseline:fit", options, **{"simple": True, "seeded": form == "boosting"} | others
    )


BASELINES: dict[str, ModelKind] = {
    "majority": _kmers("the classes' frequencies, or the labels' means", "constant", "none"),
    "kmer_linear": _kmers("TF-IDF of 6-mers, logistic or ridge regression", "linear", "tfidf"),
    "one_hot_linear": _kmers("one-hot of the whole sequence, logistic or ridge regression", "linear", "one_hot"),
    "gapped_kmer": _kmers(
        "TF-IDF of gapped k-mers of 21 patterns, logistic or ridge regression",
        "linear",
        "gapped",
        tuned=True,
        explained="exact",
    ),
    "positional_kmer": _kmers(
        "words of up to 4 letters at their places (strand-specific tasks), logistic or ridge regression",
        "linear",
        "places",
        tuned=True,
        explained="exact",
        one_strand="where both strands are the same example, a word has no place",
    ),
    "kmer_boosting": _kmers(
        "counts of 1- to 6-mers, boosted trees (LightGBM)",
        "boosting",
        "short",
        few_outputs="one set of trees an output is too many for {n} outputs",
        own=("boosting_rounds",),
    ),
    "cnn": ModelKind(
        "three convolutions, one cycle of the learning rate, averaged weights",
        "l2g_ray.stages.cnn:fit",
        count="l2g_ray.plan.network:count_arm",
        net="l2g_ray.models.baselines:SmallCNN",
        explained="gradients",
        trained=True,
        own=("cnn_steps",),
    ),
    "deepstarr": ModelKind(
        "the DeepSTARR CNN, trained as the embedder alone is",
        "l2g_ray.stages.deepstarr:fit",
        net="l2g_ray.models.baselines:DeepSTARR",
        trained=True,
        key=_embedder_only_section,
    ),
    "genomic_lm": ModelKind(
        "a genomic language model by its own tokenizer (--language-model), all weights fine-tuned",
        "l2g_ray.stages.genomic_lm:fit",
        trained=True,
        key=_finetune_section,
        language_model="genomic_model",
    ),
}
# In the order in which `arms: all` trains them.
ARMS: dict[str, ModelKind] = {
    **{name: BASELINES[name] for name in ("gapped_kmer", "kmer_boosting", "positional_kmer", "cnn")},
    "embedder_only": ModelKind(title="embedder only", explained="gradients", embeds=True),
    "l2g": ModelKind(title="L2G", explained="gradients", embeds=True),
}


def find_baseline(name: str) -> ModelKind:
    """Return a baseline. Raises UserError for an unknown name."""
    if name not in BASELINES:
        raise UserError(f"unknown baseline '{name}': {nearest(name, BASELINES)}")
    return BASELINES[name]


def is_seeded(name: str) -> bool:
    """Return whether another seed gives another model; False for a name that is no model's."""
    kind = ARMS.get(name) or BASELINES.get(name)
    return kind is not None and kind.seeded


def name_arm(name: str) -> str:
    """Return the name of an arm or a baseline for people; other names as they are."""
    kind = ARMS.get(name) or BASELINES.get(name)
    return (kind.title if kind else "") or name


def count_splits(settings: Settings) -> int:
    """Return how many models of each arm and seed there are: one a fold, or one."""
    return max(1, settings.folds)
