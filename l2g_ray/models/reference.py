"""Text embeddings that stage 2 aligns DNA to (spec 5.1): token-labelled text, any text, or the model's own vocabulary."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from l2g_ray.errors import UserError
from l2g_ray.models.language_model import locate

# Class order of the official sample (spec 5.1).
NER_TAGS = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC")
HUB_CORPUS = ("eriktks/conll2003", "conll2003/validation/0000.parquet", "refs/convert/parquet")
MAX_TOKENS = 128


@dataclass(frozen=True)
class Corpus:
    """Sentences as lists of words, with one tag a word where the text is labelled."""

    words: list[list[str]]
    tags: list[list[str]] | None
    name: str

    def fingerprint(self) -> str:
        """Hash of all words and tags."""
        digest = hashlib.sha256()
        for i, sentence in enumerate(self.words):
            digest.update("\x1f".join(sentence).encode())
            digest.update("\x1f".join(self.tags[i] if self.tags else []).encode() + b"\x1e")
        return digest.hexdigest()[:16]


def read_corpus(path: Path) -> Corpus:
    """Read token-labelled text (Parquet with `tokens` and `ner_tags`, or a CoNLL file), or plain text, one line a sentence.

    Raises UserError for a missing, empty or unreadable file.
    """
    if path.is_dir():
        path = path / "valid.parquet"
    if not path.exists():
        raise UserError(f"{path}: no such text corpus; give a Parquet, CoNLL or text file with align.source_path")
    if path.suffix == ".parquet":
        return _read_parquet(path)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8", errors="replace") as handle:
        lines = [line.rstrip("\n") for line in handle]
    corpus = _parse_conll(lines, path.name) or _parse_text(lines, path.name)
    if not corpus.words:
        raise UserError(f"{path}: the corpus is empty; give a file with at least one sentence")
    return corpus


def _read_parquet(path: Path) -> Corpus:
    table = pq.read_table(path)
    if "tokens" not in table.column_names or "ner_tags" not in table.column_names:
        raise UserError(
            f"{path}: columns 'tokens' and 'ner_tags' are needed, found {table.column_names}; give such a file or plain text"
        )
    raw = table["ner_tags"].to_pylist()
    # The hub's file codes tags in its own order: O B-PER I-PER B-ORG I-ORG B-LOC I-LOC B-MISC I-MISC.
    tags = [[t if isinstance(t, str) else NER_TAGS[t] for t in row] for row in raw]
    return Corpus(table["tokens"].to_pylist(), tags, path.name)


def _parse_conll(lines: list[str], name: str) -> Corpus | None:
    words: list[list[str]] = [[]]
    tags: list[list[str]] = [[]]
    for line in lines:
        fields = line.split()
        if not fields or fields[0] == "-DOCSTART-":
            if words[-1]:
                words.append([])
                tags.append([])
            continue
        if len(fields) < 2 or fields[-1] not in NER_TAGS:
            return None
        words[-1].append(fields[0])
        tags[-1].append(fields[-1])
    kept = [i for i, sentence in enumerate(words) if sentence]
    return Corpus([words[i] for i in kept], [tags[i] for i in kept], name) if kept else None


def _parse_text(lines: list[str], name: str) -> Corpus:
    return Corpus([line.split() for line in lines if line.split()], None, name)


def find_corpus(source: str, path: str | None, data_dir: Path | None) -> tuple[Corpus | None, str]:
    """The corpus for `align.source`, and one sentence on where it is from; None stands for the vocabulary.

    'auto' takes the given path, else `conll2003/ner` of the data folder, else the hub, else the vocabulary.
    """
    if source == "vocabulary":
        return None, "tokens drawn from the language model's vocabulary (asked for)"
    if path is not None:
        corpus = read_corpus(Path(path))
    elif data_dir is not None and (data_dir / "conll2003" / "ner" / "valid.parquet").exists():
        corpus = read_corpus(data_dir / "conll2003" / "ner" / "valid.parquet")
    else:
        downloaded = download_corpus()
        if downloaded is None and source == "tokens":
            raise UserError(
                "align.source is 'tokens', but CoNLL-2003 is neither in the data folder nor on a hub that answers; "
                "give a file with align.source_path, or set align.source=vocabulary"
            )
        if downloaded is None:
            return None, "tokens drawn from the language model's vocabulary, because no text corpus can be had here"
        corpus = read_corpus(downloaded)
    if source == "tokens" and corpus.tags is None:
        raise UserError(f"{corpus.name}: align.source is 'tokens', but the file has no tags; set align.source=text")
    if source == "text":
        corpus = Corpus(corpus.words, None, corpus.name)
    labelled = "token-labelled text" if corpus.tags else "plain text"
    return corpus, f"{labelled} {corpus.name}, {len(corpus.words)} sentences"


def download_corpus() -> Path | None:
    """CoNLL-2003's validation split from the hub or its cache; None where neither can be had."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    repo, file, revision = HUB_CORPUS
    cached = try_to_load_from_cache(repo, file, repo_type="dataset", revision=revision)
    if isinstance(cached, str):
        return Path(cached)
    try:
        locate(repo)  # says within seconds whether the hub answers
        return Path(hf_hub_download(repo, file, repo_type="dataset", revision=revision))
    except (UserError, OSError):
        return None


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
