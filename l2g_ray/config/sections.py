"""The sections of the settings: one for each stage, and those of data, model, evaluation, baselines and cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from l2g_ray.arms import BASELINES
from l2g_ray.config.backbones import BACKBONES
from l2g_ray.errors import nearest

# `data.shift_bp: auto` for tasks whose label belongs to both strands (the official code shifts by as much).
AUTO_SHIFT_BP = 3


def refuse_unknown(what: str, names: tuple[str, ...], known: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names. Raises ValueError for one that is not in `known`."""
    for name in names:
        if name not in known:
            raise ValueError(f"unknown {what} '{name}': {nearest(name, known)}")
    return names


class Section(BaseModel):
    """A group of settings; the docstring of each is what `config show` prints."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class DataSettings(Section):
    """Splits, leakage, augmentation (docs/method.md, "Data"), and how rows reach a trial.

    `shift_bp` 'auto' is 0 for strand-specific tasks: their sequences are cut at the same place (a promoter's start, a splice
    site), and a shift moves what the label depends on.
    """

    valid_fraction: float = Field(default=0.1, gt=0, lt=0.5)
    """Share of the training rows used for validation where the data has no validation split."""
    split_seed: int = 0
    """Seed of random splits and folds."""
    keep_duplicates: bool = False
    """Keep training rows that overlap with the test split; by default they are removed."""
    max_length_bp: int = Field(default=20_000, gt=0)
    """Longest sequence in bp that is accepted."""
    channels: Literal[4, 5] = 4
    """Input channels: 4 encodes N as zeros, 5 gives N a channel."""
    rc_augment: Literal["auto", "on", "off"] = "auto"
    """Replace half of the training sequences by their reverse complement; auto is off for strand-specific tasks."""
    shift_bp: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Largest random shift in bp during training; auto is 0 for strand-specific tasks and 3 for others."""
    shuffle_window_rows: int = Field(default=50_000, gt=0)
    """Rows of a window, within which training rows are shuffled in each epoch."""
    bucket_batches: int = Field(default=50, ge=0)
    """Number of batches within which rows are sorted by length to reduce padding; 0 turns it off."""
    residence: Literal["auto", "memory", "stream"] = "auto"
    """How rows reach a trial: from Ray's object store (memory), from shards (stream), or by size (auto)."""

    def find_shift_bp(self, strand_specific: bool) -> int:
        """Return the largest shift in bp for a task, with 'auto' resolved."""
        if self.shift_bp == "auto":
            return 0 if strand_specific else AUTO_SHIFT_BP
        return self.shift_bp


class ModelSettings(Section):
    """The embedder and the language model (docs/method.md, "Network")."""

    language_model: str = "FacebookAI/roberta-base"
    """Language model: a Hugging Face id, a local folder, or minilm."""
    language_model_init: Literal["pretrained", "random"] = "pretrained"
    """Initial weights of the language model."""
    language_model_layers: int | None = Field(default=None, ge=1)
    """Number of layers of the language model that are used, from the first; null uses all."""
    positions: Literal["none", "lm"] = "none"
    """Position embeddings added to the tokens: none, or those of the language model (lm)."""
    combine: Literal["lm_only", "skip", "embedder"] = "skip"
    """What predicts: the language model (lm_only), the sum with the embedder's own predictor (skip), or the embedder
    alone (embedder)."""
    target_tokens: int = Field(default=32, ge=1, le=512)
    """Largest number of tokens that the language model gets from a sequence."""
    causal: bool = False
    """Use causal convolutions, as the official code does."""
    predictor_reads: Literal["tokens", "backbone"] = "tokens"
    """What the embedder's own predictor reads: the tokens after projection and LayerNorm, or the backbone's output."""
    pooling: Literal["auto", "mean", "mean_max", "by_position"] = "auto"
    """What predictors read of the tokens: their mean, mean and max, or all with weights by position; auto is
    by_position for strand-specific tasks and mean_max for others."""
    resnet_channels: tuple[int | None, int | None, int | None] = (128, 256, None)
    """Channels of the ResNet's three blocks; null is the width of the language model."""
    resnet_pool: Literal[1, 2] = 1
    """Factor by which the ResNet shortens a sequence after its first and second block; 1 keeps the length."""
    resnet_tokens: Literal["full", "strided"] = "strided"
    """Number of the ResNet's tokens: target_tokens (strided), or all that the language model reads (full)."""
    unet_channels: tuple[int, int, int, int, int] = (64, 128, 256, 512, 512)
    """Channels of the UNet's five levels."""
    deepsea_channels: tuple[int, int, int] = (320, 480, 960)
    """Channels of DeepSEA's three layers."""

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


class OptimSettings(Section):
    """One optimizer and its schedule."""

    optimizer: Literal["sgd", "adam", "adamw"] = "adamw"
    """Optimizer."""
    lr: float = Field(default=1e-3, gt=0)
    """Largest learning rate; fine-tuning searches its own instead."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of SGD."""
    nesterov: bool = False
    """Use Nesterov momentum with SGD."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Decay rates of Adam's and AdamW's moments."""
    weight_decay: float = Field(default=1e-2, ge=0)
    """Weight decay; fine-tuning searches its own instead."""
    warmup_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of all steps in which the learning rate rises linearly to lr."""
    decay: Literal["linear", "cosine", "step", "none"] = "cosine"
    """Shape of the learning rate after the warm-up."""
    step_epochs: tuple[int, ...] = ()
    """Epochs after which decay=step lowers the learning rate."""
    step_factor: float = Field(default=0.2, gt=0, le=1)
    """Factor by which decay=step lowers the learning rate."""
    clip_norm: float | None = Field(default=1.0, gt=0)
    """Largest norm of the gradient; null turns clipping off."""


class PretrainSettings(Section):
    """Continued pre-training of the language model on the training sequences, written as words and masked."""

    enabled: bool = False
    """Run this stage."""
    epochs: int = Field(default=3, ge=1)
    """Number of epochs."""
    batch_size: int = Field(default=32, ge=2)
    """Rows per batch."""
    word_bp: int = Field(default=6, ge=1, le=12)
    """Letters per word in which sequences are written."""
    window_bp: int = Field(default=600, ge=12)
    """Length of the window in bp read from a longer sequence, at another place in each epoch."""
    mask_fraction: float = Field(default=0.15, gt=0, lt=1)
    """Share of the tokens that are masked."""
    optim: OptimSettings = OptimSettings(lr=5e-5, betas=(0.9, 0.999), decay="linear")
    """Optimizer and schedule of pre-training."""


class SelectSettings(Section):
    """Selection of the backbone and of its kernel size (docs/method.md, "select"): every backbone with every kernel size."""

    backbones: tuple[str, ...] = ("resnet", "unet")
    """Backbones to compare."""
    kernel_sizes: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Kernel sizes to compare for each backbone, the same in every layer; empty uses the backbone's default."""
    epochs: int = Field(default=1, ge=1)
    """Number of epochs per candidate."""
    batch_size: int = Field(default=64, ge=2)
    """Rows per batch."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout of the embedder (ResNet only)."""
    optim: OptimSettings = OptimSettings()
    """Optimizer and schedule of the candidates."""

    @field_validator("backbones")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return refuse_unknown("backbone", names, BACKBONES)


class SearchSettings(Section):
    """DASH (docs/method.md, "search"). AdamW does not decay the logits."""

    enabled: bool = True
    """Run this stage; otherwise the selected candidate's kernels are used."""
    form: Literal["auto", "by_dilation", "naive", "dense", "fft", "blocks"] = "auto"
    """How mixed convolutions are computed, with equal results; auto measures the fastest once per machine."""
    kernel_sizes: tuple[int, ...] = (3, 5, 7, 9, 11)
    """Kernel sizes that each layer chooses from."""
    dilations: tuple[int, ...] = (1, 3, 5, 7)
    """Dilations that each layer chooses from."""
    epochs: int = Field(default=80, ge=1)
    """Number of epochs."""
    warm_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Share of the epochs in which all operations have equal weight and only weights train."""
    batch_size: int = Field(default=128, ge=2)
    """Rows per batch."""
    batch_fraction: float = Field(default=0.2, gt=0, le=1)
    """Share of the batches used in each epoch."""
    logit_lr: float = Field(default=0.05, gt=0)
    """Learning rate of the architecture logits."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature of the Gumbel-softmax at the start."""
    last_temperature: float = Field(default=1.0, gt=0)
    """Temperature of the Gumbel-softmax at the end, reached geometrically."""
    weight_std: float | None = Field(default=0.01, gt=0)
    """Standard deviation of the initial weights; null is PyTorch's rule for convolutions."""
    gradient_scale: float = Field(default=100.0, gt=0)
    """Factor on the gradient of the logits."""
    field_penalty: float = Field(default=1e-5, ge=0)
    """Penalty on the receptive field in the gradient of the logits."""
    separable: bool = False
    """Make layers with as many input as output channels depthwise in the search, as the official code does."""
    augment: bool = True
    """Augment training sequences in the search."""
    optim: OptimSettings = OptimSettings(
        optimizer="sgd",
        lr=0.1,
        nesterov=True,
        weight_decay=5e-4,
        warmup_fraction=0.0,
        decay="step",
        step_epochs=(30, 60),
    )
    """Optimizer and schedule of the weights; the logits use the same optimizer with logit_lr."""


class AlignSettings(Section):
    """Embedder pre-training: L = alpha_e MMD + beta task (paper, "Embedder Pre-training")."""

    # Off: vanilla cross-modal fine-tuning.
    enabled: bool = True
    """Run this stage; otherwise fine-tuning starts with an untrained embedder."""
    epochs: int = Field(default=100, ge=1)
    """Number of epochs."""
    task_only_epochs: int = Field(default=60, ge=0)
    """First epochs, in which alpha is 0."""
    alphas: tuple[float, ...] = Field(default=(1.0,), min_length=1)
    """Weights of the distance to the text embeddings; with several, the fine-tuning search chooses."""
    beta: float = Field(default=1.0, ge=0)
    """Weight of the task's loss."""
    batch_size: int = Field(default=64, ge=2)
    """Rows per batch."""
    max_samples: int = Field(default=256, ge=1)
    """Rows gathered, batch by batch, until their number exceeds this, for one value of the distance."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout of the embedder (ResNet only)."""
    distance: Literal["mmd", "coral", "otdd"] = "mmd"
    """Distance between DNA tokens and text embeddings; otdd needs the extra otdd."""
    source: Literal["auto", "tokens", "text", "sentences", "shuffled", "gaussian", "vocabulary"] = "auto"
    """Text to align to: labelled tokens, plain text, the vocabulary, or a control for ablations; auto takes source_path,
    CoNLL-2003 from the data folder or the hub, otherwise the vocabulary."""
    source_path: str | None = None
    """File of the text: Parquet, CoNLL or plain text."""
    per_class: int = Field(default=350, ge=1)
    """Largest number of text vectors per class of the labelled text."""
    reference_weights: Literal["model", "pretrained"] = "model"
    """Embedding layer that the text goes through: that of the model as trained (model), or always the pretrained one."""
    optim: OptimSettings = OptimSettings()
    """Optimizer and schedule of the alignment."""

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


class FinetuneSettings(Section):
    """Fine-tuning and its search by ASHA with HyperOpt (paper, "Fine-tuning"). A range is [low, high], a choice is a list."""

    trials: int = Field(default=8, ge=1)
    """Number of trials of the search."""
    epochs: int = Field(default=8, ge=1)
    """Largest number of epochs per trial."""
    grace_epochs: int = Field(default=1, ge=1)
    """Epochs of a trial before ASHA may stop it."""
    reduction_factor: int = Field(default=3, ge=2)
    """ASHA keeps the best 1/reduction_factor of the trials at each rung."""
    parallel_trials: int = Field(default=4, ge=1)
    """Largest number of concurrent trials."""
    initial_random_trials: int = Field(default=4, ge=1)
    """Random trials before HyperOpt's model chooses."""
    lr_embedder: tuple[float, float] = (1e-4, 1e-3)
    """Range [low, high] of the embedder's learning rate."""
    lr_language_model: tuple[float, float] = (2e-5, 2e-4)
    """Range [low, high] of the language model's learning rate."""
    lr_predictor: float = Field(default=1e-3, gt=0)
    """Learning rate of the predictor."""
    weight_decay: tuple[float, float] = (1e-6, 1e-1)
    """Range [low, high] of the weight decay."""
    dropout: tuple[float, ...] = (0.0, 0.1, 0.2)
    """Choices of the language model's dropout."""
    batch_size: tuple[int, ...] = (32, 64)
    """Choices of the rows per batch."""
    train_layers: tuple[Literal["all", "top_half", "norms", "lora", "none"], ...] = ("all", "top_half")
    """Choices of the language model's layers that train; lora (the extra lora) trains low-rank additions and keeps the
    weights."""
    lora_rank: int = Field(default=8, ge=1)
    """Rank of the LoRA matrices."""
    lora_alpha: float = Field(default=16.0, gt=0)
    """Scale of the LoRA matrices."""
    trial_runner: Literal["auto", "process", "train"] = "auto"
    """How a trial runs: in its own process, or as a Ray Train run; auto is a process unless a trial has several
    workers."""
    optim: OptimSettings = OptimSettings(warmup_fraction=0.1, decay="cosine")
    """Optimizer and schedule; learning rates and weight decay are searched."""

    @model_validator(mode="after")
    def _ordered(self) -> FinetuneSettings:
        for name in ("lr_embedder", "lr_language_model", "weight_decay"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} must be [low, high] with 0 < low <= high, not [{low}, {high}]")
        if self.grace_epochs > self.epochs:
            raise ValueError(f"grace_epochs ({self.grace_epochs}) must not exceed epochs ({self.epochs})")
        return self


class OneCycleSettings(Section):
    """One cycle of the learning rate, averaged weights, no early stopping."""

    epochs: Annotated[int, Field(ge=1)] | tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = (8, 24)
    """Number of epochs, or a range [least, most] within which `steps` decides."""
    steps: int = Field(default=1400, ge=1)
    """Optimizer steps to take, where epochs is a range."""
    batch_size: int = Field(default=32, ge=2)
    """Rows per batch."""
    optim: OptimSettings = OptimSettings(lr=4e-3, weight_decay=0.02, betas=(0.9, 0.999), warmup_fraction=0.2)
    """Optimizer and schedule."""

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
    """Dropout of the embedder (ResNet only)."""


class EvaluateSettings(Section):
    """Evaluation on the test split, which is read once."""

    batch_size: int = Field(default=256, ge=1)
    """Rows per batch."""
    bootstrap_resamples: int = Field(default=1000, ge=10)
    """Number of bootstrap resamples for intervals."""
    rc_average: Literal["auto", "on", "off"] = "auto"
    """Average predictions over both strands; auto is off for strand-specific tasks."""


class BaselinesSettings(Section):
    """Simple models: the baselines of the leaderboard, and the arms without an embedder.

    `cnn_steps` null: the schedule of `counts.CNN_SCHEDULES`.
    """

    names: tuple[str, ...] = ("majority", "kmer_linear")
    """Baselines in the leaderboard."""
    k: int = Field(default=6, ge=1, le=8)
    """Length of k-mers."""
    boosting_rounds: int = Field(default=300, ge=1)
    """Trees per output of kmer_boosting."""
    cnn_steps: int | None = Field(default=None, ge=1)
    """Optimizer steps of cnn, rounded to whole epochs; null is the default of the task's kind."""
    max_train_rows: int = Field(default=100_000, ge=1)
    """Largest number of training rows; of more, a random sample is used."""
    genomic_model: str | None = None
    """Hugging Face id or folder of a model that reads DNA with its own tokenizer."""
    genomic_words_bp: int = Field(default=0, ge=0, le=12)
    """Length of the overlapping k-mers that genomic_model reads (DNABERT); 0 gives it plain sequences."""

    @field_validator("names")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return refuse_unknown("baseline", names, BASELINES)

    @model_validator(mode="after")
    def _has_model(self) -> BaselinesSettings:
        for name in self.names:
            setting = BASELINES[name].language_model
            if setting and getattr(self, setting) is None:
                raise ValueError(f"the baseline {name} needs a model; set baselines.{setting} to a hub id or a folder")
        return self


class ClusterSettings(Section):
    """Limits and waiting times on a cluster. No result depends on them."""

    stall_limit_s: float | None = Field(default=None, gt=0)
    """Seconds without a finished epoch after which a trial's process is restarted from the last epoch, at most twice;
    null turns it off."""
    storage_wait_s: float = Field(default=600.0, ge=0)
    """Seconds that a trial waits for storage that refuses writes."""
    scale_wait_s: float = Field(default=1200.0, ge=0)
    """Seconds that a suite with --slots waits for the first machine of a cluster."""
