"""What is computed once: text embeddings once for a folder of runs, an alignment once a task and alpha, not once a trial.

Counted in the store of a real run of two tasks (preset `smoke`, MiniLM, six trials). "other" is what it would be if every
trial aligned for itself, from the CPU seconds that the results carry.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import Options


def run(options: Options) -> list[dict[str, Any]]:
    """Return one row for the reference, one for the alignments."""
    trials = 2 if options.quick else 6
    with tempfile.TemporaryDirectory() as folder:
        for task in ("splice_junction", "enhancer_grammar"):
            _run(task, Path(folder), trials)
        results = {stage: _read(Path(folder), stage) for stage in ("reference", "align", "warmup", "finetune")}
    aligned = sum(r["cpu_s"] for stage in ("align", "warmup") for r in results[stage])
    drawn = [trial for result in results["finetune"] for trial in result["trials"]]
    by_trial = sum(r["cpu_s"] for r in results["align"]) / len(results["align"]) * len(drawn)
    by_trial += sum(r["cpu_s"] for r in results["warmup"]) / max(1, len(results["warmup"])) * len(drawn)
    reference = {
        "what": "text embeddings, 2 tasks",
        "computed": len(results["reference"]),
        "used by": 2,
        "ours CPU s": results["reference"][0]["cpu_s"],
        "other CPU s": 2 * results["reference"][0]["cpu_s"],
        "target": "once",
        "met": "yes" if len(results["reference"]) == 1 else "no",
    }
    alignment = {
        "what": f"alignments, {trials} trials a task",
        "computed": len(results["align"]),
        "used by": len(drawn),
        "ours CPU s": aligned,
        "other CPU s": by_trial,
        "target": "once a task and alpha",
        "met": "yes" if len(results["align"]) == 2 * _alphas() else "no",
    }
    return [reference, alignment]


def _alphas() -> int:
    from l2g_ray.presets import resolve

    return len(resolve("smoke").align.alphas)


def _run(task: str, out: Path, trials: int) -> None:
    command = [sys.executable, "-m", "l2g_ray.cli.main", "run", f"demo/{task}", "--preset", "smoke", "--out", str(out)]
    command += ["--language-model", "minilm", "--set", f"finetune.trials={trials}", "--cpus", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])


def _read(out: Path, stage: str) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((out / "stages" / stage).glob("*/result.json"))]
