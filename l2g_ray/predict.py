"""Predictions from a finished run, without Ray: load a model folder, stream a file through it."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import torch

from l2g_ray.data.checks import clean_sequences
from l2g_ray.data.readers import iter_tables
from l2g_ray.data.table_writer import TableWriter
from l2g_ray.errors import UserError
from l2g_ray.models.ensemble import to_predictions
from l2g_ray.models.l2g import load_model
from l2g_ray.sequence import encode, reverse_complement
from l2g_ray.stages.evaluate import prediction_columns
from l2g_ray.storage import Location
from l2g_ray.tasks.schema import Task
from l2g_ray.tasks.stored import TASK_FILE, TASK_SCHEMA

MODEL_FILES = ("model.safetensors", "config.json", TASK_FILE)
MODEL_FOLDERS = ("best", "model", "embedder_only")
STREAM_ROWS = 4096  # read, predicted and written at once


@dataclass
class Predictor:
    """A trained model with the task it was trained for. `length_bp` is the longest sequence that it accepts."""

    model: torch.nn.Module
    task: Task
    strand_averaged: bool
    length_bp: int
    batch_size: int = 256

    def predict_array(
        self, sequences: pa.Array | pa.ChunkedArray, where: str | Path = "the input", first_row: int = 1
    ) -> np.ndarray:
        """Outputs (n, n_outputs): probabilities, or values in the labels' units.

        Sequences are cleaned as for training. Raises UserError for an empty or too long sequence, or a letter that is
        no nucleotide; it names `where` they come from and the row, counted from `first_row`.
        """
        clean = self.clean(sequences, where, first_row)
        outputs = []
        for start in range(0, len(clean), self.batch_size):
            codes, lengths = encode(clean.slice(start, self.batch_size))
            outputs.append(self._forward(torch.from_numpy(codes), torch.from_numpy(lengths)))
        return np.concatenate(outputs) if outputs else np.empty((0, self.task.n_outputs), np.float32)

    def clean(
        self, sequences: pa.Array | pa.ChunkedArray, where: str | Path = "the input", first_row: int = 1
    ) -> pa.ChunkedArray:
        """The sequences as they were cleaned for training. Raises as `predict_array`."""
        clean = clean_sequences(sequences, where, sys.maxsize, first_row)
        lengths_bp = pc.binary_length(clean).to_numpy()
        too_long = np.flatnonzero(lengths_bp > self.length_bp)
        if len(too_long):
            raise UserError(
                f"{where}, row {first_row + too_long[0]}: the sequence is {lengths_bp[too_long[0]]:,} bp long, this model "
                f"reads up to {self.length_bp:,} bp; cut it, or train on longer ones"
            )
        return clean

    def _forward(self, codes: torch.Tensor, lengths: torch.Tensor) -> np.ndarray:
        with torch.inference_mode():
            result = to_predictions(self.task.kind, self.model(codes, lengths))
            if self.strand_averaged:
                flipped = self.model(reverse_complement(codes, lengths), lengths)
                result = (result + to_predictions(self.task.kind, flipped)) / 2
        return result.numpy()

    def predict(self, sequences: list[str]) -> pd.DataFrame:
        """One row a sequence: `prediction` and `probability_<label>`, or `prediction_<output>` for regression."""
        outputs = self.predict_array(pa.array(sequences, pa.large_string()))
        return pa.table(prediction_columns(self.task, outputs)).to_pandas()


# Folders of a finished task: what was best on validation, the whole method, its embedder alone.
ARMS = {"best": "best", "l2g": "model", "embedder_only": "embedder_only"}


def find_model(run: Path, task: str | None = None, arm: str = "best") -> Path:
    """The model folder of a run: a suite's folder (with `task` where it has several), a task's, or a model's own.

    `arm`: 'best' for the arm that was best on validation, 'l2g', or 'embedder_only'.

    Raises UserError naming the tasks to choose from, or what is missing.
    """
    if not run.is_dir():
        raise UserError(f"{run}: no such folder; give the folder of a finished run")
    if (run / TASK_FILE).exists() and (run / "model.safetensors").exists():
        return run
    name = ARMS[arm]
    if arm == "best" and not any(run.glob(f"best/{TASK_FILE}")) and not any(run.glob(f"*/best/{TASK_FILE}")):
        name = ARMS["l2g"]  # a run of an earlier version, which chose nothing
    if (run / name / TASK_FILE).exists():
        return run / name
    if (run / ARMS["l2g"] / TASK_FILE).exists():
        raise UserError(f"{run}: this run has no {arm} model; leave --arm out, or run its suite again")
    found = {folder.parent.parent.name: folder.parent for folder in sorted(run.glob(f"*/{name}/{TASK_FILE}"))}
    if task is not None and task not in found:
        raise UserError(f"{run}: no finished task '{task}' here; there are: {', '.join(found) or 'none'}")
    if not found:
        raise UserError(f"{run}: no finished model here; run `l2g-ray suite` or `l2g-ray run` first")
    if task is None and len(found) > 1:
        raise UserError(f"{run}: several tasks here, choose one with --task: {', '.join(found)}")
    return found[task] if task else next(iter(found.values()))


@contextlib.contextmanager
def fetch_model(run: Location, task: str | None = None, arm: str = "best") -> Iterator[Path]:
    """As `find_model`, for a run in an object store: a copy of the model's folder, which is gone afterwards.

    Only what a model needs is fetched. Raises UserError as `find_model` does, or for a store that does not answer.
    """
    files = {name for name in run.files() if ".." not in PurePosixPath(name).parts}
    with tempfile.TemporaryDirectory(prefix="l2g-ray-") as scratch:
        copy = Path(scratch) / (run.name or "run")
        for name in files:
            folder = PurePosixPath(name).parent
            # The names alone first: `find_model` chooses, or says what there is.
            if PurePosixPath(name).name in MODEL_FILES and (len(folder.parts) == 0 or folder.name in MODEL_FOLDERS):
                (copy / folder).mkdir(parents=True, exist_ok=True)
                (copy / name).touch()
        if not copy.exists():
            raise UserError(f"{run}: no finished model here; run `l2g-ray suite` or `l2g-ray run` first")
        found = find_model(copy, task, arm)
        for name in MODEL_FILES:
            path = PurePosixPath(found.relative_to(copy).as_posix()) / name
            if str(path) in files:
                (run / str(path)).download(copy / path)
        yield found


def load_predictor(folder: Path) -> Predictor:
    """The predictor of a model folder. Nothing is unpickled.

    Raises UserError for a folder without a model, or of another schema.
    """
    model = load_model(folder)
    try:
        content = json.loads((folder / TASK_FILE).read_text())
    except (OSError, ValueError):
        raise UserError(f"{folder / TASK_FILE}: missing or not readable; give the folder of a finished run") from None
    if content.get("schema") != TASK_SCHEMA:
        raise UserError(
            f"{folder / TASK_FILE}: schema {content.get('schema')}, this version reads {TASK_SCHEMA}; train it again"
        )
    return Predictor(model, Task.model_validate(content["task"]), content["strand_averaged"], int(content["length_bp"]))


def predict_file(
    predictor: Predictor,
    source: Path,
    target: Path,
    *,
    sequence_column: str | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> int:
    """Stream predictions of a FASTA, CSV, TSV or Parquet file into a CSV or Parquet file; returns the rows written.

    The output has `id` and the prediction columns; it appears only when complete.
    """
    with TableWriter(target) as writer:
        for table in _predicted(predictor, source, sequence_column, progress):
            writer.write(table)
        if not writer.rows:
            raise UserError("the input has no sequences; give a file with at least one")
    return writer.rows


def _predicted(
    predictor: Predictor, source: Path, sequence_column: str | None, progress: Callable[[int], None]
) -> Iterator[pa.Table]:
    done = 0
    column = sequence_column or predictor.task.sequence_column
    for table in iter_tables(source, batch_rows=STREAM_ROWS, sequence_column=column):
        outputs = predictor.predict_array(table["sequence"], source, done + 1)
        done += len(table)
        progress(done)
        yield pa.table({"id": table["id"], **prediction_columns(predictor.task, outputs)})
