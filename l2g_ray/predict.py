"""Predictions from a finished run, without Ray: load a model folder, stream a file through it."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import torch

import l2g_ray
from l2g_ray.arms import ENSEMBLE
from l2g_ray.data.checks import clean_sequences
from l2g_ray.data.readers import iter_tables, name_input
from l2g_ray.data.table_writer import TableWriter, refuse_overwrite
from l2g_ray.errors import UserError
from l2g_ray.models.ensemble import Ensemble, predict_each
from l2g_ray.models.l2g import load_model
from l2g_ray.redaction import redact
from l2g_ray.run_folder import BEST, Arm, choose_arm, find_arm, find_task
from l2g_ray.sequence import encode
from l2g_ray.stages.parts import RowsAtOnce
from l2g_ray.storage import Location
from l2g_ray.tasks.schema import TASK_FILE, TASK_SCHEMA, Task, prediction_columns

MODEL_FILES = ("model.safetensors", "config.json", TASK_FILE)
# Folders around a model's at most, in a run's: the task, `best` or `arms`, and the arm.
MODEL_DEPTH = 3
STREAM_ROWS = 4096  # read, predicted and written at once
BATCH_SIZE = 256
CPU = torch.device("cpu")


@dataclass
class Predictor:
    """A trained model with the task it was trained for. `length_bp` is the longest sequence that it accepts.

    `strand_averaged`: predictions are means over both strands (`read` changes that). `arm` says which of the run's models it
    is; `at_once` how many sequences go through the model on its `device`.
    """

    model: torch.nn.Module
    task: Task
    strand_averaged: bool
    length_bp: int
    arm: Arm
    at_once: RowsAtOnce = field(default_factory=lambda: RowsAtOnce(BATCH_SIZE))
    device: torch.device = CPU

    @property
    def strands_apart(self) -> bool:
        """Whether the mean over strands is still to be taken of what `forward` gives: an ensemble takes it inside."""
        return self.strand_averaged and not isinstance(self.model, Ensemble)

    def read(self, both_strands: bool) -> Predictor:
        """Return this predictor for means over both strands, or for the given strand alone."""
        model = self.model.read(both_strands) if isinstance(self.model, Ensemble) else self.model
        return replace(self, model=model, strand_averaged=both_strands)

    @property
    def batch_size(self) -> int:
        """How many sequences to hand to `forward` at once."""
        return self.at_once.size

    def facts(self) -> dict[str, str]:
        """Return what a file of predictions says about where they come from."""
        return {"task": self.task.name, **self.arm.facts(), "version": l2g_ray.__version__}

    def predict_array(
        self, sequences: pa.Array | pa.ChunkedArray, where: str | Path = "the input", first_row: int = 1
    ) -> np.ndarray:
        """Return outputs (n, n_outputs): probabilities, or values in the labels' units.

        Sequences are cleaned as for training. Raises UserError for an empty or too long sequence, or a letter that is
        no nucleotide; it names `where` they come from and the row, counted from `first_row`.
        """
        clean = self.clean(sequences, where, first_row)
        outputs, start = [], 0
        while start < len(clean):
            codes, lengths = encode(clean.slice(start, self.batch_size))
            outputs.append(self._predict(torch.from_numpy(codes), torch.from_numpy(lengths)))
            start += len(codes)
        return np.concatenate(outputs) if outputs else np.empty((0, self.task.n_outputs), np.float32)

    def clean(
        self, sequences: pa.Array | pa.ChunkedArray, where: str | Path = "the input", first_row: int = 1
    ) -> pa.ChunkedArray:
        """Return the sequences as they were cleaned for training. Raises as `predict_array`."""
        clean = clean_sequences(sequences, where, sys.maxsize, first_row)
        lengths_bp = pc.binary_length(clean).to_numpy()
        too_long = np.flatnonzero(lengths_bp > self.length_bp)
        if len(too_long):
            raise UserError(
                f"{where}, row {first_row + too_long[0]}: the sequence is {lengths_bp[too_long[0]]:,} bp long, this model "
                f"reads up to {self.length_bp:,} bp; cut it, or train on longer ones"
            )
        return clean

    def forward(self, codes: torch.Tensor, lengths_bp: torch.Tensor) -> torch.Tensor:
        """Raw outputs (batch, n_outputs) on the CPU, of codes (batch, length) and lengths (batch,), at least one row.

        They are of the given strand, but for an ensemble, which averages strands inside where predictions are such means.
        Computed on `device`, in float32, in parts where memory does not suffice. Raises UserError where one row does not fit.
        """

        def compute(*rows: torch.Tensor) -> torch.Tensor:
            return self.model(*(x.to(self.device) for x in rows)).cpu()

        with torch.inference_mode(), naming_memory(self.device, codes.shape[1]):
            return self.at_once.map(compute, codes, lengths_bp)

    def _predict(self, codes: torch.Tensor, lengths: torch.Tensor) -> np.ndarray:
        return predict_each(self.forward, self.task.kind, codes, lengths, self.strands_apart)[:, -1].numpy()

    def predict(self, sequences: list[str]) -> pd.DataFrame:
        """Return one row a sequence: `prediction` and `probability_<label>`, or `prediction_<output>` for regression.

        The table's `attrs` name task, arm and model.
        """
        if isinstance(sequences, str):
            raise UserError("predict: one string instead of a list of sequences; put it into a list, [sequence]")
        outputs = self.predict_array(pa.array(sequences, pa.large_string()))
        frame = pa.table(prediction_columns(self.task, outputs)).to_pandas()
        frame.attrs |= self.facts()
        return frame


def find_model(run: Path, task: str | None = None, arm: str = BEST) -> Path:
    """Return the model folder of an arm of a run. Raises UserError as `find_arm`."""
    return find_arm(run, task, arm).folder


@contextlib.contextmanager
def fetch_arm(run: Location, task: str | None = None, arm: str = BEST, *, with_all: bool = False) -> Iterator[Arm]:
    """As `find_arm`, for a run in an object store: a copy of the model's folder, which is gone afterwards.

    Only what a model needs is fetched; `with_all`, for an ensemble also the arms that have no weight in it, of which
    `choose_member` may take one. Raises UserError as `find_arm` does, or for a store that does not answer.
    """
    files = {name for name in run.files() if ".." not in PurePosixPath(name).parts}
    with tempfile.TemporaryDirectory(prefix="l2g-ray-") as scratch:
        copy = Path(scratch) / (run.name or "run")

        def fetch(paths: Iterable[Path]) -> None:
            for path in paths:
                (run / path.relative_to(copy).as_posix()).download(path)

        for name in files:
            path = PurePosixPath(name)
            # The names alone first: they say which tasks there are.
            if path.name in MODEL_FILES and len(path.parents) - 1 <= MODEL_DEPTH:
                (copy / path.parent).mkdir(parents=True, exist_ok=True)
                (copy / name).touch()
        if not copy.exists():
            raise UserError(f"{run}: no finished model here; run `l2g-ray suite` or `l2g-ray run` first")
        chosen = find_task(copy, task)
        fetch(chosen.rglob("config.json"))
        found = choose_arm(chosen, arm)
        wanted = chosen if with_all and found.name == ENSEMBLE else found.folder
        fetch(path for name in MODEL_FILES for path in wanted.rglob(name))
        yield replace(found, place=redact(str(run / found.folder.relative_to(copy).as_posix())))


def choose_device(name: str = "auto") -> torch.device:
    """Return the device of a name: auto (a GPU if there is one), cpu, cuda, or cuda:N for the GPU of index N.

    Raises UserError for another name, and for a GPU that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise UserError(f"device '{name}': no such device; choose one of auto, cpu, cuda")
    device = torch.device(name)
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= n_gpus:
        found = f"only {n_gpus} GPUs" if n_gpus else "no GPU"
        raise UserError(
            f"device '{name}': PyTorch sees {found} here; choose cpu or auto, or check CUDA_VISIBLE_DEVICES"
        )
    return device


@contextlib.contextmanager
def naming_memory(device: torch.device, length_bp: int) -> Iterator[None]:
    """Turn the OutOfMemoryError of a single sequence, up to `length_bp` long, into a UserError."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise UserError(
            f"a single sequence of {length_bp:,} bp does not fit into the memory of {device}; choose the device cpu, "
            "or end other programs on the GPU"
        ) from None


def load_predictor(model: Path | Arm, device: str | torch.device = "auto", batch_size: int | None = None) -> Predictor:
    """Return the predictor of a model folder, or of an arm. Nothing is unpickled.

    Parameters
    ----------
    device : auto, cpu or cuda (see `choose_device`), or any device of torch.
    batch_size : sequences at once (256 by default); halved where they do not fit into memory.

    Raises UserError for a folder without a model, or of another schema, and for a device that is not there.
    """
    arm = model if isinstance(model, Arm) else choose_arm(model)
    folder = arm.folder
    where = device if isinstance(device, torch.device) else choose_device(device)
    loaded = load_model(folder)
    try:
        content = json.loads((folder / TASK_FILE).read_text())
    except (OSError, ValueError):
        raise UserError(f"{folder / TASK_FILE}: missing or not readable; give the folder of a finished run") from None
    content = content if isinstance(content, dict) else {}
    if content.get("schema") != TASK_SCHEMA:
        raise UserError(
            f"{folder / TASK_FILE}: schema {content.get('schema')}, this version reads {TASK_SCHEMA}; train it again"
        )
    try:
        task, length_bp = Task.model_validate(content["task"]), int(content["length_bp"])
        strand_averaged = bool(content["strand_averaged"])
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{folder / TASK_FILE}: holds no task that this version reads; train it again") from None
    rows = RowsAtOnce(batch_size or BATCH_SIZE)
    return Predictor(loaded.to(where), task, strand_averaged, length_bp, arm, rows, where)


def predict_file(
    predictor: Predictor,
    source: Path,
    target: Path,
    *,
    sequence_column: str | None = None,
    keep_columns: bool = False,
    progress: Callable[[int], None] = lambda rows: None,
) -> int:
    """Stream predictions of a FASTA, CSV, TSV or Parquet file into a CSV or Parquet file; returns the rows written.

    The output has `id` and the prediction columns; with `keep_columns`, all of the input's columns before these. It
    appears only when complete, and names the model (`TableWriter`).

    Raises
    ------
    UserError : an output that is the input, a faulty input, or a column to keep that is named as one of predictions.
    """
    refuse_overwrite([source], [target])
    with TableWriter(target, predictor.facts()) as writer:
        for table in iter_predictions(
            predictor, source, sequence_column=sequence_column, keep_columns=keep_columns, progress=progress
        ):
            writer.write(table)
        if not writer.rows:
            raise UserError("the input has no sequences; give a file with at least one")
    return writer.rows


def iter_predictions(
    predictor: Predictor,
    source: Path | pa.Table,
    *,
    sequence_column: str | None = None,
    keep_columns: bool = False,
    progress: Callable[[int], None] = lambda rows: None,
) -> Iterator[pa.Table]:
    """Yield predictions of a file, or of a table in memory, at most `STREAM_ROWS` rows at a time.

    `sequence_column` is the task's by default. Columns and errors are those of `predict_file`.
    """
    done = 0
    column = sequence_column or predictor.task.sequence_column
    for table in iter_tables(source, batch_rows=STREAM_ROWS, sequence_column=column, keep_names=keep_columns):
        sequences = table[column].cast(pa.large_string()) if keep_columns else table["sequence"]
        outputs = predictor.predict_array(sequences, name_input(source), done + 1)
        done += len(table)
        progress(done)
        made = prediction_columns(predictor.task, outputs)
        kept = table.column_names if keep_columns else ["id"]
        if clash := next((name for name in kept if name in made), None):
            raise UserError(
                f"{name_input(source)}: has a column '{clash}', as the predictions will; rename it, or do not keep the input's columns"
            )
        yield pa.table({**{name: table[name] for name in kept}, **made})
