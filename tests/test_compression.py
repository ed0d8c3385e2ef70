"""Every reader of text reads every compression, whatever the spelling of its suffix."""

from __future__ import annotations

from pathlib import Path

import pytest
from genome_files import rows_of, write_genome
from source_files import write_text

from l2g_ray.data.raw import SourceOptions
from l2g_ray.data.readers import open_vcf, read_table
from l2g_ray.data.sources import open_source
from l2g_ray.data.text import COMPRESSIONS
from l2g_ray.models.corpus import read_corpus

TABLES = {
    "t.csv": "id,sequence\nx,ACGT\n",
    "t.tsv": "id\tsequence\nx\tACGT\n",
    "t.txt": "id\tsequence\nx\tACGT\n",
    "t.jsonl": '{"id": "x", "sequence": "ACGT"}\n',
    "t.fa": ">x\nAC\nGT\n",
}
PEAKS = {
    "p.bed": "chr1\t300\t400\nchr1\t900\t1000\n",
    "p.narrowPeak": "chr1\t300\t400\t.\t0\t.\t1\t1\t1\t5\nchr1\t900\t1000\t.\t0\t.\t1\t1\t1\t5\n",
    "p.broadPeak": "chr1\t300\t400\t.\t0\t.\t1\t1\t1\nchr1\t900\t1000\t.\t0\t.\t1\t1\t1\n",
}


def put(path: Path, text: str) -> Path:
    return write_text(path.with_suffix(path.suffix.lower()), text).rename(path)


@pytest.mark.parametrize("suffix", ["", *COMPRESSIONS, ".BGZ"])
@pytest.mark.parametrize("name", TABLES)
def test_tables(tmp_path: Path, name: str, suffix: str) -> None:
    table = read_table(put(tmp_path / f"{name}{suffix}", TABLES[name]))
    assert table.to_pylist() == [{"id": "x", "sequence": "ACGT"}]


@pytest.mark.parametrize("suffix", ["", *COMPRESSIONS, ".BGZ"])
@pytest.mark.parametrize("name", PEAKS)
def test_peaks(tmp_path: Path, name: str, suffix: str) -> None:
    path = put(tmp_path / f"{name}{suffix}", PEAKS[name])
    raw = open_source([path], SourceOptions(genome=write_genome(tmp_path)))
    assert raw.task.name == "p"
    assert [(row["start"], row["end"]) for row in rows_of(raw, 0)] == [(300, 400), (900, 1000)]


@pytest.mark.parametrize("suffix", ["", *COMPRESSIONS])
def test_variants(tmp_path: Path, suffix: str) -> None:
    _, rows = open_vcf(put(tmp_path / f"v.vcf{suffix}", "chr1\t5\t.\tA\tC\n"))
    assert [row.pos for row in rows] == [5]


@pytest.mark.parametrize("suffix", ["", ".gz", ".bgz"])
def test_text_for_alignment(tmp_path: Path, suffix: str) -> None:
    assert read_corpus(put(tmp_path / f"c.txt{suffix}", "one sentence\n")).words == [["one", "sentence"]]
