"""Content of a language model's files, for the keys of what depends on it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from l2g_ray.models.locate import locate


def fingerprint_language_model(name: str) -> str:
    """Hash of a local model's config and weights' sizes and edges; a hub id stands for itself."""
    folder = Path(locate(name))
    if not folder.is_dir():
        return name
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.glob("*.safetensors")) + sorted(folder.glob("*.bin")):
        digest.update(f"{path.name} {path.stat().st_size}".encode())
        with path.open("rb") as handle:
            digest.update(handle.read(1 << 20))
            handle.seek(max(0, path.stat().st_size - (1 << 20)))
            digest.update(handle.read())
    return digest.hexdigest()[:20]
