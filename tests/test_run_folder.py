"""Which model a command reads: every one takes the arm that was best, knows the average, and names the arm."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from commands import Cli
from explained import write_arms, write_model

from l2g_ray.errors import UserError
from l2g_ray.models.embedder import EmbedderNet
from l2g_ray.predict import fetch_arm, load_predictor
from l2g_ray.run_folder import find_arm, list_arms
from l2g_ray.storage import Location

DNA = ["ACGTTGACTCATTGCAACGTAGCA", "CCCCGGGGTTTTACGATCGATCAG", "ACGTACGATCGATTGCATGCTAGC"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_lm: Path) -> Path:
    """A task of which the average was best."""
    return write_arms(tmp_path_factory.mktemp("runs") / "suite" / "planted", tiny_lm)


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    path = tmp_path / "in.fa"
    path.write_text("".join(f">s{i}\n{text}\n" for i, text in enumerate(DNA)))
    return path


def expect(folder: Path) -> np.ndarray:
    return load_predictor(folder, "cpu").predict(DNA)["probability_present"].to_numpy()


@pytest.mark.parametrize(
    ("best", "names", "folder"),
    [
        ("average", ["average", "best", "embedder_only", "l2g"], "best"),
        ("l2g", ["best", "embedder_only", "l2g"], "model"),
        ("embedder_only", ["best", "embedder_only", "l2g"], "embedder_only"),
        (None, ["embedder_only", "l2g"], "model"),
    ],
)
def test_arms_of_a_task(tmp_path: Path, tiny_lm: Path, best: str | None, names: list[str], folder: str) -> None:
    task = write_arms(tmp_path / "suite" / "planted", tiny_lm, best)
    arms = list_arms(task)
    assert sorted(arms) == names
    assert arms["l2g"].folder == task / "model"
    assert arms["embedder_only"].folder == task / "embedder_only"
    found = find_arm(tmp_path / "suite")
    assert (found.name, found.folder) == (best or "l2g", task / ("best" if best else "model"))
    assert found.describe() == (f"{best} (best on validation)" if best else "l2g")
    assert find_arm(task, None, found.name).folder == task / folder
    assert find_arm(task, None, found.name).is_best == (best is not None)
    assert find_arm(task / "embedder_only").is_best == (best == "embedder_only")
    if best != "average":
        with pytest.raises(
            UserError, match=r"has no arm 'average'; choose one of: .*(l2g.*embedder_only|embedder_only.*l2g)"
        ):
            find_arm(task, None, "average")
    with pytest.raises(UserError, match=r"has no arm 'l2g'; choose one of: embedder_only"):
        find_arm(task / "embedder_only", None, "l2g")


def test_half_written_folders_are_no_tasks(tmp_path: Path, tiny_lm: Path) -> None:
    write_arms(tmp_path / "suite" / "planted", tiny_lm, "l2g")
    shutil.copytree(tmp_path / "suite" / "planted", tmp_path / "suite" / ".planted.12.tmp")
    assert find_arm(tmp_path / "suite").folder.parent.name == "planted"


@pytest.mark.parametrize("place", ["", "planted", "planted/embedder_only"])
def test_an_arm_that_was_fetched_is_a_copy_that_goes_away(run: Path, place: str) -> None:
    """From any filesystem of Arrow; here the local one replaces an object store."""
    where = Location(str(run.parent / place))
    arms = {"best": "average", "l2g": "l2g", "embedder_only": "embedder_only"}
    for arm, name in arms.items() if place != "planted/embedder_only" else [("best", "embedder_only")]:
        with fetch_arm(where, None, arm) as found:
            assert found.name == name
            assert not found.folder.is_relative_to(run)
            assert {path.name for path in found.folder.iterdir()} == {"model.safetensors", "config.json", "task.json"}
            assert found.facts()["model"] == str(find_arm(run.parent / place, None, arm).folder)
            np.testing.assert_array_equal(expect(found.folder), expect(Path(found.place)))
        assert not found.folder.exists()
    with pytest.raises(UserError, match="has no arm"), fetch_arm(Location(str(run / "model")), None, "average"):
        pass


def test_predict_takes_each_arm_and_names_it(cli: Cli, run: Path, fasta: Path, tmp_path: Path) -> None:
    l2g, alone = expect(run / "model"), expect(run / "embedder_only")
    assert np.abs(l2g - alone).max() > 0.01
    wanted = {"best": (l2g + alone) / 2, "average": (l2g + alone) / 2, "l2g": l2g, "embedder_only": alone}
    for arm, values in wanted.items():
        chosen = [] if arm == "best" else ["--arm", arm]
        name = "average" if arm == "best" else arm
        for suffix in ("csv", "tsv", "parquet"):
            target = tmp_path / f"{arm}.{suffix}"
            said = cli("predict", run.parent, "--input", fasta, "--output", target, *chosen)
            best = " (best on validation)" if name == "average" else ""
            assert said.out == f"3 predictions of task 'planted' by arm {name}{best} in {target}\n", said.err
            if suffix == "parquet":
                found = pd.read_parquet(target)
                facts = {key.decode(): text.decode() for key, text in pq.read_schema(target).metadata.items()}
                told = {key.removeprefix("l2g_ray."): text for key, text in facts.items() if key.startswith("l2g_ray.")}
            else:
                found = pd.read_csv(target, sep="," if suffix == "csv" else "\t")
                told = json.loads(target.with_name(f"{target.name}.meta.json").read_text())
                assert told["file"] == target.name
            np.testing.assert_allclose(found["probability_present"], values, atol=1e-6)
            assert (told["task"], told["arm"]) == ("planted", name)
            assert told["model"] == str(find_arm(run, None, arm).folder)
            assert told.get("chosen_by") == ("validation" if best else None)
    said = cli("predict", run / "model", "--arm", "average", "--input", fasta, "--output", tmp_path / "x.csv")
    assert (said.code, "has no arm 'average'" in said.err) == (2, True)
    assert not (tmp_path / "x.csv").exists()


def test_variants_take_each_arm_and_name_it(cli: Cli, run: Path, tmp_path: Path) -> None:
    genome, vcf = tmp_path / "g.fa", tmp_path / "v.vcf"
    genome.write_text(f">1\n{DNA[0] * 4}\n")
    vcf.write_text(
        f"##l2g_ray_arm=old\n#CHROM\tPOS\tID\tREF\tALT\n1\t30\t.\t{(DNA[0] * 4)[29]}\tN\n".replace("\tN", "\tC")
    )
    folders = {"average": run / "best", "l2g": run / "model", "embedder_only": run / "embedder_only"}
    found = {}
    for arm in folders:
        targets = [tmp_path / f"{arm}.tsv", tmp_path / f"{arm}.vcf"]
        options = [] if arm == "average" else ["--arm", arm]
        out = [part for target in targets for part in ("--output", target)]
        said = cli("variants", run, "--input", vcf, "--genome", genome, "--on-mismatch", "skip", *out, *options)
        assert said.code == 0, said.err
        assert f"task 'planted', arm {arm}" in said.out
        found[arm] = pd.read_csv(targets[0], sep="\t")["alt_present"][0]
        assert json.loads((tmp_path / f"{arm}.tsv.meta.json").read_text())["arm"] == arm
        head = [line for line in targets[1].read_text().splitlines() if line.startswith("##l2g_ray_arm")]
        assert head == [f"##l2g_ray_arm={arm}"]
    assert found["average"] == pytest.approx((found["l2g"] + found["embedder_only"]) / 2, abs=1e-6)
    assert abs(found["l2g"] - found["embedder_only"]) > 1e-3


def test_mutate_takes_each_arm_and_names_it(cli: Cli, run: Path, tmp_path: Path) -> None:
    task = shutil.copytree(run, tmp_path / "planted")
    scores = {}
    for arm in ("average", "l2g", "embedder_only"):
        options = [] if arm == "average" else ["--arm", arm]
        said = cli("mutate", task, "--sequence", DNA[0], "--region", "3-6", *options)
        assert said.code == 0, said.err
        assert said.out.startswith(f"arm {arm}")
        told = json.loads((task / "mutagenesis" / arm / "sequence" / "mutagenesis.json").read_text())
        assert told["arm"] == arm
        scores[arm] = told["reference"]
    assert scores["average"] == pytest.approx((scores["l2g"] + scores["embedder_only"]) / 2, abs=1e-6)


def test_explain_takes_each_arm_and_names_it(cli: Cli, run: Path, fasta: Path, tmp_path: Path) -> None:
    task = shutil.copytree(run, tmp_path / "planted")
    values = {}
    for arm in ("average", "l2g", "embedder_only"):
        options = [] if arm == "average" else ["--arm", arm]
        said = cli("explain", task, "--input", fasta, "--references", 2, "--no-motifs", *options)
        assert said.code == 0, said.err
        assert f"arm {arm}" in said.out
        folder = task / "explain" / arm
        told = json.loads((folder / "explain.json").read_text())
        assert told["arm"] == arm
        assert told["outputs"][0]["completeness"]["max"] < 1e-3
        page = (folder / "explain.html").read_text()
        assert f"<dt>Arm</dt><dd>{arm}{' (best on validation)' if arm == 'average' else ''}</dd>" in page
        values[arm] = pd.read_csv(folder / "present" / "sequences.csv")["value"].to_numpy()
    # What is explained are the log-odds of the prediction on the given strand.
    predictor = load_predictor(task / "best", "cpu")
    predictor.strand_averaged = False
    p = predictor.predict(DNA)["probability_present"].to_numpy()
    np.testing.assert_allclose(values["average"], np.log(p / (1 - p)), rtol=1e-3, atol=1e-4)


def test_a_run_of_an_earlier_version_still_predicts(cli: Cli, fasta: Path, tmp_path: Path) -> None:
    """As the first versions left it: `model/` alone, `explain/` and `mutagenesis/ID` of then beside it."""
    run = write_model(tmp_path / "suite" / "planted")
    assert cli("predict", tmp_path / "suite", "--input", fasta, "--output", tmp_path / "out.csv").code == 0
    np.testing.assert_allclose(
        pd.read_csv(tmp_path / "out.csv")["probability_present"], expect(run / "model"), atol=1e-6
    )


def test_the_end_of_a_run_names_the_chosen_models(run: Path, tiny_lm: Path, tmp_path: Path) -> None:
    from types import SimpleNamespace

    from rich.console import Console

    from l2g_ray.cli.suite import show_result

    write_arms(tmp_path / "one", tiny_lm, "embedder_only")
    shutil.copytree(run, tmp_path / "two")
    (tmp_path / "figures").mkdir()
    facts = {
        "board": {"tasks": []},
        "failures": {},
        "fresh": False,
        "relogged": False,
        "stored": None,
        "folder": tmp_path,
    }
    console = Console(width=60, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    show_result(SimpleNamespace(**facts, tracking_uri="sqlite:///m.db", wall_s=1.0), console)
    shown = console.export_text()
    assert f"model        {tmp_path}/one/best   (embedder_only (best on validation))" in shown
    assert f"model        {tmp_path}/two/best   (average (best on validation))" in shown


def test_a_gpu_that_is_not_there_is_one_sentence(cli: Cli, run: Path, fasta: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    table = tmp_path / "pairs.csv"
    table.write_text(f"ref,alt\n{DNA[0]},{DNA[1]}\n")
    for command in (
        ("predict", run, "--input", fasta, "--output", tmp_path / "out.csv"),
        ("variants", run, "--input", table, "--output", tmp_path / "out.csv"),
        ("mutate", run, "--sequence", DNA[0]),
        ("explain", run, "--input", fasta, "--out", tmp_path / "explained"),
        ("embed", run),
    ):
        said = cli(*command, "--device", "cuda")
        assert (said.code, said.err.count("\n")) == (2, 1), said
        assert "device 'cuda': PyTorch sees no GPU here; choose cpu or auto" in said.err
    assert not (tmp_path / "out.csv").exists()


def test_the_batch_size_reaches_the_model(
    cli: Cli, run: Path, fasta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = shutil.copytree(run, tmp_path / "planted")
    table = tmp_path / "pairs.csv"
    table.write_text("ref,alt\n" + "".join(f"{one},{other}\n" for one in DNA for other in DNA))
    widths: list[int] = []
    forward = EmbedderNet.encode
    monkeypatch.setattr(
        EmbedderNet, "encode", lambda net, codes, n: widths.append(len(codes)) or forward(net, codes, n)
    )
    for command in (
        ("predict", task, "--input", fasta, "--output", tmp_path / "out.csv"),
        ("variants", task, "--input", table, "--output", tmp_path / "out.csv"),
        ("mutate", task, "--sequence", DNA[0]),
    ):
        for size in (2, 3):
            widths.clear()
            said = cli(*command, "--device", "cpu", "--batch-size", size)
            assert said.code == 0, said.err
            assert max(widths) == size, command
