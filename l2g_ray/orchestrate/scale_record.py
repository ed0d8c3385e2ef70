"""What `l2g-ray scale` found, to files and to MLflow."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from l2g_ray.orchestrate.environment import hash_content
from l2g_ray.orchestrate.request import EXPERIMENT
from l2g_ray.results.figures import save
from l2g_ray.results.scale_table import KINDS, plot_scaling, write_markdown
from l2g_ray.tracking import Tracker


def record_scaling(found: dict[str, Any], home: Path, folder: Path, experiment: str = EXPERIMENT) -> str:
    """Write `scaling.md`, `.svg` and `.png` beside `scaling.json`, and all of it to MLflow, as one run whose steps are
    numbers of workers or slots. Returns the store's URI; raises UserError where the store does not answer."""
    (folder / "scaling.md").write_text(write_markdown(found))
    save(plot_scaling(found), folder / "scaling")
    tracker = Tracker(None, experiment, home)
    key = f"scale-{hash_content(found)}-{time.time_ns()}"
    tags = {"l2g_ray.level": "scale", "git_revision": found["git_revision"] or ""}
    tracker.start(key, folder.name, tags=tags, params={"command": found["command"], **found["shape"]})
    for kind, (_, size, speed) in KINDS.items():
        for one in found[kind]:
            metrics = {f"{kind}_{name}": one[name] for name in (speed, "speedup", "efficiency")}
            tracker.log_metrics(key, metrics, step=one[size])
    for suffix in ("json", "md", "svg", "png"):
        tracker.log_artifacts(key, folder / f"scaling.{suffix}")
    tracker.end(key)
    return tracker.uri
