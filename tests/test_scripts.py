"""The evidence: parts and their commands, what is left, the files of the ledger, and the tables that are made of them."""

from __future__ import annotations

import argparse
import fcntl
import json
import shlex
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import pytest

from l2g_ray.cli.main import main
from l2g_ray.cli.studies import _choose, _keep
from l2g_ray.errors import UserError
from l2g_ray.presets import parse_assignments, resolve
from l2g_ray.stages.registry import list_versions
from l2g_ray.studies.study import ARMS_OF_STUDIES, read_baseline_arms
from l2g_ray.tasks.catalogue import find_tasks
from scripts.ledger import LEDGER, MAX_BYTES, collect, is_current, read, read_part, write
from scripts.reproduce import Part, choose_parts, estimate, find_state, list_parts
from scripts.results_tables import PAGES, fill, make_tables

ROOT = Path(__file__).parents[1]
LONGEST_MIN = 60
PARTS = list_parts()
DEMO = "rest/demo-splice_junction"
# In place of l2g-ray: it fails as often as the file `fails` of its folder says, then leaves the run that it was given.
FAKE = """#!{python}
import json, os, pathlib, shutil, sys, time
here = pathlib.Path(__file__).parent
given = dict(zip(sys.argv, sys.argv[1:]))
with (here / "log").open("a") as log:
    log.write(f"{{os.nice(0)}} {{given['--name']}}\\n")
left = int((here / "fails").read_text() or 0) if (here / "fails").exists() else 0
if left:
    (here / "fails").write_text(str(left - 1))
    sys.exit(1)
if (here / "sleeps").exists():
    time.sleep(120)
run = pathlib.Path(given["--out"], given["--name"])
shutil.copytree(here / "run", run, dirs_exist_ok=True)
suite = json.loads((run / "suite.json").read_text())
(run / "suite.json").write_text(json.dumps(suite | {{"command": "l2g-ray " + " ".join(sys.argv[1:])}}))
"""


@pytest.fixture
def options(tmp_path: Path) -> argparse.Namespace:
    return argparse.Namespace(
        preset="fast", language_model="minilm", data_dir=tmp_path / "some data", seeds=3, out=tmp_path / "out", ledger=tmp_path / "ledger"
    )  # fmt: skip


def find_part(name: str) -> Part:
    return choose_parts(PARTS, [name])[0]


def make_run(folder: Path, tasks: list[str], command: str = "l2g-ray suite", **changes: Any) -> Path:
    """What a suite leaves, with the rows of a real one."""
    real = json.loads((LEDGER / "predictors" / "uci-splice_junction.json").read_text())
    rows = [real["row"] | {"task": task, "prediction": "ACGT"} for task in tasks]
    suite = {name: real[name] for name in ("machine", "versions", "preset")} | {
        "command": command,
        "git_revision": "0123456789ab",
        "stage_versions": list_versions(),
        "settings": {task: resolve("fast", None, {"seeds": 3}).model_dump(mode="json") for task in tasks},
        "costs": {task: {"select": {}, "cnn": {}, "trials": {}, "evaluate": {}} for task in tasks},
        "wall_s": 9.0,
    }
    folder.mkdir(parents=True)
    (folder / "suite.json").write_text(json.dumps(suite | changes))
    (folder / "leaderboard.json").write_text(json.dumps({"tasks": rows, "language_model": "minilm"}))
    return folder


# ---- parts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_each_command_of_the_results_can_be_run(part: Part, options: argparse.Namespace) -> None:
    words = part.command(options)[1:]
    group = click.Context(main)
    command = main.get_command(group, words[0])
    assert command is not None
    given = command.make_context(words[0], list(words[1:])).params
    assert (given["seeds"], given["data_dir"]) == (3, options.data_dir)
    fixed = parse_assignments(given["assignments"])
    if words[0] == "suite":
        assert [f"{given['bench']}/{task.name}" for task in find_tasks(given["bench"], [given["tasks"]])] == [part.task]
        arms = [{}]
    elif words[0] == "ablate":
        studies = _choose(given["studies"], given["vary"])
        studies = [_keep(study, given["arms"].split(",")) if given["arms"] else study for study in studies]
        arms = [settings for study in studies for settings in study.arms.values()]
    else:
        arms = [{}, read_baseline_arms()[given["names"]]["set"]]
    if words[0] != "suite":
        assert given["tasks"] == (part.task,)
        fixed = {"arms": ARMS_OF_STUDIES} | fixed
    # What is estimated is what the command trains.
    assert [resolve("fast", None, fixed | arm) for arm in arms] == [resolve("fast", None, one) for one in part.variants]


def test_parts_have_names_of_their_own_and_come_in_order() -> None:
    assert len(set(map(str, PARTS))) == len(PARTS)
    assert list(dict.fromkeys(part.group for part in PARTS)) == ["gue", "nt", "stages", "figure5", "rest", "baselines"]
    assert len([part for part in PARTS if part.group == "nt" and not part.ahead]) == 18
    arms = [part.name.split(".", 1)[1] for part in choose_parts(PARTS, ["figure5"]) if part.task == "nt/H3"]
    assert arms[:3] == ["weights.pretrained", "weights.random", "weights.random_text_too"]


def test_a_second_language_model_is_a_part_of_its_own(tmp_path: Path, options: argparse.Namespace) -> None:
    model = str(tmp_path / "some model")
    parts = choose_parts(list_parts(model), ["size"])
    assert [part.task for part in parts] == ["nt/H3", "nt/enhancers"]
    words = parts[0].command(options)
    assert words.count("--language-model") == 1
    assert words[words.index("--language-model") + 1] == model
    content = collect(make_run(tmp_path / "run", ["H3"], shlex.join(words)), "nt")
    assert "--language-model 'some model'" in content["command"]
    assert is_current(content, shlex.join(words))
    assert not is_current(content, shlex.join(find_part("nt/nt-H3").command(options)))


def test_a_part_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match="no part 'gui': did you mean 'gue'"):
        choose_parts(PARTS, ["nt", "gui"])


def test_what_an_earlier_part_trains_is_not_estimated_again(options: argparse.Namespace) -> None:
    options.data_dir = ROOT / "nowhere"
    control, arm = (
        Part("g", name, "demo/splice_junction", (), ({"arms": ["embedder_only", "l2g"]} | settings,))
        for name, settings in (("control", {}), ("deep", {"model.language_model_layers": 6}))
    )
    pair = Part("g", "pair", "demo/splice_junction", (), (*control.variants, *arm.variants))
    found = estimate([control, pair, arm, find_part("gue/gue-mouse_0")], options)
    alone = estimate([arm], options)
    assert found[control] > 0
    assert found[pair] == pytest.approx(alone[arm])
    assert found[pair] > found[control]  # six layers, not three
    assert found[arm] == 0
    assert list(found.values())[-1] is None  # no data


@pytest.mark.slow
def test_no_part_is_planned_to_take_more_than_an_hour(shared_data: Path, options: argparse.Namespace) -> None:
    options.data_dir = shared_data
    found = estimate(PARTS, options)
    known = {str(part): minutes for part, minutes in found.items() if minutes is not None}
    assert len(known) >= len(PARTS) - 1
    assert {name: minutes for name, minutes in known.items() if minutes > LONGEST_MIN} == {}


# ---- the ledger ------------------------------------------------------------------------------------------------------


def test_a_file_is_current_for_its_command_and_the_stages_it_went_through(
    tmp_path: Path, options: argparse.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = find_part(DEMO)
    command = shlex.join([*part.command(options), "--replace", "--cpus", "1"])
    content = collect(make_run(tmp_path / "run", ["splice_junction"], command), "demo")
    assert "some data" not in json.dumps(content)
    assert content["command"].endswith("--cpus 1")
    assert {"trial", "finetune", "baseline", "select", "evaluate"} == content["stage_versions"].keys()
    path = options.ledger / "rest" / "demo-splice_junction.json"
    assert find_state(part, options) == ("left", None)
    write(path, content)
    assert find_state(part, options) == ("done", read(path))
    assert find_state(part, argparse.Namespace(**vars(options) | {"seeds": 5}))[0] == "outdated"
    assert find_state(part, argparse.Namespace(**vars(options) | {"out": Path("elsewhere")}))[0] == "done"
    for stage in ("refit", "baseline"):
        raised = content["stage_versions"] | ({stage: list_versions()[stage] - 1} if stage == "baseline" else {})
        assert is_current(content | {"stage_versions": raised}, command) == (stage == "refit")


def test_a_row_of_the_ledger_has_arms_and_settings_and_no_sequences(tmp_path: Path) -> None:
    content = collect(make_run(tmp_path / "run", ["splice_junction"]), "demo")
    assert (content["bench"], content["commit"], content["settings"]) == ("demo", "0123456789ab", {"seeds": 3})
    assert len(content["row"]["arms"]["cnn"]["test"]["per_seed"]) == 3
    assert content["row"]["used"]["oof"]["ci95"]
    assert "ACGT" not in json.dumps(content)


def test_a_run_that_is_no_part_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="2 tasks finished; a part of the ledger is a run of one"):
        collect(make_run(tmp_path / "run", ["one", "two"]), "demo")
    with pytest.raises(UserError, match=r"suite\.json: cannot be read .*; run the part again"):
        collect(tmp_path / "none", "demo")


def test_a_file_of_more_than_30_kilobytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "part" / "task.json"
    with pytest.raises(UserError, match="are more than the 30,000 of a file of the ledger; split the part"):
        write(path, {"text": "é" * (MAX_BYTES // 6 + 1)})
    assert not path.exists()
    write(path, {"text": "x" * (MAX_BYTES - 100)})
    assert path.stat().st_size <= MAX_BYTES


def test_no_file_of_the_ledger_is_larger() -> None:
    paths = list(LEDGER.rglob("*"))
    assert {path for path in paths if path.is_file()} == set(LEDGER.glob("*/*.json"))
    assert max(path.stat().st_size for path in paths if path.is_file()) <= MAX_BYTES


# ---- tables ----------------------------------------------------------------------------------------------------------


def make_study(folder: Path, ledger: Path, arm: str, p: float) -> None:
    """A part of a study in the ledger: the control beside one arm."""
    run = make_run(folder / arm, ["H3--joint", f"H3--{arm}"], "l2g-ray ablate nt/H3 --study loss")
    scores = {"mean": 0.5, "ci95": [0.4, 0.6], "per_seed": [0.5] * 3, "dropped_resamples": 0}
    difference = {"mean": -0.1, "ci95": [-0.2, -0.05], "p": p, "dropped_resamples": 0}
    rows = [
        {
            "task": "H3",
            "arm": name,
            "metric": "mcc",
            "test": scores,
            "validation": 0.5,
            "cpu_s": 60.0,
            "difference": other,
        }
        for name, other in (("joint", None), (arm, difference))
    ]
    study = {
        "schema": 1,
        "study": "loss",
        "about": "the loss",
        "arms": {"joint": {}, arm: {}},
        "preset": "fast",
        "command": "?",
    }
    (run / "study.json").write_text(json.dumps(study | {"compared": rows}))
    for name in ("joint", arm):
        (run / f"H3--{name}").mkdir()
        spent = {"stage": "refit", "trials": 1, "epochs": 1, "wall_s": 1.0, "gpu_s": 0.0}
        shared = spent | {"key": "shared", "cpu_s": 1000.0}
        (run / f"H3--{name}" / "stages.json").write_text(
            json.dumps({"spent": [shared, spent | {"key": name, "cpu_s": 400.0}]})
        )
    write(ledger / "figure5" / f"nt-H3.loss.{arm}.json", collect(run, "nt"))


def test_the_parts_of_a_study_are_one_table_with_one_correction(tmp_path: Path) -> None:
    for arm, p in (("task_only", 0.01), ("none", 0.015)):
        make_study(tmp_path, tmp_path / "ledger", arm, p)
    contents = read_part("figure5", tmp_path / "ledger")
    assert [content["cpu_s"] for content in contents] == [1800.0, 1800.0]  # what the arms share, once
    table = make_tables("figure5", tmp_path / "ledger")
    lines = [line.split(" | ") for line in table.splitlines() if line.startswith("| nt/H3, mcc")]
    assert [line[1] for line in lines] == ["joint", "none", "task_only"]
    # Holm, computed manually: two-sided .02 and .03; .02 x 2, then at least that.
    assert [line[5] for line in lines] == ["", "0.040", "0.040"]
    assert "1.0 CPU hours" in table


def test_a_table_of_tasks_ranks_what_they_have(tmp_path: Path) -> None:
    for task in ("one", "two"):
        write(tmp_path / "nt" / f"nt-{task}.json", collect(make_run(tmp_path / task, [task]), "nt"))
    write(tmp_path / "nt" / "nt-one.without_l2g.json", collect(make_run(tmp_path / "three", ["three"]), "nt"))
    table = make_tables("nt", tmp_path)
    row = json.loads((tmp_path / "nt" / "nt-one.json").read_text())["row"]
    scores = {arm: found["test"]["mean"] for arm, found in row["arms"].items()}
    first = sum(score > row["used"]["test"]["mean"] for score in scores.values()) == 0
    assert f"| ensemble | 2 | {row['used']['test']['mean']:.3f} | 1.00 | {2 * first} |" in table
    assert f"| gapped_kmer | 2 | {scores['gapped_kmer']:.3f} | 6.00 | 0 |" in table
    assert "nt/three" not in table


def test_a_page_is_stale_once_the_ledger_has_changed(tmp_path: Path) -> None:
    page = "# Text\n\n<!-- tables: nt -->\n\nold\n\n<!-- end of tables -->\n\nmore\n\n<!-- tables: gue -->\n<!-- end of tables -->\n"
    filled = fill(page, tmp_path)
    assert filled.startswith(
        "# Text\n\n<!-- tables: nt -->\n\nNo results yet: `python -m scripts.reproduce --data-dir DIR nt`"
    )
    assert fill(filled, tmp_path) == filled
    write(tmp_path / "gue" / "gue-one.json", collect(make_run(tmp_path / "run", ["one"]), "gue"))
    assert fill(filled, tmp_path) != filled
    assert fill(fill(filled, tmp_path), tmp_path) == fill(filled, tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_tables_of_the_docs_are_those_of_the_ledger(page: Path) -> None:
    assert fill(page.read_text()) == page.read_text(), "stale: run python -m scripts.results_tables"


# ---- runs ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    """A folder with a command that stands for l2g-ray; `log` has its niceness and the run's name, a line a start."""
    make_run(tmp_path / "fake" / "run", ["splice_junction"])
    command = tmp_path / "fake" / "l2g-ray"
    command.write_text(FAKE.format(python=sys.executable))
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    return tmp_path / "fake"


def start(fake: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "scripts.reproduce", *words, "--data-dir", "nowhere", "--wait-s", "0"]
    command += [
        "--out",
        fake.parent / "out",
        "--ledger",
        fake.parent / "ledger",
        "--l2g-ray",
        shlex.quote(str(fake / "l2g-ray")),
    ]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(fake: Path, *words: str) -> tuple[int, str, str]:
    process = start(fake, *words)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def test_parts_run_at_the_lowest_priority_are_tried_again_and_the_others_go_on(fake: Path) -> None:
    (fake / "fails").write_text("4")
    code, out, err = run(fake, "rest")
    # Three failures are the first part's; the fourth is the second's, which then succeeds.
    assert "rest/demo-splice_junction: try 3 of 3 failed (exit code 1)" in out
    assert "rest/mpra-yeast_native_promoters: left out, its data is not in nowhere" in out
    assert err == "rest/demo-splice_junction: failed 3 times (exit code 1)\n"
    names = ["19 rest-demo-splice_junction"] * 3 + ["19 rest-demo-enhancer_grammar"] * 2
    assert (code, (fake / "log").read_text().splitlines()) == (1, names)
    assert [path.name for path in (fake.parent / "ledger" / "rest").iterdir()] == ["demo-enhancer_grammar.json"]
    _, out, _ = run(fake, "rest", "--print")
    assert "done        2 min  rest/demo-enhancer_grammar" in out.splitlines()
    assert out.splitlines()[-1].startswith("1 of 6 parts left, about 0.")
    assert "no data       –    rest/uci-splice_junction: not in nowhere" in out
    code, _, err = run(fake, "rest")  # resumes: only what is left
    assert (code, err) == (0, "")
    assert (fake / "log").read_text().splitlines() == [*names, "19 rest-demo-splice_junction"]


def test_two_at_once_are_refused(fake: Path) -> None:
    (fake.parent / "out").mkdir()
    with (fake.parent / "out" / "reproduce.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, _, err = run(fake, DEMO)
    assert (code, (fake / "log").exists()) == (2, False)
    assert "another scripts.reproduce runs there; wait for it, or stop it" in err


def test_a_signal_stops_the_part_and_no_other_begins(fake: Path) -> None:
    (fake / "sleeps").touch()
    process = start(fake, "rest")
    while not (fake / "log").exists():
        time.sleep(0.1)
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "stopped; the same command resumes\n")
    assert (fake / "log").read_text() == "19 rest-demo-splice_junction\n"
