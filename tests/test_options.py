"""The vocabulary of options over all commands, former names, suggestions, streams, completion, and settings with descriptions."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml
from commands import Cli, Said
from pydantic import BaseModel
from test_cli import LENGTH_BP, make_model, refuse

from l2g_ray.cli.main import _Lazy, main
from l2g_ray.cli.options import GROUPS, Command, InputFile, Option, OutputFile
from l2g_ray.config import Settings, known_keys


def walk(command: click.Command, path: str = "l2g-ray") -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=path)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from walk(found, f"{path} {name}")


ALL = dict(walk(main))
LEAVES = {path: command for path, command in ALL.items() if not isinstance(command, click.Group)}
OPTIONS = {
    f"{path} {max(option.opts, key=len)}": option
    for path, command in LEAVES.items()
    for option in command.params
    if isinstance(option, Option)
}
# Commands that print a table, or a listing of values.
TABLES = """suite run ablate baseline scale status plan explain embed tasks data:prepare data:inspect data:check data:list config:show"""
# Commands that show progress.
LONG = """suite run ablate baseline scale predict explain variants mutate embed data:prepare data:check"""


def named(names: str) -> list[str]:
    return [f"l2g-ray {name.replace(':', ' ')}" for name in names.split()]


def options_of(path: str) -> dict[str, Option]:
    return {name: one for one in LEAVES[path].params if isinstance(one, Option) for name in one.opts}


def ask(cli: Cli, path: str, flag: str) -> Said:
    return cli(*path.split()[1:], flag)


@pytest.mark.parametrize("path", ALL)
def test_every_command_has_help_by_both_names(cli: Cli, path: str) -> None:
    short, long = ask(cli, path, "-h"), ask(cli, path, "--help")
    assert short.code == 0
    assert short == long
    assert short.out.startswith(f"Usage: {path} ")
    summary = ALL[path].help
    assert summary is not None
    assert summary.split("\n\n")[0].rstrip().endswith("."), summary


def begin(text: str) -> list[str]:
    return re.findall(r"[\w-]+", text)[:2]


def test_the_list_of_commands_agrees_with_their_help() -> None:
    """The list has its own, shorter summaries, so that it is printed without importing the commands."""
    assert isinstance(main, _Lazy)
    assert list(main.SUMMARIES) == list(main.MODULES)
    for name, summary in main.SUMMARIES.items():
        assert begin(summary) == begin(ALL[f"l2g-ray {name}"].help or ""), name
    assert main.SUMMARIES["embed"].startswith("Embed new sequences, or compare")


@pytest.mark.parametrize("path", LEAVES)
def test_every_command_and_option_is_of_the_vocabulary(path: str) -> None:
    command = LEAVES[path]
    assert isinstance(command, Command)
    assert all(isinstance(one, Option | click.Argument) for one in command.params)
    for name, one in options_of(path).items():
        assert one.help, f"{path} {name}"
        assert one.help.strip().endswith("."), f"{path} {name}: {one.help}"
        assert one.help[0].isupper() or one.help[0] in "'-", f"{path} {name}: {one.help}"
        assert one.group in (*GROUPS, "")


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_means_the_same_in_all_commands(name: str) -> None:
    option, flag = OPTIONS[name], name.split()[-1]
    short = {"--input": "-i", "--output": "-o", "--quiet": "-q", "--verbose": "-v"}
    assert set(option.opts) == {flag} | ({short[flag]} if flag in short else set())
    match flag:
        case "--input":
            assert isinstance(option.type, InputFile)
        case "--output":
            assert isinstance(option.type, OutputFile)
        case "--out":
            assert option.metavar is not None
            assert option.metavar.startswith("FOLDER")
        case "--target":
            assert option.metavar == "NAME"
        case "--json" | "--quiet" | "--verbose":
            assert option.is_flag
        case "--batch-size" | "--seeds" | "--cpus":
            assert option.metavar == "N"
    assert flag not in ("--sequences", "--vcf", "--pairs", "--gpu")


def test_tables_are_printed_as_json_and_progress_is_silenced_everywhere() -> None:
    assert [path for path in LEAVES if "--json" in options_of(path)] == [p for p in LEAVES if p in named(TABLES)]
    assert [path for path in LEAVES if "--quiet" in options_of(path)] == [p for p in LEAVES if p in named(LONG)]
    reads_models = [path for path in LEAVES if "--arm" in options_of(path)]
    assert reads_models == named("predict explain variants mutate embed")
    assert all({"--task", "--device", "--batch-size"} <= options_of(path).keys() for path in reads_models)


@pytest.mark.parametrize("path", named("suite run ablate baseline"))
def test_options_of_runs_are_grouped(cli: Cli, path: str) -> None:
    said = ask(cli, path, "-h").out
    groups = [line.rstrip(":") for line in said.splitlines() if line.rstrip(":") in (*GROUPS, "Options")]
    assert groups == [name for name in (*GROUPS, "Options") if name in groups]
    assert {"Data", "Training", "Cluster", "Output"} <= set(groups)
    assert ("Splits" in groups) == (path == "l2g-ray run")
    assert said.index("--data-dir") < said.index("--preset") < said.index("--cpus") < said.index("--out ")


# ---- former names ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("options") / "toy"
    make_model(folder / "planted" / "model", None)
    return folder


FORMER = {
    ("explain", "--output"): "--target",
    ("explain", "--sequences"): "--input",
    ("mutate", "--output"): "--target",
    ("mutate", "--sequences"): "--input",
    ("variants", "--vcf"): "--input",
    ("variants", "--pairs"): "--input",
    ("plan", "--device"): "--machine",
    ("plan", "--gpu"): "--machine",
}


def test_the_former_names_are_these() -> None:
    found = {
        (path.removeprefix("l2g-ray "), old): max(one.opts, key=len)
        for path in LEAVES
        for one in options_of(path).values()
        for old in one.former
    }
    assert found == FORMER


@pytest.mark.parametrize(("command", "old"), FORMER)
def test_a_former_name_is_hidden(cli: Cli, command: str, old: str) -> None:
    words = cli(command, "-h").out.replace(",", " ").split()
    assert old not in words
    assert FORMER[command, old] in words


@pytest.mark.parametrize("form", [("--pairs", "{}"), ("--pairs={}",), ("--input", "{}"), ("-i", "{}")])
def test_a_former_name_works_with_a_note(cli: Cli, model: Path, tmp_path: Path, form: tuple[str, ...]) -> None:
    pairs, scores = tmp_path / "pairs.csv", tmp_path / "scores.tsv"
    pairs.write_text("id,ref,alt\na,ACGTACGT,ACGAACGT\n")
    said = cli("variants", model, *(part.format(pairs) for part in form), "-o", scores)
    assert said.code == 0, said.err
    assert scores.read_text().count("\n") == 2
    note = "note: --pairs is now --input; the old name works until the next release\n"
    assert said.err == (note if "--pairs" in form[0] else "")


def test_a_former_name_after_two_dashes_is_an_argument() -> None:
    command = Command("toy", params=[Option(["--input"], former=("--old",)), click.Argument(["names"], nargs=-1)])
    context = command.make_context("toy", ["--old", "x", "--", "--old"])
    assert context.params == {"input": "x", "names": ("--old",)}


def test_a_former_name_that_means_something_else_now_is_not_replaced() -> None:
    command = Command("toy", params=[Option(["--target"], former=("--output",)), Option(["--output"])])
    assert command.make_context("toy", ["--output", "x"]).params == {"target": None, "output": "x"}


# ---- mistyped names --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("suit", "No such command 'suit'. Did you mean 'suite'? See `l2g-ray --help`"),
        ("data chekc", "No such command 'chekc'. Did you mean 'check'? See `l2g-ray data --help`"),
        ("server backpu x", "No such command 'backpu'. Did you mean 'backup'? See `l2g-ray server --help`"),
        (
            "suite --bench demo --sedes 3",
            "No such option '--sedes'. Did you mean '--seeds'? See `l2g-ray suite --help`",
        ),
        ("prepare", "No such command 'prepare'. Did you mean 'data prepare'? See `l2g-ray --help`"),
        ("check x.csv", "No such command 'check'. Did you mean 'data check'? See `l2g-ray --help`"),
        ("list", "No such command 'list'. Did you mean 'data list'? See `l2g-ray --help`"),
        ("vaildate", "No such command 'vaildate'. Did you mean 'config validate'? See `l2g-ray --help`"),
        ("xyzzy", "No such command 'xyzzy'; see `l2g-ray --help`"),
    ],
)
def test_the_nearest_name_is_suggested(cli: Cli, typed: str, message: str) -> None:
    said = cli(*typed.split())
    refuse(said)
    assert said.err == f"error: {message}\n"


# ---- standard streams, colours -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        ("status",),
        ("report",),
        ("ui",),
        ("embed",),
    ],
    ids=lambda command: command[0],
)
@pytest.mark.parametrize("run", ["s3://bucket/runs/demo-fast", "models:/demo/1"])
def test_a_command_that_reads_folders_refuses_other_places(cli: Cli, command: tuple[str, ...], run: str) -> None:
    said = cli(command[0], run, *command[1:])
    assert said.code == 2
    assert f"{run}: this command reads folders only" in " ".join(said.err.split())


@pytest.mark.parametrize(
    "text", [">a\nACGT\nACGT\n>b\nGGGG\n", "id,sequence\na,ACGTACGT\nb,GGGG\n", "sequence\tid\nACGTACGT\ta\nGGGG\tb\n"]
)
def test_predict_reads_standard_input_and_writes_standard_output(
    cli: Cli, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    file = tmp_path / "in.fa"
    file.write_text(">a\nACGTACGT\n>b\nGGGG\n")
    said = cli("predict", model, "-i", "-", "-o", "-")
    assert said.code == 0, said.err
    assert "2 predictions of task 'planted'" in said.err
    assert cli("predict", model, "-i", file, "-o", tmp_path / "out.tsv").code == 0
    assert said.out == (tmp_path / "out.tsv").read_text()


def test_a_fault_in_standard_input_is_one_sentence_and_writes_nothing(
    cli: Cli, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b">a\nACGT\n>b\n" + b"A" * (LENGTH_BP + 1))))
    refuse(cli("predict", model, "-i", "-", "-o", "-"), "stdin.fa, row 2")


@pytest.mark.parametrize("no_colour", [False, True])
def test_colours_are_left_out_where_no_color_is_set(tmp_path: Path, no_colour: bool) -> None:
    (tmp_path / "suite.json").write_text(json.dumps({"name": "toy", "state": "finished", "command": "l2g-ray"}))
    variables = {**os.environ, "FORCE_COLOR": "1", "TERM": "xterm-256color"} | ({"NO_COLOR": "1"} if no_colour else {})
    command = [sys.executable, "-m", "l2g_ray.cli.main", "status", str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, env=variables, check=True).stdout
    assert ("\x1b[32m" in said) == (not no_colour)


# ---- completion ------------------------------------------------------------------------------------------------------


def complete(*words: str) -> list[str]:
    """What bash gets for the last of `words`."""
    line = " ".join(("l2g-ray", *words))
    variables = {
        **os.environ,
        "_L2G_RAY_COMPLETE": "bash_complete",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words)),
    }
    run = "from l2g_ray.cli.main import run; run()"
    done = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, env=variables, check=True)
    return [item.partition(",")[2] for item in done.stdout.split()]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("pre",), "predict"),
        (("run", "demo/sp"), "demo/splice_junction"),
        (("suite", "--bench", "de"), "demo"),
        (("suite", "--bench", "demo", "--tasks", "splice_junction,enh"), "splice_junction,enhancer_grammar"),
        (("run", "x.csv", "--preset", "pa"), "paper"),
        (("run", "x.csv", "--set", "finetune.tri"), "finetune.trials="),
        (("run", "x.csv", "--arms", "cnn,embedder"), "cnn,embedder_only"),
        (("ablate", "--study", "wei"), "weights"),
        (("explain", "--targ"), "--target"),
        (("config", "show", "--task", "nt/H4a"), "nt/H4ac"),
    ],
)
def test_a_shell_completes(words: tuple[str, ...], expected: str) -> None:
    assert expected in complete(*words)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_script(shell: str) -> None:
    variables = {**os.environ, "_L2G_RAY_COMPLETE": f"{shell}_source"}
    run = "from l2g_ray.cli.main import run; run()"
    done = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, env=variables, check=False)
    assert f"_L2G_RAY_COMPLETE={shell}_complete" in done.stdout.replace('"', "")


# ---- settings --------------------------------------------------------------------------------------------------------


def describe(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str | None]]:
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}", field.description
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from describe(field.annotation, f"{prefix}{name}.")


DESCRIPTIONS = dict(describe(Settings))


def test_all_settings_are_described() -> None:
    assert set(known_keys()) <= set(DESCRIPTIONS)


@pytest.mark.parametrize("key", DESCRIPTIONS)
def test_a_setting_has_a_sentence(key: str) -> None:
    text = DESCRIPTIONS[key]
    assert text, f"{key}: add a docstring below the field in l2g_ray/config"
    assert text[0].isupper()
    assert text.endswith(".")


def test_config_show_prints_each_setting_below_its_sentence(cli: Cli) -> None:
    shown = cli("config", "show", "--preset", "paper").out
    plain = " ".join(line.strip().removeprefix("# ") for line in shown.splitlines())
    for key, text in DESCRIPTIONS.items():
        assert f"{' '.join(str(text).split())} {key.rpartition('.')[2]}:" in plain, key
    assert yaml.safe_load(shown) == json.loads(cli("config", "show", "--preset", "paper", "--json").out)


# ---- JSON and --quiet ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("command", "key"), [("ablate", "study"), ("baseline", "baseline")])
def test_listings_are_json(cli: Cli, command: str, key: str) -> None:
    plain, said = cli(command, "--list").out, cli(command, "--list", "--json")
    assert said.err == ""
    names = [one[key] for one in json.loads(said.out)]
    assert names
    assert all(name in plain for name in names)


def test_data_commands_print_json_alone(cli: Cli, tmp_path: Path) -> None:
    rows = [f"{'ACGT'[i % 4]}{'CGTA'[i // 4 % 4]}{'GTAC'[i // 16 % 4]}ACGTACGTTTGACA,{i % 2}" for i in range(64)]
    file, prepared = tmp_path / "all.csv", tmp_path / "prepared"
    file.write_text("\n".join(["sequence,label", *rows]))
    said = cli("data", "prepare", file, "--out", prepared, "--json")
    assert "Split" not in said.err
    manifest = json.loads(said.out)
    assert manifest == json.loads(cli("data", "inspect", prepared, "--json").out)
    checked = cli("data", "check", file, "--out", tmp_path / "check", "--json", "--quiet")
    assert json.loads(checked.out) == json.loads((tmp_path / "check" / "check.json").read_text())
