"""Text for stage 2: token-labelled, plain, or none (docs/method.md, "reference").

Kept free of torch: pipelines only ask which it is.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from l2g_ray.errors import UserError
from l2g_ray.models.locate import locate

# Class order of the official sample.
NER_TAGS = ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "B-MISC", "I-MISC")
GZIP_MAGIC = b"\x1f\x8b"  # of bgzip too
HUB_CORPUS = ("eriktks/conll2003", "conll2003/validation/0000.parquet", "refs/convert/parquet")


# Other readings of a text, for ablations (`align.source`).
FORMS = {
    "sentences": "mean vectors of the sentences of",
    "shuffled": "tokens in shuffled order of",
    "gaussian": "Gaussian noise with mean and covariance of",
}


@dataclass(frozen=True)
class Corpus:
    """Sentences as lists of words, with one tag a word where the text is labelled. `form`: tokens, or one of `FORMS`."""

    words: list[list[str]]
    tags: list[list[str]] | None
    name: str
    form: str = "tokens"

    def fingerprint(self) -> str:
        """Hash of all words and tags."""
        digest = hashlib.sha256()
        for i, sentence in enumerate(self.words):
            digest.update("\x1f".join(sentence).encode())
            digest.update("\x1f".join(self.tags[i] if self.tags else []).encode() + b"\x1e")
        digest.update(self.form.encode() if self.form != "tokens" else b"")
        return digest.hexdigest()[:16]


def read_corpus(path: Path) -> Corpus:
    """Read token-labelled text (Parquet with `tokens` and `ner_tags`, or a CoNLL file), or plain text, one line a sentence.

    Raises UserError for a missing, empty or unreadable file.
    """
    if path.is_dir():
        path = path / "valid.parquet"
    if not path.exists():
        raise UserError(f"{path}: no such text corpus; give a Parquet, CoNLL or text file with align.source_path")
    try:
        if path.suffix == ".parquet":
            return _read_parquet(path)
        with path.open("rb") as start:
            opener = gzip.open if start.read(2) == GZIP_MAGIC else open
        with opener(path, "rt", encoding="utf-8", errors="replace") as handle:
            lines = [line.rstrip("\n") for line in handle]
    except (OSError, EOFError, zlib.error, pa.ArrowException, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: the text corpus cannot be read ({reason}); copy it again") from None
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
    words, raw = table["tokens"].to_pylist(), table["ner_tags"].to_pylist()
    tags = []
    for number, (sentence, row) in enumerate(zip(words, raw, strict=True), start=1):
        try:
            # The hub's file codes tags in its own order: O B-PER I-PER B-ORG I-ORG B-LOC I-LOC B-MISC I-MISC.
            tags.append([t if isinstance(t, str) else NER_TAGS[t] for t in row])
            fits = len(row) == len(sentence)
        except (TypeError, IndexError):
            fits = False
        if not fits:
            raise UserError(
                f"{path}, row {number}: not a list of tokens and as many tags (names, or 0 to {len(NER_TAGS) - 1}); "
                "correct the row"
            )
    return Corpus(words, tags, path.name)


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
    """Return the corpus for `align.source`, and one sentence on where it is from; None stands for the vocabulary.

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
        if downloaded is None and (source == "tokens" or source in FORMS):
            raise UserError(
                f"align.source is '{source}', but CoNLL-2003 is neither in the data folder nor on a hub that answers; "
                "give a file with align.source_path, or set align.source=vocabulary"
            )
        if downloaded is None:
            return None, "tokens drawn from the language model's vocabulary, because no text corpus can be had here"
        corpus = read_corpus(downloaded)
    if source == "tokens" and corpus.tags is None:
        raise UserError(f"{corpus.name}: align.source is 'tokens', but the file has no tags; set align.source=text")
    if source in ("text", "sentences", "shuffled"):
        corpus = Corpus(corpus.words, None, corpus.name)
    labelled = "token-labelled text" if corpus.tags else "plain text"
    if source in FORMS:
        corpus = replace(corpus, form=source)
        labelled = f"{FORMS[source]} {labelled}"
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
