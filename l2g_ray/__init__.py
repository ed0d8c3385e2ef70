"""l2g_ray: text language models as genomics predictors (L2G), searched and trained on Ray.

Use it as ``import l2g_ray as l2g``: `run` and `suite` train, `load` opens what they left, and a `Predictor` predicts.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Predictor", "Run", "UserError", "__version__", "load", "run", "suite"]

if TYPE_CHECKING:
    from l2g_ray.api.loading import load
    from l2g_ray.api.predictor import Predictor
    from l2g_ray.api.runs import Run, run, suite
    from l2g_ray.errors import UserError

_PLACES = {
    "Predictor": "l2g_ray.api.predictor",
    "Run": "l2g_ray.api.runs",
    "UserError": "l2g_ray.errors",
    "load": "l2g_ray.api.loading",
    "run": "l2g_ray.api.runs",
    "suite": "l2g_ray.api.runs",
}


def __getattr__(name: str) -> Any:
    # Nothing is imported before it is used: `import l2g_ray` takes no time.
    if name not in _PLACES:
        raise AttributeError(f"module 'l2g_ray' has no attribute '{name}'")
    found = getattr(importlib.import_module(_PLACES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])
