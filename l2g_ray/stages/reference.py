"""Text embeddings that stage 2 aligns DNA to (docs/method.md, "reference"), of a corpus or of the model's own vocabulary."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from l2g_ray.models.corpus import NER_TAGS, Corpus, find_corpus
from l2g_ray.models.language_model import load_tokenizer, load_transformer
from l2g_ray.stages.context import Context

MAX_TOKENS = 128


def embed_tokens(transformer: Any, input_ids: torch.Tensor) -> torch.Tensor:
    """Output of the embedding layer (batch, N, D): word + position + type, LayerNorm, no dropout."""
    with torch.no_grad():
        return transformer.embeddings(input_ids=input_ids)


def sample_labelled(
    transformer: Any, tokenizer: Any, corpus: Corpus, per_class: int, seed: int
) -> tuple[torch.Tensor, list[str]]:
    """Embedding-layer vectors (n, D) of sub-tokens, up to `per_class` of each tag, without replacement.

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


def sample_sentences(transformer: Any, tokenizer: Any, corpus: Corpus, n: int, seed: int) -> torch.Tensor:
    """Embedding-layer vectors averaged over each sentence's tokens, of up to `n` sentences (n, D): ORCA's recipe."""
    means = []
    for start in range(0, len(corpus.words), 64):
        words = corpus.words[start : start + 64]
        coded = tokenizer(
            words, is_split_into_words=True, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )
        hidden = embed_tokens(transformer, coded["input_ids"])
        kept = torch.tensor([[word is not None for word in coded.word_ids(i)] for i in range(len(words))])
        weights = kept[..., None].to(hidden.dtype)
        means.append((hidden * weights).sum(1) / weights.sum(1).clamp(min=1))
    every = torch.cat(means)
    return every[torch.from_numpy(np.random.default_rng(seed).permutation(len(every))[:n])].clone()


def shuffle_words(corpus: Corpus, seed: int) -> Corpus:
    """Return the same words, drawn into the same sentence lengths in a random order: what is left is their frequency."""
    words = [word for sentence in corpus.words for word in sentence]
    order = iter(np.random.default_rng(seed).permutation(len(words)))
    return replace(corpus, words=[[words[next(order)] for _ in sentence] for sentence in corpus.words])


def draw_gaussian(features: torch.Tensor, seed: int) -> torch.Tensor:
    """As many vectors (n, D) from the normal distribution that has the features' mean and covariance."""
    generator = torch.Generator().manual_seed(seed)
    centred = features.double() - features.double().mean(0)
    # Rows mixed by normal weights have exactly this covariance in expectation, whatever its rank.
    weights = torch.randn(len(features), len(features), generator=generator, dtype=torch.float64)
    noise = weights @ centred / max(1, len(features) - 1) ** 0.5
    return (noise + features.double().mean(0)).to(features.dtype)


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
        tokenizer = load_tokenizer(language_model, "set align.source=vocabulary")
        if corpus.form == "sentences":
            features = sample_sentences(transformer, tokenizer, corpus, per_class * len(NER_TAGS), seed)
        else:
            text = shuffle_words(corpus, seed) if corpus.form == "shuffled" else corpus
            features, labels = sample_labelled(transformer, tokenizer, text, per_class, seed)
        if corpus.form == "gaussian":
            features = draw_gaussian(features, seed)
    norm = {name: getattr(embeddings.LayerNorm, name).detach().float().clone() for name in ("weight", "bias")}
    save_file(
        {"features": features.float().contiguous()} | {f"norm_{name}": values for name, values in norm.items()},
        str(folder / "reference.safetensors"),
    )
    offset = embeddings.padding_idx + 1 if hasattr(embeddings, "padding_idx") else 0
    return {
        "width": int(transformer.config.hidden_size),
        "max_tokens": int(transformer.config.max_position_embeddings) - offset,
        "norm_eps": float(embeddings.LayerNorm.eps),
        "norm": hashlib.sha256(b"".join(values.cpu().numpy().tobytes() for values in norm.values())).hexdigest()[:20],
        "rows": len(features),
        "classes": {tag: labels.count(tag) for tag in dict.fromkeys(labels)},
        "corpus": corpus.name if corpus else "vocabulary",
        "corpus_fingerprint": corpus.fingerprint() if corpus else "",
    }


def run(context: Context, args: dict[str, Any]) -> dict[str, Any]:
    """Write the reference (`stages.context.read_reference`) of the language model and the corpus of the settings."""
    settings, align, given = context.settings, context.settings.align, context.pretrained
    name, init = settings.model.language_model, settings.reference_init
    if given is not None:
        name, init = str(given), "pretrained"
    transformer = load_transformer(name, init, settings.seed)
    corpus, described = find_corpus(align.source, align.source_path, context.data_dir)
    facts = write_reference(context.work, transformer, name, corpus, align.per_class, settings.seed)
    return facts | {"described": described}
