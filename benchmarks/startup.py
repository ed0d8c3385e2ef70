"""What starting costs: a trial in its own process, a Train run, a suite on finished work, `--help`.

Trials train a tiny embedder on the demo's splice junctions. The baseline is the stage function on the same rows, called
directly in a process after all imports. The first trial of a session has no warm process, and a separate row. Stages that
choose are Tune runs, others Ray tasks. The suite is that task's, with a language model of two layers.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.measure import Options, interleave

ROW_TARGETS_S = {"task": 1.5, "tune": 1.5, "train": 9.0, "suite": 8.0, "help": 0.4}
STAGE = "the stage function"
TINY = {
    "model.target_tokens": 8,
    "align.source": "vocabulary",
    "select.backbones": ["resnet"],
    "search.enabled": False,
    "embedder_only.epochs": 1,
    "embedder_only.batch_size": 32,
}


def run(options: Options) -> list[dict[str, Any]]:
    """Return one row a way to start: seconds, the baseline's seconds, the overhead, its target, and whether it is met."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        language_model = _write_language_model(root / "lm")
        return [
            *_trials(root, language_model, options.quick),
            _finished_suite(root, language_model, options.quick),
            _help(options.quick),
        ]


def _row(what: str, beside: str, ours_s: float, other_s: float, target_s: float | None) -> dict[str, Any]:
    extra = ours_s - other_s
    judged = extra if beside == STAGE else ours_s  # the other targets are of the whole command
    return {
        "what": what,
        "s": ours_s,
        "beside": beside,
        "beside s": other_s,
        "overhead s": extra,
        "target s": "-" if target_s is None else target_s,
        "met": "-" if target_s is None else ("yes" if judged <= target_s else "no"),
    }


def _trials(root: Path, language_model: Path, quick: bool) -> list[dict[str, Any]]:
    from l2g_ray.counts import default_architecture
    from l2g_ray.data.prepare import prepare
    from l2g_ray.data.sources.official import find_raw
    from l2g_ray.monitor.events import Board
    from l2g_ray.orchestrate.cluster import Slots, connect
    from l2g_ray.orchestrate.jobs import load_data, run_job
    from l2g_ray.orchestrate.memory import hold
    from l2g_ray.orchestrate.place import Place
    from l2g_ray.orchestrate.spec import JobSpec, Site
    from l2g_ray.orchestrate.tasks import run_jobs
    from l2g_ray.presets import resolve
    from l2g_ray.stages.context import make_embedder_config, read_reference
    from l2g_ray.stages.embedder_only import train_embedder_only
    from l2g_ray.stages.loop import Runtime
    from l2g_ray.stages.select import train_backbone
    from l2g_ray.store.results import Job, StageResult
    from l2g_ray.tasks.catalogue import find_tasks

    settings = resolve("smoke", None, TINY | {"model.language_model": str(language_model)})
    (task,) = find_tasks("demo", ["splice_junction"])
    prepared = prepare(find_raw(task, None), root / "prepared", settings.data)
    site = Site(task.name, str(prepared.folder), settings, root / "stages", root / "tune")
    making = Job("reference", "tiny", {}, {}, {})
    facts = run_job(JobSpec(site, making), lambda row: None)
    made = StageResult("reference", making.key, site.open_store().folder("reference", making.key), facts)
    site = replace(site, reference=made)
    data, reference = load_data(prepared), read_reference(made.folder, facts)
    config = make_embedder_config(settings, data, reference, "resnet", default_architecture("resnet"))
    architecture = [list(pair) for pair in default_architecture("resnet")]
    numbers = itertools.count()

    def control() -> None:
        train_embedder_only(data, settings, reference, Runtime(), config=config, seed=0)

    def choice() -> None:
        train_backbone(data, settings, reference, Runtime(), backbone="resnet", seed=0)

    ray = connect(num_cpus=2)
    try:
        board = ray.remote(num_cpus=0)(Board).remote()
        ray.get(board.drain.remote())
        place = Place(site, site.open_store(), Slots(2, 1, 0.0), board, lambda event: None)
        place.held.update(hold(prepared, settings.data, 1))

        def start(how: str) -> Callable[[], object]:
            """Run one job as the pipeline would: `select` is a Tune trial, `embedder_only` a task."""
            stage = "select" if how == "tune" else "embedder_only"
            runner = "train" if how == "train" else "process"
            args = {"backbone": "resnet", "architecture": architecture, "seed": 0}
            return lambda: run_jobs(place, "bench", [Job(stage, "bench", args, {}, {"number": next(numbers)})], runner)

        control()
        first = {how: _time(start(how)) for how in ("task", "tune", "train")}
        sides = {"control": control, "choice": choice} | {how: start(how) for how in first}
        found = {name: seconds["median_s"] for name, seconds in interleave(sides, 2 if quick else 5).items()}
    finally:
        ray.shutdown()
    named = {
        "task": "a trial in its own process, a task",
        "tune": "a trial in its own process, by Tune",
        "train": "a trial as a Ray Train run",
    }
    rows = []
    for how, name in named.items():
        direct = found["choice" if how == "tune" else "control"]
        rows.append(_row(name, STAGE, found[how], direct, ROW_TARGETS_S[how]))
        rows.append(_row(f"{name}; the session's first", STAGE, first[how], direct, None))
    return rows


def _finished_suite(root: Path, language_model: Path, quick: bool) -> dict[str, Any]:
    """Return the command once more after it has finished."""
    own = TINY | {
        "align.alphas": [1.0],
        "finetune.trials": 1,
        "seeds": 1,
        "model.language_model": str(language_model),
    }
    words = ["suite", "--bench", "demo", "--tasks", "splice_junction", "--preset", "smoke", "--cpus", "2"]
    words += [
        "--out",
        str(root / "runs"),
        *itertools.chain(*(("--set", f"{k}={json.dumps(v)}") for k, v in own.items())),
    ]
    _execute(words)
    times = [_time(lambda: _execute(words)) for _ in range(2 if quick else 5)]
    return _row("`suite` on finished work", "-", sorted(times)[len(times) // 2], 0.0, ROW_TARGETS_S["suite"])


def _help(quick: bool) -> dict[str, Any]:
    def python() -> None:
        subprocess.run([sys.executable, "-c", "pass"], check=True, env=_environment())

    looked = "import sys; from l2g_ray.cli.main import main; main.main(['--help'], standalone_mode=False); "
    looked += "sys.exit(any(name in sys.modules for name in ('torch', 'ray')))"
    subprocess.run([sys.executable, "-c", looked], check=True, capture_output=True, env=_environment())
    found = interleave({"help": lambda: _execute(["--help"]), "python": python}, 3 if quick else 9)
    return _row(
        "`l2g-ray --help`, without torch and ray",
        "an empty Python",
        found["help"]["median_s"],
        found["python"]["median_s"],
        ROW_TARGETS_S["help"],
    )


def _execute(words: list[str]) -> None:
    command = [sys.executable, "-m", "l2g_ray.cli.main", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=_environment())
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")


def _environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}


def _time(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def _write_language_model(folder: Path) -> Path:
    """Return a BERT of two layers with random weights."""
    from transformers import BertConfig, BertModel

    shutil.rmtree(folder, ignore_errors=True)
    sizes = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertModel(BertConfig(**sizes, intermediate_size=32, max_position_embeddings=66)).save_pretrained(folder)
    return folder
