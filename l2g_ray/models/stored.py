"""What a stored model says of itself, without loading it. Kept free of torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from l2g_ray.errors import UserError

MODEL_SCHEMA = 1


def load_config(folder: Path) -> dict[str, Any]:
    """What `config.json` of a model folder says. Raises UserError where there is none, or one of another schema."""
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
