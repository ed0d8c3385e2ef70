"""What a run was made with: versions, machine, git revision."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any, TypedDict

from l2g_ray.machine import describe_processor

PACKAGES = ("l2g-ray", "torch", "ray", "transformers", "mlflow", "hyperopt", "numpy", "pyarrow", "scikit-learn")


class Machine(TypedDict):
    """The driver's machine, and CPUs, GPUs and kinds of accelerators of the Ray cluster."""

    system: str
    processor: str
    cores: int | None
    cluster: dict[str, float]
    accelerators: list[str]


class Environment(TypedDict):
    """What a run was made with, as `suite.json` and `scaling.json` hold it: versions by package, machine, git revision."""

    versions: dict[str, str]
    machine: Machine
    git_revision: str | None


def hash_content(content: Any) -> str:
    """Short hash of a JSON-ready value."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:20]


def describe_environment(ray: Any) -> Environment:
    """Versions, this machine and the Ray cluster, and the git revision of the package where it is a checkout."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    resources = ray.cluster_resources()
    return {
        "versions": {"python": platform.python_version(), **versions},
        "machine": {
            "system": f"{platform.system()} {platform.machine()}",
            "processor": describe_processor(),
            "cores": os.cpu_count(),
            "cluster": {name: resources[name] for name in ("CPU", "GPU") if name in resources},
            "accelerators": sorted(n.partition(":")[2] for n in resources if n.startswith("accelerator_type:")),
        },
        "git_revision": _git_revision(),
    }


def _git_revision() -> str | None:
    here = Path(__file__).resolve().parents[2]
    if not (here / "pyproject.toml").exists():  # installed: the repository around a virtual environment is not ours
        return None
    try:
        shown = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=5,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return shown.stdout.strip() or None
