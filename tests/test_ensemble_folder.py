"""A run that predicts with an ensemble: every command uses it, or the arm that stands for it, and says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from commands import Cli
from explained import WEIGHTS, write_ensemble

from l2g_ray.errors import UserError
from l2g_ray.explain.embeddings import load_points
from l2g_ray.explain.explanation import find_explained
from l2g_ray.explain.vectors import SequenceEmbedder
from l2g_ray.models.ensemble import Ensemble
from l2g_ray.models.l2g import load_model
from l2g_ray.predict import fetch_arm, load_predictor
from l2g_ray.run_folder import Arm, choose_arm, choose_member, find_arm, list_arms
from l2g_ray.sequence import encode, reverse_complement
from l2g_ray.storage import Location

DNA = ["ACGTTGACTCATTGCAACGTAGCA", "CCCCGGGGTTTTACGATCGATCAG", "ACGTACGATCGATTGCATGCTAGC"]
SHARES = "gapped_kmer 60%, embedder_only 30%, cnn 10%"
ALL = ("gapped_kmer", "positional_kmer", "cnn", "embedder_only", "l2g")
pytestmark = pytest.mark.usefixtures("single_thread")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_lm: Path) -> Path:
    return write_ensemble(tmp_path_factory.mktemp("runs") / "suite" / "planted", tiny_lm)


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    path = tmp_path / "in.fa"
    path.write_text("".join(f">s{i}\n{text}\n" for i, text in enumerate(DNA)))
    return path


def combine(folder: Path, sequences: list[str], strands: str, weights: dict[str, float] = WEIGHTS) -> np.ndarray:
    """Probabilities (n, 2) by the definition: each arm's mean over fold models and strands, then the weighted sum of centred
    logarithms."""
    codes, lengths = map(torch.from_numpy, encode(sequences))
    flipped = reverse_complement(codes, lengths)
    read = {"+": [codes], "-": [flipped], "both": [codes, flipped]}[strands]
    total = np.zeros((len(sequences), 2))
    for name, weight in weights.items():
        arm = load_model(folder / "best" / name)
        with torch.no_grad():
            p = [m(one, lengths).softmax(1) for m in getattr(arm, "members", [arm]) for one in read]
        logs = torch.stack(p).double().mean(0).clamp(1e-4, 1 - 1e-4).log().numpy()
        total += weight * (logs - logs.mean(1, keepdims=True))
    return np.exp(total) / np.exp(total).sum(1, keepdims=True)


def test_arms_of_a_task(run: Path) -> None:
    arms = list_arms(run)
    assert sorted(arms) == ["best", "cnn", "embedder_only", "ensemble", "gapped_kmer", "l2g"]
    assert arms["cnn"].folder == run / "best" / "cnn"
    assert arms["l2g"].folder == run / "arms" / "l2g"
    assert arms["best"].describe() == arms["ensemble"].describe() == f"ensemble of {SHARES}"
    assert arms["best"].facts() == {"arm": "ensemble", "ensemble_of": SHARES, "model": str(run / "best")}
    assert arms["cnn"].describe() == "cnn (10% of the ensemble)"
    assert arms["cnn"].facts() == {"arm": "cnn", "role": "10% of the ensemble", "model": str(run / "best" / "cnn")}
    assert arms["l2g"].describe() == "l2g (not in the ensemble)"
    for arm in arms.values():
        assert arm.task_folder == run


def test_an_arm_of_a_models_own_folder(run: Path) -> None:
    for place in (run.parent, run, run / "best"):
        assert find_arm(place).describe() == f"ensemble of {SHARES}"
        assert find_arm(place, None, "cnn").describe() == "cnn (10% of the ensemble)"
        assert find_arm(place).is_best
    own = choose_arm(run / "best" / "embedder_only")
    assert (own.describe(), own.task_folder) == ("embedder_only (30% of the ensemble)", run)
    own = choose_arm(run / "arms" / "l2g")
    assert (own.describe(), own.task_folder, own.is_best) == ("l2g (not in the ensemble)", run, False)
    with pytest.raises(UserError, match="has no arm 'l2g'"):
        find_arm(run / "best", None, "l2g")
    with pytest.raises(UserError, match=r"has no arm 'positional_kmer'; choose .*best \(ensemble\).*l2g"):
        find_arm(run, None, "positional_kmer")


def test_an_ensemble_that_was_copied_alone(run: Path, tmp_path: Path) -> None:
    """As MLflow stores and fetches it: whatever the folder is named, it predicts the same."""
    wanted = load_predictor(run / "best", "cpu").predict(DNA)
    for name in ("model", "anything", "best"):
        shutil.copytree(run / "best", tmp_path / name / name)
        found = load_predictor(tmp_path / name / name, "cpu").predict(DNA)
        pd.testing.assert_frame_equal(found, wanted)
        assert (found.attrs["arm"], found.attrs["ensemble_of"]) == ("ensemble", SHARES)


@pytest.mark.parametrize("place", ["", "planted", "planted/best", "planted/best/cnn"])
def test_an_arm_that_was_fetched_is_a_copy_that_goes_away(run: Path, place: str) -> None:
    where = Location(str(run.parent / place))
    wanted = {"best": run / "best", "cnn": run / "best" / "cnn", "l2g": run / "arms" / "l2g"}
    if place.endswith("best"):
        del wanted["l2g"]
    for arm, folder in wanted.items() if not place.endswith("cnn") else [("best", run / "best" / "cnn")]:
        with fetch_arm(where, None, arm) as found:
            assert not found.folder.is_relative_to(run)
            assert found.facts()["model"] == str(folder)
            assert found.name == choose_arm(folder).name
            files = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
            assert {path.relative_to(found.folder) for path in found.folder.rglob("*") if path.stat().st_size} >= files
            one, other = (load_predictor(path, "cpu").predict(DNA) for path in (found.folder, folder))
            np.testing.assert_array_equal(one["probability_present"], other["probability_present"])
        assert not found.folder.exists()


def test_a_fetched_ensemble_brings_the_arms_that_may_stand_for_it(tiny_lm: Path, tmp_path: Path) -> None:
    run = write_ensemble(tmp_path / "planted", tiny_lm, {"gapped_kmer": 1.0}, arms=("gapped_kmer", "embedder_only"))
    wanted = SequenceEmbedder(find_arm(run)).predictor.predict(DNA)
    with fetch_arm(Location(str(run)), with_all=True) as found:
        embedder = SequenceEmbedder(found)
        pd.testing.assert_frame_equal(embedder.predictor.predict(DNA), wanted)
        assert embedder.facts()["model"] == str(run / "arms" / "embedder_only")
        assert find_explained(found).facts()["model"] == str(run / "best" / "gapped_kmer")
        with pytest.raises(
            UserError, match=r"planted/best: only models are read from there; name an output folder \(--out\)"
        ):
            found.local_folder("name an output folder (--out)")


def test_predict_takes_the_ensemble_or_an_arm(cli: Cli, run: Path, fasta: Path, tmp_path: Path) -> None:
    for options, told in (
        ([], f"ensemble of {SHARES}"),
        (["--arm", "ensemble"], f"ensemble of {SHARES}"),
        (["--arm", "gapped_kmer"], "gapped_kmer (60% of the ensemble)"),
        (["--arm", "l2g"], "l2g (not in the ensemble)"),
    ):
        target = tmp_path / "out.csv"
        said = cli("predict", run.parent, "--input", fasta, "--output", target, *options)
        assert said.out == f"3 predictions of task 'planted' by arm {told} in {target}\n", said.err
        found = pd.read_csv(target)["probability_present"]
        if told.startswith("ensemble"):
            np.testing.assert_allclose(found, combine(run, DNA, "both")[:, 1], atol=1e-5)
            assert json.loads((tmp_path / "out.csv.meta.json").read_text())["ensemble_of"] == SHARES
        else:
            own = load_predictor(find_arm(run, None, options[1]), "cpu").predict(DNA)["probability_present"]
            np.testing.assert_allclose(found, own, atol=1e-6)


@pytest.mark.parametrize("strand_specific", [False, True])
def test_a_forced_strand_is_the_one_that_is_read(tiny_lm: Path, tmp_path: Path, strand_specific: bool) -> None:
    """Of an ensemble too, which takes the mean over strands inside."""
    weights = {"gapped_kmer": 0.6, "embedder_only": 0.4}
    folder = write_ensemble(tmp_path / "planted", tiny_lm, weights, both_strands=not strand_specific)
    predictor = load_predictor(find_arm(folder), "cpu")
    assert isinstance(predictor.model, Ensemble)
    assert predictor.strand_averaged is not strand_specific
    wanted = {strand: combine(folder, DNA, strand, weights)[:, 1] for strand in ("+", "both")}
    assert np.abs(wanted["+"] - wanted["both"]).max() > 1e-4
    auto = "+" if strand_specific else "both"
    np.testing.assert_allclose(predictor.predict(DNA)["probability_present"], wanted[auto], atol=2e-6)
    for strand, both in (("+", False), ("both", True)):
        found = predictor.read(both).predict(DNA)["probability_present"]
        np.testing.assert_allclose(found, wanted[strand], atol=2e-6)
        assert predictor.read(both).strand_averaged is both


def test_variants_read_the_strand_that_they_name(cli: Cli, run: Path, tmp_path: Path) -> None:
    genome, vcf = tmp_path / "g.fa", tmp_path / "v.vcf"
    text = DNA[0] * 4
    genome.write_text(f">1\n{text}\n")
    vcf.write_text(f"#CHROM\tPOS\tID\tREF\tALT\n1\t50\t.\t{text[49]}\t{'C' if text[49] != 'C' else 'G'}\n")
    window = text[49 - 19 : 49 + 21]  # 40 bp, one more on the right
    values = [combine(run, [window], strand)[0, 1] for strand in ("both", "+", "-")]
    assert min(np.abs(np.diff(values))) > 1e-4
    for options, strand in (([], "both"), (["--strand", "+"], "+"), (["--strand", "-"], "-")):
        target = tmp_path / f"out{len(options)}{strand}.tsv"
        said = cli("variants", run, "--input", vcf, "--genome", genome, "--output", target, *options)
        assert said.code == 0, said.err
        assert f"arm ensemble of {SHARES}, strand {strand}," in said.out
        wanted = combine(run, [window], strand)[0, 1]
        assert pd.read_csv(target, sep="\t")["ref_present"][0] == pytest.approx(wanted, abs=2e-6)


def test_mutate_reads_the_strand_that_it_names(cli: Cli, run: Path, tmp_path: Path) -> None:
    for options, strand in (([], "both"), (["--strand", "+"], "+")):
        out = tmp_path / f"m{len(options)}"
        said = cli("mutate", run, "--sequence", DNA[0], "--region", "3-4", "--out", out, *options)
        assert said.code == 0, said.err
        assert said.out.startswith(f"arm ensemble of {SHARES}\n")
        told = json.loads((out / "mutagenesis.json").read_text())
        assert (told["strand"], told["ensemble_of"]) == (strand, SHARES)
        assert told["reference"] == pytest.approx(combine(run, DNA[:1], strand)[0, 1], abs=2e-6)
    task = shutil.copytree(run, tmp_path / "planted")
    assert cli("mutate", task, "--sequence", DNA[0], "--region", "3-3", "--arm", "cnn").code == 0
    assert (task / "mutagenesis" / "cnn" / "sequence" / "mutagenesis.json").exists()


@pytest.mark.parametrize(
    ("weights", "arms", "explained", "embedded"),
    [
        (WEIGHTS, ALL, "embedder_only (30% of the ensemble, its largest arm with ", "embedder_only (30%"),
        ({"cnn": 0.5, "l2g": 0.2, "embedder_only": 0.3}, ALL, "cnn (50% of", "embedder_only (30%"),
        ({"gapped_kmer": 0.2, "positional_kmer": 0.8}, ALL, "positional_kmer (80% of", "l2g (not in the ensemble, of "),
        ({"gapped_kmer": 1.0}, ("gapped_kmer", "embedder_only"), "gapped_kmer (100% of", "embedder_only (not in"),
    ],
)
def test_the_arm_that_stands_for_an_ensemble(
    tiny_lm: Path, tmp_path: Path, weights: dict[str, float], arms: tuple[str, ...], explained: str, embedded: str
) -> None:
    folder = write_ensemble(tmp_path / "planted", tiny_lm, weights, arms=arms)
    for place in (folder, folder / "best"):
        assert find_explained(find_arm(place)).describe().startswith(explained)
        found = choose_member(find_arm(place), (("l2g", "embedder_only"),), "embeddings")
        assert found.describe().startswith(embedded)
    assert find_explained(find_arm(folder, None, "gapped_kmer")).folder.name == "gapped_kmer"


def test_an_arm_without_contributions_is_refused(cli: Cli, run: Path, fasta: Path, tmp_path: Path) -> None:
    from l2g_ray.models.baselines import Baseline, BaselineConfig
    from l2g_ray.models.l2g import save_model

    task = shutil.copytree(run, tmp_path / "planted")
    shutil.copytree(task / "arms" / "l2g", task / "arms" / "kmer_boosting")
    save_model(Baseline(BaselineConfig("boosting", "short", 2, 40)), task / "arms" / "kmer_boosting", "kmer_boosting")
    said = cli("explain", task, "--input", fasta, "--arm", "kmer_boosting")
    assert (said.code, "the arm kmer_boosting has no contributions of bases; choose one of: cnn, " in said.err) == (
        2,
        True,
    )
    assert not (task / "explain").exists()


def test_an_ensemble_that_is_not_whole_is_one_sentence(cli: Cli, run: Path, fasta: Path, tmp_path: Path) -> None:
    task = shutil.copytree(run, tmp_path / "planted")
    for name in ("planted/best/cnn/config.json", "planted/best/config.json"):
        text = (tmp_path / name).read_text()
        (tmp_path / name).unlink() if "cnn" in name else (tmp_path / name).write_text(text.replace("both_", "no_"))
        said = cli("predict", task, "--input", fasta, "--output", tmp_path / "out.csv")
        assert (said.code, said.err.count("\n")) == (2, 1), said.err


def test_an_ensemble_of_what_cannot_be_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no arm of this run has embeddings; run it again with one of the arms l2g"):
        choose_member(Arm("ensemble", tmp_path, weights=(("cnn", 1.0),)), (("l2g",),), "embeddings")


def test_explain_takes_an_arm_and_says_which(cli: Cli, run: Path, fasta: Path, tmp_path: Path) -> None:
    task = shutil.copytree(run, tmp_path / "planted")
    common = ("--input", fasta, "--references", 2, "--no-motifs")
    said = cli("explain", task, *common)
    assert said.code == 0, said.err
    told = "embedder_only (30% of the ensemble, its largest arm with contributions of bases)"
    assert f"arm {told}, model {task / 'best' / 'embedder_only'}\n" in said.out
    folder = task / "explain" / "embedder_only"
    facts = json.loads((folder / "explain.json").read_text())
    assert (facts["arm"], f"embedder_only ({facts['role']})") == ("embedder_only", told)
    assert facts["outputs"][0]["completeness"]["max"] < 1e-3
    assert facts["outputs"][0]["explained"] == "log-odds, mean over the 2 fold models"
    codes, lengths = map(torch.from_numpy, encode(DNA))
    with torch.no_grad():
        own = [m(codes, lengths) for m in load_model(task / "best" / "embedder_only").members]
    values = pd.read_csv(folder / "present" / "sequences.csv")["value"]
    np.testing.assert_allclose(values, torch.stack(own).mean(0).numpy() @ [-1, 1], rtol=1e-4, atol=1e-5)
    assert f"<dt>Arm</dt><dd>{told}</dd>" in (folder / "explain.html").read_text()
    assert (folder / "present" / "hypothetical.npz").exists()

    said = cli("explain", task, *common, "--arm", "gapped_kmer")
    assert said.code == 0, said.err
    assert "arm gapped_kmer (60% of the ensemble)" in said.out
    folder = task / "explain" / "gapped_kmer"
    (output,) = json.loads((folder / "explain.json").read_text())["outputs"]
    assert output["explained"] == "log-odds, mean over the 2 fold models"
    assert output["completeness"]["max"] < 1e-9
    assert any(note.startswith("Exact: the bias") for note in output["notes"])
    assert {path.name for path in (folder / "present").iterdir()} == {
        "one_hot.npz",
        "contributions.npz",
        "sequences.csv",
        "figures",
    }
    stored = np.load(folder / "present" / "contributions.npz")["arr_0"]
    assert stored.shape == (3, 4, len(DNA[0]))
    table = pd.read_csv(folder / "present" / "sequences.csv")
    with torch.no_grad():
        outputs = [m(codes, lengths) for m in load_model(task / "best" / "gapped_kmer").members]
    log_odds = torch.stack(outputs).mean(0).numpy() @ [-1, 1]
    np.testing.assert_allclose(table["value"], log_odds, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(table["reference_value"] + stored.sum((1, 2)), log_odds, rtol=1e-4, atol=1e-5)
    page = (folder / "explain.html").read_text()
    assert "the bias" in page
    assert "its references" not in page

    from l2g_ray.results.explained import read_explained

    parts = {part.title: part for part in read_explained(task)}
    assert list(parts) == [f"What present is read from ({arm})" for arm in ("embedder_only", "gapped_kmer")]
    assert (
        parts["What present is read from (embedder_only)"].text[0].startswith(f"Arm: {told}. Contributions to log-odds")
    )

    refused = cli("explain", task, *common, "--arm", "gapped_kmer", "--method", "mutagenesis")
    assert (refused.code, "the arm gapped_kmer is linear, its contributions are exact" in refused.err) == (2, True)


def test_points_of_the_first_folds_models(tiny_lm: Path, tmp_path: Path) -> None:
    folder = write_ensemble(tmp_path / "planted", tiny_lm)
    deployed = {"seed": 0}
    (folder / "stages.json").write_text(json.dumps({"deployed": deployed}))
    notes: list[str] = []
    points = {point.name: point for point in load_points(folder, {}, "l2g", notes.append)}
    assert list(points) == ["before training", "after finetune", "embedder only"]
    assert any("mean of 2 fold models; the first one is shown" in note for note in notes)
    first = load_model(folder / "arms" / "l2g").members[0]
    for key, value in first.net.state_dict().items():
        assert torch.equal(points["after finetune"].net.state_dict()[key], value)
    first = load_model(folder / "best" / "embedder_only").members[0]
    for key, value in first.state_dict().items():
        assert torch.equal(points["embedder only"].net.state_dict()[key], value)


def test_points_of_a_run_without_l2g(tiny_lm: Path, tmp_path: Path) -> None:
    """The language model that the embedder's norm began with is then known from the run's settings."""
    arms = ("gapped_kmer", "embedder_only")
    folder = write_ensemble(tmp_path / "planted", tiny_lm, {"gapped_kmer": 1.0}, arms=arms)
    (folder / "stages.json").write_text(json.dumps({"deployed": {"seed": 0}}))
    settings = {"model": {"language_model": str(tiny_lm), "language_model_layers": 1, "positions": "none"}}
    points = load_points(folder, settings, "embedder_only")
    assert [point.name for point in points] == ["before training", "embedder only"]
    assert points[0].language_model is not None
    with pytest.raises(UserError, match="has no L2G model"):
        load_points(folder, settings, "l2g")
