"""`l2g-ray predict` on sequences of 200 bp, beside a bare batched forward pass of the same model; and its memory.

The bare pass has the codes of all sequences in memory already. The model is L2G with the first three layers of MiniLM, 25
tokens, both strands averaged; reading, checking, encoding and writing are on our side alone. The rate is over rounds that
alternate; memory is that of processes that predict a tenth of the sequences and all of them with the embedder alone.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv
import torch

from benchmarks.measure import Options, interleave, measure_peak_mib, print_peak
from benchmarks.synthetic import draw_table
from l2g_ray.models.embedder import EmbedderConfig, EmbedderNet
from l2g_ray.models.ensemble import to_predictions
from l2g_ray.models.l2g import L2GConfig, L2GModel
from l2g_ray.models.language_model import LanguageModel, load_transformer
from l2g_ray.predict import Predictor, predict_file
from l2g_ray.run_folder import Arm
from l2g_ray.sequence import encode, reverse_complement
from l2g_ray.tasks.schema import Task

LENGTH_BP = 200
_CONFIG = EmbedderConfig(
    "resnet", (32, 64, 96), LENGTH_BP, 384, 512, 2, pool=2, target_tokens=25, architecture=((7, 1),) * 9
)


def run(options: Options) -> list[dict[str, Any]]:
    """Rate and memory."""
    torch.set_num_threads(os.cpu_count() or 1)  # a command of its own has the whole machine
    n_rows, rounds = (500, 1) if options.quick else (2_000, 3)
    predictor = make_predictor(language_model=True)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.csv", Path(folder) / "out.csv"
        table = _write(source, n_rows)
        codes, lengths_bp = (torch.from_numpy(a) for a in encode(table["sequence"]))

        def bare() -> None:
            with torch.inference_mode():
                for rows in torch.arange(n_rows).split(predictor.batch_size):
                    for x in (codes[rows], reverse_complement(codes[rows], lengths_bp[rows])):
                        to_predictions("binary", predictor.model(x, lengths_bp[rows]))

        sides = {"ours": lambda: predict_file(predictor, source, target), "bare": bare}
        found = interleave(sides, rounds)
        rate = {side: n_rows / values["median_s"] for side, values in found.items()}
        share = rate["ours"] / rate["bare"]
        row = {"what": f"sequences/s, {n_rows} x {rounds}", "ours": rate["ours"], "other": rate["bare"], "ratio": share}
        row |= {"target": ">= 0.9", "met": "yes" if share >= 0.9 else "no"}
        most = 5_000 if options.quick else 100_000
        least = most // 10
        peaks = {}
        for rows in (least, most):
            _write(Path(folder) / f"{rows}.csv", rows)
            peaks[rows] = measure_peak_mib("benchmarks.prediction", str(Path(folder) / f"{rows}.csv"))
        grown = peaks[most] / peaks[least]
        memory = {
            "what": f"MiB, {most} rows beside {least}",
            "ours": peaks[most],
            "other": peaks[least],
            "ratio": grown,
        }
        return [row, memory | {"target": "<= 1.1", "met": "yes" if grown <= 1.1 else "no"}]


def _write(path: Path, n_rows: int) -> Any:
    table = draw_table(np.random.default_rng(0), n_rows, LENGTH_BP).drop_columns(["label"])
    pyarrow.csv.write_csv(table, path)
    return table


def make_predictor(language_model: bool) -> Predictor:
    """L2G with three layers of MiniLM, or its embedder alone; random weights in all else, sequences up to 200 bp."""
    torch.manual_seed(0)
    net: Any = EmbedderNet(_CONFIG)
    if language_model:
        net = L2GModel(L2GConfig(_CONFIG), net, LanguageModel(load_transformer("minilm"), layers=3))
    task = Task.model_validate(
        {"bench": "user", "name": "synthetic", "kind": "binary", "labels": ["absent", "present"]}
    )
    return Predictor(net.eval(), task, strand_averaged=True, length_bp=LENGTH_BP, arm=Arm("l2g", Path()))


if __name__ == "__main__":
    path = Path(sys.argv[1])
    small = make_predictor(language_model=False)
    small.predict(["ACGT" * 50] * 8)
    print_peak(lambda: predict_file(small, path, path.with_suffix(".out.csv")))
