"""DNA as text: words of letters through the language model's own tokenizer, masked, and the model with its head for that.

For training a text model further on sequences before it becomes L2G's (`stages.pretrain`). The model is the one of
`transformers`, with the part that L2G leaves out: embedding layer, positions and the head over the vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from l2g_ray.errors import UserError
from l2g_ray.models.language_model import load_tokenizer, load_transformer, quiet_loading, speed_up
from l2g_ray.sequence import decode, send


class MaskedLM(nn.Module):
    """A language model over DNA written as words of `word_bp` letters.

    `window_bp`: of longer sequences so many letters are read, from a place drawn anew at each call.
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
        """Mean cross-entropy, in nats, of the masked tokens; a scalar. What is masked is drawn from torch's generator.

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
    """Words of `word_bp` letters side by side, after a first one of `phase` letters; the last may be shorter."""
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
    """The language model with its head over the vocabulary; a head that the files lack is drawn from `seed`.

    `layers` keeps the first so many layers, those that L2G uses. Raises UserError where the model, or a tokenizer that
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
