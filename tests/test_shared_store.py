"""Stage results and runs in an object store, with a real S3 protocol server: two machines are two working folders."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from servers import s3_bucket

from l2g_ray.errors import UserError
from l2g_ray.storage import Location, StorageUnavailable
from l2g_ray.store import shared as mirror
from l2g_ray.store import shared as shared_store
from l2g_ray.store.shared import SharedStore, lease, pull, pull_finished, push, work_folder


def make(store: SharedStore, key: str, text: str) -> None:
    (store.open_work("align", key) / "model.safetensors").write_text(text)


@pytest.fixture
def machines(bucket: str, tmp_path: Path) -> tuple[SharedStore, SharedStore]:
    remote = Location(f"{bucket}/{tmp_path.name}/stages")
    return SharedStore(tmp_path / "a", remote, 1.0), SharedStore(tmp_path / "b", remote, 1.0)


def test_another_machine_finds_what_one_made(machines: tuple[SharedStore, SharedStore]) -> None:
    one, other = machines
    assert one.find("align", "k") is None
    make(one, "k", "weights")
    assert other.find("align", "k") is None, "not finished"
    made = one.commit("align", "k", {"score": 0.5})
    found = other.find("align", "k")
    assert found is not None
    assert (found.values, found.folder) == (made.values, other.folder("align", "k"))
    assert (found.folder / "model.safetensors").read_text() == "weights"
    assert not list(one.root.rglob("*.tmp")) + list(other.root.rglob("*.lock"))
    other.need(other.folder("align", "k"))
    with pytest.raises(UserError, match=r"stages/align/lost: no finished result"):
        other.need(other.folder("align", "lost"))


def test_the_first_of_two_wins(machines: tuple[SharedStore, SharedStore]) -> None:
    one, other = machines
    for store, text in ((one, "first"), (other, "second")):
        make(store, "k", text)
    assert one.commit("align", "k", {"score": 1}).values == {"score": 1}
    assert other.commit("align", "k", {"score": 2}).values == {"score": 1}
    assert (other.folder("align", "k") / "model.safetensors").read_text() == "first"
    assert len({name.split("/")[2] for name in one.remote.files()}) == 2, "manifest and one upload"


def test_a_result_without_its_manifest_is_none(machines: tuple[SharedStore, SharedStore]) -> None:
    one, other = machines
    (one.remote / "align" / "k" / "upload" / "result.json").replace_text('{"score": 0}')
    assert other.find("align", "k") is None
    make(one, "k", "weights")
    one.commit("align", "k", {"score": 1})
    assert other.find("align", "k").values == {"score": 1}  # type: ignore[union-attr]


def test_a_training_state_travels(machines: tuple[SharedStore, SharedStore], monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = machines
    work = one.open_work("align", "k")
    for epoch in ("1", "2"):
        (work / "state.pt").write_text(epoch)
        one.save_state("align", "k")
    assert (other.open_work("align", "k") / "state.pt").read_text() == "1", "not after every epoch"
    monkeypatch.setattr(shared_store, "STATE_EVERY_S", 0.0)
    (work / "state.pt").write_text("3")
    one.save_state("align", "k")
    third = SharedStore(one.root.parent / "c", one.remote, 1.0)
    assert (third.open_work("align", "k") / "state.pt").read_text() == "3"
    one.commit("align", "k", {})
    assert not [name for name in one.remote.files() if "state.pt" in name]
    one.open_work("trial", "t")
    (one.work_folder("trial", "t") / "state.pt").write_text("1")
    one.save_state("trial", "t")
    one.discard_work("trial", ["t"])
    assert not [name for name in one.remote.files() if name.startswith("trial")]


def test_a_manifest_cannot_leave_its_folder(machines: tuple[SharedStore, SharedStore]) -> None:
    one, other = machines
    for bad in ("../../evil", "a/b", ".."):
        for manifest in ({"upload": "u", "files": [bad]}, {"upload": bad, "files": []}):
            (one.remote / "align" / "k" / "manifest.json").replace_text(json.dumps(manifest))
            with pytest.raises(UserError, match="not readable as a manifest"):
                other.find("align", "k")
    (Location(f"{one.remote}/evil") / "x").replace_text("x")
    assert not (other.root.parent / "evil").exists()


def test_a_store_that_goes_away_and_comes_back(tmp_path: Path) -> None:
    with s3_bucket("away") as bucket:
        store = SharedStore(tmp_path / "a", Location(f"{bucket.uri}/stages"), 60.0)
        make(store, "k", "weights")
        bucket.stop()
        again = threading.Timer(4.0, bucket.start)
        again.start()
        assert store.commit("align", "k", {"score": 1}).values == {"score": 1}
        again.join()
        assert SharedStore(tmp_path / "b", store.remote, 1.0).find("align", "k") is not None

        hasty = SharedStore(tmp_path / "a", store.remote, 0.5)
        make(hasty, "left", "weights")
        bucket.stop()
        state = hasty.work_folder("align", "left") / "state.pt"
        state.write_text("1")
        hasty.save_state("align", "left")  # holds nothing up
        with pytest.raises(UserError, match=r"cannot be written for 0 s .*finished stages are kept"):
            hasty.commit("align", "left", {"score": 2})
        bucket.start()
        # The next one finds it on this machine, and shares it.
        found = hasty.find("align", "left") or hasty.find_unshared("align", "left")
        assert found is not None
        assert SharedStore(tmp_path / "c", store.remote, 1.0).find("align", "left") is not None


def test_a_run_goes_up_and_comes_down(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = Location(f"{bucket}/runs/mine")
    run = tmp_path / "mine"
    (run / "task" / "model").mkdir(parents=True)
    (run / "task" / "model" / "config.json").write_text("{}")
    (run / "suite.json").write_text(json.dumps({"state": "running", "key": "k"}))
    (run / ".hidden").write_text("not for others")
    push(run, remote, 1.0)
    assert remote.files() == ["suite.json", "task/model/config.json"]
    copy = tmp_path / "copy"
    pull_finished(remote, copy)
    assert not copy.exists(), "it is not finished"
    (run / "suite.json").write_text(json.dumps({"state": "finished", "key": "k"}))
    push(run, remote, 1.0)
    pull_finished(remote, copy)
    assert {path.relative_to(copy).as_posix() for path in copy.rglob("*.json")} == set(remote.files())
    (copy / "mine.txt").write_text("kept")
    pull_finished(remote, copy)
    assert (copy / "mine.txt").exists(), "the same run is not fetched again"
    pull(remote, copy)
    assert not (copy / "mine.txt").exists()
    monkeypatch.setenv("L2G_RAY_WORK_DIR", str(tmp_path / "work"))
    assert work_folder(remote) == work_folder(Location(f"{remote}/"))
    assert work_folder(remote).parent == tmp_path / "work"


def test_one_driver_at_a_time(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RENEW_S", 0.2), ("SETTLE_S", 0.5), ("LEASE_S", 3.0)):
        monkeypatch.setattr(mirror, name, value)
    out, said, lost = Location(f"{bucket}/leased"), list[str](), list[int]()

    def never() -> None:
        raise AssertionError

    with lease(out, "mine", said.append, never):
        with (
            pytest.raises(UserError, match=r"mine: runs already \(process \d+"),
            lease(out, "mine", said.append, never),
        ):
            pass
        with lease(out, "other", said.append, never):
            pass
    assert out.files() == []
    # A driver that was killed renews nothing: its lease is taken over.
    (out / ".mine.lease").replace_text(json.dumps({"id": "dead", "process": 1, "host": "gone"}))
    with lease(out, "mine", said.append, lambda: lost.append(1)):
        assert "process 1 on gone" in said[-1]
        # A driver that was disconnected for long finds another in its place.
        (out / ".mine.lease").replace_text(json.dumps({"id": "another", "process": 2, "host": "b"}))
        for _ in range(50):
            if lost:
                break
            threading.Event().wait(0.1)
    assert lost == [1]
    assert out.files() == [".mine.lease"], "the other's lease stays"
    with pytest.raises(StorageUnavailable), lease(Location("s3://no-such-bucket/x"), "m", said.append, never):
        pass
