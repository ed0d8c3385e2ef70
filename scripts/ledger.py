"""The ledger: `results/PART/TASK.json`, a small file for each finished part of the evidence.

A file has the leaderboard row of a task, or the rows of a study, with all arms, seeds and intervals; what it took; and how to
make it again. It has no weights and no sequences.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

from l2g_ray.config import known_keys
from l2g_ray.errors import UserError
from l2g_ray.plan.finished import read_spent
from l2g_ray.presets import resolve
from l2g_ray.results.leaderboard import write_atomically
from l2g_ray.stages.registry import STAGES, find_shown, show_stage

ROOT = Path(__file__).resolve().parents[1]
LEDGER = ROOT / "results"
MAX_BYTES = 30_000
ROW = (
    "task", "kind", "metric", "n_train", "n_valid", "n_test", "used", "arms", "difference", "test", "embedder_only", "baselines",
    "published", "backbone", "architecture_from", "wall_s", "cpu_s", "gpu_s", "warnings", "test_without_near_duplicates", "check",
)  # fmt: skip
STUDY = ("schema", "study", "about", "arms", "compared")


def collect(run: Path, bench: str) -> dict[str, Any]:
    """Return the ledger's content of a finished run of one task of `bench`: a suite, or a study of it.

    Raises UserError where the run is not finished.
    """
    suite, board = _read_run(run, "suite.json"), _read_run(run, "leaderboard.json")
    rows = board["tasks"]
    preset = resolve(suite["preset"]).model_dump(mode="json")
    settings = {row["task"]: find_differences(suite["settings"][row["task"]], preset) for row in rows}
    content = {
        "bench": bench,
        "command": hide_places(suite["command"]),
        "commit": suite["git_revision"],
        "machine": {name: suite["machine"][name] for name in ("processor", "cores", "accelerators")},
        "versions": suite["versions"],
        "stage_versions": _list_versions(suite),
        "preset": suite["preset"],
        "language_model": Path(board["language_model"]).name,
    }
    if (run / "study.json").is_file():
        study = _read_run(run, "study.json")
        found = [(one.key or row["task"], one) for row in rows for one in read_spent(run / row["task"])]
        cpu_s = sum(one.cpu_s or 0.0 for one in {(one.stage, key): one for key, one in found}.values())
        spent = {"wall_s": suite["wall_s"], "cpu_s": round(cpu_s, 1)}
        return content | {"settings": settings, **spent, "study": {name: study[name] for name in STUDY}}
    if len(rows) != 1:
        raise UserError(f"{run}: {len(rows)} tasks finished; a part of the ledger is a run of one")
    return content | {"settings": settings[rows[0]["task"]], "row": {name: rows[0].get(name) for name in ROW}}


def _read_run(run: Path, name: str) -> Any:
    try:
        return json.loads((run / name).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{run / name}: cannot be read ({error}); run the part again") from None


def _list_versions(suite: dict[str, Any]) -> dict[str, int]:
    """The versions of the stages that the run's tasks went through: those of others do not make it out of date."""
    ran = {find_shown(shown).name for costs in suite["costs"].values() for shown in costs}
    return {
        name: version for name, version in suite["stage_versions"].items() if find_shown(show_stage(name)).name in ran
    }


def find_differences(settings: dict[str, Any], preset: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the settings that are not the preset's, by dotted key."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        other = preset.get(name)
        if isinstance(value, dict) and isinstance(other, dict):
            found |= find_differences(value, other, f"{prefix}{name}.")
        elif value != other and prefix + name in set(known_keys()):
            found[prefix + name] = value
    return found


def hide_places(command: str) -> str:
    """Return the command with DIR for the machine's folders, without --replace."""
    words = [word for word in shlex.split(command) if word != "--replace"]
    for i, flag in enumerate(words[:-1]):
        if flag in ("--out", "--data-dir"):
            words[i + 1] = "DIR"
        elif flag == "--language-model":
            words[i + 1] = Path(words[i + 1]).name if Path(words[i + 1]).is_absolute() else words[i + 1]
    return shlex.join(words)


def write(path: Path, content: dict[str, Any]) -> None:
    """Write a file of the ledger. Raises UserError for one of more than 30 KB."""
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    if len(text.encode()) > MAX_BYTES:
        raise UserError(
            f"{path}: {len(text.encode()):,} bytes are more than the {MAX_BYTES:,} of a file of the ledger; split the part, or "
            "keep fewer fields of the row"
        )
    write_atomically(path, text)


def read(path: Path) -> dict[str, Any] | None:
    """Return a file's content; None where there is no file."""
    return json.loads(path.read_text()) if path.is_file() else None  # type: ignore[no-any-return]


def read_part(part: str, ledger: Path = LEDGER) -> list[dict[str, Any]]:
    """Return the contents of a part's files, by name, without rows that were only trained ahead (TASK.WHAT.json)."""
    found = {path: json.loads(path.read_text()) for path in sorted((ledger / part).glob("*.json"))}
    return [content for path, content in found.items() if "study" in content or "." not in path.stem]


def is_current(content: dict[str, Any], command: str) -> bool:
    """Whether the file is of this command (on any number of cores), and of the stages as they are now."""
    versions = content["stage_versions"]
    known = all(name in STAGES and STAGES[name].version == version for name, version in versions.items())
    one, other = (re.sub(r" --cpus \d+", "", hide_places(text)) for text in (content["command"], command))
    return known and one == other


def count_cpu_s(content: dict[str, Any]) -> float:
    """Return the CPU seconds of the run, those of stages that were in the store included."""
    return float(content["row"]["cpu_s"] if "row" in content else content["cpu_s"])
