"""GPU memory without a GPU: what trials are given once one of their kind was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from toys import make_site

from l2g_ray.orchestrate.cluster import Slots
from l2g_ray.orchestrate.memory import Measured, memory_key, most_at_once, share_of_gpu
from l2g_ray.orchestrate.train import make_search_trainable, make_trainable
from l2g_ray.store.results import Job

GIB = 2**30
PARTS = {"task": {"kind": "binary"}, "length_bp": [200, 200], "data": {"train": "a"}, "inputs": {"align:1.0": "b"}}
TRIAL = {"lr_embedder": 1e-3, "batch_size": 32, "train_layers": "all", "alpha": 1.0, "dropout": 0.1}


@pytest.mark.parametrize(
    ("peak_gib", "share"), [(1, 1 / 8), (8, 0.2), (11, 0.3333), (19, 0.5), (21, 1.0), (47, 1.0), (60, 1.0), (0, 1 / 8)]
)
def test_as_many_trials_share_a_gpu_as_fit_with_headroom(peak_gib: float, share: float) -> None:
    """Of 48 GiB, with a fifth to spare."""
    found = share_of_gpu(peak_gib * GIB, 48 * GIB)
    assert found == pytest.approx(share)
    n = round(1 / found)
    assert n * found <= 1, "n of them are one GPU, as Ray counts"
    assert n == 1 or n * peak_gib * 1.2 <= 48


def job(stage: str = "trial", parts: dict[str, Any] | None = None, **args: Any) -> Job:
    return Job(stage, "x", {"seed": 0, "trial": TRIAL} | args, {}, PARTS | (parts or {}))


def test_kinds_are_what_memory_depends_on() -> None:
    kind = memory_key(job())
    same = [job(seed=7), job("refit"), job(trial=TRIAL | {"lr_embedder": 1e-4, "alpha": 0.0, "dropout": 0.0})]
    same += [job(parts={"data": {"train": "another"}, "inputs": {}})]
    assert {memory_key(one) for one in same} == {kind}
    other = [job(trial=TRIAL | {"batch_size": 64}), job(trial=TRIAL | {"train_layers": "none"}), job("align")]
    other += [job(parts={"length_bp": [200, 500]}), job(backbone="unet")]
    assert len({memory_key(one) for one in other} | {kind}) == len(other) + 1


def test_the_first_trial_gets_a_gpu_and_the_next_its_share(tmp_path: Path) -> None:
    """What Tune asks for, before and after a trial of the kind has told what it took."""
    slots, site = Slots(1, 1, 1.0, packed=True), make_site(tmp_path)
    measured = Measured(site.root)
    trainable = make_search_trainable(site, job(), "process", slots, {})

    def asked(**changes: Any) -> float:
        return trainable._resources(TRIAL | changes).required_resources["GPU"]  # type: ignore[attr-defined]

    assert asked() == 1
    kind = memory_key(job())
    row = {"peak_bytes": 9 * GIB, "gpu_bytes": 48 * GIB}
    measured.record(kind, row, gpus=0.25)
    assert asked() == 1, "a trial with neighbours cannot tell what is its own"
    measured.record(kind, {"epoch": 0}, gpus=1)
    measured.record(kind, row, gpus=1)
    assert asked() == 0.25
    assert asked(batch_size=64) == 1, "another kind"
    measured.record(kind, row | {"peak_bytes": 4 * GIB}, gpus=1)
    assert asked() == 0.25, "the largest counts"
    measured.record(kind, row | {"peak_bytes": 19 * GIB}, gpus=1)
    assert asked() == 0.5
    refit = job("refit")
    listed = make_trainable(site, [refit], "process", slots, {})
    assert listed._resources({"index": 0}).required_resources == {"CPU": 1, "GPU": 0.5}  # type: ignore[attr-defined]
    assert most_at_once(slots) == 8


def test_a_share_that_a_person_gave_is_left_alone(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    Measured(site.root).record(memory_key(job()), {"peak_bytes": GIB, "gpu_bytes": 48 * GIB}, gpus=1)
    slots = Slots(2, 1, 0.5)
    trainable = make_search_trainable(site, job(), "process", slots, {})
    assert trainable._resources.required_resources == {"CPU": 1, "GPU": 0.5}  # type: ignore[attr-defined]
    assert most_at_once(slots) == 2
