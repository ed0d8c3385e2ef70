"""The Python API without Ray: what a stored model answers, from every kind of input and place."""

from __future__ import annotations

import gc
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from commands import Cli
from explained import LENGTH_BP, write_arms, write_ensemble, write_model
from toys import make_task

import l2g_ray as l2g
from l2g_ray.api.requests import FILE_OPTIONS, take_file_options
from l2g_ray.cli.source import _FLAGS
from l2g_ray.explain.vectors import take_first
from l2g_ray.models.l2g import load_model
from l2g_ray.places import sqlite_uri
from l2g_ray.predict import load_predictor
from l2g_ray.run_folder import find_arm
from l2g_ray.sequence import encode
from l2g_ray.storage import Location

DNA = ["ACGTACGTAC" * 3, "TTGACTCATT", "ggacuuacgn" * 4, "T" * LENGTH_BP]
PROBABILITY = "probability_present"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_lm: Path) -> Path:
    folder = tmp_path_factory.mktemp("api") / "run"
    write_ensemble(folder / "planted", tiny_lm)
    return folder


@pytest.fixture(scope="module")
def predictor(run: Path) -> l2g.Predictor:
    return l2g.load(run, device="cpu")


@pytest.fixture(scope="module")
def expected(run: Path) -> np.ndarray:
    return load_predictor(find_arm(run), "cpu").predict(DNA)[PROBABILITY].to_numpy()


def test_importing_it_imports_nothing_else() -> None:
    heavy = "{'numpy', 'pandas', 'torch', 'ray', 'mlflow', 'pyarrow', 'click', 'rich', 'pydantic', 'yaml'}"
    program = f"import sys, l2g_ray as l2g; dir(l2g); print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"
    program = f"import sys, l2g_ray as l2g; l2g.run, l2g.Run; print(sorted({heavy} - {{'click'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_names_are_few_and_there() -> None:
    assert set(l2g.__all__) <= set(dir(l2g))
    assert all(getattr(l2g, name) for name in l2g.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'predcit'"):
        l2g.predcit  # noqa: B018


def test_what_a_predictor_says_of_itself(predictor: l2g.Predictor) -> None:
    assert (predictor.task, predictor.kind, predictor.labels) == ("planted", "binary", ("absent", "present"))
    assert (predictor.arm, predictor.length_bp) == ("ensemble", LENGTH_BP)
    assert repr(predictor) == (
        "Predictor(task='planted', kind='binary', labels=('absent', 'present'), arm='ensemble', length_bp=40)"
    )


@pytest.mark.parametrize(
    "given",
    [DNA, tuple(DNA), iter(DNA), pd.Series(DNA), np.array(DNA), pa.array(DNA), pa.chunked_array([DNA[:1], DNA[1:]])],
    ids=lambda given: type(given).__name__,
)
def test_sequences_of_any_kind_give_the_same(predictor: l2g.Predictor, expected: np.ndarray, given: Any) -> None:
    found = predictor.predict(given)
    assert found.columns.tolist() == ["prediction", "probability_absent", PROBABILITY]
    np.testing.assert_allclose(found[PROBABILITY], expected, atol=1e-6)
    assert found.attrs["arm"] == "ensemble"


@pytest.mark.parametrize("kind", [pd.DataFrame, pa.table, dict])
def test_tables_keep_their_ids(predictor: l2g.Predictor, expected: np.ndarray, kind: Any) -> None:
    found = predictor.predict(kind({"dna": DNA, "id": list("abcd"), "tissue": [1, 2, 3, 4]}), sequence_column="dna")
    assert found.columns.tolist() == ["id", "prediction", "probability_absent", PROBABILITY]
    assert found["id"].tolist() == list("abcd")
    np.testing.assert_allclose(found[PROBABILITY], expected, atol=1e-6)


def test_a_frame_keeps_its_index_and_if_wanted_its_columns(predictor: l2g.Predictor, expected: np.ndarray) -> None:
    frame = pd.DataFrame({"sequence": DNA, "tissue": ["x", "y", "z", "x"]}, index=[9, 4, 7, 1])
    assert "id" not in predictor.predict(frame)
    found = predictor.predict(frame, keep_columns=True)
    assert found.columns.tolist() == ["sequence", "tissue", "prediction", "probability_absent", PROBABILITY]
    assert found.index.tolist() == [9, 4, 7, 1]
    joined = frame.join(found[[PROBABILITY]])
    np.testing.assert_allclose(joined[PROBABILITY], expected, atol=1e-6)


@pytest.mark.parametrize("as_path", [str, Path])
def test_files_are_read_as_by_the_command(
    cli: Cli, predictor: l2g.Predictor, run: Path, tmp_path: Path, as_path: Any
) -> None:
    fasta = tmp_path / "new.fa"
    fasta.write_text("".join(f">s{i}\n{dna}\n" for i, dna in enumerate(DNA)))
    found = predictor.predict(as_path(fasta))
    assert cli("predict", run, "--input", fasta, "--output", tmp_path / "out.parquet").code == 0
    pd.testing.assert_frame_equal(found, pd.read_parquet(tmp_path / "out.parquet"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "ACGTACGTACGTACGT",
            r"^'ACGTACGTACGT\.\.\.' is one string; give a list of sequences, \['ACGTACGTACGT\.\.\.'\]",
        ),
        ("acgu", r"^'acgu' is one string; give a list"),
        ("new sequences.txt", "no such file|unknown kind of file"),
        ("nowhere.fa", "nowhere.fa: no such file; check the path"),
        (b"ACGT", "bytes holds none; give a list of strings"),
        (7, "int holds none; give a list of strings"),
        ([], "no rows; give at least one sequence"),
        (["ACGT", 3], "row 2: 3 is no string"),
        (["ACGT", None], "the input, row 2: the sequence is empty"),
        (["ACGT", "AXC"], "the input, row 2: 'X' at base 2 is no nucleotide letter"),
        (["A" * 41], "the sequence is 41 bp long, this model reads up to 40 bp"),
        ({"seq": ["ACGT"]}, r"no column 'sequence' \(did you mean 'seq'\?\)"),
        ({"sequence": [1.5]}, "holds double, not text"),
        ({"sequence": ["ACGT"], "x": [object()]}, "the table cannot be read"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(predictor: l2g.Predictor, given: Any, message: str) -> None:
    with pytest.raises(l2g.UserError, match=message) as caught:
        predictor.predict(given)
    assert "\n" not in str(caught.value)


def test_the_model_below_takes_no_string_as_letters(predictor: l2g.Predictor) -> None:
    with pytest.raises(l2g.UserError, match="one string instead of a list"):
        predictor.model.predict("ACGT")  # type: ignore[arg-type]


def test_a_run_a_task_or_a_model_is_loaded(run: Path, expected: np.ndarray) -> None:
    for folder in (run, str(run), run / "planted", run / "planted" / "best"):
        np.testing.assert_allclose(l2g.load(folder, device="cpu").predict(DNA)[PROBABILITY], expected, atol=1e-6)
    assert l2g.load(run, "planted", "cnn").arm == "cnn"
    with pytest.raises(l2g.UserError, match="no finished task 'plantde' here; there are: planted"):
        l2g.load(run, "plantde")
    with pytest.raises(l2g.UserError, match="no such folder"):
        l2g.load(run / "nowhere")
    with pytest.raises(l2g.UserError, match=r"has no arm 'cn'; choose one of: best \(ensemble\), .*cnn"):
        l2g.load(run, arm="cn")
    with pytest.raises(l2g.UserError, match=r"^device 'gpu': no such device; choose one of auto, cpu, cuda"):
        l2g.load(run, device="gpu")
    with pytest.raises(l2g.UserError, match=r"no leaderboard\.csv of a finished run here"):
        l2g.Run(run)
    for place in ("s3://bucket/run", "models:/planted/1"):
        with pytest.raises(l2g.UserError, match=f"^{place}: Run reads folders only"):
            l2g.Run(place)
    with pytest.raises(l2g.UserError, match=r"^s3://\*\*\*@bucket/run: Run reads"):
        l2g.Run("s3://key:secret@bucket/run")


def test_a_run_in_an_object_store(run: Path, expected: np.ndarray, bucket: str) -> None:
    there = Location(bucket) / "run"
    for path in run.rglob("*"):
        if path.is_file():
            (there / path.relative_to(run).as_posix()).upload(path)
    predictor = l2g.load(str(there), device="cpu")
    np.testing.assert_allclose(predictor.predict(DNA)[PROBABILITY], expected, atol=1e-6)
    copy = predictor.model.arm.folder
    # Other arms than the one that predicts are read later, from the copy.
    assert predictor.embed(DNA, layer="tokens").shape == (4, 16)
    assert predictor.explain(DNA, motifs=False, references=2).arm.name == "embedder_only"
    del predictor
    gc.collect()
    assert not copy.exists()


def test_commands_read_a_run_in_an_object_store(run: Path, bucket: str, cli: Cli, tmp_path: Path) -> None:
    there = Location(bucket) / "commands"
    for path in run.rglob("*"):
        if path.is_file():
            (there / path.relative_to(run).as_posix()).upload(path)
    (tmp_path / "new.fa").write_text(f">a\n{DNA[0]}\n>b\n{DNA[3]}\n")
    pd.DataFrame({"ref": DNA[:1], "alt": [DNA[0][:-1] + "T"]}).to_csv(tmp_path / "pairs.csv", index=False)
    commands = {
        "explain": ("--input", tmp_path / "new.fa", "--no-motifs", "--references", 2),
        "mutate": ("--input", tmp_path / "new.fa", "--id", "a", "--region", "3-4"),
    }
    for name, options in commands.items():
        said = cli(name, there, *options, "--out", tmp_path / name)
        assert said.code == 0, said.err
        here = cli(name, run, *options, "--out", tmp_path / f"{name}-here")
        assert said.out.replace(str(there), str(run)) == here.out.replace(
            str(tmp_path / f"{name}-here"), str(tmp_path / name)
        )
        said = cli(name, there, *options)
        assert (said.code, "name an output folder (--out)" in said.err) == (2, True), said.err
    said = cli("explain", there, "--out", tmp_path / "none")
    assert (said.code, "only models are read from there; give the sequences to explain" in said.err) == (2, True)
    for place, file in ((there, "there.csv"), (run, "here.csv")):
        assert cli("variants", place, "--input", tmp_path / "pairs.csv", "--output", tmp_path / file).code == 0
    assert (tmp_path / "there.csv").read_text() == (tmp_path / "here.csv").read_text()


def test_a_model_of_mlflow(
    run: Path,
    expected: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cli: Cli,
    use_store: Callable[[str], None],
) -> None:
    from mlflow import MlflowClient

    from l2g_ray.tracking.store import register_model, upload_model

    store = sqlite_uri(tmp_path / "mlflow.db")
    client = MlflowClient(store)
    experiment = client.create_experiment("api", artifact_location=(tmp_path / "files").as_uri())
    run_id = client.create_run(experiment).info.run_id
    uri = upload_model(client, experiment, run_id, run / "planted" / "best", {"name": "planted"})
    register_model(client, store, "planted", uri, run_id, {})
    use_store(sqlite_uri(tmp_path / "other.db"))  # as a notebook may have done: it wins over the variable in MLflow
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    for name in (uri, "models:/planted/1"):
        np.testing.assert_allclose(l2g.load(name, device="cpu").predict(DNA)[PROBABILITY], expected, atol=1e-6)
    (tmp_path / "new.fa").write_text(f">a\n{DNA[0]}\n")
    assert cli("predict", uri, "--input", tmp_path / "new.fa", "--output", tmp_path / "out.csv").code == 0
    assert pd.read_csv(tmp_path / "out.csv")[PROBABILITY].item() == pytest.approx(expected[0], abs=1e-5)
    said = cli("mutate", uri, "--sequence", DNA[0], "--region", "3-4", "--out", tmp_path / "mutants")
    assert said.code == 0, said.err
    assert json.loads((tmp_path / "mutants" / "mutagenesis.json").read_text())["model"] == uri
    with pytest.raises(l2g.UserError, match="is one model; leave out task and arm"):
        l2g.load("models:/planted/1", arm="cnn")
    with pytest.raises(l2g.UserError, match="refused a request"):
        l2g.load("models:/planted/2")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_uri(tmp_path / "nowhere.db"))
    with pytest.raises(l2g.UserError, match=r"nowhere\.db is no MLflow store; set MLFLOW_TRACKING_URI"):
        l2g.load("models:/planted/1")


@torch.inference_mode()
def test_embeddings_are_those_of_the_network(tmp_path: Path, tiny_lm: Path) -> None:
    run = write_arms(tmp_path / "task", tiny_lm)
    predictor = l2g.load(run, arm="l2g", device="cpu", batch_size=2)
    net = take_first(load_model(run / "model"))
    assert net is not None
    for i, dna in enumerate(DNA):
        codes, lengths = map(torch.from_numpy, encode(predictor.model.clean(pa.array([dna]))))
        one = net.net.embedder(*net.net.encode(codes, lengths))
        whole = net.language_model(one.tokens, one.token_mask)[0].numpy()
        kept = np.ones(len(whole), bool) if one.token_mask is None else one.token_mask[0].numpy() > 0
        per_token = predictor.embed(DNA, per_token=True)[i]
        real = ~np.isnan(per_token).any(1)
        np.testing.assert_allclose(per_token[real], whole[kept], atol=1e-5)
        np.testing.assert_allclose(predictor.embed(DNA)[i], whole[kept].mean(0), atol=1e-5)
        np.testing.assert_allclose(
            predictor.embed(DNA, layer="tokens")[i], one.tokens[0].numpy()[kept].mean(0), atol=1e-5
        )
    assert real.all()
    assert np.isnan(predictor.embed(DNA, per_token=True)[1]).any()  # DNA[1] is shorter


def test_an_ensemble_is_embedded_by_its_largest_arm_and_others_are_refused(predictor: l2g.Predictor, run: Path) -> None:
    alone = l2g.load(run, arm="embedder_only", device="cpu")
    np.testing.assert_array_equal(predictor.embed(DNA), alone.embed(DNA))
    assert predictor.embed(DNA).dtype == np.float32
    with pytest.raises(l2g.UserError, match=r"layer 'language_model': .* has none; choose one of backbone, tokens"):
        predictor.embed(DNA, layer="language_model")
    with pytest.raises(l2g.UserError, match="the arm 'cnn' has no embeddings; choose one of l2g, embedder_only"):
        l2g.load(run, arm="cnn").embed(DNA)


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_embed_writes_new_sequences(cli: Cli, run: Path, tmp_path: Path, suffix: str) -> None:
    fasta, target = tmp_path / "new.fa", tmp_path / f"out.{suffix}"
    fasta.write_text("".join(f">s{i}\n{dna}\n" for i, dna in enumerate(DNA)))
    read = pd.read_parquet if suffix == "parquet" else pd.read_csv
    options = ("--arm", "l2g", "--device", "cpu")
    said = cli("embed", run, "--input", fasta, "--output", target, *options)
    assert said.code == 0, said.err
    assert "4 sequences embedded by task 'planted', arm l2g" in said.out
    predictor = l2g.load(run, arm="l2g", device="cpu")
    found = read(target)
    assert found["id"].tolist() == ["s0", "s1", "s2", "s3"]
    np.testing.assert_allclose(found.drop(columns="id"), predictor.embed(DNA), atol=1e-5)

    assert cli("embed", run, "-i", fasta, "-o", target, "--per-token", "--layer", "tokens", *options).code == 0
    found, whole = read(target), predictor.embed(DNA, layer="tokens", per_token=True)
    assert found.columns[:2].tolist() == ["id", "token"]
    assert len(found) == (~np.isnan(whole).any(2)).sum()
    for row in found.itertuples():
        np.testing.assert_allclose(row[4:], whole[int(str(row.id)[1:]), row.token, 1:], atol=1e-5)


def test_embed_refuses_options_that_do_nothing(cli: Cli, run: Path, tmp_path: Path) -> None:
    fasta = tmp_path / "new.fa"
    fasta.write_text(f">a\n{DNA[0]}\n")
    assert "--input needs --output" in cli("embed", run, "--input", fasta).err
    assert "need --input" in cli("embed", run, "--layer", "tokens").err
    assert "would overwrite" in cli("embed", run, "--input", fasta, "--output", fasta).err
    fasta.write_text(">a\nACXT\n")
    assert "row 1: 'X' at base 3" in cli("embed", run, "--input", fasta, "--output", tmp_path / "out.csv").err
    assert not (tmp_path / "out.csv").exists()


def test_mutants_are_predictions_of_the_changed_sequences(tmp_path: Path) -> None:
    write_model(tmp_path / "task", make_task("regression"))
    predictor = l2g.load(tmp_path / "task", device="cpu")
    found = predictor.mutate("ACGTTGCA", region="3-5")
    assert found.columns.tolist() == ["output", "position", "base", "A", "C", "G", "T"]
    assert found["output"].unique().tolist() == list(predictor.labels)
    assert found["position"].tolist() == [3, 4, 5] * 2
    given = predictor.predict(["ACGTTGCA", "ACCTTGCA"])["prediction_gc"]
    row = found[(found["output"] == "gc") & (found["position"] == 3)].iloc[0]
    assert row["base"] == "G"
    assert row["C"] == pytest.approx(given[1] - given[0], abs=1e-4)
    assert predictor.mutate("ACGTTGCA", target="a")["output"].unique().tolist() == ["a"]
    for options, message in (
        ({"target": "cg"}, r"target 'cg': no such output"),
        ({"region": "3-9"}, "give START-END within 1-8"),
        ({"strand": "-"}, "choose one of auto, \\+, both"),
    ):
        with pytest.raises(l2g.UserError, match=message):
            predictor.mutate("ACGTTGCA", **options)
    with pytest.raises(l2g.UserError, match="list is no sequence; give one string"):
        predictor.mutate(["ACGT"])  # type: ignore[arg-type]


def test_pairs_and_variants(predictor: l2g.Predictor, tmp_path: Path) -> None:
    pairs = pd.DataFrame({"ref": [DNA[0], DNA[1]], "alt": [DNA[1], DNA[0]]}, index=[3, 8])
    found = predictor.variants(pairs=pairs)
    assert found.index.tolist() == [3, 8]
    given = predictor.predict(DNA[:2])[PROBABILITY]
    np.testing.assert_allclose(found["diff_present"], [given[1] - given[0], given[0] - given[1]], atol=1e-5)
    (tmp_path / "genome.fa").write_text(f">chr1\n{'ACGTTGCA' * 20}\n")
    (tmp_path / "new.vcf").write_text("chr1\t81\t.\tA\tC\nchr1\t82\t.\tG\tC\n")
    files = (str(tmp_path / "new.vcf"), str(tmp_path / "genome.fa"))
    scored = predictor.variants(*files, on_mismatch="skip")
    assert scored["status"].tolist() == ["scored", "ref_mismatch"]
    assert scored.attrs["strand"] == "both"
    assert "1 without scores" in scored.attrs["notes"][0]
    for options, message in (
        ({"vcf": files[0]}, "^a VCF needs the genome"),
        ({"vcf": files[0], "pairs": pairs}, "give either"),
        ({"pairs": pairs, "strand": "forward"}, "^strand 'forward': choose one of"),
        ({"pairs": {"ref": ["ACGT"]}}, "no column 'alt'"),
    ):
        with pytest.raises(l2g.UserError, match=message):
            predictor.variants(**options)


def test_explain_writes_only_where_it_is_asked_to(
    cli: Cli, predictor: l2g.Predictor, run: Path, tmp_path: Path
) -> None:
    before = set(run.rglob("*"))
    found = predictor.explain(DNA, motifs=False, references=2)
    assert found.page is None
    assert set(run.rglob("*")) == before
    assert found.contributions["present"].shape == (4, LENGTH_BP)
    values = found.sequences.set_index("id")["value"]
    (tmp_path / "new.fa").write_text("".join(f">{i + 1}\n{dna}\n" for i, dna in enumerate(DNA)))
    written = predictor.explain(tmp_path / "new.fa", out=tmp_path / "out", motifs=False, references=2)
    assert written.page == tmp_path / "out" / "explain.html"
    options = ("--input", tmp_path / "new.fa", "--no-motifs", "--references", 2, "--out", tmp_path / "other")
    assert cli("explain", run, *options).code == 0
    other = pd.read_csv(tmp_path / "other" / "present" / "sequences.csv", dtype={"id": str}).set_index("id")["value"]
    np.testing.assert_allclose(other, values, rtol=1e-4)
    with pytest.raises(l2g.UserError, match=r"explain: no option 'tpo' \(did you mean 'top'\?\)"):
        predictor.explain(DNA, tpo=3)
    for given, option in (
        ("databases", "database"),
        ("n_references", "references"),
        ("output", "target"),
        ("with_motifs", "motifs"),
    ):
        with pytest.raises(l2g.UserError, match=rf"explain: no option '{given}' \(did you mean '{option}'\?\)"):
            predictor.explain(DNA, **{given: None})
    with pytest.raises(l2g.UserError, match=r"known: .*database.*") as caught:
        predictor.explain(DNA, zzzzzz=1)
    assert not {"databases", "n_references", "with_motifs"} & set(re.findall(r"\w+", str(caught.value)))


def test_options_of_files_have_the_names_of_the_command_line() -> None:
    assert {flag.removeprefix("--").replace("-", "_"): field for flag, field, *_ in _FLAGS} == FILE_OPTIONS
    assert take_file_options({"label_column": "y", "split_seed": 3}) == {"label_columns": ("y",), "seed": 3}
    with pytest.raises(l2g.UserError, match=r"run: no option 'test_chromosome' \(did you mean 'test_chromosomes'\?\)"):
        l2g.run("new.csv", test_chromosome="chr8")
    with pytest.raises(l2g.UserError, match=r"^run: no option 'presett' \(did you mean 'preset'\?\)"):
        l2g.run("new.csv", presett="smoke")
    with pytest.raises(l2g.UserError, match=r"^suite: no option 'presett' \(did you mean 'preset'\?\)"):
        l2g.suite("demo", presett="smoke")
    with pytest.raises(l2g.UserError, match=r"^suite: no option 'window_bp' \(it is for your own files; use `run`\)"):
        l2g.suite("demo", window_bp=200)


def test_run_refuses_what_it_cannot_read(tmp_path: Path) -> None:
    with pytest.raises(l2g.UserError, match="is neither a file or folder nor BENCH/TASK"):
        l2g.run("nowhere.csv", out=tmp_path)
    with pytest.raises(l2g.UserError, match="splice_junction"):
        l2g.suite("demo", ["splice_junctoin"], out=tmp_path)
    with pytest.raises(l2g.UserError, match=r"finetune\.trials"):
        l2g.run("demo/splice_junction", settings={"finetune.trails": 3}, out=tmp_path, quiet=True)


def test_types_are_shipped() -> None:
    package = Path(l2g.__file__).parent
    assert (package / "py.typed").is_file()
    shipped = tomllib.loads((package.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert "py.typed" in shipped["l2g_ray"]
