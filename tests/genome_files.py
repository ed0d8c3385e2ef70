"""A toy genome for tests, peaks on it, and the rows that come of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from Bio import bgzf

from l2g_ray.data.raw import RawTask
from l2g_ray.errors import UserError

PAIRS = dict(zip("ACGTRYSWKMBDHVN", "TGCAYRSWMKVHDBN", strict=True))


def make_chromosome(length: int, seed: int) -> str:
    """GC content that changes along the way, soft-masked parts, runs of N, a few IUPAC letters."""
    generator = np.random.default_rng(seed)
    gc = 0.5 + 0.25 * np.sin(np.arange(length) / 900)
    strong = generator.random(length) < gc
    letters = np.where(strong, generator.choice(list("GC"), length), generator.choice(list("AT"), length))
    letters[:150] = "N"
    letters[length // 2 : length // 2 + 700] = "N"
    letters[generator.integers(200, length, 20)] = generator.choice(list("RYSWKMBDHV"), 20)
    masked = (np.arange(length) // 400) % 3 == 0
    return "".join(np.where(masked, np.char.lower(letters), letters))


CHROMOSOMES = {
    "chr1": make_chromosome(50_000, 1),
    "chr2": make_chromosome(40_020, 2),
    "chrM": make_chromosome(6_001, 3),
}


def fasta_text(chromosomes: dict[str, str] = CHROMOSOMES, newline: str = "\n") -> str:
    records = []
    for name, text in chromosomes.items():
        lines = [text[i : i + 60] for i in range(0, len(text), 60)]
        records.append(newline.join([f">{name} a toy", *lines, ""]))
    return "".join(records)


def write_genome(folder: Path) -> Path:
    path = folder / "toy.fa"
    path.write_text(fasta_text())
    return path


def write_bgzip(path: Path, text: str) -> Path:
    with bgzf.BgzfWriter(str(path)) as file:
        file.write(text)
    return path


def write_bed(path: Path, rows: list[tuple]) -> Path:
    path.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))
    return path


def flip(text: str) -> str:
    return "".join(PAIRS[letter] for letter in reversed(text))


def rows_of(raw: RawTask, piece: int) -> list[dict]:
    return pa.concat_tables(raw.splits["all"][piece].tables()).to_pylist()


def random_peaks(n: int, seed: int = 0, widths: tuple[int, int] = (80, 300)) -> list[tuple]:
    generator = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        chrom = ("chr1", "chr2")[i % 2]
        start, width = int(generator.integers(200, 19_000)), int(generator.integers(*widths))
        rows.append((chrom, start, start + width, f"p{i}", 0, "+-"[i % 3 == 0]))
    return rows


def message(call, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    text = str(caught.value)
    assert "\n" not in text
    return text
