"""The report of a finished run, made anew from its folder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from l2g_ray.errors import UserError
from l2g_ray.orchestrate.details import read_details
from l2g_ray.orchestrate.request import EXPERIMENT
from l2g_ray.places import find_run_store, sqlite_file
from l2g_ray.results.explained import read_study
from l2g_ray.results.report import write_report
from l2g_ray.results.schema import validate_leaderboard
from l2g_ray.results.suite_figures import ALONE, L2G, USED
from l2g_ray.run_folder import BEST, list_arms
from l2g_ray.tracking import Tracker

REPORT, FIGURES = "report.html", "figures"


def remake_report(run: Path, studies: list[Path]) -> Path:
    """Write `report.html` and `figures/` of a suite's folder, with the ablations of `studies` and its own.

    Raises UserError for a folder that no suite has finished, or that holds no study, naming what is missing.
    """
    board, meta = read_run(run)
    details = [
        read_details(run / row["task"], row, meta.get("settings", {}).get(row["task"], {}))
        for row in board["tasks"]
        if (run / row["task"]).is_dir()
    ]
    own = [run] if (run / "study.json").exists() else []
    parts = [read_study(folder) for folder in [*own, *studies]]
    return write_report(run, board, details, parameters=count_parameters(run, board), studies=parts)


def read_run(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The leaderboard and `suite.json` of a suite's folder. Raises UserError where they are not there or not readable."""
    if (run.parent / "suite.json").exists() and not (run / "suite.json").exists():
        raise UserError(f"{run}: is the folder of one task; give the suite's folder {run.parent}")
    try:
        board = json.loads((run / "leaderboard.json").read_text())
        meta = json.loads((run / "suite.json").read_text())
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: no such file; give the folder of a finished suite or run") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{run}: cannot be read ({error}); run the suite's command again") from None
    return validate_leaderboard(board), meta


def count_parameters(run: Path, board: Mapping[str, Any]) -> dict[str, float]:
    """Parameters of what a run uses, of L2G and of the control, the largest of its tasks, from the headers of their files."""
    sizes: dict[str, float] = {}
    for row in board["tasks"]:
        arms = list_arms(run / row["task"])
        for name, arm in ((USED, BEST), (L2G, "l2g"), (ALONE, "embedder_only")):
            if arm in arms:
                files = arms[arm].folder.glob("**/model.safetensors")
                sizes[name] = max(sizes.get(name, 0.0), float(sum(map(_count_numbers, files))))
    return sizes


def _count_numbers(path: Path) -> int:
    from safetensors import safe_open

    with safe_open(str(path), framework="numpy") as file:
        return sum(math.prod(file.get_slice(tensor).get_shape()) for tensor in file.keys())  # noqa: SIM118


def log_report(run: Path) -> str:
    """Put report and figures into the MLflow run of the suite; returns a sentence on what was done.

    A store that does not answer is no failure: the files are written.
    """
    _, meta = read_run(run)
    key, uri = meta.get("key"), meta.get("tracking_uri")
    if not key or not uri:
        return "not put into MLflow: suite.json names no store"
    uri = find_run_store(run, meta)
    file = sqlite_file(uri)
    if file is not None and not file.exists():
        return f"not put into MLflow: {uri} is not there any more"
    try:
        tracker = Tracker(uri, meta.get("experiment", EXPERIMENT), run.resolve().parent)
        done = tracker.replace_artifacts(f"suite-{key}", {run / REPORT: None, run / FIGURES: FIGURES})
    except UserError as error:
        return f"not put into MLflow: {error}"
    again = "run the suite's command again to log it anew"
    return f"and in MLflow ({uri})" if done else f"not put into MLflow: {uri} does not know this suite; {again}"
