"""The text that stage 2 aligns to, as vectors, and what the embedder must know of the language model."""

from __future__ import annotations

from typing import Any

from l2g_ray.models.corpus import find_corpus
from l2g_ray.models.language_model import load_transformer
from l2g_ray.models.reference import write_reference
from l2g_ray.stages.context import Context


def run(context: Context, args: dict[str, Any]) -> dict[str, Any]:
    """Write the reference (`stages.common.read_reference`) of the language model and the corpus of the settings."""
    settings, align, given = context.settings, context.settings.align, context.pretrained
    name, init = settings.model.language_model, settings.reference_init
    if given is not None:
        name, init = str(given), "pretrained"
    transformer = load_transformer(name, init, settings.seed)
    corpus, described = find_corpus(align.source, align.source_path, context.data_dir)
    facts = write_reference(context.work, transformer, name, corpus, align.per_class, settings.seed)
    return facts | {"described": described}
