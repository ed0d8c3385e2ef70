"""The winning settings of a task, as differences from its preset and as options that train it without a search."""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# What the best trial sets, by its name there: the setting, and whether that is a range [low, high] or a list of choices.
_OF_TRIAL = {
    "alpha": ("align.alphas", False),
    "lr_embedder": ("finetune.lr_embedder", True),
    "lr_language_model": ("finetune.lr_language_model", True),
    "weight_decay": ("finetune.weight_decay", True),
    "dropout": ("finetune.dropout", False),
    "batch_size": ("finetune.batch_size", False),
    "train_layers": ("finetune.train_layers", False),
}
# Names and limits that no result depends on.
_NO_RESULT = ("preset", "caution", "cluster.")
_UNIFORM = re.compile(r"uniform (\d+)x(\d+)")


@dataclass(frozen=True)
class Setting:
    """A setting's dotted key, its value, and that of the preset."""

    key: str
    value: Any
    preset: Any

    @property
    def option(self) -> str:
        """The option that sets it, quoted for a shell."""
        return f"--set {shlex.quote(f'{self.key}={show_value(self.value)}')}"


def show_value(value: Any) -> str:
    """Return a value as `--set` reads it."""
    return value if isinstance(value, str) else json.dumps(value)


def list_winning(row: Mapping[str, Any], settings: Mapping[str, Any], preset: Mapping[str, Any]) -> list[Setting]:
    """Differences from the preset that train what won: of the search, of the backbone, and those that the user set.

    `row` is the task's of the leaderboard; `settings` and `preset` map dotted keys to values.
    """
    trial = row.get("hyperparameters") or {}
    found = {key: value for key, value in settings.items() if not key.startswith(_NO_RESULT) and key in preset}
    for name, value in trial.items():
        if name in _OF_TRIAL:
            key, is_range = _OF_TRIAL[name]
            found[key] = [value, value] if is_range else [value]
    if trial:
        found["finetune.trials"] = 1
    if row.get("backbone"):
        found["select.backbones"] = [row["backbone"]]
    if kernel := _UNIFORM.fullmatch(row.get("architecture_from") or ""):
        found["select.kernel_sizes"] = [int(kernel[1])]
    return [Setting(key, value, preset.get(key)) for key, value in sorted(found.items()) if value != preset.get(key)]


def list_settings(settings: Mapping[str, Any], preset: Mapping[str, Any]) -> list[Setting]:
    """Return all settings of a task, those that differ from the preset first."""
    listed = [Setting(key, value, preset.get(key)) for key, value in settings.items()]
    return sorted(listed, key=lambda one: (one.value == one.preset, one.key))


def describe_architecture(layers: Sequence[Mapping[str, int]], origin: str) -> str:
    """Return a uniform architecture as one sentence; empty for another, which has a figure. `origin` is the row's
    `architecture_from`.
    """
    kinds = Counter((layer["kernel_size"], layer["dilation"]) for layer in layers)
    if len(kinds) != 1:
        return ""
    ((kernel, dilation),) = kinds
    spaced = f" and dilation {dilation}" if dilation > 1 else ""
    each = f"{len(layers)} searchable layer{'s' if len(layers) != 1 else ''}"
    how = ", found by the search" if origin == "searched" else ", a uniform network" if len(layers) > 1 else ""
    return f"{each}, {'each with' if len(layers) > 1 else 'with'} kernel size {kernel}{spaced}{how}."
