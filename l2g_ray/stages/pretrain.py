"""Continued pre-training: masked modelling of the task's own training sequences, before the method begins."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from l2g_ray.config import Settings
from l2g_ray.data.batches import Batch
from l2g_ray.errors import UserError
from l2g_ray.models.language_model import load_tokenizer, load_transformer, quiet_loading, speed_up
from l2g_ray.sequence import decode, send
from l2g_ray.stages.context import Context, TaskData, count_rows, count_steps, make_batches, summarise
from l2g_ray.stages.loop import LoopSettings, Runtime, TrainResult, train
from l2g_ray.stages.optim import make_optimizer, make_schedule


class MaskedLM(nn.Module):
    """A language model over DNA written as words of `word_bp` letters.

    `window_bp`: letters read of a longer sequence, from a random place that changes with each call.
    """

    def __init__(self, model: Any, tokenizer: Any, word_bp: int, window_bp: int, mask_fraction: float) -> None:
        super().__init__()
        from transformers import DataCollatorForLanguageModeling

        self.model, self.tokenizer = model, tokenizer
        self.word_bp, self.window_bp = word_bp, window_bp
        embeddings = model.base_model.embeddings
        offset = embeddings.padding_idx + 1 if hasattr(embeddings, "padding_idx") else 0
        self.max_tokens = int(model.config.max_position_embeddings) - offset
        self.masking = DataCollatorForLanguageModeling(tokenizer, mlm_probability=mask_fraction)

    def read(self, codes: torch.Tensor, lengths_bp: torch.Tensor) -> Any:
        """Tokens of codes (batch, length) uint8 and lengths (batch,): 'input_ids', 'attention_mask' and
        'special_tokens_mask' (batch, n), on the CPU. Where words begin is drawn, for all rows alike."""
        phase = int(torch.randint(self.word_bp, ()))
        shares = torch.rand(len(codes)).tolist()
        texts = []
        for letters, share in zip(decode(codes.cpu().numpy(), lengths_bp.cpu().numpy()), shares, strict=True):
            first = int(share * (max(0, len(letters) - self.window_bp) + 1))
            texts.append(split_words(letters[first : first + self.window_bp], self.word_bp, phase))
        return self.tokenizer(
            texts,
            is_split_into_words=True,
            padding=True,
            truncation=True,
            max_length=self.max_tokens,
            return_special_tokens_mask=True,
            return_tensors="pt",
        )

    def forward(self, codes: torch.Tensor, lengths_bp: torch.Tensor) -> torch.Tensor:
        """Return mean cross-entropy, in nats, of the masked tokens; a scalar. What is masked is drawn from torch's
        generator.

        Codes (batch, length) uint8 and lengths (batch,) are best on the host, where the tokenizer reads them.
        """
        coded = self.read(codes, lengths_bp)
        ids, labels = self.masking.torch_mask_tokens(coded["input_ids"], coded["special_tokens_mask"])
        device = self.model.device
        # Without padding no mask, of which `transformers` would ask whether it masks anything.
        mask = None if bool(coded["attention_mask"].all()) else send(coded["attention_mask"], device)
        logits = self.model(input_ids=send(ids, device), attention_mask=mask).logits
        chosen = (labels != -100).flatten().nonzero()[:, 0]  # on the CPU, as the tokens are
        if not len(chosen):  # of a few short rows it may be none
            return logits.sum() * 0
        wanted = send(labels.flatten()[chosen], device)
        return nn.functional.cross_entropy(logits.flatten(0, 1)[send(chosen, device)].float(), wanted)

    def save(self, folder: Path) -> None:
        """Write encoder, embedding layer and tokenizer as a folder in Hugging Face form, which names a language model."""
        with quiet_loading():
            self.model.base_model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)


def split_words(letters: str, word_bp: int, phase: int) -> list[str]:
    """Return words of `word_bp` letters side by side, after a first one of `phase` letters; the last may be shorter."""
    rest = [letters[i : i + word_bp] for i in range(phase, len(letters), word_bp)]
    return [word for word in (letters[:phase], *rest) if word]


def load_masked_lm(
    name: str,
    init: str,
    seed: int,
    *,
    layers: int | None,
    word_bp: int,
    window_bp: int,
    mask_fraction: float,
) -> MaskedLM:
    """Return the language model with its head over the vocabulary; a head that the files lack is drawn from `seed`.

    `layers` is the number of first layers to keep, those that L2G uses. Raises UserError where the model, or a tokenizer that
    knows a mask, cannot be had.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = load_transformer(name, init, seed, masked=True)
    stack = model.base_model.encoder.layer
    if layers is not None:
        if layers > len(stack):
            raise UserError(
                f"model.language_model_layers is {layers}, but the language model has {len(stack)} layers; lower it"
            )
        model.base_model.encoder.layer = nn.ModuleList(list(stack)[:layers])
        model.config.num_hidden_layers = layers
    speed_up(model.base_model)
    tokenizer = load_tokenizer(name, "set pretrain.enabled=false")
    if tokenizer.mask_token is None:
        raise UserError(f"language model '{name}': its tokenizer has no mask token; set pretrain.enabled=false")
    # A folder without a tokenizer's files gives one that knows no words.
    if tokenizer.unk_token in tokenizer.tokenize("A C G T"):
        raise UserError(
            f"language model '{name}': its tokenizer does not know the letters A, C, G and T, or there is none; "
            "set pretrain.enabled=false"
        )
    return MaskedLM(model, tokenizer, word_bp, window_bp, mask_fraction)


# Training rows that are masked the same way after every epoch, for the score.
SCORED_ROWS = 512


def pretrain(data: TaskData, settings: Settings, runtime: Runtime, seed: int) -> tuple[MaskedLM, TrainResult]:
    """Train the language model on the training sequences, and return it as it is after the last epoch, on the CPU.

    The score of an epoch is minus the loss on some training rows under fixed masks: it shows the progress of training, and
    chooses nothing. Raises UserError where the model or its tokenizer cannot be had, or where the loss
    ceases to be finite.
    """
    stage, model_settings = settings.pretrain, settings.model
    model = load_masked_lm(
        model_settings.language_model,
        model_settings.language_model_init,
        seed,
        layers=model_settings.language_model_layers,
        word_bp=stage.word_bp,
        window_bp=stage.window_bp,
        mask_fraction=stage.mask_fraction,
    ).to(runtime.device)
    steps = count_steps(data, stage.batch_size)
    result = train(
        model,
        make_optimizer(stage.optim, [(model.parameters(), stage.optim.lr)]),
        make_schedule(stage.optim, stage.epochs, steps),
        LoopSettings(stage.epochs, steps, seed, clip_norm=stage.optim.clip_norm, select_from_epoch=stage.epochs - 1),
        runtime,
        batches=make_batches(settings, data, stage.batch_size, seed),
        losses=masked_losses,
        validate=_make_score(model, data, settings, runtime, seed),
    )
    if not math.isfinite(result.history[-1]["train_loss"]):
        raise UserError("continued pre-training: the loss is not finite any more; lower pretrain.optim.lr")
    model.load_state_dict(result.best_state)
    return model.to("cpu").eval(), result


def run(context: Context, args: dict[str, Any]) -> dict[str, Any]:
    """Store the model that `pretrain` returns."""
    model, training = pretrain(context.data, context.settings, context.runtime, args["seed"])
    model.save(context.work)
    return summarise(training)


def masked_losses(model: nn.Module, group: list[Batch], epoch: int) -> list[Callable[[], torch.Tensor]]:
    """Return the loss of a group, a batch (or a micro-batch) at a time, weighted by its rows; see `loop.Losses`."""
    n_rows = count_rows(group)
    return [partial(_masked_loss, model, batch, batch.n_own / n_rows) for batch in group]


def _masked_loss(model: nn.Module, batch: Batch, weight: float) -> torch.Tensor:
    return weight * model(batch.letters, batch.lengths_bp)


def _make_score(
    model: MaskedLM, data: TaskData, settings: Settings, runtime: Runtime, seed: int
) -> Callable[[], dict[str, float]]:
    size = settings.pretrain.batch_size
    rows = make_batches(settings, data, size, seed, augment=False, max_batches=-(-SCORED_ROWS // size))

    def score() -> dict[str, float]:
        total, n = 0.0, 0
        with torch.random.fork_rng(), runtime.autocast():
            torch.manual_seed(seed)
            for batch in rows(0):
                total += float(model(batch.codes, batch.lengths_bp)) * len(batch.codes)
                n += len(batch.codes)
        return {"score": -total / max(1, n)}

    return score
