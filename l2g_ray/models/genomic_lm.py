"""A genomic language model that reads DNA by its own tokenizer, with a linear predictor: what L2G is compared with.

Any encoder that `transformers` itself has: ESM (Nucleotide Transformer), BERT (DNABERT), RoBERTa and so on. Models that bring
code of their own are refused: nothing from a hub is executed here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from l2g_ray.errors import UserError
from l2g_ray.models.embedder import Predictor
from l2g_ray.models.language_model import quiet_loading
from l2g_ray.models.layers import masked_mean
from l2g_ray.models.locate import locate
from l2g_ray.sequence import decode, send

TOKENIZER_FOLDER = "tokenizer"


class GenomicLM(nn.Module):
    """Tokenizer, encoder, masked mean over tokens, linear.

    `words_bp` 0: the tokenizer reads the sequence as it is; k: overlapping k-mers with blanks between them (DNABERT).
    `max_tokens`: longer inputs are cut at the right end.
    """

    reads_text = True  # so that training gives it letters of the host

    def __init__(self, transformer: Any, tokenizer: Any, n_outputs: int, words_bp: int = 0) -> None:
        super().__init__()
        self.transformer, self.tokenizer, self.words_bp = transformer, tokenizer, words_bp
        limits = [getattr(transformer.config, "max_position_embeddings", None), tokenizer.model_max_length]
        offset = 2 if getattr(transformer.config, "model_type", "") in ("roberta", "esm") else 0
        self.max_tokens = min([limit - offset for limit in limits if limit and limit < 1_000_000] or [512])
        self.n_outputs = n_outputs
        self.predictor = Predictor(int(transformer.config.hidden_size), n_outputs)

    def forward(self, codes: torch.Tensor, lengths_bp: torch.Tensor) -> torch.Tensor:
        """Codes (batch, length) uint8 and lengths (batch,), best on the host, to outputs (batch, n_outputs)."""
        sequences = decode(codes.cpu().numpy(), lengths_bp.cpu().numpy())
        if k := self.words_bp:
            sequences = [" ".join(s[i : i + k] for i in range(max(1, len(s) - k + 1))) for s in sequences]
        coded = self.tokenizer(
            sequences, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        )
        device = self.predictor.linear.weight.device
        # Without padding no mask, of which `transformers` would ask whether it masks anything.
        mask = None if bool(coded["attention_mask"].all()) else send(coded["attention_mask"], device)
        hidden = self.transformer(input_ids=send(coded["input_ids"], device), attention_mask=mask).last_hidden_state
        return self.predictor(masked_mean(hidden, None if mask is None else mask[..., None], 1))


def load_genomic_lm(name: str, n_outputs: int, words_bp: int = 0) -> GenomicLM:
    """A pre-trained model and its tokenizer, with a new predictor.

    Raises UserError where either cannot be had, or the model wants to bring its own code.
    """
    from transformers import AutoModel, AutoTokenizer

    folder = locate(name)
    with quiet_loading():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            transformer = AutoModel.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(
                f"genomic model '{name}': cannot be loaded with its tokenizer ({reason}); give a model of a family that "
                "transformers itself has"
            ) from None
    return GenomicLM(transformer, tokenizer, n_outputs, words_bp)


def describe_genomic_lm(model: GenomicLM) -> dict[str, Any]:
    """What `build_genomic_lm` needs beside the tokenizer's files and the weights."""
    transformer = model.transformer
    config = transformer.config.to_diff_dict() | {"model_type": transformer.config.model_type}
    return {
        "form": "genomic_lm",
        "n_outputs": model.n_outputs,
        "words_bp": model.words_bp,
        "transformer": json.loads(json.dumps(config, default=str)),
    }


def build_genomic_lm(config: dict[str, Any], folder: Path) -> GenomicLM:
    """The model of a stored config, with new weights and the tokenizer of the model's folder."""
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    described = dict(config["transformer"])
    transformer = AutoModel.from_config(AutoConfig.for_model(described.pop("model_type"), **described))
    tokenizer = AutoTokenizer.from_pretrained(str(folder / TOKENIZER_FOLDER), trust_remote_code=False)
    return GenomicLM(transformer, tokenizer, config["n_outputs"], config["words_bp"])
