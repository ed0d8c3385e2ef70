"""Memory of trials: shares of a GPU, measured at the first trial of a kind, and rows held in Ray's object store.

A trial whose kind has not been measured gets a whole GPU. What it took there, with the context of its process, says how
many of its kind fit into one, and each of the later ones asks for that share. It may not take more than its share: a
trial that would, cuts its batches (`stages.loop`) and leaves its neighbours alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from l2g_ray.atomic import write_json
from l2g_ray.config import DataSettings
from l2g_ray.data.dataset import PreparedTask
from l2g_ray.monitor.environment import hash_content
from l2g_ray.orchestrate.cluster import Slots
from l2g_ray.stages.registry import find_stage
from l2g_ray.store.results import Job

if TYPE_CHECKING:
    from ray import ObjectRef

    from l2g_ray.data.batches import Source

# Between two epochs of one trial, and between two trials of one kind, the allocator's peak varies.
HEADROOM = 1.2
# Trials share the GPU's arithmetic as well; more of them than this only wait for each other.
MAX_TRIALS_PER_GPU = 8
# Ray counts GPUs in ten-thousandths.
RAY_UNITS = 10_000
# Of a trial's hyper-parameters, what memory depends on. The others, and seeds, change numbers only.
MEMORY_HYPERPARAMETERS = ("batch_size", "train_layers")
MEMORY_PARTS = (
    "task", "length_bp", "data_settings", "embedding", "reference", "precision", "model", "settings", "finetune",
)  # fmt: skip
MEMORY_ARGUMENTS = ("backbone", "architecture")


def share_of_gpu(peak_bytes: float, gpu_bytes: float, headroom: float = HEADROOM) -> float:
    """Return the share of a GPU for a trial that took `peak_bytes`: 1 / n, n being how many fit with headroom, at
    most 8.

    Rounded down to what Ray counts, so that n shares never exceed one GPU. At least one fits: the measured one did.
    """
    fitting = int(gpu_bytes // (headroom * max(1.0, peak_bytes)))
    n = max(1, min(fitting, MAX_TRIALS_PER_GPU))
    return RAY_UNITS // n / RAY_UNITS


def memory_key(job: Job) -> str:
    """Return the kind of a job: jobs of one kind have the same shapes, and so the same need of memory."""
    trial = job.args.get("trial") or {}
    return hash_content(
        {
            "stage": find_stage(job.stage).kind or job.stage,
            "parts": {name: job.parts[name] for name in MEMORY_PARTS if name in job.parts},
            "args": {name: job.args[name] for name in MEMORY_ARGUMENTS if name in job.args},
            "trial": {name: trial[name] for name in MEMORY_HYPERPARAMETERS if name in trial},
        }
    )


@dataclass(frozen=True)
class Measured:
    """What trials took, as files `<root>/memory/<kind>.json`: workers write them, pipelines read them."""

    root: Path

    def record(self, kind: str, row: Mapping[str, Any], gpus: float) -> None:
        """Keep the peak of an epoch, if it is the largest so far, of a trial that did not share its GPU."""
        if gpus < 1 or "peak_bytes" not in row:
            return
        before = self.find(kind)
        if before and before["peak_bytes"] >= row["peak_bytes"]:
            return
        path = self._path(kind)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"peak_bytes": row["peak_bytes"], "gpu_bytes": row["gpu_bytes"]}, indent=None)

    def find(self, kind: str) -> dict[str, float] | None:
        """Return the measurement of a kind, or None."""
        try:
            return json.loads(self._path(kind).read_text())
        except OSError:
            return None

    def share(self, kind: str) -> float:
        """Return the share of a GPU that a trial of this kind shall ask for; a whole one while nothing is known."""
        found = self.find(kind)
        return share_of_gpu(found["peak_bytes"], found["gpu_bytes"]) if found else 1.0

    def _path(self, kind: str) -> Path:
        return self.root / "memory" / f"{kind}.json"


def limit_memory(gpus: float) -> None:
    """Let this process take at most its share of the GPU's memory."""
    import torch

    torch.cuda.set_per_process_memory_fraction(min(1.0, gpus) if gpus else 1.0)


def most_at_once(slots: Slots) -> int:
    """Trials to start at once; where memory decides how many a GPU takes, Ray lets those wait that find no room."""
    return slots.count * (MAX_TRIALS_PER_GPU if slots.packed else 1)


SPLITS = ("train", "valid")
# Ray spills to disk when its store is full; trials of several tasks and Ray's own objects want room beside the data.
SHARE_OF_STORE = 0.3
Held = dict[str, "ObjectRef"]


def estimate_bytes(prepared: PreparedTask) -> int:
    """Memory of the columns sequence and label of train and valid."""
    total = 0
    for split in SPLITS:
        facts = prepared.manifest["splits"][split]
        label_bytes = 8 if prepared.task.is_classification else 4 * prepared.task.n_outputs
        total += sum(facts["letters"].values()) + facts["rows"] * (8 + label_bytes)
    return total


def fits(prepared: PreparedTask, settings: DataSettings, store_bytes: float, tasks_at_once: int = 1) -> bool:
    """Return whether the rows should be in an object store of `store_bytes` that `tasks_at_once` tasks share."""
    if settings.residence != "auto":
        return settings.residence == "memory"
    return estimate_bytes(prepared) <= SHARE_OF_STORE * store_bytes / max(1, tasks_at_once)


def hold(prepared: PreparedTask, settings: DataSettings, tasks_at_once: int) -> Held:
    """Return references to the tables of train and valid in the object store; empty where they are to be streamed."""
    import ray

    nodes = [node["Resources"].get("object_store_memory", 0.0) for node in ray.nodes() if node["Alive"]]
    if not fits(prepared, settings, min(nodes, default=0.0), tasks_at_once):
        return {}
    # One chunk a column: what a trial maps is then what it slices, without joining anything.
    return {split: ray.put(prepared.table(split, ["sequence", "label"]).combine_chunks()) for split in SPLITS}


def open_held(held: Held) -> dict[str, Source]:
    """Return the sources behind the references, none for none."""
    import ray

    from l2g_ray.data.batches import InMemorySource

    return {split: InMemorySource(ray.get(reference)) for split, reference in held.items()}
