"""The work that `growth` measures at growing sizes, and one point's memory: `python -m benchmarks.growth_work NAME SIZE FOLDER`.

A maker takes a size and a folder for files, makes input and model, and returns what is measured. Imports wait for the
maker, so that a fresh process holds only what its own work needs.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from benchmarks.measure import print_peak

if TYPE_CHECKING:
    import pyarrow as pa

    from benchmarks.simulation.lengths import Script

LENGTH_BP, PREDICTED_BP = 200, 50
# Rows of a training step; the channels' first size and its length are those of the preset `fast`.
STEP_ROWS, L2G_ROWS = 16, 4
BP_A_TOKEN = 8
TRIALS_A_TASK = 24
SLOTS, TASKS = 16, 36

Maker = Callable[[int, Path], Callable[[], Any]]


@dataclass(frozen=True)
class Series:
    """Sizes along an axis; `warm` is a size to begin with, far below them, for what is paid once a process."""

    axis: str
    sizes: tuple[int, ...]
    warm: int
    make: Maker


def make_encode(rows: int, folder: Path) -> Callable[[], Any]:
    """Arrow strings to codes (rows, 200)."""
    from l2g_ray.sequence import encode

    column = _draw_table(rows, LENGTH_BP)["sequence"]
    return lambda: encode(column)


def make_prepare(rows: int, folder: Path) -> Callable[[], Any]:
    """Return what `l2g-ray data prepare` does with one CSV file: read, check, part, look for leakage, write shards."""
    from l2g_ray.config import DataSettings
    from l2g_ray.data.prepare import prepare
    from l2g_ray.data.raw import SourceOptions
    from l2g_ray.data.sources import open_source

    source = _write_csv(rows, folder, LENGTH_BP)

    def work() -> None:
        # A new folder each time: what is prepared already is left alone.
        with tempfile.TemporaryDirectory(dir=folder) as out:
            prepare(open_source([source], SourceOptions()), Path(out) / "prepared", DataSettings())

    return work


def make_predict(rows: int, folder: Path) -> Callable[[], Any]:
    """`predict_file` with the embedder alone, both strands: file to file, rows of 50 bp."""
    from benchmarks.prediction import make_predictor
    from l2g_ray.predict import predict_file

    source, predictor = _write_csv(rows, folder, PREDICTED_BP), make_predictor(language_model=False)
    return lambda: predict_file(predictor, source, folder / f"{rows}.out.csv")


def make_train_of_length(length_bp: int, folder: Path) -> Callable[[], Any]:
    """Make a training step of the ResNet of preset `fast`, kernel size 11, 16 rows of `length_bp` bp."""
    return _make_plain((32, 64, 96), length_bp)


def make_search_of_length(length_bp: int, folder: Path) -> Callable[[], Any]:
    """Return a step of the DASH search over that ResNet."""
    return _make_search((32, 64, 96), length_bp)


def make_train_of_channels(channels: int, folder: Path) -> Callable[[], Any]:
    """Make a training step with `channels` channels in the first block, twice and three times that in the others; 200 bp."""
    return _make_plain((channels, 2 * channels, 3 * channels), LENGTH_BP)


def make_search_of_channels(channels: int, folder: Path) -> Callable[[], Any]:
    """Return a step of the search over that ResNet."""
    return _make_search((channels, 2 * channels, 3 * channels), LENGTH_BP)


def make_l2g_of_length(length_bp: int, folder: Path) -> Callable[[], Any]:
    """Return a fine-tuning step of the ResNet with three layers of MiniLM, 4 rows, a token every 8 bp."""
    import torch

    from benchmarks.search_step import make_step
    from l2g_ray.config import OptimSettings
    from l2g_ray.models.embedder import EmbedderConfig, EmbedderNet
    from l2g_ray.models.l2g import L2GConfig, L2GModel
    from l2g_ray.models.language_model import LanguageModel, load_transformer
    from l2g_ray.stages.optim import make_optimizer

    torch.manual_seed(0)
    tokens = length_bp // BP_A_TOKEN
    config = EmbedderConfig(
        "resnet", (32, 64, 96), length_bp, 384, 512, 2, pool=2, target_tokens=tokens, architecture=((7, 1),) * 9
    )
    model = L2GModel(L2GConfig(config), EmbedderNet(config), LanguageModel(load_transformer("minilm"), layers=3))
    optimizer = make_optimizer(OptimSettings(), [(model.parameters(), 1e-5)])
    return make_step(model.train(), optimizer, L2G_ROWS, length_bp, lambda: None)


def make_tasks_of_trials(trials: int, folder: Path) -> Callable[[], Any]:
    """Make the orchestration of a suite in virtual time: `trials` trials of the ASHA searches, 24 a task, on 16 slots."""
    from benchmarks.simulation.virtual import simulate

    scripts = _make_scripts(max(1, trials // TRIALS_A_TASK))
    return lambda: simulate(scripts, SLOTS)


def make_search_of_trials(trials: int, folder: Path) -> Callable[[], Any]:
    """Return the same with all trials in the search of one task."""
    from benchmarks.simulation.virtual import simulate
    from l2g_ray.presets import resolve

    (script,) = _make_scripts(1)
    # Trials beyond those of the script take the same seconds again.
    script = replace(script, settings=resolve("paper", None, {"finetune.trials": trials}))
    return lambda: simulate([script], SLOTS)


def make_proposals(trials: int, folder: Path) -> Callable[[], Any]:
    """Return what the simulation leaves out: HyperOpt's proposals for the trials of one search, each told how it
    ended.
    """
    from l2g_ray.orchestrate.pipeline import Pipeline
    from l2g_ray.orchestrate.tune import OrderedSearch
    from l2g_ray.presets import resolve

    settings = resolve("paper")
    space = Pipeline._space(SimpleNamespace(settings=settings))  # type: ignore[arg-type]

    def work() -> None:
        stage = settings.finetune
        search = OrderedSearch(space, stage.parallel_trials, stage.initial_random_trials, seed=0)
        for trial in range(trials):
            config = search.suggest(str(trial))
            assert config is not None
            search.on_trial_complete(str(trial), {"best_score": config["dropout"] - trial % 7})

    return work


def make_suite_of_slots(slots: int, folder: Path) -> Callable[[], Any]:
    """Make the orchestration of 36 tasks on `slots` slots."""
    from benchmarks.simulation.virtual import simulate

    scripts = _make_scripts(TASKS)
    return lambda: simulate(scripts, slots)


SERIES = {
    "encode": Series("rows", (20_000, 40_000, 80_000, 160_000, 320_000), 100, make_encode),
    "prepare a CSV": Series("rows", (2_000, 4_000, 8_000, 16_000, 32_000), 100, make_prepare),
    "predict, embedder alone": Series("rows", (500, 1_000, 2_000, 4_000, 8_000), 10, make_predict),
    "training step": Series("length, bp", (200, 400, 800, 1_600, 3_200), 32, make_train_of_length),
    "search step": Series("length, bp", (200, 400, 800, 1_600, 3_200), 32, make_search_of_length),
    "L2G step": Series("length, bp", (256, 512, 1_024, 2_048, 4_096), 32, make_l2g_of_length),
    "training step, wider": Series("channels", (16, 32, 64, 128), 4, make_train_of_channels),
    "search step, wider": Series("channels", (16, 32, 64, 128), 4, make_search_of_channels),
    "suite, 24 trials a task": Series("trials", (216, 432, 864, 1_728, 3_456), 24, make_tasks_of_trials),
    "suite, one task": Series("trials", (216, 432, 864, 1_728, 3_456), 24, make_search_of_trials),
    "HyperOpt alone": Series("trials", (24, 48, 96, 192, 384), 4, make_proposals),
    "suite, 36 tasks": Series("slots", (4, 8, 16, 32, 64), 1, make_suite_of_slots),
}


def _draw_table(rows: int, length_bp: int) -> pa.Table:
    import numpy as np

    from benchmarks.synthetic import draw_table

    return draw_table(np.random.default_rng(0), rows, length_bp)


def _write_csv(rows: int, folder: Path, length_bp: int) -> Path:
    import pyarrow.csv

    path = folder / f"{rows}x{length_bp}.csv"
    if not path.exists():  # the process that measures memory finds it there, and holds no table before
        pyarrow.csv.write_csv(_draw_table(rows, length_bp), path)
    return path


def _make_plain(channels: tuple[int, ...], length_bp: int) -> Callable[[], Any]:
    from benchmarks.search_step import make_plain, read_settings

    return make_plain(read_settings(), channels, 2, STEP_ROWS, length_bp)


def _make_search(channels: tuple[int, ...], length_bp: int) -> Callable[[], Any]:
    from benchmarks.search_step import make_search, read_settings

    return make_search(read_settings(), channels, 2, STEP_ROWS, length_bp)[0]


def _make_scripts(tasks: int) -> list[Script]:
    from benchmarks.simulation.lengths import read_recorded, script_paper

    recorded = [script_paper(task) for task in read_recorded()]
    return [replace(recorded[i % len(recorded)], name=f"task {i}") for i in range(tasks)]


def set_threads(count: int) -> None:
    """Threads of torch and pyarrow in this process."""
    import pyarrow as pa
    import torch

    torch.set_num_threads(count)
    pa.set_cpu_count(count)


def main(name: str, size: int, folder: Path, threads: int) -> None:
    """Print the peak of a point's work, in MiB beyond input and model; imports and first calls are paid before."""
    set_threads(threads)
    series = SERIES[name]
    series.make(series.warm, folder)()
    print_peak(series.make(size, folder))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
