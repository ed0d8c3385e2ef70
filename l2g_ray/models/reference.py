"""Text embeddings that stage 2 aligns DNA to (spec 5.1), of a corpus or of the model's own vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from l2g_ray.errors import UserError
from l2g_ray.models.corpus import NER_TAGS, Corpus
from l2g_ray.models.locate import locate

MAX_TOKENS = 128


def embed_tokens(transformer: Any, input_ids: torch.Tensor) -> torch.Tensor:
    """Output of the embedding layer (batch, N, D): word + position + type, LayerNorm, no dropout."""
    with torch.no_grad():
        return transformer.embeddings(input_ids=input_ids)


def sample_labelled(
    transformer: Any, tokenizer: Any, corpus: Corpus, per_class: int, seed: int
) -> tuple[torch.Tensor, list[str]]:
    """Embedding-layer vectors (n, D) of sub-tokens, up to `per_class` of each tag, without replacement (spec 5.1).

    A continuation sub-token of a B-X word is labelled I-X; special tokens are dropped. Unlabelled text is one class.
    """
    vectors, labels = [], []
    for start in range(0, len(corpus.words), 64):
        words = corpus.words[start : start + 64]
        coded = tokenizer(
            words, is_split_into_words=True, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )
        hidden = embed_tokens(transformer, coded["input_ids"])
        for i in range(len(words)):
            previous = None
            for position, word in enumerate(coded.word_ids(i)):
                if word is None:
                    previous = None
                    continue
                tag = corpus.tags[start + i][word] if corpus.tags else "text"
                vectors.append(hidden[i, position])
                labels.append("I-" + tag[2:] if word == previous and tag.startswith("B-") else tag)
                previous = word
    every = torch.stack(vectors)
    names = np.array(labels)
    rng = np.random.default_rng(seed)
    order = NER_TAGS if corpus.tags else ("text",)
    wanted = per_class if corpus.tags else per_class * len(NER_TAGS)
    chosen = []
    for tag in order:
        rows = np.flatnonzero(names == tag)
        chosen.append(rng.permutation(rows)[:wanted])
    index = np.concatenate(chosen)
    return every[torch.from_numpy(index)].clone(), names[index].tolist()


def sample_vocabulary(transformer: Any, n: int, seed: int) -> torch.Tensor:
    """Embedding-layer vectors (n, D) of tokens drawn from the vocabulary, each at a random position."""
    rng = np.random.default_rng(seed)
    length = min(MAX_TOKENS, int(transformer.config.max_position_embeddings) - 2)
    rows = -(-n // length)
    # The first thousand ids of BERT's vocabulary are special, unused, or single characters.
    first = 1000 if transformer.config.vocab_size > 20_000 else 3
    ids = torch.from_numpy(rng.integers(first, transformer.config.vocab_size, (rows, length)))
    hidden = embed_tokens(transformer, ids).reshape(rows * length, -1)
    return hidden[torch.from_numpy(rng.permutation(rows * length)[:n])].clone()


def write_reference(
    folder: Path, transformer: Any, language_model: str, corpus: Corpus | None, per_class: int, seed: int
) -> dict[str, Any]:
    """Write `reference.safetensors` (features, LayerNorm weight and bias) and return its facts for the metadata."""
    embeddings = transformer.embeddings
    labels: list[str] = []
    if corpus is None:
        features = sample_vocabulary(transformer, per_class * len(NER_TAGS), seed)
    else:
        from transformers import AutoTokenizer

        folder_or_id = locate(language_model)
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder_or_id, use_fast=True, add_prefix_space=True)
        except (OSError, ValueError) as error:
            raise UserError(
                f"language model '{language_model}': it has no tokenizer ({str(error).splitlines()[0]}); set align.source=vocabulary"
            ) from None
        features, labels = sample_labelled(transformer, tokenizer, corpus, per_class, seed)
    save_file(
        {
            "features": features.float().contiguous(),
            "norm_weight": embeddings.LayerNorm.weight.detach().float().clone(),
            "norm_bias": embeddings.LayerNorm.bias.detach().float().clone(),
        },
        str(folder / "reference.safetensors"),
    )
    offset = embeddings.padding_idx + 1 if hasattr(embeddings, "padding_idx") else 0
    return {
        "width": int(transformer.config.hidden_size),
        "max_tokens": int(transformer.config.max_position_embeddings) - offset,
        "norm_eps": float(embeddings.LayerNorm.eps),
        "rows": len(features),
        "classes": {tag: labels.count(tag) for tag in dict.fromkeys(labels)},
        "corpus": corpus.name if corpus else "vocabulary",
        "corpus_fingerprint": corpus.fingerprint() if corpus else "",
    }
