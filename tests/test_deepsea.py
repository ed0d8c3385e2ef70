"""DeepSEA in its published forms, HDF5, MATLAB and NumPy, and every fault in them."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pytest
import scipy.io
from official_files import OPTIONS, block_sizes, labels_task, make_task, open_form, rows

from l2g_ray.data.sources import deepsea
from l2g_ray.data.sources.deepsea import decode
from l2g_ray.data.sources.official import open_official
from l2g_ray.errors import UserError
from l2g_ray.tasks.catalogue import find_tasks


def random_windows(n: int, length: int, n_outputs: int, seed: int) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Sequences with some N, the same one-hot (n, 4, length) with rows A, G, C, T, and labels."""
    generator = np.random.default_rng(seed)
    sequences = ["".join(row) for row in generator.choice(list("ACGTN"), (n, length))]
    windows = np.zeros((n, 4, length), np.uint8)
    for i, sequence in enumerate(sequences):
        for j, letter in enumerate(sequence):
            if letter != "N":
                windows[i, "AGCT".index(letter), j] = 1
    return sequences, windows, generator.integers(0, 2, (n, n_outputs)).astype(np.uint8)


def write_hdf5(path: Path, split: str, windows: np.ndarray, labels: np.ndarray, **storage) -> None:
    with h5py.File(path, "w", userblock_size=512) as file:  # as MATLAB does
        file.create_dataset(f"{split}xdata", data=windows.transpose(2, 1, 0), **storage)
        file.create_dataset(f"{split}data", data=labels.T)


def write_mat5(path: Path, split: str, windows: np.ndarray, labels: np.ndarray) -> None:
    scipy.io.savemat(path, {f"{split}xdata": windows, f"{split}data": labels})


def test_deepsea_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deepsea, "BLOCK_ROWS", 3)
    made = {
        split: random_windows(n, 20, 5, i) for i, (split, n) in enumerate({"train": 7, "valid": 4, "test": 2}.items())
    }
    write_hdf5(tmp_path / "train.mat", "train", *made["train"][1:])
    write_mat5(tmp_path / "valid.mat", "valid", *made["valid"][1:])
    write_mat5(tmp_path / "test.mat", "test", *made["test"][1:])
    raw = open_form(labels_task(5), tmp_path)
    assert raw.task.labels == tuple(f"target_{i}" for i in range(5))
    for split, (sequences, _, labels) in made.items():
        found = rows(raw, split, "label")
        assert [row[0] for row in found] == [str(i + 1) for i in range(len(sequences))]
        assert [row[1] for row in found] == sequences
        assert np.array_equal([row[2] for row in found], labels)
    assert block_sizes(raw, "train") == [3, 3, 1]
    assert block_sizes(raw, "valid") == [3, 1]
    assert next(raw.splits["train"][0].tables())["label"].type == pa.list_(pa.float32(), 5)


def test_deepsea_reads_whole_chunks_of_hdf5(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deepsea, "BLOCK_ROWS", 2)
    sequences, windows, labels = random_windows(11, 8, 3, 1)
    for split in ("train", "test"):
        write_hdf5(tmp_path / f"{split}.mat", split, windows, labels, chunks=(8, 4, 5), compression="gzip")
    reads = []
    original = h5py.Dataset.__getitem__

    def note_read(self: h5py.Dataset, key: tuple) -> np.ndarray:
        reads.append(key[-1])
        return original(self, key)

    monkeypatch.setattr(h5py.Dataset, "__getitem__", note_read)
    raw = open_form(labels_task(3), tmp_path)
    assert [row[1] for row in rows(raw, "train")] == sequences
    assert block_sizes(raw, "train") == [2, 2, 1, 2, 2, 1, 1]
    assert {(key.start, key.stop) for key in reads} == {(0, 5), (5, 10), (10, 15)}


def test_deepsea_npz(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deepsea, "BLOCK_ROWS", 3)
    task = find_tasks("deepsea", ["deepsea_filtered"])[0]
    made = {
        split: random_windows(n, 12, 36, i) for i, (split, n) in enumerate({"train": 7, "val": 2, "test": 3}.items())
    }
    arrays = {f"x_{split}": windows.transpose(0, 2, 1).astype(np.float32) for split, (_, windows, _) in made.items()}
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    arrays |= {f"y_{split}": labels for split, (_, _, labels) in made.items()}
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "deepsea_filtered.npz", **arrays)
        raw = open_form(task, tmp_path)
        for split, name in (("train", "train"), ("valid", "val"), ("test", "test")):
            found = rows(raw, split, "label")
            assert [row[1] for row in found] == made[name][0]
            assert np.array_equal([row[2] for row in found], made[name][2])
        assert block_sizes(raw, "train") == [3, 3, 1]
        assert set(raw.splits) == {"train", "valid", "test"}


def test_deepsea_takes_the_file_with_the_tasks_labels(tmp_path: Path) -> None:
    sequences, windows, labels = random_windows(3, 6, 4, 0)
    for split in ("train", "test"):
        write_mat5(tmp_path / f"{split}.mat", split, windows[:2], labels[:2])
    x, y = np.ascontiguousarray(windows.transpose(0, 2, 1)), labels[:, :2]
    np.savez(tmp_path / "deepsea_filtered.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    assert [row[1] for row in rows(open_form(labels_task(4), tmp_path), "train")] == sequences[:2]
    raw = open_form(labels_task(2), tmp_path)
    assert [row[1] for row in rows(raw, "train")] == sequences
    assert set(raw.splits) == {"train", "test"}
    with pytest.raises(UserError, match=r"4 labels a row \(train\) where the task 'own' has 3"):
        open_official(labels_task(3), tmp_path, OPTIONS)
    with pytest.raises(UserError, match="of kind binary"):
        open_official(make_task(), tmp_path, OPTIONS)


def test_deepsea_label_names(tmp_path: Path) -> None:
    _, windows, labels = random_windows(2, 6, 3, 0)
    for split in ("train", "test"):
        write_mat5(tmp_path / f"{split}.mat", split, windows, labels)
    (tmp_path / "names.txt").write_text("8988T|DNase|None\nAoSMC|DNase|None\n\n8988T|DNase|None\n")
    raw = open_form(labels_task(3), tmp_path)
    assert raw.task.labels == ("8988T|DNase|None", "AoSMC|DNase|None", "8988T|DNase|None (2)")
    assert raw.files["labels"] == tmp_path / "names.txt"
    (tmp_path / "predictor.names").write_text("one\n")
    raw = open_form(labels_task(3), tmp_path)
    assert raw.task.labels[0] == "target_0"
    assert "1 names for 3 labels" in raw.notes[0]


def test_all_zeros_are_n_and_what_is_not_one_hot_is_refused() -> None:
    windows = np.zeros((2, 4, 3))
    windows[0, [0, 1, 2], [0, 1, 2]] = 1
    windows[1, 3, 0] = 1
    assert decode(windows, "x").to_pylist() == ["AGC", "TNN"]
    windows[1, 0, 0] = 1
    with pytest.raises(UserError, match=r"x, row 12: position 1 is 1, 0, 0, 1 in the 4 channels"):
        decode(windows, "x", 11)
    windows[1, :, 0] = 0.25
    with pytest.raises(UserError, match=r"0\.25, 0\.25, 0\.25, 0\.25"):
        decode(windows, "x", 11)


def test_faulty_deepsea_files(tmp_path: Path) -> None:
    _, windows, labels = random_windows(5, 6, 3, 0)
    train, test, npz = (tmp_path / name for name in ("train.mat", "test.mat", "deepsea_filtered.npz"))
    write_mat5(train, "train", windows, labels)

    def refused(message: str) -> None:
        with pytest.raises(UserError, match=message):
            open_official(labels_task(3), tmp_path, OPTIONS)

    refused(r"no test\.mat")
    write_mat5(test, "train", windows, labels)
    refused(r"test\.mat: no variable 'testxdata' \(it has trainxdata, traindata\)")
    write_hdf5(test, "test", windows, labels[:4])
    refused(r"test\.mat: testxdata and testdata have the shapes \(5, 4, 6\) and \(4, 3\)")
    write_hdf5(test, "test", windows.transpose(0, 2, 1), labels)
    refused(r"\(5, 6, 4\)")
    test.write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
    refused(r"test\.mat: the file cannot be read")
    wrong = windows.copy()
    wrong[3, :, 2] = 1
    write_mat5(test, "test", wrong, labels)
    with pytest.raises(UserError, match=r"test\.mat \(test\), row 4: position 3"):
        rows(open_form(labels_task(3), tmp_path), "test")
    train.unlink()
    x = np.ascontiguousarray(windows.transpose(0, 2, 1))
    np.savez(npz, x_train=x, y_train=labels)
    refused("no x_test and y_test")
    np.savez(npz, x_train=x, y_train=labels, x_test=x)
    refused("x_test is there, but no y_test")
    np.savez(npz, x_train=np.asfortranarray(x), y_train=labels, x_test=x, y_test=labels)
    refused("Fortran order")
    np.savez(npz, x_train=x.astype(object), y_train=labels, x_test=x, y_test=labels)
    refused("holds objects")
    npz.write_bytes(npz.read_bytes()[:300])
    refused(r"deepsea_filtered\.npz: the file cannot be read")
