from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

import l2g_ray
from l2g_ray.config import DataSettings
from l2g_ray.data.prepare import prepare
from l2g_ray.data.raw import SourceOptions
from l2g_ray.data.sources.files import open_folder
from l2g_ray.data.spool import find_overlap, measure_facts
from l2g_ray.storage import as_location
from l2g_ray.tasks.catalogue import find_tasks

DEMO = Path(l2g_ray.__file__).parent / "data" / "demo"
GRAMMAR = DEMO / "enhancer_grammar"
SPLITS = ("train", "valid", "test")
IUPAC = {
    "A": "A",
    "C": "C",
    "G": "G",
    "T": "T",
    "R": "AG",
    "Y": "CT",
    "S": "CG",
    "W": "AT",
    "K": "GT",
    "M": "AC",
    "N": "ACGT",
}
COMPLEMENT = str.maketrans("ACGTRYKM", "TGCAYRMK")


def count_rows(name: str) -> dict[str, int]:
    return {split: pq.read_metadata(DEMO / name / f"{split}.parquet").num_rows for split in SPLITS}


def test_counts_and_size() -> None:
    assert sum(count_rows("splice_junction").values()) == 3190
    assert count_rows("enhancer_grammar") == {"train": 3000, "valid": 400, "test": 800}
    labels = Counter()
    for split in SPLITS:
        table = pq.read_table(DEMO / "splice_junction" / f"{split}.parquet")
        labels.update(table["label"].to_pylist())
        assert {len(text) for text in table["sequence"].to_pylist()} == {60}
    assert labels == {0: 767, 1: 768, 2: 1655}
    assert sum(path.stat().st_size for path in DEMO.rglob("*") if path.is_file()) < 1_500_000


def test_splice_labels_are_what_they_say() -> None:
    table = pq.read_table(DEMO / "splice_junction" / "train.parquet")
    after = [
        text[30:32] for text, label in zip(table["sequence"].to_pylist(), table["label"].to_pylist()) if label == 0
    ]
    before = [
        text[28:30] for text, label in zip(table["sequence"].to_pylist(), table["label"].to_pylist()) if label == 1
    ]
    assert after.count("GT") / len(after) > 0.97
    assert before.count("AG") / len(before) > 0.97


@pytest.mark.parametrize("name", ["splice_junction", "enhancer_grammar"])
def test_no_sequence_stands_in_two_splits(name: str) -> None:
    columns = {split: pq.read_table(DEMO / name / f"{split}.parquet")["sequence"] for split in SPLITS}
    for one, other in (("train", "valid"), ("train", "test"), ("valid", "test")):
        assert not find_overlap(measure_facts(columns[one]), measure_facts(columns[other])).any.any()


@pytest.mark.parametrize("name", ["splice_junction", "enhancer_grammar"])
def test_demo_prepares_without_loss(tmp_path: Path, name: str) -> None:
    (task,) = find_tasks("demo", [name])
    prepared = prepare(open_folder(as_location(DEMO / name), SourceOptions(), task), tmp_path / "out", DataSettings())
    assert {split: prepared.n_rows(split) for split in SPLITS} == count_rows(name)
    assert any("synthetic" in warning for warning in prepared.manifest["warnings"]) == (name == "enhancer_grammar")


def test_truth_lists_every_site_where_it_stands() -> None:
    grammar = yaml.safe_load((GRAMMAR / "grammar.yaml").read_text())
    consensus = {motif["name"]: motif["consensus"] for motif in grammar["motifs"]}
    sequences = {}
    for split in SPLITS:
        table = pq.read_table(GRAMMAR / f"{split}.parquet")
        sequences |= dict(zip(table["id"].to_pylist(), table["sequence"].to_pylist()))
    truth = pq.read_table(GRAMMAR / "truth.parquet").to_pylist()
    assert len(truth) > 10_000
    for site in truth:
        text = sequences[site["id"]][site["start"] : site["end"]]
        if site["strand"] == "-":
            text = text.translate(COMPLEMENT)[::-1]
        assert len(text) == len(consensus[site["motif"]])
        assert all(base in IUPAC[letter] for base, letter in zip(text, consensus[site["motif"]])), site
        assert site["id"].startswith(site["split"])
    # Nothing that matches is left out.
    known = {(site["id"], site["motif"], site["start"]) for site in truth}
    for name, text in consensus.items():
        for pattern in (text, text.translate(COMPLEMENT)[::-1]):
            expression = re.compile("(?=" + "".join(f"[{IUPAC[letter]}]" for letter in pattern) + ")")
            for row, sequence in sequences.items():
                assert all((row, name, match.start()) in known for match in expression.finditer(sequence))


def test_activity_follows_the_grammar_up_to_its_noise() -> None:
    grammar = yaml.safe_load((GRAMMAR / "grammar.yaml").read_text())
    table = pq.read_table(GRAMMAR / "test.parquet")
    sites: dict[str, list[dict]] = {row: [] for row in table["id"].to_pylist()}
    for site in pq.read_table(GRAMMAR / "truth.parquet", filters=[("split", "=", "test")]).to_pylist():
        sites[site["id"]].append(site)
    weights = {motif["name"]: motif["weights"] for motif in grammar["motifs"]}
    for output in grammar["outputs"]:
        expected = []
        for found in sites.values():
            x = grammar["basal"] + sum(weights[site["motif"]].get(output, 0) for site in found)
            for pair in (pair for pair in grammar["pairs"] if pair["output"] == output):
                for one in (site for site in found if site["motif"] == pair["motifs"][0]):
                    for other in (site for site in found if site["motif"] == pair["motifs"][1]):
                        gap = max(one["start"], other["start"]) - min(one["end"], other["end"])
                        x += pair["bonus"] * (pair["gap_bp"][0] <= gap <= pair["gap_bp"][1])
            expected.append(grammar["saturation"] * (1 - np.exp(-max(0, x) / grammar["saturation"])))
        labels = table[output].to_numpy()
        assert np.std(labels - expected) == pytest.approx(grammar["noise_sd"][output], rel=0.1)
        assert 0.95 < np.corrcoef(expected, labels)[0, 1] < 0.98


def test_provenance_says_source_licence_and_synthetic() -> None:
    assert "CC BY 4.0" in (DEMO / "splice_junction" / "PROVENANCE.md").read_text()
    assert "SYNTHETIC" in (GRAMMAR / "PROVENANCE.md").read_text()
