"""Motifs: found where they were planted, named, written in the field's formats, and drawn; `l2g-ray explain` as a whole."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from commands import Cli
from detectors import LENGTH_BP, make_detector, plant_sites
from explained import write_model
from hypothesis import given
from hypothesis import strategies as st
from toys import MOTIF

from l2g_ray.errors import UserError
from l2g_ray.explain import databases, motifs
from l2g_ray.explain import databases as known
from l2g_ray.explain import databases as truth
from l2g_ray.explain.attribution import Attributions, attribute
from l2g_ray.explain.databases import KnownMotif
from l2g_ray.explain.logos import to_information
from l2g_ray.sequence import encode
from l2g_ray.tasks.catalogue import find_tasks

pytestmark = pytest.mark.usefixtures("single_thread")
WEIGHTS = torch.tensor([-1.0, 1.0])
RC = str.maketrans("ACGT", "TGCA")


def write_meme(path: Path, names: dict[str, str]) -> Path:
    lines = ["MEME version 4", "", "ALPHABET= ACGT", ""]
    for name, consensus in names.items():
        lines += [f"MOTIF X {name}", f"letter-probability matrix: alength= 4 w= {len(consensus)} nsites= 20 E= 0"]
        lines += [" ".join("0.91" if letter == base else "0.03" for base in "ACGT") for letter in consensus] + [""]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def detected() -> tuple[Attributions, np.ndarray]:
    """Contributions of the hand-made detector to 260 sequences, and where the motif stands."""
    texts, starts = plant_sites(260)
    codes, lengths_bp = encode(texts)
    return attribute(make_detector(), codes, lengths_bp, WEIGHTS, n_references=4), starts


def test_e5_strongest_positions_are_inside_the_motif(detected: tuple[Attributions, np.ndarray]) -> None:
    found, starts = detected
    sites = [truth.Site(row, "m", int(s), int(s) + len(MOTIF), "+", "present") for row, s in enumerate(starts)]
    inside = truth.cover(sites, found.codes.shape)
    # Seven of eighty positions are the motif's.
    told = truth.measure_share(found, inside, share=0.08)
    assert told["positions"] >= 0.8
    assert told["mass"] >= 0.8
    assert told["expected"] == pytest.approx(len(MOTIF) / LENGTH_BP)
    moved = truth.measure_share(found, np.roll(inside, 20, axis=1), share=0.08)
    assert moved["mass"] < 0.3
    (planted,) = truth.build_motifs(sites, found.codes, "planted")
    assert "".join("ACGT"[i] for i in planted.ppm.argmax(1)) == MOTIF


def check_page(page: str, svgs: int, tables: int) -> None:
    assert page.count("<svg") == svgs
    assert page.count("<table") == tables
    assert "<script" not in page
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!#)""", page)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert page.count('role="img"') == svgs


def test_captum_warns_where_sums_do_not_hold(cli: Cli, tmp_path: Path) -> None:
    run = write_model(tmp_path / "task")
    texts, _ = plant_sites(6)
    (tmp_path / "new.csv").write_text("name,seq\n" + "".join(f"{i},{text[:40]}\n" for i, text in enumerate(texts)))
    arguments = ["explain", run, "--input", tmp_path / "new.csv", "--sequence-column", "seq", "--no-motifs"]
    random = ["--top", 4, "--pick", "random"]
    said = cli(*arguments, *random, "--method", "deeplift", "--references", 3, "--out", tmp_path / "out")
    assert said.code == 0, said.err
    assert "WARNING: present: The contributions of deeplift do not add up" in said.err
    page = (tmp_path / "out" / "explain.html").read_text()
    assert 'role="alert"' in page
    check_page(page, svgs=4, tables=4)
    told = json.loads((tmp_path / "out" / "explain.json").read_text())["outputs"][0]
    assert told["completeness"]["median"] > 0.01
    assert told["motifs"] == []
    assert not (tmp_path / "out" / "present" / "motifs.h5").exists()
    assert told["sequences"] == 4
    assert told["notes"][0].endswith("drawn at random.")


def test_mistakes_are_one_sentence(cli: Cli, tmp_path: Path) -> None:
    run = write_model(tmp_path / "task")
    (tmp_path / "new.fa").write_text(">a\nACGTACGTAC\n")
    (tmp_path / "long.fa").write_text(">a\n" + "A" * 41 + "\n")
    (tmp_path / "no.meme").write_text("MEME version 4\n")
    (tmp_path / "broken.meme").write_text("MOTIF a\nletter-probability matrix: w= 3\n0.2 0.3 0.4 0.1\nx\n")
    (tmp_path / "broken.yaml").write_text("title: [\n")
    pq.write_table(pa.table({"id": ["a"], "motif": ["m"]}), tmp_path / "short.parquet")
    given = ["--input", tmp_path / "new.fa"]
    for options, part in {
        (): "no readable task.json and stages.json of a finished task.*give the sequences to explain",
        (*given, "--arm", "l2g"): "has no arm 'l2g'; choose one of: embedder_only, best",
        (*given, "--target", "absend"): r"target 'absend' is no output \(did you mean 'absent'\?\)",
        (*given, "--database", "jaspar:insect"): "no group 'insect'; did you mean 'insects'",
        (*given, "--database", tmp_path / "no.meme"): "no motif in it",
        (*given, "--database", tmp_path / "broken.meme"): r"broken\.meme, row 4: motif 'a' has 1 rows.*says 3",
        (*given, "--database", tmp_path / "away.meme"): "no such file; give a file in MEME's format",
        (*given, "--known", "deepstarr/deepstarr:develop"): "did you mean 'deepstarr/deepstarr:developmental'",
        (*given, "--known", tmp_path / "broken.yaml"): "no list of motifs",
        (*given, "--truth", tmp_path / "short.parquet"): "no column start",
        (*given, "--truth", tmp_path / "new.fa"): "this is not a parquet file",
        ("--input", tmp_path / "long.fa"): "41 bp long, this model reads up to 40 bp",
        ("--input", tmp_path / "away.fa"): "away.fa",
        (*given, "--out", tmp_path / "new.fa" / "x"): "cannot be made",
    }.items():
        said = cli("explain", run, *options)
        assert said.code == 2, (options, said)
        assert re.search(part, said.err), (options, said.err)
        assert "Traceback" not in said.err
    assert not (run / "explain").exists()

    config = json.loads((run / "model" / "config.json").read_text())
    (run / "model" / "config.json").write_text(json.dumps(config | {"schema": 0}))
    said = cli("explain", run, *given)
    assert (said.code, "model schema 0, this version reads 1" in said.err) == (2, True)
    (run / "model" / "config.json").write_text(json.dumps(config))
    (run / "model" / "model.safetensors").unlink()
    said = cli("explain", run, *given)
    assert (said.code, "model.safetensors: not readable" in said.err) == (2, True)


def test_no_motif_without_contributions_or_room() -> None:
    codes, lengths_bp = encode(["ACGT" * 10] * 3)
    nothing = np.zeros((3, 40, 4), np.float32)
    flat = Attributions(codes, lengths_bp, nothing, np.zeros(3), np.zeros(3), "m", "o")
    assert motifs.discover_motifs(flat, motifs.MotifSettings(15, 5)).motifs == []
    noise = np.random.default_rng(0).normal(size=(3, 40, 4)).astype(np.float32)
    short = Attributions(codes, lengths_bp, noise, np.zeros(3), np.zeros(3), "m", "o")
    assert motifs.discover_motifs(short, motifs.MotifSettings(41, 10)).motifs == []


def test_a_window_longer_than_the_sequences_is_named_with_values_that_fit(cli: Cli, tmp_path: Path) -> None:
    run = write_model(tmp_path / "task")
    generator = np.random.default_rng(0)
    texts = ["".join(generator.choice(list("ACGT"), 23)) for _ in range(3)]
    (tmp_path / "short.fa").write_text("".join(f">s{i}\n{text}\n" for i, text in enumerate(texts)))
    given = ["--input", tmp_path / "short.fa", "--references", "2", "--out", tmp_path / "out"]
    said = cli("explain", run, *given)
    assert said.code == 0, said.err
    told = " ".join(said.out.split())
    assert "window of TF-MoDISco, 25 bp (--core-bp 15 and --flank-bp 5 on either side)" in told
    assert "is longer than the longest sequence, 23 bp; try --core-bp 11 --flank-bp 3." in told
    assert "too few seqlets" not in told
    assert "--core-bp 15" in (tmp_path / "out" / "explain.html").read_text()
    said = cli("explain", run, *given, "--core-bp", 11, "--flank-bp", 3)
    assert "longer than" not in said.out
    assert "too few seqlets of 17 bp" in " ".join(said.out.split())


@given(longest_bp=st.integers(1, 500))
def test_proposed_seqlets_fit(longest_bp: int) -> None:
    found = motifs.fit_seqlet(longest_bp)
    assert (found is None) == (longest_bp < 7)
    if found is not None:
        core_bp, flank_bp = found
        assert core_bp >= 5 and flank_bp >= 1  # noqa: PT018 - what the options take
        assert core_bp + 2 * flank_bp <= longest_bp


def test_seqlets_fit_the_sequences() -> None:
    assert motifs.choose_seqlet(np.array([200, 249])) == (21, 10)
    assert motifs.choose_seqlet(np.array([60, 120, 500])) == (15, 5)
    # The library's own lengths where its own seqlet is asked for.
    assert [motifs.MotifSettings(core, flank).trim_bp for core, flank in ((21, 10), (15, 5))] == [30, 21]


def test_information_of_a_column() -> None:
    ppm = np.array([[1, 0, 0, 0], [0.25] * 4, [0.5, 0.5, 0, 0]])
    np.testing.assert_allclose(to_information(ppm).sum(1), [2, 0, 1])
    np.testing.assert_allclose(to_information(ppm)[2], [0.5, 0.5, 0, 0])


def test_q_values_are_benjamini_and_hochbergs() -> None:
    p_values = np.array([0.01, 0.04, 0.03, 0.5])
    np.testing.assert_allclose(databases.adjust(p_values), [0.04, 0.16 / 3, 0.16 / 3, 0.5])


def test_known_lists() -> None:
    for entry in known.shipped_lists():
        bench, _, name = entry.task.partition("/")
        (task,) = [task for task in find_tasks(bench) if task.name == name]
        assert entry.output in task.labels
    listed = known.find_list("deepstarr/deepstarr", "developmental")
    assert listed is not None
    assert [motif.motif for motif in listed.motifs] == ["AP-1", "GATA", "SREBP", "da"]
    assert known.find_list("deepstarr/deepstarr", "nothing") is None
    ppm = np.full((4, 4), 0.25)
    hits = [(0, "kay"), (0, "cnc::maf-S"), (1, "vri")]
    matches = [databases.Match(query, KnownMotif(name, "", ppm, ""), 1e-6, 1e-4) for query, name in hits]
    compared = known.compare(listed, 3, matches)
    assert compared.both == ["AP-1"]
    assert compared.only_known == ["GATA", "SREBP", "da"]
    assert compared.only_found == ["vri", "unnamed"]


def test_jaspar() -> None:
    if not databases.has_jaspar():
        with pytest.raises(UserError, match=r"pip install -e '?\S+\[explain\]"):
            databases.read_jaspar("insects")
        pytest.skip("JASPAR is not installed: pip install -e '.[explain]'")
    found = databases.read_jaspar("insects")
    assert len(found) > 200
    ((_, ppm),) = [(motif.name, motif.ppm) for motif in found if motif.id == "MA0529.3"]
    np.testing.assert_allclose(ppm.sum(1), 1)
    # Every name that a shipped list relies on.
    names = {motif.name for motif in found}
    for entry in known.shipped_lists():
        for motif in entry.motifs:
            assert any(motif.is_called(name) for name in names), motif


@pytest.mark.slow
def test_motifs_are_found_where_they_stand() -> None:
    """Two motifs in contributions that nobody had to learn."""
    generator = np.random.default_rng(0)
    n, length = 300, 80
    hypothetical = generator.normal(0.0, 0.1, (n, length, 4)).astype(np.float32)
    rows = generator.choice(list("ACGT"), (n, length))
    places = generator.integers(20, 52, n)
    for row, place in enumerate(places):
        motif = ("TGACTCAT", "AGATAAGA")[row % 2]
        rows[row, place : place + 8] = list(motif)
        shape = encode([motif])[0][0]
        hypothetical[row, np.arange(place, place + 8), shape] += generator.uniform(0.5, 1.5, 8)
    codes, lengths_bp = encode(["".join(row) for row in rows])
    given = Attributions(codes, lengths_bp, hypothetical, np.zeros(n), np.zeros(n), "m", "o")
    found = motifs.discover_motifs(given, motifs.MotifSettings(15, 5))
    assert len(found.motifs) == 2
    for motif in found.motifs:
        assert motif.n_seqlets > 40
        core = ("TGACTCA", "AGATAAG")[int(motif.sequence_index[0]) % 2]
        assert core in motif.consensus or core.translate(RC)[::-1] in motif.consensus
        assert np.mean(np.abs(motif.start - places[motif.sequence_index]) <= 1) > 0.95
