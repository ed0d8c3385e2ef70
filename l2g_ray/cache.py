"""Where this machine keeps what it has measured or indexed once."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`L2G_RAY_CACHE_DIR`, else `l2g-ray` in the user's cache folder (`XDG_CACHE_HOME`)."""
    own = os.environ.get("L2G_RAY_CACHE_DIR")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "l2g-ray"
