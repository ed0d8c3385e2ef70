"""Stage results on disk: whole or not at all, one maker at a time, keys that follow their causes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from l2g_ray.errors import UserError
from l2g_ray.models.locate import fingerprint_language_model
from l2g_ray.presets import resolve
from l2g_ray.stages.registry import STAGES
from l2g_ray.store import results as store_module
from l2g_ray.store.results import Store, make_key


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "stages")


def test_a_result_is_there_only_when_committed(store: Store) -> None:
    assert store.find("align", "k") is None
    work = store.open_work("align", "k")
    (work / "model.bin").write_text("weights")
    (work / "state.pt").write_text("momenta")
    assert store.find("align", "k") is None
    result = store.commit("align", "k", {"score": 0.5})
    assert result == store.find("align", "k")
    assert result.values == {"score": 0.5}
    assert {path.name for path in result.folder.iterdir()} == {"model.bin", "result.json"}
    assert not work.exists()


def test_half_done_work_is_found_again(store: Store) -> None:
    (store.open_work("align", "k") / "state.pt").write_text("epoch 3")
    assert (Store(store.root).open_work("align", "k") / "state.pt").read_text() == "epoch 3"


def test_a_commit_that_is_cut_short_leaves_the_state_to_go_on_from(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = store.open_work("align", "k")
    (work / "state.pt").write_text("last epoch")

    def break_off(*paths: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store_module.os, "replace", break_off)
        with pytest.raises(KeyboardInterrupt):
            store.commit("align", "k", {"score": 0.5})
    assert store.find("align", "k") is None
    assert (work / "state.pt").read_text() == "last epoch"
    assert store.commit("align", "k", {"score": 0.7}).values == {"score": 0.7}


def test_the_first_of_two_results_stays(store: Store) -> None:
    store.open_work("align", "k")
    store.commit("align", "k", {"score": 1})
    work = store.open_work("align", "k")
    assert store.commit("align", "k", {"score": 2}).values == {"score": 1}
    assert not work.exists()


def test_scores_that_are_not_finite_survive(store: Store) -> None:
    store.open_work("select", "k")
    store.commit("select", "k", {"score": float("-inf")})
    assert store.find("select", "k").values["score"] == float("-inf")


def test_a_damaged_result_is_named(store: Store) -> None:
    store.open_work("align", "k")
    folder = store.commit("align", "k", {}).folder
    (folder / "result.json").write_text('{"score": 0.')
    with pytest.raises(UserError, match=r"align/k/result\.json: not readable as JSON; delete the folder"):
        store.find("align", "k")


def test_discarded_work_is_gone_and_results_stay(store: Store) -> None:
    for key in ("stopped", "ended"):
        with store.locked("trial", key):
            store.open_work("trial", key)
    store.commit("trial", "ended", {})
    store.discard_work("trial", ["stopped", "ended", "never begun"])
    assert [path.name for path in (store.root / "trial").iterdir()] == ["ended"]


def test_one_at_a_time(store: Store) -> None:
    entered = threading.Event()

    def wait_in_line() -> None:
        with store.locked("align", "k"):
            entered.set()

    other = threading.Thread(target=wait_in_line)
    with store.locked("align", "k"):
        other.start()
        with store.locked("align", "another key"):
            assert not entered.wait(0.2)
    assert entered.wait(10)
    other.join()


HOLD = """
import sys, time
from dataclasses import replace
from pathlib import Path
from l2g_ray.store.results import Store
with Store(Path(sys.argv[1])).locked("align", "k"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_lock_dies_with_its_process(store: Store) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(store.root)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        os.kill(holder.pid, signal.SIGKILL)
    with store.locked("align", "k"):
        pass


def test_a_key_follows_everything_that_the_result_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def key(stage: str = "align", fingerprint: str = "f", **changes: Any) -> str:
        settings = resolve("smoke", None, changes).model_dump(mode="json")
        return make_key(stage, {"data": {"train": fingerprint}, "settings": {"align": settings["align"]}})

    first = key()
    assert first == key()
    others = {
        key(**{"align.epochs": 5}),
        key(**{"align.optim.lr": 1e-4}),
        key(fingerprint="g"),
        key("warmup"),
    }
    assert len(others | {first}) == 5
    assert key(**{"finetune.epochs": 5}) == first, "another stage's settings do not matter"
    monkeypatch.setitem(STAGES, "align", replace(STAGES["align"], version=STAGES["align"].version + 1))
    assert key() != first


def test_a_key_does_not_depend_on_the_order_of_its_parts() -> None:
    assert make_key("align", {"a": 1, "b": {"c": 2, "d": 3}}) == make_key("align", {"b": {"d": 3, "c": 2}, "a": 1})


def test_a_language_models_fingerprint_is_its_content(tiny_lm: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    for path in tiny_lm.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    assert fingerprint_language_model(str(copy)) == fingerprint_language_model(str(tiny_lm))
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    assert fingerprint_language_model(str(copy)) != fingerprint_language_model(str(tiny_lm))
