"""Settings of every stage, validated before anything starts; presets are YAML files in `presets/`.

Precedence, weakest first: the preset, the task's overrides for it, command-line `--set key.path=value`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal

from pydantic import BaseModel, Field, field_validator

from l2g_ray.arms import ARMS
from l2g_ray.config.backbones import BACKBONES, Backbone
from l2g_ray.config.sections import (
    AUTO_SHIFT_BP,
    AlignSettings,
    BaselinesSettings,
    ClusterSettings,
    DataSettings,
    EmbedderOnlySettings,
    EvaluateSettings,
    FinetuneSettings,
    ModelSettings,
    OneCycleSettings,
    OptimSettings,
    PretrainSettings,
    SearchSettings,
    Section,
    SelectSettings,
    refuse_unknown,
)
from l2g_ray.errors import UserError, nearest

__all__ = [
    "AUTO_SHIFT_BP",
    "BACKBONES",
    "AlignSettings",
    "Backbone",
    "BaselinesSettings",
    "ClusterSettings",
    "DataSettings",
    "EmbedderOnlySettings",
    "EvaluateSettings",
    "FinetuneSettings",
    "ModelSettings",
    "OneCycleSettings",
    "OptimSettings",
    "PretrainSettings",
    "SearchSettings",
    "SelectSettings",
    "Settings",
    "check_keys",
    "known_keys",
    "resolve_precision",
]


class Settings(Section):
    """All settings of a run.

    `folds`: for each fold of the training and validation rows, every arm is trained on the rows of the other folds; it
    predicts with the mean of these models. With 0, an arm is trained once on the training split, and the ensemble's weights
    come from the validation split. `arms`: see `l2g_ray.arms`.
    """

    preset: str = "fast"
    """Name of the preset or of the file of settings."""
    caution: str = ""
    """Warning in every row of the leaderboard."""
    seed: int = Field(default=0, ge=0)
    """First seed."""
    seeds: int = Field(default=1, ge=1)
    """Number of seeds with which every arm is trained."""
    folds: int = Field(default=5, ge=0)
    """Folds of the training and validation rows, with one model each; 0 trains once and uses the validation split."""
    arms: tuple[str, ...] = tuple(ARMS)
    """Arms to train, as a list or 'all'."""
    ensemble: Literal["stack", "greedy", "mean", "best"] = "stack"
    """How predictions of the arms are combined: ridge regression (stack), greedy selection, their mean, or the best
    arm alone."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Number format of training; auto is bf16 on a GPU and on CPUs where a measurement shows that it is faster, else fp32."""
    data: DataSettings = DataSettings()
    """Splits, leakage, augmentation, and how rows reach a trial."""
    model: ModelSettings = ModelSettings()
    """The embedder and the language model."""
    pretrain: PretrainSettings = PretrainSettings()
    """Continued pre-training of the language model on the training sequences."""
    select: SelectSettings = SelectSettings()
    """Selection of the backbone and of its kernel size."""
    search: SearchSettings = SearchSettings()
    """Search of the architecture by DASH."""
    align: AlignSettings = AlignSettings()
    """Training of the embedder, aligned to text embeddings."""
    finetune: FinetuneSettings = FinetuneSettings()
    """Fine-tuning, and its search by ASHA."""
    embedder_only: EmbedderOnlySettings = EmbedderOnlySettings()
    """The embedder alone with its own predictor: the control without a language model."""
    baselines: BaselinesSettings = BaselinesSettings()
    """Simple models: the baselines of the leaderboard, and the arms without an embedder."""
    evaluate: EvaluateSettings = EvaluateSettings()
    """Evaluation on the test split."""
    cluster: ClusterSettings = ClusterSettings()
    """Limits and waiting times on a cluster; no result depends on them."""

    @field_validator("arms", mode="before")
    @classmethod
    def _all_arms(cls, arms: Any) -> Any:
        return tuple(ARMS) if arms == "all" else arms

    @field_validator("arms")
    @classmethod
    def _some_arm(cls, arms: tuple[str, ...]) -> tuple[str, ...]:
        if not arms or len(set(arms)) < len(arms):
            raise ValueError("give at least one arm, and each once")
        return refuse_unknown("arm", arms, ARMS)

    @field_validator("folds")
    @classmethod
    def _is_a_split(cls, folds: int) -> int:
        if folds == 1:
            raise ValueError("one fold leaves no rows to train on; set it to 2 or more, or to 0 for a single split")
        return folds

    @property
    def reference_init(self) -> str:
        """Weights of the embedding layer for the text of `align` (both readings of "random" in the paper, Fig. 5)."""
        pretrained = self.align.reference_weights == "pretrained"
        return "pretrained" if pretrained else self.model.language_model_init

    def for_task(self, strand_specific: bool) -> Settings:
        """Return the settings with `data.shift_bp` and `model.pooling` resolved for a task, so that files and MLflow show them."""
        data = self.data.model_copy(update={"shift_bp": self.data.find_shift_bp(strand_specific)})
        model = self.model.model_copy(update={"pooling": self.model.find_pooling(strand_specific)})
        return self.model_copy(update={"data": data, "model": model})


def known_keys() -> Iterator[str]:
    """Yield every dotted key of `Settings`."""
    yield from _model_keys(Settings, "")


def _model_keys(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from _model_keys(annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def check_keys(keys: Iterable[str], where: str = "") -> None:
    """Raise UserError for the first key that is neither a setting nor a group of settings, naming the nearest one."""
    known = list(known_keys())
    for key in keys:
        if not any(key == k or k.startswith(key + ".") for k in known):
            raise UserError(f"{where}unknown key '{key}': {nearest(key, known)}")


def resolve_precision(name: str, device: str, on_cpu: str = "fp32") -> str:
    """Return the precision: 'auto' is bf16 on a GPU, and on a CPU what was measured there (`orchestrate.precision`)."""
    if name != "auto":
        return name
    return "bf16" if device == "cuda" else on_cpu
