"""Settings of every stage, validated before anything starts; presets are YAML files in `presets/`.

Precedence, weakest first: the preset, the task's overrides for it, command-line `--set key.path=value`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from l2g_ray.arms import ARMS, BASELINES
from l2g_ray.errors import UserError, nearest

# `data.shift_bp: auto` for tasks whose label belongs to both strands (the official code shifts by as much).
AUTO_SHIFT_BP = 3


@dataclass(frozen=True)
class Backbone:
    """What is known of an embedder's backbone without torch; its widths are `<name>_channels` of `ModelSettings`, if it has layers.

    `net`: `module:class` of the network. `costs`: `module:class` of its layers as formulas, for plans. `kernel_size`: of all
    `n_layers` layers before any search.
    """

    net: str
    costs: str
    kernel_size: int
    n_layers: int


BACKBONES = {
    "resnet": Backbone("l2g_ray.models.backbones:ResNet", "l2g_ray.plan.network:ResNetCosts", 3, 9),
    "unet": Backbone("l2g_ray.models.backbones:UNet", "l2g_ray.plan.network:UNetCosts", 3, 18),
    "deepsea": Backbone("l2g_ray.models.backbones:DeepSEA", "l2g_ray.plan.network:DeepSEACosts", 8, 3),
    "orca": Backbone("l2g_ray.models.backbones:Orca", "l2g_ray.plan.network:OrcaCosts", 1, 0),
}


def _refuse_unknown(what: str, names: tuple[str, ...], known: Mapping[str, Any]) -> tuple[str, ...]:
    for name in names:
        if name not in known:
            raise ValueError(f"unknown {what} '{name}': {nearest(name, known)}")
    return names


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataSettings(_Settings):
    """Splits, leakage, augmentation (docs/method.md, "Data"), and how rows reach a trial.

    `shift_bp` 'auto' is 0 where the label belongs to one strand, since such tasks are cut at the same place (a promoter's
    start, a splice site) and a shift moves what the label depends on; 3 elsewhere.
    `bucket_batches` sorts by length within so many batches, so that little is padded (0: not at all; nothing changes
    for sequences of one length). `residence`: rows in the object store, streamed from shards, or by what fits.
    """

    valid_fraction: float = Field(default=0.1, gt=0, lt=0.5)
    split_seed: int = 0
    keep_duplicates: bool = False
    max_length_bp: int = Field(default=20_000, gt=0)
    channels: Literal[4, 5] = 4
    rc_augment: Literal["auto", "on", "off"] = "auto"
    shift_bp: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    shuffle_window_rows: int = Field(default=50_000, gt=0)
    bucket_batches: int = Field(default=50, ge=0)
    residence: Literal["auto", "memory", "stream"] = "auto"

    def find_shift_bp(self, strand_specific: bool) -> int:
        """Return the largest shift in bp for a task, with 'auto' resolved."""
        if self.shift_bp == "auto":
            return 0 if strand_specific else AUTO_SHIFT_BP
        return self.shift_bp


class ModelSettings(_Settings):
    """The embedder and the language model (docs/method.md, "Network")."""

    language_model: str = "FacebookAI/roberta-base"
    language_model_init: Literal["pretrained", "random"] = "pretrained"
    language_model_layers: int | None = Field(default=None, ge=1)
    positions: Literal["none", "lm"] = "none"
    # embedder: no language model at all, the embedder with its own predictor in its place.
    combine: Literal["lm_only", "skip", "embedder"] = "skip"
    target_tokens: int = Field(default=32, ge=1, le=512)
    causal: bool = False
    predictor_reads: Literal["tokens", "backbone"] = "tokens"
    # What the predictors read of the tokens: their mean; their mean and max; or all of them, each place with its own weights.
    # auto: by_position where the label belongs to one strand (such sequences are cut at the same place), else mean_max.
    pooling: Literal["auto", "mean", "mean_max", "by_position"] = "auto"
    resnet_channels: tuple[int | None, int | None, int | None] = (128, 256, None)
    resnet_pool: Literal[1, 2] = 1
    resnet_tokens: Literal["full", "strided"] = "strided"
    unet_channels: tuple[int, int, int, int, int] = (64, 128, 256, 512, 512)
    deepsea_channels: tuple[int, int, int] = (320, 480, 960)

    @model_validator(mode="after")
    def _pools_what_is_read(self) -> ModelSettings:
        if self.pooling == "by_position" and self.predictor_reads != "tokens":
            raise ValueError("pooling by_position weighs tokens; set predictor_reads to tokens, or pooling to mean")
        return self

    def find_pooling(self, strand_specific: bool) -> Literal["mean", "mean_max", "by_position"]:
        """Return the pooling for a task, with 'auto' resolved."""
        if self.pooling == "auto":
            return "by_position" if strand_specific and self.predictor_reads == "tokens" else "mean_max"
        return self.pooling


class OptimSettings(_Settings):
    """One optimiser and its schedule. `decay` names the shape after the linear warm-up."""

    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    lr: float = Field(default=1e-3, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = Field(default=1e-2, ge=0)
    warmup_fraction: float = Field(default=0.1, ge=0, lt=1)
    decay: Literal["linear", "cosine", "step", "none"] = "cosine"
    step_epochs: tuple[int, ...] = ()
    step_factor: float = Field(default=0.2, gt=0, le=1)
    clip_norm: float | None = Field(default=1.0, gt=0)


class PretrainSettings(_Settings):
    """Continued pre-training of the language model on the training sequences, written as words of `word_bp` letters and
    masked. Of sequences longer than `window_bp` a window is read, at another place in each epoch."""

    enabled: bool = False
    epochs: int = Field(default=3, ge=1)
    batch_size: int = Field(default=32, ge=2)
    word_bp: int = Field(default=6, ge=1, le=12)
    window_bp: int = Field(default=600, ge=12)
    mask_fraction: float = Field(default=0.15, gt=0, lt=1)
    optim: OptimSettings = OptimSettings(lr=5e-5, betas=(0.9, 0.999), decay="linear")


class SelectSettings(_Settings):
    """Selection of the backbone and of its kernel size (docs/method.md, "select"): candidates are all `backbones` with each of
    `kernel_sizes` in every layer, or with the backbone's own kernels where there are none."""

    backbones: tuple[str, ...] = ("resnet", "unet")
    kernel_sizes: tuple[Annotated[int, Field(ge=1)], ...] = ()
    epochs: int = Field(default=1, ge=1)
    batch_size: int = Field(default=64, ge=2)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    optim: OptimSettings = OptimSettings()

    @field_validator("backbones")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return _refuse_unknown("backbone", names, BACKBONES)


class SearchSettings(_Settings):
    """DASH (docs/method.md, "search"). `form`: how the mixed convolutions are computed; 'auto' measures the fastest once a machine.

    `optim` trains the weights, and the same optimiser the logits, at `logit_lr` and without AdamW's decay. In the first
    `warm_fraction` of the epochs all operations weigh the same and the logits stay; then the temperature goes from
    `temperature` to `last_temperature`, geometrically by epoch. `weight_std`: of the initial weights; null is the
    convolutions' own rule.
    """

    enabled: bool = True
    form: Literal["auto", "by_dilation", "naive", "dense", "fft", "blocks"] = "auto"
    kernel_sizes: tuple[int, ...] = (3, 5, 7, 9, 11)
    dilations: tuple[int, ...] = (1, 3, 5, 7)
    epochs: int = Field(default=80, ge=1)
    warm_fraction: float = Field(default=0.0, ge=0, lt=1)
    batch_size: int = Field(default=128, ge=2)
    batch_fraction: float = Field(default=0.2, gt=0, le=1)
    logit_lr: float = Field(default=0.05, gt=0)
    temperature: float = Field(default=1.0, gt=0)
    last_temperature: float = Field(default=1.0, gt=0)
    weight_std: float | None = Field(default=0.01, gt=0)
    gradient_scale: float = Field(default=100.0, gt=0)
    field_penalty: float = Field(default=1e-5, ge=0)
    separable: bool = False
    augment: bool = True
    optim: OptimSettings = OptimSettings(
        optimizer="sgd",
        lr=0.1,
        nesterov=True,
        weight_decay=5e-4,
        warmup_fraction=0.0,
        decay="step",
        step_epochs=(30, 60),
    )


class AlignSettings(_Settings):
    """Embedder pre-training: L = alpha_e MMD + beta task (paper, "Embedder Pre-training")."""

    # Off: fine-tuning begins with a new embedder (vanilla cross-modal fine-tuning).
    enabled: bool = True
    epochs: int = Field(default=100, ge=1)
    task_only_epochs: int = Field(default=60, ge=0)
    alphas: tuple[float, ...] = Field(default=(1.0,), min_length=1)
    beta: float = Field(default=1.0, ge=0)
    batch_size: int = Field(default=64, ge=2)
    max_samples: int = Field(default=256, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    distance: Literal["mmd", "coral", "otdd"] = "mmd"
    source: Literal["auto", "tokens", "text", "sentences", "shuffled", "gaussian", "vocabulary"] = "auto"
    source_path: str | None = None
    per_class: int = Field(default=350, ge=1)
    # Whose embedding layer the text goes through: with a random language model, the random one or the pre-trained one.
    reference_weights: Literal["model", "pretrained"] = "model"
    optim: OptimSettings = OptimSettings()

    @model_validator(mode="after")
    def _aligns(self) -> AlignSettings:
        if not self.enabled:
            if any(a > 0 for a in self.alphas):
                raise ValueError("without the stage no alpha takes effect; set alphas to [0]")
            return self
        # Two official configs never align for this reason.
        if any(a > 0 for a in self.alphas) and self.task_only_epochs >= self.epochs:
            raise ValueError(
                f"task_only_epochs ({self.task_only_epochs}) must be below epochs ({self.epochs}), or alpha never takes effect; "
                "lower task_only_epochs or set alphas to [0]"
            )
        return self


class FinetuneSettings(_Settings):
    """Fine-tuning and its search by ASHA with HyperOpt (paper, "Fine-tuning"). A range is [low, high], a choice is a list."""

    trials: int = Field(default=8, ge=1)
    epochs: int = Field(default=8, ge=1)
    grace_epochs: int = Field(default=1, ge=1)
    reduction_factor: int = Field(default=3, ge=2)
    parallel_trials: int = Field(default=4, ge=1)
    initial_random_trials: int = Field(default=4, ge=1)
    lr_embedder: tuple[float, float] = (1e-4, 1e-3)
    lr_language_model: tuple[float, float] = (2e-5, 2e-4)
    lr_predictor: float = Field(default=1e-3, gt=0)
    weight_decay: tuple[float, float] = (1e-6, 1e-1)
    dropout: tuple[float, ...] = (0.0, 0.1, 0.2)
    batch_size: tuple[int, ...] = (32, 64)
    # lora: the weights stay, and low-rank additions to them train.
    train_layers: tuple[Literal["all", "top_half", "norms", "lora", "none"], ...] = ("all", "top_half")
    lora_rank: int = Field(default=8, ge=1)
    lora_alpha: float = Field(default=16.0, gt=0)
    trial_runner: Literal["auto", "process", "train"] = "auto"
    optim: OptimSettings = OptimSettings(warmup_fraction=0.1, decay="cosine")

    @model_validator(mode="after")
    def _ordered(self) -> FinetuneSettings:
        for name in ("lr_embedder", "lr_language_model", "weight_decay"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} must be [low, high] with 0 < low <= high, not [{low}, {high}]")
        if self.grace_epochs > self.epochs:
            raise ValueError(f"grace_epochs ({self.grace_epochs}) must not exceed epochs ({self.epochs})")
        return self


class OneCycleSettings(_Settings):
    """One cycle of the learning rate, averaged weights, no early stopping. `epochs` is their number, or the least and the
    most, between which `steps` optimiser steps decide."""

    epochs: Annotated[int, Field(ge=1)] | tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = (8, 12)
    steps: int = Field(default=1400, ge=1)
    batch_size: int = Field(default=32, ge=2)
    optim: OptimSettings = OptimSettings(lr=4e-3, weight_decay=0.02, betas=(0.9, 0.999), warmup_fraction=0.2)

    @model_validator(mode="after")
    def _ordered(self) -> OneCycleSettings:
        if not isinstance(self.epochs, int) and self.epochs[0] > self.epochs[1]:
            raise ValueError(f"epochs must be a number or [least, most], not {list(self.epochs)}")
        return self

    def count_epochs(self, n_rows: int) -> int:
        """Return the epochs for a number of training rows."""
        least, most = (self.epochs, self.epochs) if isinstance(self.epochs, int) else self.epochs
        return min(max(round(self.steps * self.batch_size / n_rows), least), most)


class EmbedderOnlySettings(OneCycleSettings):
    """The searched embedder with its own predictor, trained without the language model."""

    dropout: float = Field(default=0.0, ge=0, lt=1)


class EvaluateSettings(_Settings):
    """The one look at the test split."""

    batch_size: int = Field(default=256, ge=1)
    bootstrap_resamples: int = Field(default=1000, ge=10)
    rc_average: Literal["auto", "on", "off"] = "auto"


class BaselinesSettings(_Settings):
    """Simple models: the baselines of the leaderboard, and the arms without an embedder (`stages.baseline`, `stages.cnn`).

    `boosting_rounds`: trees an output of `kmer_boosting`. `cnn_steps`: optimiser steps of `cnn`, in whole epochs; null: as
    `counts.CNN_SCHEDULES` has it.
    """

    names: tuple[str, ...] = ("majority", "kmer_linear")
    k: int = Field(default=6, ge=1, le=8)
    boosting_rounds: int = Field(default=300, ge=1)
    cnn_steps: int | None = Field(default=None, ge=1)
    # More rows than this are drawn from at random.
    max_train_rows: int = Field(default=100_000, ge=1)
    # A hub id or folder of a model that reads DNA by its own tokenizer; words: overlapping k-mers with blanks (DNABERT).
    genomic_model: str | None = None
    genomic_words_bp: int = Field(default=0, ge=0, le=12)

    @field_validator("names")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return _refuse_unknown("baseline", names, BASELINES)

    @model_validator(mode="after")
    def _has_model(self) -> BaselinesSettings:
        for name in self.names:
            setting = BASELINES[name].language_model
            if setting and getattr(self, setting) is None:
                raise ValueError(f"the baseline {name} needs a model; set baselines.{setting} to a hub id or a folder")
        return self


class ClusterSettings(_Settings):
    """What a run bears with; no result depends on it.

    `stall_limit_s`: a trial that ends no epoch for so long (or, where a stage has none, does not end) is taken to hang;
    its process is ended and begun again from the last epoch, twice at most. None: no limit. `storage_wait_s`: how long a
    trial waits for storage that refuses writes. `scale_wait_s`: how long a suite with --slots waits for a cluster's
    first machine.
    """

    stall_limit_s: float | None = Field(default=None, gt=0)
    storage_wait_s: float = Field(default=600.0, ge=0)
    scale_wait_s: float = Field(default=1200.0, ge=0)


class Settings(_Settings):
    """Everything that a run can be told.

    `folds`: every arm is trained once a fold of train and valid rows, on the rows of the other folds, and predicts with the
    mean of these models (0: once, on train, and validation stands in for out-of-fold rows). `arms`: what is trained, a list
    or 'all', see `l2g_ray.arms`. `ensemble`: how the arms' predictions become one: weights by ridge regression (stack) or by greedy
    selection, all alike (mean), or the best arm alone.
    """

    preset: str = "fast"
    # What to know before the scores are read; a warning of every row of the leaderboard.
    caution: str = ""
    seed: int = Field(default=0, ge=0)
    seeds: int = Field(default=1, ge=1)
    folds: int = Field(default=5, ge=0)
    arms: tuple[str, ...] = tuple(ARMS)
    ensemble: Literal["stack", "greedy", "mean", "best"] = "stack"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    pretrain: PretrainSettings = PretrainSettings()
    select: SelectSettings = SelectSettings()
    search: SearchSettings = SearchSettings()
    align: AlignSettings = AlignSettings()
    finetune: FinetuneSettings = FinetuneSettings()
    embedder_only: EmbedderOnlySettings = EmbedderOnlySettings()
    baselines: BaselinesSettings = BaselinesSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    cluster: ClusterSettings = ClusterSettings()

    @field_validator("arms", mode="before")
    @classmethod
    def _all_arms(cls, arms: Any) -> Any:
        return tuple(ARMS) if arms == "all" else arms

    @field_validator("arms")
    @classmethod
    def _some_arm(cls, arms: tuple[str, ...]) -> tuple[str, ...]:
        if not arms or len(set(arms)) < len(arms):
            raise ValueError("give at least one arm, and each once")
        return _refuse_unknown("arm", arms, ARMS)

    @field_validator("folds")
    @classmethod
    def _is_a_split(cls, folds: int) -> int:
        if folds == 1:
            raise ValueError("one fold leaves no rows to train on; set it to 2 or more, or to 0 for a single split")
        return folds

    @property
    def reference_init(self) -> str:
        """Whose weights the text of stage 2 goes through (both readings of "random" in the paper, Fig. 5)."""
        pretrained = self.align.reference_weights == "pretrained"
        return "pretrained" if pretrained else self.model.language_model_init

    def for_task(self, strand_specific: bool) -> Settings:
        """Return the settings with `data.shift_bp` and `model.pooling` resolved for a task, so that files and MLflow show them."""
        data = self.data.model_copy(update={"shift_bp": self.data.find_shift_bp(strand_specific)})
        model = self.model.model_copy(update={"pooling": self.model.find_pooling(strand_specific)})
        return self.model_copy(update={"data": data, "model": model})


def known_keys() -> Iterator[str]:
    """Every dotted key of `Settings`."""
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


def resolve_precision(name: str, device: str) -> str:
    """'auto' is bf16 on a GPU, else fp32 (on a CPU with avx512_bf16, autocast was slower than fp32 at these sizes)."""
    if name != "auto":
        return name
    return "bf16" if device == "cuda" else "fp32"
