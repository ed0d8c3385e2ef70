"""Memory, processes and open files of a suite over a sweep of 200 trials: they should stay flat.

A real run by the command line (preset `smoke`, a tiny language model with random weights, 160 rows) with
`finetune.trials=200`; all processes that descend from it are read from /proc whenever ten more trials have begun.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow.csv import write_csv

from benchmarks.measure import Options

ONLY_BY_NAME = True
TRIALS, EVERY = 200, 10
WARM_UP = 0.2  # the share of trials until every process has loaded what it needs
LIMIT_S = 7200
SETTINGS: dict[str, Any] = {
    "search.enabled": False,
    "select.backbones": ["resnet"],
    "align.source": "vocabulary",
    "align.alphas": [1.0],
    "align.batch_size": 16,
    "align.max_samples": 31,
    "embedder_only.batch_size": 16,
    "select.batch_size": 16,
    "finetune.batch_size": [16],
    "finetune.epochs": 2,
    "finetune.parallel_trials": 2,
}
# A process's role, by text in its command line; the first match counts.
_ROLES = {
    "raylet": "/raylet/raylet",
    "gcs": "gcs_server",
    "board": "ray::Board",
    "pipeline": "ray::run_task",
}


@dataclass(frozen=True)
class Sample:
    """Private memory of each part in MiB, and counts over all processes, after the start of `trials` trials.

    `store_mib` are the pages of Ray's object store that the raylet has touched. `workers_mib` sums over the trials'
    processes, warm or at work.
    """

    trials: int
    driver_mib: float
    pipeline_mib: float
    board_mib: float
    raylet_mib: float
    gcs_mib: float
    workers_mib: float
    store_mib: float
    processes: int
    open_files: int


def run(options: Options) -> list[dict[str, Any]]:
    """Return one row a sample; the last is the slope by 100 trials, after the warm-up."""
    n_trials = 20 if options.quick else TRIALS
    samples = sweep(n_trials, 5 if options.quick else EVERY)
    rows = [{key.replace("_", " "): value for key, value in asdict(one).items()} for one in samples]
    slopes = {name.replace("_", " "): value for name, value in slope_by_100(samples).items()}
    return [*rows, {"trials": "a 100", **slopes}]


def slope_by_100(samples: list[Sample]) -> dict[str, float]:
    """Return what each column grows by in 100 trials, by least squares over the samples after the warm-up."""
    late = [one for one in samples if one.trials >= WARM_UP * samples[-1].trials]
    x = np.array([one.trials for one in late], float)
    names = [field.name for field in fields(Sample) if field.name != "trials"]
    return {name: round(100 * float(np.polyfit(x, [getattr(one, name) for one in late], 1)[0]), 2) for name in names}


def sweep(n_trials: int, every: int, tell: Callable[[str], None] | None = None) -> list[Sample]:
    """Run the sweep to its end, with a sample whenever `every` more trials have begun.

    Raises RuntimeError when the run fails.
    """
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        command = _make_command(root, n_trials)
        with (root / "log.txt").open("w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=root, env=_environment())
            try:
                due, limit = every, time.monotonic() + LIMIT_S
                while process.poll() is None and time.monotonic() < limit:
                    begun = _count_trials(root / "out")
                    if begun >= due:
                        samples.append(_sample(process.pid, begun))
                        (tell or _print_now)(json.dumps(asdict(samples[-1])))
                        due = begun + every
                    time.sleep(0.2)
            finally:
                if process.poll() is None:
                    process.terminate()
                process.wait(120)
        if process.returncode:
            raise RuntimeError((root / "log.txt").read_text()[-3000:])
    return samples


def _print_now(line: str) -> None:
    print(line, flush=True)


def _make_command(root: Path, n_trials: int) -> list[str]:
    from transformers import BertConfig, BertModel

    sizes = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(**sizes, intermediate_size=32, max_position_embeddings=66)
    BertModel(config).save_pretrained(root / "model")
    generator = np.random.default_rng(0)
    (root / "data").mkdir()
    for split, rows in (("train", 160), ("test", 40)):
        sequences = ["".join(row) for row in generator.choice(list("ACGT"), (rows, 40))]
        labels = [sequence.count("G") > sequence.count("A") for sequence in sequences]
        table = {"sequence": sequences, "label": np.array(labels).astype(int)}
        write_csv(pa.table(table), root / "data" / f"{split}.csv")
    command = [sys.executable, "-m", "l2g_ray.cli.main", "run", str(root / "data"), "--preset", "smoke", "--cpus", "2"]
    command += ["--language-model", str(root / "model"), "--out", str(root / "out"), "--name", "sweep"]
    for key, value in (SETTINGS | {"finetune.trials": n_trials}).items():
        command += ["--set", f"{key}={json.dumps(value)}"]
    return command


def _environment() -> dict[str, str]:
    elsewhere = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")
    return {name: value for name, value in os.environ.items() if name not in elsewhere}


def _count_trials(out: Path) -> int:
    return len({path.stem for path in out.glob("stages/trial/*") if path.suffix != ".lock"})


def _sample(driver: int, trials: int) -> Sample:
    private: dict[str, float] = {}
    store, n_files, family = 0.0, 0, _family(driver)
    for pid in family:
        role = "driver" if pid == driver else _role(pid)
        memory = _read_status(pid)
        private[role] = private.get(role, 0.0) + memory.get("RssAnon", 0) / 1024
        if role == "raylet":
            store = memory.get("RssShmem", 0) / 1024
        n_files += _count_files(pid)
    parts = {name: round(private.get(name, 0.0), 1) for name in ("driver", *_ROLES, "workers")}
    return Sample(
        trials=trials,
        **{f"{name}_mib": mib for name, mib in parts.items()},
        store_mib=round(store, 1),
        processes=len(family),
        open_files=n_files,
    )


def _family(root: int) -> list[int]:
    """Return a process and all that descend from it."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state != "Z":
            parents[int(stat.parent.name)] = int(parent)
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def _role(pid: int) -> str:
    try:
        line = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return "gone"
    known = next((role for role, part in _ROLES.items() if part in line), None)
    return known or ("workers" if line.startswith("ray::") else "others")


def _read_status(pid: int) -> dict[str, int]:
    """Return lines of /proc/PID/status in kB; empty for a process that is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in lines if line.endswith("kB"))
    return {name: int(value.split()[0]) for name, value in pairs}


def _count_files(pid: int) -> int:
    try:
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))
    except OSError:
        return 0
