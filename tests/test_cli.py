"""The command line: bad input ends in one sentence with code 2 and leaves nothing; `predict`, `tasks` and `config`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from commands import Cli, Said
from toys import make_task, plant, tiny_config, tiny_reference, tiny_settings, toy_data

from l2g_ray import predict
from l2g_ray.models.l2g import save_model
from l2g_ray.predict import load_predictor
from l2g_ray.presets import resolve
from l2g_ray.stages.context import build_net
from l2g_ray.stages.finetune import build_model
from l2g_ray.tasks.schema import Task, write_task_file


def refuse(said: Said, *parts: str) -> None:
    """One line on stderr that holds all the parts, and code 2."""
    assert said.code == 2, said
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1, said.err
    assert said.err.endswith("\n")
    for part in parts:
        assert part in said.err, f"{part!r} is not in {said.err!r}"


# ---- bad input of `suite` and `run` ----------------------------------------------------------------------------------

GOOD = "ACGTACGTACGT"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A good folder of one's own; a test breaks it."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for split, seed in (("train", 0), ("test", 1)):
        table = plant(20, 30, seed).to_pandas()
        table.to_csv(folder / f"{split}.csv", index=False)
    return folder


@pytest.fixture
def try_run(cli: Cli, source: Path, tmp_path: Path, tiny_lm: Path) -> Cli:
    """`l2g-ray run` of that folder with further options; whatever it refuses, it has left nothing."""

    def call(*options: object, folder: object = source) -> Said:
        out = tmp_path / "out"
        said = cli("run", folder, "--preset", "smoke", "--language-model", tiny_lm, "--out", out, *options)
        assert not out.exists()
        return said

    return call


def test_unknown_bench(cli: Cli, tmp_path: Path) -> None:
    refuse(cli("suite", "--bench", "demmo", "--out", tmp_path / "out"), "unknown bench 'demmo'", "mean 'demo'?")
    assert not (tmp_path / "out").exists()


def test_unknown_task(cli: Cli, tmp_path: Path) -> None:
    said = cli("suite", "--bench", "demo", "--tasks", "splice_junctions", "--out", tmp_path / "out")
    refuse(said, "unknown task 'splice_junctions' in bench 'demo'", "mean 'splice_junction'?")
    assert not (tmp_path / "out").exists()


def test_neither_a_folder_nor_a_task(try_run: Cli) -> None:
    refuse(try_run(folder="nowhere"), "'nowhere' is neither a file or folder nor BENCH/TASK", "l2g-ray tasks")
    refuse(try_run(folder="demo/splice"), "unknown task 'splice' in bench 'demo'", "splice_junction")


def test_unknown_preset(try_run: Cli) -> None:
    refuse(try_run("--preset", "fastt"), "unknown preset 'fastt'", "mean 'fast'?")


@pytest.mark.parametrize(
    ("assignment", "parts"),
    [
        ("finetune.trails=8", ("unknown key 'finetune.trails'", "mean 'finetune.trials'?")),
        ("finetune.trials", ("--set finetune.trials: expected key.path=value",)),
        ("finetune.trials=many", ("key 'finetune.trials'", "valid integer", "'many'")),
        ("finetune.trials=0", ("key 'finetune.trials'", "greater than or equal to 1", "0")),
        ("finetune.lr_embedder=[1e-3, 1e-5]", ("lr_embedder must be [low, high]",)),
        ("select.backbones=[transformer]", ("key 'select.backbones'", "known: deepsea, orca, resnet, unet")),
        ("align.task_only_epochs=9", ("task_only_epochs (9) must be below epochs",)),
        ("model={pooling: by_position, predictor_reads: backbone}", ("set predictor_reads to tokens",)),
        ("seeds=[", ("--set seeds=[: the value is not valid YAML",)),
    ],
)
def test_a_bad_setting(try_run: Cli, assignment: str, parts: tuple[str, ...]) -> None:
    refuse(try_run("--set", assignment), *parts)


def test_on_and_off_are_words(try_run: Cli) -> None:
    refuse(try_run("--set", "data.rc_augment=on", "--set", "search.enabled=off", "--set", "x=1"), "unknown key 'x'")


@pytest.mark.parametrize("name", ["no-such-owner/no-such-model", "no model!", "./nowhere", "a/b/c"])
def test_a_language_model_that_cannot_be_reached(try_run: Cli, name: str) -> None:
    refuse(try_run("--language-model", name), f"language model '{name}'", "give")


def test_a_language_model_folder_without_a_model(try_run: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refuse(try_run("--language-model", tmp_path / "empty"), "has no config.json", "Hugging Face")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ("the file is empty", "give")),
        ("sequence,label\n", ("the file has no rows", "give")),
        (f"sequence,label\n{GOOD},0\nACGEFG,1\n", (", row 2: 'E' at base 4", "use A C G T")),
        (f"sequence,label\n{GOOD},0\n,1\n", (", row 2: the sequence is empty", "fill it in")),
        (f"sequence,label\n{GOOD},0\n{GOOD},\n{GOOD},1\n", (", row 2: the label is missing", "fill it in")),
        (f"sequence,label\n{GOOD},1\n{GOOD}A,1\n", ("all 2 rows have the label '1'", "add rows of another class")),
        (f"sequence,lable\n{GOOD},no\n", ("no column 'label'", "did you mean 'lable'?", "name")),
        (f"seq,label\n{GOOD},0\n", ("no column 'sequence'", "rename the column")),
        (f"sequence,label\n{GOOD},0\n{GOOD},0,9\n", (", row 2: 3 columns", "quote")),
    ],
)
def test_a_bad_training_file(try_run: Cli, source: Path, text: str, parts: tuple[str, ...]) -> None:
    (source / "train.csv").write_text(text)
    refuse(try_run(), "train.csv", *parts)


def test_a_label_outside_the_declared_set(try_run: Cli, source: Path) -> None:
    (source / "task.yaml").write_text("kind: binary\nlabels: [absent, present]\n")
    rows = pd.read_csv(source / "test.csv")
    rows.loc[3, "label"] = 2
    rows.to_csv(source / "test.csv", index=False)
    refuse(try_run(), "test.csv, row 4: label '2' is not among the declared labels", "absent", "correct it")


def test_a_bad_task_file(try_run: Cli, source: Path) -> None:
    (source / "task.yaml").write_text("kind: binary\nlabel: [a, b]\n")
    refuse(try_run(), "task.yaml: unknown key 'label'", "'labels'")


def test_a_missing_file(try_run: Cli, source: Path) -> None:
    (source / "test.csv").unlink()
    refuse(try_run(), "mine: no test file", "add test.csv")


def test_a_sequence_over_the_limit(try_run: Cli, source: Path) -> None:
    said = try_run("--set", "data.max_length_bp=29")
    refuse(said, "train.csv, row 1: the sequence is 30 bp long, over the limit of 29 bp", "raise data.max_length_bp")


def test_a_place_that_cannot_be_written(cli: Cli, source: Path, tmp_path: Path, tiny_lm: Path) -> None:
    (tmp_path / "file").write_text("")
    said = cli(
        "run", source, "--preset", "smoke", "--language-model", tiny_lm, "--out", tmp_path / "file" / "deep" / "out"
    )
    refuse(said, str(tmp_path / "file"), "cannot be written", "--out")
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(cli: Cli, source: Path, tmp_path: Path, tiny_lm: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o555)
    said = cli("run", source, "--preset", "smoke", "--language-model", tiny_lm, "--out", tmp_path / "locked")
    refuse(said, "locked", "cannot be written (Permission denied)", "--out")


def test_a_bad_name(try_run: Cli) -> None:
    refuse(try_run("--name", "../x"), "--name ../x: only letters")


def test_data_that_is_not_there(cli: Cli, tmp_path: Path) -> None:
    refuse(cli("suite", "--bench", "nt", "--tasks", "H3"), "task 'H3'", "the hub cannot be reached", "--data-dir")
    refuse(cli("suite", "--bench", "nt", "--tasks", "H3", "--data-dir", tmp_path), "looked in", str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["suite"], ("Missing option '--bench'", "`l2g-ray suite --help`")),
        (["suite", "--bench", "demo", "--sedes", "3"], ("No such option '--sedes'", "`l2g-ray suite --help`")),
        (["suite", "--bench", "demo", "--seeds", "0"], ("'--seeds': 0 is not in the range",)),
        (["train"], ("No such command 'train'", "`l2g-ray --help`")),
    ],
)
def test_a_mistyped_command(cli: Cli, arguments: list[str], parts: tuple[str, ...]) -> None:
    refuse(cli(*arguments), *parts)


# ---- predict ---------------------------------------------------------------------------------------------------------

LENGTH_BP = 60


def make_model(folder: Path, language_model: Path | None, **task_fields: object) -> Task:
    """A model folder as a run leaves it, untrained: with a language model, or the embedder alone."""
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    task = make_task(**task_fields)
    data, settings = toy_data(rows=40), tiny_settings(language_model or "")
    config = tiny_config(data, settings)
    net = build_net(config, data, tiny_reference(), 0)
    if language_model is None:
        save_model(net, folder)
    else:
        state = net.state_dict()
        save_model(
            build_model(data, settings, tiny_reference(), config=config, embedder_state=state, seed=0).eval(), folder
        )
    write_task_file(folder, task, strand_averaged=True, length_bp=LENGTH_BP)
    return task


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_lm: Path) -> Path:
    """The folder of a finished suite with one task."""
    run_folder = tmp_path_factory.mktemp("runs") / "toy-smoke"
    make_model(run_folder / "planted" / "model", tiny_lm)
    return run_folder


@pytest.fixture(scope="module")
def sequences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same 40 sequences of several lengths as FASTA, CSV, TSV and Parquet, ids included."""
    folder = tmp_path_factory.mktemp("sequences")
    generator = np.random.default_rng(0)
    texts = ["".join(generator.choice(list("ACGT"), generator.integers(20, LENGTH_BP + 1))) for _ in range(40)]
    frame = pd.DataFrame({"id": [f"s{i}" for i in range(40)], "sequence": texts})
    frame.to_csv(folder / "in.csv", index=False)
    frame.to_csv(folder / "in.tsv", index=False, sep="\t")
    pq.write_table(pa.Table.from_pandas(frame), folder / "in.parquet", row_group_size=7)
    (folder / "in.fa").write_text("".join(f">s{i}\n{text[:30]}\n{text[30:]}\n" for i, text in enumerate(texts)))
    return folder


def read_predictions(path: Path) -> pd.DataFrame:
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    return pd.read_csv(path, sep="\t" if path.suffix == ".tsv" else ",")


def test_predictions_are_the_same_from_every_kind_of_file(
    cli: Cli, model: Path, sequences: Path, tmp_path: Path
) -> None:
    expected = load_predictor(model / "planted" / "model").predict(
        pd.read_csv(sequences / "in.csv")["sequence"].tolist()
    )
    for kind, suffix in (("fa", "csv"), ("csv", "parquet"), ("tsv", "tsv"), ("parquet", "parquet"), ("csv", "csv")):
        target = tmp_path / f"{kind}.{suffix}"
        said = cli("predict", model, "--input", sequences / f"in.{kind}", "--output", target)
        assert said == Said(0, f"40 predictions of task 'planted' by arm l2g in {target}\n", "")
        found = read_predictions(target)
        assert list(found.columns) == ["id", "prediction", "probability_absent", "probability_present"]
        assert found["id"].tolist() == [f"s{i}" for i in range(40)]
        assert found["prediction"].tolist() == expected["prediction"].tolist()
        values = found.filter(like="probability_").to_numpy()
        np.testing.assert_allclose(values, expected.filter(like="probability_"), rtol=0, atol=1e-7)
        np.testing.assert_allclose(values.sum(1), 1, atol=1e-6)
        assert (found["prediction"] == np.where(values.argmax(1), "present", "absent")).all()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_predictions_read_lower_case_rna_and_blanks_as_training_does(cli: Cli, model: Path, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("sequence\nACGTTGACTCAACGT\n acguugacucaacgu \n")
    assert cli("predict", model, "--input", tmp_path / "in.csv", "--output", tmp_path / "out.csv").code == 0
    found = read_predictions(tmp_path / "out.csv")
    assert found["id"].tolist() == [1, 2]
    assert found["probability_present"].nunique() == 1


def test_both_strands_give_the_same_prediction(cli: Cli, model: Path, tmp_path: Path) -> None:
    (tmp_path / "in.fa").write_text(">one\nAACCGTTTGACTCAGG\n>other\nCCTGAGTCAAACGGTT\n")
    assert cli("predict", model, "--input", tmp_path / "in.fa", "--output", tmp_path / "out.csv").code == 0
    one, other = read_predictions(tmp_path / "out.csv")["probability_present"]
    assert one == pytest.approx(other, abs=1e-6)


def test_a_regression_predicts_numbers(cli: Cli, sequences: Path, tmp_path: Path) -> None:
    make_model(tmp_path / "model", None, kind="regression")
    assert cli("predict", tmp_path / "model", "--input", sequences / "in.fa", "--output", tmp_path / "o.csv").code == 0
    found = read_predictions(tmp_path / "o.csv")
    assert list(found.columns) == ["id", "prediction_gc", "prediction_a"]
    assert np.isfinite(found["prediction_gc"]).all()


def test_a_column_of_another_name(cli: Cli, model: Path, sequences: Path, tmp_path: Path) -> None:
    frame = pd.read_csv(sequences / "in.csv").rename(columns={"sequence": "dna"})
    frame.to_csv(tmp_path / "in.csv", index=False)
    arguments = ["predict", model, "--input", tmp_path / "in.csv", "--output", tmp_path / "out.csv"]
    refuse(cli(*arguments), "in.csv: no column 'sequence'", "dna")
    assert cli(*arguments, "--sequence-column", "dna").code == 0


def test_a_bad_row_is_named_and_nothing_is_written(cli: Cli, model: Path, tmp_path: Path) -> None:
    target = tmp_path / "old.csv"
    target.write_text("what stood there\n")
    for text, message in (
        ("ACGTXA", "row 3: 'X' at base 5 is no nucleotide letter; use A C G T"),
        ("A" * 61, "row 3: the sequence is 61 bp long, this model reads up to 60 bp; cut it"),
        (" ", "row 3: the sequence is empty; fill it in"),
    ):
        (tmp_path / "in.csv").write_text(f"sequence\n{GOOD}\n{GOOD}\n{text}\n")
        refuse(cli("predict", model, "--input", tmp_path / "in.csv", "--output", target), f"in.csv, {message}")
        assert target.read_text() == "what stood there\n"
    assert {path.name for path in tmp_path.iterdir()} == {"old.csv", "in.csv"}


def test_a_bad_row_is_named_far_down_the_stream(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "STREAM_ROWS", 4)
    make_model(tmp_path / "model", None)
    lines = [f">s{i}\n{GOOD}" for i in range(12)]
    arguments = ["predict", tmp_path, "--input", tmp_path / "in.fa", "--output", tmp_path / "out.csv"]
    (tmp_path / "in.fa").write_text("\n".join([*lines, ">bad\nACGTXA"]))
    refuse(cli(*arguments), "in.fa, row 13: 'X' at base 5")
    assert {path.name for path in tmp_path.iterdir()} == {"model", "in.fa"}
    (tmp_path / "in.fa").write_text("\n".join(lines))
    assert cli(*arguments).code == 0
    assert read_predictions(tmp_path / "out.csv")["id"].tolist() == [f"s{i}" for i in range(12)]


def test_predict_refuses_what_it_cannot_read_or_write(cli: Cli, model: Path, sequences: Path, tmp_path: Path) -> None:
    good, target = sequences / "in.fa", tmp_path / "out.csv"

    def attempt(run_folder: Path = model, source: Path = good, out: Path = target, *more: str) -> Said:
        return cli("predict", run_folder, "--input", source, "--output", out, *more)

    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "header.csv").write_text("sequence\n")
    refuse(attempt(source=tmp_path / "empty.csv"), "empty.csv: the file is empty")
    refuse(attempt(source=tmp_path / "header.csv"), "header.csv: the file has no rows")
    refuse(attempt(source=tmp_path / "nowhere.fa"), "nowhere.fa: no such file")
    refuse(attempt(out=tmp_path / "out.xlsx"), "must end in .csv, .tsv or .parquet")
    refuse(attempt(out=tmp_path / "no" / "such" / "out.csv"), "out.csv: cannot be written")
    refuse(attempt(run_folder=tmp_path / "nowhere"), "no such folder; give the folder of a finished run")
    refuse(attempt(run_folder=tmp_path), "no finished model here; run `l2g-ray suite`")
    refuse(attempt(model, good, target, "--task", "splice"), "no finished task 'splice' here; there are: planted")
    assert {path.name for path in tmp_path.iterdir()} == {"empty.csv", "header.csv"}


def test_several_tasks_must_be_chosen_from(cli: Cli, sequences: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_model(tmp_path / name / "model", None)
    arguments = ["predict", tmp_path, "--input", sequences / "in.fa", "--output", tmp_path / "out.csv"]
    refuse(cli(*arguments), "several tasks here; choose one of: one, two")
    assert cli(*arguments, "--task", "two").code == 0


def test_a_damaged_model_is_named(cli: Cli, sequences: Path, tmp_path: Path) -> None:
    make_model(tmp_path / "model", None)
    arguments = ["predict", tmp_path, "--input", sequences / "in.fa", "--output", tmp_path / "out.csv"]
    described = json.loads((tmp_path / "model" / "task.json").read_text())
    (tmp_path / "model" / "task.json").write_text(json.dumps(described | {"schema": 99}))
    refuse(cli(*arguments), "task.json: schema 99, this version reads 1", "train it again")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"no weights")
    refuse(cli(*arguments), "model.safetensors: not readable", "train the model again")
    assert not (tmp_path / "out.csv").exists()


def modules_after(*arguments: object) -> tuple[set[str], str]:
    """Run a command in a separate process; return the modules that it imported, and what it printed."""
    code = (
        "import sys, atexit, json; sys.argv = json.loads(sys.argv[1]); "
        "atexit.register(lambda: print('MODULES', json.dumps(sorted(sys.modules)))); "
        "from l2g_ray.cli.main import run; run()"
    )
    argv = json.dumps(["l2g-ray", *map(str, arguments)])
    done = subprocess.run([sys.executable, "-c", code, argv], capture_output=True, text=True, check=True, timeout=300)
    said, _, listed = done.stdout.partition("MODULES ")
    return set(json.loads(listed)), said


def test_predict_needs_no_ray(model: Path, sequences: Path, tmp_path: Path) -> None:
    modules, said = modules_after(
        "predict", model, "--input", sequences / "in.fa", "--output", tmp_path / "out.parquet"
    )
    assert "40 predictions" in said
    assert not modules & {"ray", "mlflow", "hyperopt"}
    assert "l2g_ray.predict" in modules
    assert "l2g_ray.stages.evaluate" not in modules  # it opens the test split


@pytest.mark.parametrize("arguments", [["--help"], ["suite", "--help"], ["tasks"], ["config", "show"]])
def test_help_and_catalogue_import_nothing_heavy(arguments: list[str]) -> None:
    modules, said = modules_after(*arguments)
    assert said
    assert not modules & {"torch", "ray", "mlflow", "transformers", "pandas"}


def test_help_lists_the_commands(cli: Cli) -> None:
    said = cli("--help")
    assert said.code == 0
    for command in ("suite", "run", "predict", "ui", "tasks", "config"):
        assert f"\n  {command} " in said.out


# ---- tasks and config ------------------------------------------------------------------------------------------------


def test_tasks_lists_the_catalogue(cli: Cli) -> None:
    said = cli("tasks")
    assert said.code == 0
    assert "splice_junction" in said.out
    assert "enhancer_grammar (synthetic)" in said.out.replace("\n", " ")
    listed = json.loads(cli("tasks", "--json", "demo").out)
    assert set(listed["demo"]) == {"splice_junction", "enhancer_grammar"}
    assert listed["demo"]["splice_junction"]["kind"] == "multiclass"
    refuse(cli("tasks", "demmo"), "unknown bench 'demmo'", "'demo'")


def test_shown_settings_are_valid_settings(cli: Cli, tmp_path: Path) -> None:
    shown = cli("config", "show", "--preset", "paper", "--set", "finetune.trials=5", "--set", "data.rc_augment=off")
    assert shown.code == 0
    file = tmp_path / "mine.yaml"
    file.write_text(shown.out)
    assert cli("config", "validate", file) == Said(0, f"{file}: valid\n", "")
    again = resolve(str(file))
    assert again.model_dump() == resolve(
        "paper", None, {"finetune.trials": 5, "data.rc_augment": "off"}
    ).model_dump() | {"preset": "mine"}
    assert yaml.safe_load(cli("config", "show", "--preset", file).out) == yaml.safe_load(shown.out) | {"preset": "mine"}


def test_shown_settings_can_be_those_of_a_task(cli: Cli) -> None:
    shown = yaml.safe_load(cli("config", "show", "--preset", "paper", "--task", "nt/H3").out)
    assert shown != yaml.safe_load(cli("config", "show", "--preset", "paper").out)
    refuse(cli("config", "show", "--task", "nt/H33"), "unknown task 'H33' in bench 'nt'", "'H3'")
    refuse(cli("config", "show", "--task", "H3"), "unknown bench 'H3'")


def test_a_file_of_settings_names_the_run(cli: Cli, source: Path, tmp_path: Path, tiny_lm: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(cli("config", "show", "--preset", "smoke").out)
    (source / "train.csv").write_text("")
    said = cli("run", source, "--preset", file, "--language-model", tiny_lm, "--out", tmp_path / "out")
    refuse(said, "train.csv: the file is empty")


def test_bad_settings_files_are_named(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("finetune: {trails: 3}\n")
    refuse(cli("config", "validate", file), "mine.yaml: unknown key 'finetune.trails'", "'finetune.trials'")
    file.write_text("finetune: {trials: none}\n")
    refuse(cli("config", "validate", file), "mine.yaml: key 'finetune.trials'", "valid integer")
    file.write_text("finetune: {\n")
    refuse(cli("config", "validate", file), "mine.yaml, line 2: not valid YAML")
    file.write_text("")
    refuse(cli("config", "validate", file), "mine.yaml: holds no settings; begin from `l2g-ray config show`")
    refuse(cli("config", "validate", tmp_path / "nowhere.yaml"), "nowhere.yaml: cannot be read")
    refuse(cli("config", "validate", tmp_path / "mine.json"), "mine.json: settings are read from a .yaml file")


ASKED = """
import sys
from l2g_ray.cli import main
sys.argv = ["l2g-ray", "--version"]
main.run()
from mlflow.telemetry.utils import is_telemetry_disabled
from ray._common.usage.usage_lib import usage_stats_enabled
print(usage_stats_enabled(), is_telemetry_disabled())
"""


@pytest.mark.parametrize(
    ("said", "sent"),
    [({}, "False True"), ({"RAY_USAGE_STATS_ENABLED": "1", "MLFLOW_DISABLE_TELEMETRY": "false"}, "True False")],
)
def test_statistics_of_use_are_sent_only_where_a_user_says_so(said: dict[str, str], sent: str) -> None:
    # MLflow sends nothing from a test or a CI machine, as it sees from such variables.
    quiet = {
        "CI",
        "PYTEST_CURRENT_TEST",
        "GITHUB_ACTIONS",
        *said,
        "RAY_USAGE_STATS_ENABLED",
        "MLFLOW_DISABLE_TELEMETRY",
    }
    variables = {name: value for name, value in os.environ.items() if name not in quiet} | said
    done = subprocess.run([sys.executable, "-c", ASKED], capture_output=True, text=True, env=variables, check=True)
    assert done.stdout.splitlines()[-1] == sent
