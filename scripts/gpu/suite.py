"""Train suites on one GPU as a user would: Ray, Tune, Train and MLflow, trials packed by fraction; then again, for nothing.

Two suites run at once, each on its share of the cores and of the GPU. What is known is written to --out after every step.
`--cpu-smoke` runs the same on a few made-up rows, with a tiny language model.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ARMS = "gapped_kmer,cnn,embedder_only,l2g"
# All 6 layers of MiniLM; batches that are worth a GPU; all fine-tuning trials at once.
SETTINGS = (
    "folds=2", "model.language_model_layers=null", "model.target_tokens=64", "select.batch_size=128",
    "align.batch_size=128", "embedder_only.batch_size=128", "finetune.batch_size=[128]", "finetune.parallel_trials=4",
)  # fmt: skip
# Every stage but the search, once.
SMOKE_SETTINGS = (
    "folds=0", "model.language_model_layers=null", "model.target_tokens=8", "select.backbones=[resnet]",
    "search.enabled=false", "align.alphas=[1.0]", "finetune.trials=1", "finetune.epochs=1",
    "finetune.initial_random_trials=1", "embedder_only.epochs=1", "baselines.names=[majority]", "baselines.k=3",
)  # fmt: skip


@dataclass(frozen=True)
class Suite:
    """One `l2g-ray suite`: its tasks, and what it may take of the machine."""

    bench: str
    tasks: str
    cpus: int
    gpus_per_trial: float | None

    def command(self, given: argparse.Namespace, out: Path, data: Path, language_model: Path) -> list[str]:
        preset, settings = ("smoke", SMOKE_SETTINGS) if given.cpu_smoke else ("fast", SETTINGS)
        words = ["l2g-ray", "suite", "--bench", self.bench, "--tasks", self.tasks, "--preset", preset, "--name", "gpu"]
        words += ["--data-dir", str(data), "--language-model", str(language_model), "--arms", ARMS]
        words += ["--out", str(out), "--cpus", str(self.cpus)]
        if self.gpus_per_trial is not None:
            words += ["--gpus-per-trial", str(self.gpus_per_trial)]
        return words + [word for setting in settings for word in ("--set", setting)]


def choose_suites(smoke: bool) -> list[Suite]:
    """Return the suites: 16 trials share the GPU where there are 16 cores."""
    if smoke:
        return [Suite("gue", "mouse_0", 2, None)]
    cores = os.cpu_count() or 1
    few = max(1, cores * 3 // 8)
    return [Suite("gue", "mouse_0,tf_0", max(1, cores - few), 0.06), Suite("nt", "H3", few, 0.06)]


def make_tiny_inputs(folder: Path) -> tuple[Path, Path]:
    """Write a data folder with a few rows of one task, and a language model of random weights; return both folders."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from transformers import BertConfig, BertModel

    draw = random.Random(0)
    task = folder / "data" / "gue" / "mouse_0"
    task.mkdir(parents=True, exist_ok=True)
    for split, n in (("train", 96), ("valid", 32), ("test", 32)):
        labels = [i % 2 for i in range(n)]
        rows = ["".join(draw.choices("ACGT", weights=(3, 2, 2, 3) if y else (2, 3, 3, 2), k=100)) for y in labels]
        pq.write_table(pa.table({"sequence": rows, "label": labels}), task / f"{split}.parquet")
    config = BertConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    BertModel(config).save_pretrained(folder / "tiny")
    return folder / "data", folder / "tiny"


class Gpu:
    """How busy the GPU was, by `nvidia-smi` every two seconds; nothing where there is none."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, float]] = []
        self.stopped = threading.Event()
        if shutil.which("nvidia-smi"):
            threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        query = ["nvidia-smi", "--query-gpu=utilization.gpu,memory.used", "--format=csv,noheader,nounits"]
        while not self.stopped.wait(2.0):
            said = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split("\n")[0]
            try:
                busy, used = said.split(",")
                self.samples.append((float(busy), float(used)))
            except ValueError:
                return

    def describe(self) -> dict[str, Any] | None:
        if not self.samples:
            return None
        busy, used = zip(*self.samples)
        return {"busy %, mean": round(statistics.mean(busy), 1), "busy %, most": max(busy), "MiB used, most": max(used)}


def run_all(commands: list[list[str]], until: float) -> list[dict[str, Any]]:
    """Run the commands side by side; at `until` (monotonic) those that still run are asked to stop, as by Ctrl-C."""
    begun = time.monotonic()
    running = [
        subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for words in commands
    ]
    found: list[dict[str, Any]] = [{} for _ in running]

    def read(i: int) -> None:
        process = running[i]
        tail: list[str] = []
        assert process.stdout is not None
        for line in process.stdout:
            print(f"[{i}] {line}", end="", flush=True)
            tail = [*tail, line.rstrip()][-12:]
        found[i] |= {"rc": process.wait(), "wall_s": round(time.monotonic() - begun, 1)}
        if found[i]["rc"]:
            found[i]["tail"] = tail

    threads = [threading.Thread(target=read, args=(i,)) for i in range(len(running))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    for process, result in zip(running, found):
        if process.poll() is None:
            result["stopped"] = "time"
            process.send_signal(signal.SIGTERM)
    for thread, process in zip(threads, running):
        thread.join(15.0)
        if thread.is_alive():
            process.kill()
            thread.join(5.0)
    return found


def list_results(out: Path) -> list[Path]:
    """Return the finished stages of a folder of runs."""
    return sorted(out.glob("stages/*/*/result.json"))


def describe_stages(out: Path) -> dict[str, dict[str, float]]:
    """Return, by stage, its trials, their seconds, and the most GPU memory that one took, in MB."""
    rows: dict[str, dict[str, float]] = {}
    for path in list_results(out):
        try:
            result = json.loads(path.read_text())
        except ValueError:
            continue
        row = rows.setdefault(path.parts[-3], {"trials": 0, "wall_s": 0.0, "gpu_s": 0.0, "epochs": 0})
        row["trials"] += 1
        for name in ("wall_s", "gpu_s", "epochs"):
            row[name] = round(row[name] + float(result.get(name) or 0), 1)
        peaks = [epoch["peak_bytes"] for epoch in result.get("history") or () if "peak_bytes" in epoch]
        if peaks:
            row["peak MB, most"] = max(row.get("peak MB, most", 0.0), round(max(peaks) / 1e6, 1))
    return rows


def read_rows(board: Path) -> Iterable[dict[str, Any]]:
    """Yield a row for each task and arm of a leaderboard: out-of-fold and test scores, test with its interval."""
    for task in json.loads(board.read_text())["tasks"]:
        arms = {**task["arms"], f"used ({task['used']['arm']})": task["used"]}
        for arm, scores in arms.items():
            yield {
                "task": task["task"],
                "metric": task["metric"],
                "arm": arm,
                "oof": _round((scores.get("oof") or {}).get("mean")),
                "test": _round((scores.get("test") or {}).get("mean")),
                "ci95": [_round(x) for x in (scores.get("test") or {}).get("ci95", ())],
                "weight": _round(scores.get("weight")),
            }


def _round(x: float | None) -> float | None:
    return None if x is None else round(x, 4)


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def collect(suite: Suite, out: Path, first: dict[str, Any]) -> dict[str, Any]:
    """Return what one suite left, finished or not."""
    folder = out / "gpu"
    kept, board = read_json(folder / "suite.json"), folder / "leaderboard.json"
    return {
        "bench": suite.bench,
        "tasks": suite.tasks,
        "cpus": suite.cpus,
        "gpus_per_trial": suite.gpus_per_trial,
        "first": first,
        "state": kept.get("state"),
        "slots": kept.get("slots"),
        "machine": kept.get("machine"),
        "versions": kept.get("versions"),
        "mlflow": (out / "mlflow.db").exists(),
        "rows": list(read_rows(board)) if board.exists() else [],
        # What a suite that was stopped has: how far its tasks came, and the scores of those that are done.
        "status": None if board.exists() else read_json(folder / "status.json").get("tasks"),
        "metrics": None if board.exists() else {x.parent.name: read_json(x) for x in folder.glob("*/metrics.json")},
        "stages": describe_stages(out),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="JSON file of what was found.")
    parser.add_argument("--limit-s", type=float, default=235.0)
    parser.add_argument("--cpu-smoke", action="store_true")
    given = parser.parse_args()
    until = time.monotonic() + given.limit_s
    home = Path(os.environ["GPU_HOME"])
    runs = home / ("runs-smoke" if given.cpu_smoke else "runs")
    shutil.rmtree(runs, ignore_errors=True)  # else "first" would be a second
    data, language_model = make_tiny_inputs(home / "tiny") if given.cpu_smoke else (home / "data", home / "minilm")
    suites = choose_suites(given.cpu_smoke)
    places = [runs / suite.bench for suite in suites]
    commands = [s.command(given, place, data, language_model) for s, place in zip(suites, places)]
    found: dict[str, Any] = {"commands": [" ".join(words) for words in commands], "suites": []}

    def write() -> None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        part = given.out.with_suffix(".part")
        part.write_text(json.dumps(found, indent=1))
        part.replace(given.out)

    write()
    gpu = Gpu()
    # SIGTERM from outside: stop as at the time limit, and keep what is there.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    firsts = run_all(commands, until - 25)
    gpu.stopped.set()
    found["gpu"] = gpu.describe()
    found["suites"] = [collect(*parts) for parts in zip(suites, places, firsts)]
    write()
    # Once more what ended well: it must train nothing.
    again = [i for i, first in enumerate(firsts) if first.get("rc") == 0]
    before = [set(list_results(place)) for place in places]
    for i, second in zip(again, run_all([commands[i] for i in again], until)):
        found["suites"][i]["second"] = {**second, "trained": len(set(list_results(places[i])) - before[i])}
    write()
    seconds = [row.get("second", {}) for row in found["suites"]]
    return 0 if all((x.get("rc"), x.get("trained")) == (0, 0) for x in seconds) else 1


if __name__ == "__main__":
    sys.exit(main())
