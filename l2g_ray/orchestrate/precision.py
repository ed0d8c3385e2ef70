"""What `precision: auto` means on a CPU: what a worker's measurement says.

Precision is in every stage's key. So that all trials of a run, and later runs that reuse its stages, take the same, the
choice is itself kept among the stages.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from l2g_ray.config import Settings
from l2g_ray.models.precision_choice import choose_cpu_precision
from l2g_ray.orchestrate.cluster import Slots
from l2g_ray.store.results import Store, make_key
from l2g_ray.store.shared import open_store

STAGE = "precision"


def find_cpu_precision(settings: Collection[Settings], slots: Slots, stages: Path, remote: str | None) -> str:
    """Return what `precision: auto` is for a run's trials on CPUs, measured where that is not known yet."""
    waits_s = [one.cluster.storage_wait_s for one in settings if one.precision == "auto"]
    if slots.gpus or not waits_s:
        return "fp32"
    return keep_cpu_precision(open_store(stages, remote, max(waits_s)), slots.cpus)


def measure_on_worker(threads: int) -> str:
    """Return the choice of a worker's CPU, made in a process that takes a trial's slot."""
    import ray

    return str(ray.get(ray.remote(num_cpus=threads)(choose_cpu_precision).remote(threads)))


def keep_cpu_precision(store: Store, threads: int, measure: Callable[[int], str] = measure_on_worker) -> str:
    """Return 'fp32' or 'bf16' for trials of `threads` threads, the same for every task and run that uses this store.

    `measure`, from threads to a precision, is called where the store has no choice yet.
    """
    key = make_key(STAGE, {"threads": threads})
    with store.locked(STAGE, key):
        found = store.find(STAGE, key)
        if found is None:
            chosen = measure(threads)
            store.open_work(STAGE, key)
            found = store.commit(STAGE, key, {"precision": chosen})
    return str(found.values["precision"])
