"""Where a task's rows live while trials train: once in Ray's object store, shared by all trials of a node, or on disk.

Data that fits is read once by the task's pipeline; every trial maps the same Arrow buffers (no copy, no decoding).
Data that does not fit is streamed from its shards by each trial (`ShardSource`); both give the same batches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from l2g_ray.config import DataSettings
from l2g_ray.data.dataset import PreparedTask

if TYPE_CHECKING:
    from ray import ObjectRef

    from l2g_ray.data.batches import Source

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
    """Whether the rows shall live in an object store of that size that so many tasks share."""
    if settings.residence != "auto":
        return settings.residence == "memory"
    return estimate_bytes(prepared) <= SHARE_OF_STORE * store_bytes / max(1, tasks_at_once)


def hold(prepared: PreparedTask, settings: DataSettings, tasks_at_once: int) -> Held:
    """References to the tables of train and valid in the object store; empty where they are to be streamed."""
    import ray

    nodes = [node["Resources"].get("object_store_memory", 0.0) for node in ray.nodes() if node["Alive"]]
    if not fits(prepared, settings, min(nodes, default=0.0), tasks_at_once):
        return {}
    # One chunk a column: what a trial maps is then what it slices, without joining anything.
    return {split: ray.put(prepared.table(split, ["sequence", "label"]).combine_chunks()) for split in SPLITS}


def open_held(held: Held) -> dict[str, Source]:
    """The sources behind the references, none for none."""
    import ray

    from l2g_ray.data.batches import InMemorySource

    return {split: InMemorySource(ray.get(reference)) for split, reference in held.items()}
