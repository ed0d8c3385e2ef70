"""Every `sh` and `python` block of the README and of the first pages, in a folder with small files of the names they use."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
import pytest
from runs import execute
from test_own_data import plant, write_fasta

from l2g_ray.cli.main import main
from l2g_ray.errors import UserError

ROOT = Path(__file__).parents[1]
# In the order in which a person reads them.
PAGES = ("README.md", *(f"docs/{name}.md" for name in ("get_started", "predict", "report", "runs", "mlflow", "plan")))
TEXT = "\n".join((ROOT / page).read_text() for page in PAGES)
# What is not typed here, and who does.
ELSEWHERE = {
    "make demo": ".ci/run",
    "make docs": "test_docs.py: it does not end",
    "make test": ".ci/run",
    ".venv/bin/pip install": "needs a network; test_an_extra_that_is_missing_is_named has its other side",
    "l2g-ray ui": "test_server.py: it does not end",
    "l2g-ray report runs/nt-paper --study": "test_arms.py: a study takes minutes",
}
# The pages' command, with a tiny model and little training.
QUICK = {
    "select.backbones": ["resnet"],
    "align.max_samples": 31,
    "search.enabled": False,
    "align.source": "vocabulary",
    "align.alphas": [1.0],
    "finetune.trials": 1,
    "finetune.epochs": 1,
    "embedder_only.epochs": 1,
}
# What else a command gets at its end, so that it is one of seconds; of `gue`, two of 28 sets are here.
MORE = {
    "--bench gue": "--tasks mouse_0,mouse_1",
    "l2g-ray explain": "--top 40 --references 2 --min-seqlets 5",
}


def read_blocks() -> list[tuple[str, str]]:
    """Kind and text of each fenced block that is to be typed."""
    return re.findall(r"^```(sh|python)\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)


def read_commands() -> list[str]:
    """The lines of all `sh` blocks, without comments."""
    lines = [line for kind, text in read_blocks() if kind == "sh" for line in text.splitlines()]
    return list(dict.fromkeys(command for line in lines if (command := re.sub(r"\s+# .*", "", line).strip())))


def is_elsewhere(command: str) -> bool:
    return any(command.startswith(start) for start in ELSEWHERE)


TYPED = [command for command in read_commands() if not is_elsewhere(command)]
PROGRAMS = list(dict.fromkeys(text for kind, text in read_blocks() if kind == "python"))


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, tiny_lm: Path) -> Iterator[Path]:
    """A folder with all files that the pages name, and the run that `make demo` leaves, as the working directory."""
    folder = tmp_path_factory.mktemp("readme")
    generator = np.random.default_rng(3)
    for name in ("my_data", *(f"DIR/{task}" for task in ("nt/H3", "nt/enhancers", "gue/mouse_0", "gue/mouse_1"))):
        (folder / name).mkdir(parents=True)
        for split, rows in (("train", 80), ("dev", 20), ("test", 30)):
            sequences, labels = plant(generator, rows)
            frame = pd.DataFrame({"sequence": sequences, "label": labels})
            frame.to_csv(folder / name / f"{split}.csv", index=False)
    sequences, _ = plant(generator, 10)
    write_fasta(folder / "new.fa", [f"seq{i}" for i in range(10)], sequences)
    pd.DataFrame({"id": range(10), "sequence": sequences}).to_parquet(folder / "new.parquet")
    genome = "".join(generator.choice(list("ACGT"), 2000))
    write_fasta(folder / "hg38.fa", ["chr1"], [genome])
    reference, other = genome[1000], "A" if genome[1000] != "A" else "C"
    record = f"chr1\t1001\trs1\t{reference}\t{other}\t.\tPASS\t."
    header = "##fileformat=VCFv4.2\n##contig=<ID=chr1,length=2000>\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"
    (folder / "new.vcf.gz").write_bytes(gzip.compress(f"{header}\n{record}\n".encode()))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        type_line("l2g-ray suite --bench demo --out runs", tiny_lm)
        yield folder
    import ray

    ray.shutdown()


def type_line(line: str, tiny_lm: Path) -> None:
    """In this process, so that all commands share one Ray."""
    words = shlex.split(line)[1:]
    if words[0] in ("run", "suite"):
        if "mine.yaml" not in words:  # the command that shows a settings file keeps it
            words += ["--preset", "smoke"]
        if words[0] == "suite" and "demo" in words:
            words += ["--name", "demo-fast"]
        if "my_data" in words:
            words += ["--name", "user-my_data-fast"]
        words += ["--language-model", str(tiny_lm), "--cpus", "2"]
        for key, value in QUICK.items():
            words += ["--set", f"{key}={json.dumps(value)}"]
    for part, more in MORE.items():
        words += shlex.split(more) if part in line else []
    main.main(words, prog_name="l2g-ray", standalone_mode=False)


def test_badges_are_true() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    minor = {name: ".".join(pins[name].split(".")[:2]) for name in ("ray", "torch")}
    pythons = [one.rpartition(" ")[2] for one in project["classifiers"] if re.search(r"Python :: 3\.\d", one)]
    wanted = [
        f"Python {pythons[0]} to {pythons[-1]}",
        f"Ray {minor['ray']}",
        f"PyTorch {minor['torch']}",
        project["license"],
    ]
    assert " ".join(f"`{one}`" for one in wanted) in (ROOT / "README.md").read_text()


def test_each_exception_is_one() -> None:
    for start, who in ELSEWHERE.items():
        assert any(command.startswith(start) for command in read_commands()), start
        for name in re.findall(r"test_\w+\.py|\.ci/run", who):
            assert (ROOT / "tests" / name).is_file() or (ROOT / name).is_file()
    assert len(TYPED) >= 22
    assert len(PROGRAMS) == 3


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("command", TYPED, ids=[command[8:70] for command in TYPED])
def test_every_command(command: str, here: Path, tiny_lm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Path(os.getcwd()).resolve() == here.resolve()
    command, _, into = command.partition(" > ")
    if "jaspar:" in command and importlib.util.find_spec("pyjaspar") is None:
        with pytest.raises(UserError, match=r"JASPAR's motifs are not installed; run: .*\[explain\]"):
            type_line(command, tiny_lm)
        # The same but for the names, which need the extra that the line before installs.
        command = command.partition(" --database")[0]
    capsys.readouterr()
    type_line(command, tiny_lm)
    said = capsys.readouterr().out
    if into:
        (here / into).write_text(said)
    check_outcome(here, shlex.split(command))


def check_outcome(here: Path, words: list[str]) -> None:
    """What the command was for is there."""
    made: dict[str, Any] = {
        "run": "runs/*/leaderboard.json",
        "suite": "runs/*/leaderboard.json",
        "explain": "runs/demo-fast/enhancer_grammar/explain/*/explain.html",
        "variants": "scores.tsv",
        "report": "runs/demo-fast/report.html",
    }
    if pattern := made.get(words[1]):
        assert list(here.glob(pattern))
    if words[1] == "predict":
        output = here / words[words.index("--output") + 1]
        frame = pd.read_csv(output) if output.suffix == ".csv" else pd.read_parquet(output)
        assert len(frame) == 10


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("program", PROGRAMS, ids=["readme", "embed", "mlflow"])
def test_every_program(program: str, here: Path) -> None:
    row = json.loads((here / "runs" / "demo-fast" / "leaderboard.json").read_text())["tasks"][0]
    *lines, last = program.strip().splitlines()
    script = "\n".join([f"model_uri = {row['model_uri']!r}", *lines, f"predicted = {last}", "print(len(predicted))"])
    # In a separate process: `mlflow.set_tracking_uri` writes into the environment.
    assert execute([sys.executable, "-c", script]).splitlines()[-1] == "1"


@pytest.mark.parametrize(("extra", "module"), [("explain", "logomaker")])
def test_an_extra_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, extra: str, module: str
) -> None:
    monkeypatch.setitem(__import__("sys").modules, module, None)  # as if it were not installed
    with pytest.raises(UserError) as refusal:
        main.main(["mutate", str(tmp_path), "--sequence", "ACGT"], prog_name="l2g-ray", standalone_mode=False)
    command = str(refusal.value).partition("run: ")[2]
    *pip, place = shlex.split(command)
    assert pip[1:] == ["-m", "pip", "install", "-e"]
    root, _, named = place.rstrip("]").partition("[")
    assert named == extra
    assert extra in (Path(root) / "pyproject.toml").read_text()


def test_click_has_every_option_that_the_pages_name() -> None:
    """Also of commands that are typed elsewhere."""
    for command in read_commands():
        words = shlex.split(command.partition(" > ")[0])
        if words[0] != "l2g-ray":
            continue
        found: click.Command | None = main.get_command(click.Context(main), words[1])
        options = [word for word in words[2:] if word.startswith("--")]
        while isinstance(found, click.Group):
            found = found.get_command(click.Context(found), words[2])
        assert found is not None
        assert set(options) <= {name for parameter in found.params for name in parameter.opts}, command
