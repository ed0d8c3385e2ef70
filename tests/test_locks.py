"""One suite at a time in its folder; a lock ends with its process, whatever ended it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from l2g_ray.errors import UserError
from l2g_ray.request import check_name
from l2g_ray.store import locks
from l2g_ray.store.locks import hold_file, hold_suite, try_file
from l2g_ray.store.results import Store

HOLD = """
import sys, time
from pathlib import Path
from l2g_ray.store.locks import hold_suite
with hold_suite(Path(sys.argv[1]), "mine", print):
    print("held", flush=True)
    time.sleep(600)
"""


def refuse(text: str) -> None:
    raise AssertionError(text)


def start_holder(out: Path) -> subprocess.Popen[str]:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def test_a_second_suite_waits_and_is_then_refused(tmp_path: Path) -> None:
    said: list[str] = []
    with start_holder(tmp_path) as holder:
        with (
            pytest.raises(UserError, match=r"mine: runs already \(process \d+ on .+\); wait until .* another --name"),
            hold_suite(tmp_path, "mine", said.append, wait_s=0.5),
        ):
            pass
        assert len(said) == 1
        assert f"process {holder.pid} on " in said[0]
        with hold_suite(tmp_path, "another", refuse):
            pass
        holder.terminate()
    assert not (tmp_path / ".another.lock").exists()


def test_a_killed_owner_holds_nothing_up(tmp_path: Path) -> None:
    with start_holder(tmp_path) as holder:
        os.kill(holder.pid, signal.SIGKILL)
    assert (tmp_path / ".mine.lock").exists()
    with hold_suite(tmp_path, "mine", refuse):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_inside_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="wrong"), hold_suite(tmp_path / "a" / "b", "mine", refuse):
        raise UserError("wrong")
    assert list(tmp_path.iterdir()) == []


def test_many_that_wait_enter_one_by_one(tmp_path: Path) -> None:
    """The file is removed and created repeatedly, which must not let two in."""
    inside, seen = Counter[str](), []

    def enter() -> None:
        for _ in range(20):
            with hold_file(tmp_path / "x" / "k.lock"):
                inside["now"] += 1
                seen.append(inside["now"])
                inside["now"] -= 1

    threads = [threading.Thread(target=enter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1] * 160
    assert not list(tmp_path.rglob("*.lock"))


def test_giving_up(tmp_path: Path) -> None:
    with hold_file(tmp_path / "k.lock"):
        with try_file(tmp_path / "k.lock", 0.1) as ours:
            assert not ours
        assert (tmp_path / "k.lock").exists()
    with try_file(tmp_path / "k.lock", 0.1) as ours:
        assert ours


def test_work_of_another_suite_is_not_discarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("l2g_ray.store.results.DISCARD_WAIT_S", 0.1)
    store = Store(tmp_path)
    for key in ("theirs", "stopped"):
        store.open_work("trial", key)
    with store.locked("trial", "theirs"):
        store.discard_work("trial", ["theirs", "stopped", "never"])
        assert {path.name for path in (tmp_path / "trial").glob("*.work")} == {"theirs.work"}
    store.discard_work("trial", ["theirs"])
    assert not list((tmp_path / "trial").glob("*.work"))


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*arguments: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(locks.fcntl, "flock", no_locks)
    with pytest.raises(UserError, match=r"no file locks .*--out"), hold_suite(tmp_path, "mine", refuse):
        pass


@pytest.mark.parametrize("name", ["../x", "..", ".hidden", "a/b", "/etc", "", "a\nb", "-rf", "a\0b"])
def test_a_run_cannot_leave_its_out_folder(name: str) -> None:
    check: Callable[[str], None] = check_name
    with pytest.raises(UserError, match="--name"):
        check(name)
