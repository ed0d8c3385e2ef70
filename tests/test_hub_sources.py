"""Benchmarks from the Hugging Face hub, by a hub that is a folder."""

from __future__ import annotations

import shutil
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from official_files import DEEPSTARR, open_form, rows, write_nt_tables

from l2g_ray.data.sources.official import fetch_dataset
from l2g_ray.errors import UserError
from l2g_ray.storage import hub_answers
from l2g_ray.tasks.catalogue import find_tasks


@pytest.fixture
def fake_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose sub-folders OWNER/NAME are the data sets of the hub; the cache is the folder `cache` beside it."""
    from fnmatch import fnmatch

    hub, cache = tmp_path / "hub", tmp_path / "cache"

    def list_files(root: Path) -> list[str]:
        return [path.relative_to(root).as_posix() for path in sorted(root.rglob("*")) if path.is_file()]

    def dataset_info(self, repo_id: str, timeout: float) -> SimpleNamespace:
        if not (hub / repo_id).is_dir():
            raise ConnectionResetError("the line is cut\nfurther lines")
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in list_files(hub / repo_id)])

    def snapshot_download(repo_id, repo_type, allow_patterns=None, cache_dir=None, local_files_only=False) -> str:
        target = Path(cache_dir or cache) / repo_id
        if local_files_only and not target.is_dir():
            raise FileNotFoundError("not cached")
        for name in [] if local_files_only else list_files(hub / repo_id):
            if any(fnmatch(name, pattern) for pattern in allow_patterns):
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(hub / repo_id / name, target / name)
        return str(target)

    monkeypatch.setattr("l2g_ray.data.sources.official.hub_answers", lambda: True)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return hub


def fill(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"sequence,label\nACGT,{len(name)}\n")


@pytest.mark.parametrize("layout", ["{0}", "GUE/{1}"])
def test_a_task_is_fetched_from_its_own_folder(fake_hub: Path, tmp_path: Path, layout: str) -> None:
    config = {"emp_H4": "EMP/H4", "tf_0": "tf/0", "mouse_0": "mouse/0", "virus_covid": "virus/covid",
              "prom_core_all": "prom/prom_core_all", "splice_reconstructed": "splice/reconstructed"}  # fmt: skip
    named = {**{name: name for name in config}, "tf_0": "human_tf_0"}
    folders = {name: layout.format(named[name], folder) for name, folder in config.items()}
    for folder in (*folders.values(), "emp_H4ac", "GUE/EMP/H4ac"):
        fill(fake_hub / "leannmlindsey" / "GUE", *(f"{folder}/{part}.csv" for part in ("train", "dev", "test")))
    for name, folder in folders.items():
        found = fetch_dataset(find_tasks("gue", [name])[0], tmp_path / "cache")
        assert found == tmp_path / "cache" / "leannmlindsey" / "GUE" / folder
        assert sorted(path.name for path in found.iterdir()) == ["dev.csv", "test.csv", "train.csv"]


def test_fetched_forms_are_understood(fake_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_nt_tables(fake_hub / "InstaDeepAI" / "nucleotide_transformer_downstream_tasks")
    fill(fake_hub / "InstaDeepAI" / "nucleotide_transformer_downstream_tasks", "README.md", "data/notes.csv")
    task = find_tasks("nt", ["enhancers"])[0]
    folder = fetch_dataset(task)
    assert sorted(path.name for path in folder.rglob("*.*")) == [
        "test-00000-of-00001.parquet", "train-00000-of-00001.parquet"
    ]  # fmt: skip
    assert len(rows(open_form(task, folder), "train")) == 2
    # Without a network the copy in the cache will do.
    monkeypatch.setattr("l2g_ray.data.sources.official.hub_answers", lambda: False)
    assert fetch_dataset(task) == folder
    with pytest.raises(UserError, match=r"cannot be reached.*--data-dir"):
        fetch_dataset(find_tasks("nt_revised", ["enhancers"])[0])


def test_what_the_hub_does_not_have(fake_hub: Path) -> None:
    with pytest.raises(UserError, match=r"Genomic_Benchmarks_human_ocr_ensembl.*\(the line is cut\).*--data-dir DIR$"):
        fetch_dataset(find_tasks("genomic_benchmarks", ["human_ocr_ensembl"])[0])
    fill(fake_hub / "leannmlindsey" / "GUE", "mouse/0/train.csv", "tf_1/train.csv", "README.md")
    with pytest.raises(UserError, match=r"leannmlindsey/GUE has no train and test files.*DIR/GUE/tf/0"):
        fetch_dataset(find_tasks("gue", ["tf_0"])[0])
    with pytest.raises(UserError, match=r"no hub has its files; .*from https://data\.starklab\.org"):
        fetch_dataset(DEEPSTARR)


def test_a_data_set_that_is_not_there(fake_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import RepositoryNotFoundError

    def not_found(self, repo_id: str, timeout: float) -> None:
        raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", not_found)
    with pytest.raises(UserError, match=r"the hub has no data set leannmlindsey/GUE.*download the files yourself"):
        fetch_dataset(find_tasks("gue", ["tf_0"])[0])


def test_an_unreachable_hub_ends_within_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        closed = taken.getsockname()[1]
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed}")
    begun = time.monotonic()
    with pytest.raises(UserError, match=r"'H3'.*hub cannot be reached.*DIR/nt/H3.*--data-dir DIR$"):
        fetch_dataset(find_tasks("nt", ["H3"])[0], tmp_path)
    assert time.monotonic() - begun < 5


def test_the_hub_is_asked_at_its_own_port(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        for endpoint in (f"http://{address}", f"https://{address}/mirror", address):
            monkeypatch.setenv("HF_ENDPOINT", endpoint)
            assert hub_answers()
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert not hub_answers()
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert not hub_answers()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:port")
    assert not hub_answers()


def test_a_release_is_not_picked_from_the_others_repository(fake_hub: Path) -> None:
    write_nt_tables(fake_hub / "InstaDeepAI" / "nucleotide_transformer_downstream_tasks")
    with pytest.raises(UserError, match="nucleotide_transformer_downstream_tasks_revised"):
        fetch_dataset(find_tasks("nt_revised", ["enhancers"])[0])
