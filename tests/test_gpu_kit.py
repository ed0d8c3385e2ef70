"""The kit for a bare GPU machine, on this one: pieces, phases that end by themselves, and a suite in miniature."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[1]
KIT = ROOT / "scripts" / "gpu"
sys.path.insert(0, str(KIT))
import phase  # noqa: E402
import pieces  # noqa: E402


def run_phase(home: Path, *words: str) -> tuple[int, dict[str, Any]]:
    environment = {**os.environ, "PYTHON": sys.executable, "GPU_HOME": str(home), "KIT": str(home / "kit")}
    environment.pop("OUT", None)
    said = subprocess.run([KIT / "run.sh", *words], env=environment, capture_output=True, text=True, check=False)
    return said.returncode, json.loads(said.stdout.splitlines()[-1])


def test_parts_of_a_model_are_within_half_a_step(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = {
        "a.weight": torch.randn(80, 64) * torch.logspace(-4, 2, 80)[:, None],
        "b.weight": torch.randn(100, 64),
        "b.bias": torch.randn(100),
        "ids": torch.arange(5),
        "zero.weight": torch.zeros(64, 64),
    }
    save_file(weights, tmp_path / "model.safetensors")
    kit, home = tmp_path / "kit", tmp_path / "home"
    parts = [kit / "3" / "lm.1of2.safetensors", kit / "4" / "lm.2of2.safetensors"]
    pieces.write_parts(tmp_path / "model.safetensors", parts)
    late = parts[1].rename(tmp_path / "late")
    assert pieces.unpack(kit, home)["models"] == []  # half of a model is none
    late.rename(parts[1])
    assert pieces.unpack(kit, home)["models"] == ["lm"]
    assert pieces.unpack(kit, home)["new"] == []
    found = load_file(home / "lm" / "model.safetensors")
    assert found.keys() == weights.keys()
    for name, values in weights.items():
        if not values.is_floating_point():
            assert torch.equal(found[name], values)
            continue
        step = values.abs().amax(-1, keepdim=True) / 127 if values.ndim == 2 else 0.0
        assert bool(((found[name].float() - values).abs() <= 0.5001 * step + values.abs() * 2**-10).all()), name


def test_a_phase_ends_with_its_time_and_leaves_no_process(tmp_path: Path) -> None:
    # A grandchild in a separate session, as Ray's are.
    script = "import subprocess, time; subprocess.Popen(['sleep', '300'], start_new_session=True); time.sleep(300)"
    rc, stopped = phase.run([sys.executable, "-c", script], tmp_path / "log", 2.0, "kit-test")
    assert stopped
    assert rc != 0
    assert phase.find_marked("kit-test") == []


def test_a_phase_that_is_none_is_refused(tmp_path: Path) -> None:
    said = subprocess.run([KIT / "run.sh", "nothing"], capture_output=True, text=True, check=False)
    assert said.returncode == 2
    assert "usage: " in said.stderr
    assert run_phase(tmp_path, "suite", "--no-such-option")[1] == {"phase": "suite", "rc": 2, "found": None}


def test_check_runs_what_needs_a_gpu(tmp_path: Path) -> None:
    rc, line = run_phase(tmp_path, "check", "--cpu-smoke")
    assert rc == 0
    assert line["found"]["failed"] == []
    assert line["found"]["tests"] > 0
    if not torch.cuda.is_available():
        assert line["found"]["skipped"] == line["found"]["tests"]


@pytest.mark.slow
def test_a_suite_in_miniature(tmp_path: Path) -> None:
    rc, line = run_phase(tmp_path, "unpack")  # nothing to unpack is no error
    assert (rc, line["found"]["new"], line["found"]["models"]) == (0, [], [])
    rc, line = run_phase(tmp_path, "suite", "--cpu-smoke")
    assert rc == 0, line
    (suite,) = line["found"]["suites"]
    assert {row["arm"] for row in suite["rows"]} >= {"gapped_kmer", "cnn", "embedder_only", "l2g"}
    assert all(row["test"] is not None for row in suite["rows"])
    assert suite["stages"]["refit"]["trials"] == 1
    assert suite["slots"]["trials"] > 0
    assert suite["mlflow"]
    assert suite["second"]["trained"] == 0


@pytest.mark.slow
def test_the_papers_claim_in_miniature(tmp_path: Path) -> None:
    rc, line = run_phase(tmp_path, "paper", "--cpu-smoke")
    assert rc == 0, line
    found = json.loads((tmp_path / "out" / "paper.json").read_text())["found"]
    (task,) = found["tasks"]
    seeds = {arm: len(scores["test"]) for arm, scores in task["arms"].items()}
    assert seeds == dict.fromkeys(("embedder", "embedder_2", "embedder_long", "l2g", "l2g_random"), 3)
    assert len(task["differences"]) == 6
    assert max(task["arms"]["embedder_long"]["test"]) > 0.2
    first = next(d for d in task["differences"] if (d["first"], d["second"]) == (["l2g"], ["embedder_long"]))
    means = [sum(task["arms"][arm]["test"]) / 3 for arm in ("l2g", "embedder_long")]
    assert first["mean"] == pytest.approx(means[0] - means[1], abs=2e-4)
    assert (tmp_path / "out" / "paper.zip").stat().st_size > 0
