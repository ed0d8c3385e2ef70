"""What libraries raise for a faulty file, in any reader, is one sentence with the file, the line or row, and what to do."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import Cli
from explained import write_model
from genome_files import message, write_bgzip
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from source_files import write_text

from l2g_ray.data.dataset import ShardSource, read_shard
from l2g_ray.data.genome import Genome
from l2g_ray.data.readers import open_vcf, read_table
from l2g_ray.data.sources.bed import read_intervals
from l2g_ray.data.sources.deepsea import open_mat, open_npz
from l2g_ray.errors import UserError
from l2g_ray.explain.databases import read_list, read_meme, read_sites
from l2g_ray.models.corpus import read_corpus
from l2g_ray.predict import load_predictor
from l2g_ray.presets import resolve
from l2g_ray.storage import Location


def read_vcf(path: Path) -> list:
    return list(open_vcf(path)[1])


# Readers of text, with a file that each reads: 3,000 lines, more than what is decoded at once.
TEXTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "t.fa": (read_table, ">a\nACGTACGT\n" * 1500),
    "t.bed": (read_intervals, "chr1\t1\t2\n" * 3000),
    "t.narrowPeak": (read_intervals, "chr1\t1\t2\t.\t0\t.\t1\t1\t1\t0\n" * 3000),
    "t.vcf": (read_vcf, "chr1\t5\t.\tA\tC\n" * 3000),
    "t.meme": (read_meme, "MOTIF a\n" + "\n" * 2999),
    "t.list": (lambda path: read_list(str(path)), "GATA\n" * 3000),
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_line_that_is_no_text_is_named(tmp_path: Path, name: str) -> None:
    read, text = TEXTS[name]
    lines = text.encode().splitlines(keepends=True)
    lines[2100] = b"\xe9\xff" + lines[2100]
    path = tmp_path / name
    path.write_bytes(b"".join(lines))
    assert message(read, path) == f"{path}, line 2101: the file is not UTF-8 text; save it as UTF-8"


@pytest.mark.parametrize("name", [f"{name}{suffix}" for name in TEXTS for suffix in (".gz", ".bgz", ".zst")])
def test_a_compressed_file_that_is_cut_short(tmp_path: Path, name: str) -> None:
    read, text = TEXTS[name.rpartition(".")[0]]
    path = write_text(tmp_path / name, text)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    said = message(read, path)
    assert said.startswith(f"{path}")
    assert "copy it again" in said


FUZZ = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
BINARY: dict[str, Callable[[Path], object]] = {
    "t.parquet": read_table,
    "shard.parquet": lambda path: read_shard(Location(str(path))),
    "stream.parquet": lambda path: list(ShardSource((Location(str(path)),), 9).tables()),
    "sites.parquet": lambda path: read_sites(path, ["a"]),
    "corpus.parquet": read_corpus,
    "corpus.txt.gz": read_corpus,
    "x.mat": lambda path: list(open_mat(path, "train").blocks(4)),
    "x.npz": lambda path: (found := open_npz(path, "train")) and list(found.blocks(4)),
    "g.fa.gz": lambda path: Genome(path).close(),
}


def write_binary(path: Path) -> Path:
    kind = path.name.split(".", 1)[1]
    if path.name == "sites.parquet":
        site = {"id": ["a"], "motif": ["m"], "start": [1], "end": [2], "strand": ["+"], "output": ["o"]}
        pq.write_table(pa.table(site), path)
    elif path.name == "corpus.parquet":
        pq.write_table(pa.table({"tokens": [["a", "b"]], "ner_tags": [[0, 1]]}), path)
    elif kind == "parquet":
        pq.write_table(pa.table({"sequence": ["ACGT"] * 9, "label": [0] * 9}), path)
    elif kind == "txt.gz":
        path.write_bytes(gzip.compress(b"a sentence\n" * 50))
    elif kind == "mat":
        with h5py.File(path, "w") as file:
            file["trainxdata"] = np.zeros((8, 4, 9), np.uint8)
            file["traindata"] = np.zeros((3, 9), np.uint8)
    elif kind == "npz":
        np.savez_compressed(path, x_train=np.zeros((9, 8, 4), np.uint8), y_train=np.zeros((9, 3), np.uint8))
    else:
        write_bgzip(path, ">a\n" + "ACGT" * 200 + "\n")
    return path


@pytest.mark.parametrize("name", sorted(name for name in BINARY if name.endswith(".parquet")))
def test_a_column_name_that_is_no_text(tmp_path: Path, name: str) -> None:
    path = write_binary(tmp_path / name)
    for column in pq.read_schema(path).names:
        written = path.read_bytes()
        path.write_bytes(written.replace(column.encode(), b"\x80" + column.encode()[1:]))
    with pytest.raises(UserError, match=re.escape(str(path))):
        BINARY[name](path)


@FUZZ
@given(name=st.sampled_from(sorted(BINARY)), data=st.data())
def test_damage_anywhere_is_one_sentence(tmp_path: Path, name: str, data: st.DataObject) -> None:
    path = write_binary(tmp_path / name)
    BINARY[name](path)
    whole = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(whole) - 1))
    how = data.draw(st.sampled_from(["cut", "noise", "replaced"]))
    noise = data.draw(st.binary(min_size=1, max_size=40))
    if how == "cut":
        whole = whole[:place]
    elif how == "noise":
        whole[place : place + len(noise)] = noise
    else:
        whole = bytearray(noise)
    path.write_bytes(whole)
    said = f"{path}; "
    try:
        BINARY[name](path)  # some damage is in bytes that nobody reads
    except UserError as error:
        said = str(error)
    assert said.startswith(str(path))
    assert "\n" not in said
    assert "; " in said


def test_a_group_where_an_array_should_be(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.mat", "w") as file:
        file.create_group("trainxdata")
        file.create_group("traindata")
    assert "x.mat: the file cannot be read" in message(open_mat, tmp_path / "x.mat", "train")


def test_rows_of_sites_and_of_a_corpus_are_named(tmp_path: Path) -> None:
    site = {"id": ["a", "a"], "motif": ["m", "m"], "start": [1, None], "end": [2, 3], "strand": "++", "output": "oo"}
    pq.write_table(pa.table({name: list(values) for name, values in site.items()}), tmp_path / "s.parquet")
    assert "s.parquet, row 2: start 'None' and end '3' are no whole" in message(
        read_sites, tmp_path / "s.parquet", ["a"]
    )
    for tags in ([[0], [77]], [[0], None], [[0], [0, 0]]):
        pq.write_table(pa.table({"tokens": [["a"], ["b"]], "ner_tags": tags}), tmp_path / "c.parquet")
        assert "c.parquet, row 2: not a list of tokens and as many tags" in message(read_corpus, tmp_path / "c.parquet")


def test_model_folders_that_are_not_whole(tmp_path: Path) -> None:
    def spoilt(file: str, content: str | None) -> str:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        folder = write_model(tmp_path / "run") / "model"
        if content is not None:
            (folder / file).write_text(content)
        else:
            write_model(tmp_path / "run" / "other", None)
            config = json.loads((folder / "config.json").read_text())
            config["embedder"]["channels"] = [4, 4, 4]
            (folder / "config.json").write_text(json.dumps(config))
        return message(load_predictor, folder)

    assert "config.json and model.safetensors are not of one model" in spoilt("config.json", None)
    assert "holds no task that this version reads" in spoilt("task.json", '{"schema": 1, "task": {}}')
    assert "holds no task that this version reads" in spoilt("task.json", '{"schema": 1}')
    assert "schema None, this version reads 1" in spoilt("task.json", "[]")
    assert "schema None, this version reads 1" in spoilt("config.json", "[]")
    assert "not readable" in spoilt("model.safetensors", "no tensors")


def test_settings_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"# \xe9\n")
    assert message(resolve, str(path)) == f"{path}: the file is not UTF-8 text; save it as UTF-8"


def test_a_name_that_is_too_long_for_the_disk(cli: Cli, tmp_path: Path) -> None:
    run = write_model(tmp_path / "run")
    said = cli("predict", run, "--input", tmp_path / f"{'x' * 300}.csv", "--output", tmp_path / "o.csv")
    assert said.code == 2
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
