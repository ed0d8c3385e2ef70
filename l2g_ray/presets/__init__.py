"""Presets, and settings as a person gives them: files, --set, what is unknown, resolved into validated settings."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from l2g_ray.config import Settings, check_keys, known_keys
from l2g_ray.errors import UserError, nearest


def list_presets() -> list[str]:
    """Return names of the presets that ship with the package."""
    return sorted(f.name[:-5] for f in _preset_folder().iterdir() if f.name.endswith(".yaml"))


def _preset_folder() -> Any:
    return resources.files("l2g_ray") / "presets"


def read_preset(name: str) -> dict[str, Any]:
    """Return the raw mapping of a preset, or of a YAML file of settings. Raises UserError for an unknown name."""
    if name.endswith((".yaml", ".yml")):
        return _read_file(Path(name))
    if name not in list_presets():
        raise UserError(f"unknown preset '{name}': {nearest(name, list_presets())}")
    return yaml.safe_load((_preset_folder() / f"{name}.yaml").read_text()) or {}


def _read_file(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a YAML file of settings") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        raise UserError(f"{where}: not valid YAML ({getattr(error, 'problem', None) or error}); correct it") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: the file is not UTF-8 text; save it as UTF-8") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: holds no settings; begin from `l2g-ray config show`")
    return raw


def resolve(
    preset: str = "fast",
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    assignments: Mapping[str, Any] | None = None,
) -> Settings:
    """Return the settings of a run.

    Parameters
    ----------
    preset : name of a shipped preset, or a YAML file of settings.
    overrides : a task's `overrides` (preset name or `all` to a mapping of dotted keys). A file overrides them.
    assignments : dotted keys to values, as `--set` gives them.

    Raises
    ------
    UserError : an unknown preset or key (the nearest key is named), or a value that does not fit.
    """
    raw = copy.deepcopy(read_preset(preset))
    if preset in list_presets():
        raw["preset"] = preset
        for layer in ("all", preset):
            for key, value in (overrides or {}).get(layer, {}).items():
                _assign(raw, key, value)
    else:
        raw["preset"] = Path(preset).stem
    for key, value in (assignments or {}).items():
        _assign(raw, key, value)
    return validate(raw)


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as a mapping of dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def find_base(settings: Mapping[str, Any], strand_specific: bool) -> dict[str, Any]:
    """Return the settings of the preset that a task's settings name, by dotted keys; of `fast` where they name a
    file.
    """
    name = settings.get("preset", "fast")
    base = resolve(name if name in list_presets() else "fast").for_task(strand_specific)
    return flatten(base.model_dump(mode="json"))


def validate(raw: Mapping[str, Any], where: str = "settings") -> Settings:
    """Return settings from a nested mapping. Raises UserError naming the key and the nearest known one."""
    check_keys(flatten(raw), f"{where}: ")
    try:
        return Settings.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        # Behind the key, pydantic names the form of a union that it tried: data.shift_bp.int.
        places = [".".join(str(part) for part in e["loc"] if not isinstance(part, int)) for e in error.errors()]
        key = next((k for k in known_keys() if places[0].startswith(k + ".")), places[0])
        alike = [e for e, place in zip(error.errors(), places, strict=True) if place.startswith(key)]
        message = "; or: ".join(e["msg"].removeprefix("Value error, ") for e in alike)
        given = first.get("input")
        shown = f" (given: {given!r})" if not isinstance(given, Mapping | BaseModel) else ""
        raise UserError(f"{where}: key '{key}': {message}{shown}") from None


def parse_assignments(items: tuple[str, ...] | list[str]) -> dict[str, Any]:
    """`--set key.path=value` items as a mapping; values are YAML, so lists and numbers work."""
    parsed: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals or not key:
            raise UserError(f"--set {item}: expected key.path=value, for example --set finetune.trials=8")
        try:
            # YAML 1.1 reads on and off as booleans, but they are values of some settings.
            parsed[key] = text if text in ("on", "off") else _number(yaml.safe_load(text))
        except yaml.YAMLError:
            raise UserError(f"--set {item}: the value is not valid YAML") from None
    return parsed


def _number(value: Any) -> Any:
    # YAML 1.1 reads 1e-3 as a string; a user means a number.
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    if isinstance(value, list):
        return [_number(v) for v in value]
    return value


def _assign(raw: dict[str, Any], dotted: str, value: Any) -> None:
    check_keys([dotted])
    *path, leaf = dotted.split(".")
    node = raw
    for part in path:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise UserError(f"key '{dotted}': '{part}' holds a value, not a group of settings")
    node[leaf] = value
