"""The MLflow model of a trained predictor, as "model from code": MLflow stores this file, not a pickle."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.pyfunc import PythonModel

from l2g_ray.errors import UserError

# Where a served model computes, and how many sequences at once, unless its `model_config` says so: auto, cpu or cuda; a number.
DEVICE_VARIABLE = "L2G_RAY_DEVICE"
BATCH_SIZE_VARIABLE = "L2G_RAY_BATCH_SIZE"
SEQUENCE, ID = "sequence", "id"


class L2GPyfunc(PythonModel):
    """DNA sequences in, a table of predictions out, through `l2g_ray.predict`."""

    # The signature is explicit; without this MLflow (3.17) prints a wish for type hints at every loading.
    _skip_type_hint_validation = True

    # MLflow passes `context` by name, and would read a type hint of `model_input` as a schema.
    def load_context(self, context: Any) -> None:
        """Open the model folder that `Tracker.log_model` stored as the artifact `model`, on the device that is asked for.

        Raises UserError for a device that is not there, or a number that is none.
        """
        from l2g_ray.predict import load_predictor

        config: Mapping[str, Any] = getattr(context, "model_config", None) or {}
        device = config.get("device") or os.environ.get(DEVICE_VARIABLE) or "auto"
        batch_size = config.get("batch_size") or os.environ.get(BATCH_SIZE_VARIABLE) or 0
        if not str(batch_size).isdecimal():
            raise UserError(
                f"{BATCH_SIZE_VARIABLE}={batch_size}: is no number of sequences; set it to 256, or unset it"
            )
        self._predictor = load_predictor(Path(context.artifacts["model"]), str(device), int(batch_size) or None)

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Return predictions of n sequences.

        Parameters
        ----------
        model_input : a DataFrame, or a mapping to lists, with `sequence` and, if wanted, `id`, in any order and among other
            columns; or a list, Series or array of n strings, or one string.

        Returns
        -------
        pandas.DataFrame of n rows, in the order of the input: `id` where it was given, then `prediction` and
        `probability_<label>`, or one column an output. Its `attrs` name task, arm and model.

        Raises
        ------
        UserError : a table without the column `sequence`, or a sequence that is missing; and as `Predictor.predict_array`.
        """
        table = read_table(model_input)
        predictions = self._predictor.predict(table[SEQUENCE].tolist())
        if ID in table:
            predictions.insert(0, ID, table[ID].to_numpy())
        return predictions


def read_table(model_input: Any) -> pd.DataFrame:
    """`sequence` and, where it is given, `id`, of whatever a caller hands over. Raises UserError as `predict` does."""
    if isinstance(model_input, str):
        model_input = [model_input]
    if isinstance(model_input, Mapping):
        # A string, or an array of no dimension as a server makes it, is one sequence.
        try:
            model_input = pd.DataFrame({name: np.atleast_1d(np.asarray(cells)) for name, cells in model_input.items()})
        except ValueError as error:
            raise UserError(f"the columns make no table ({error}); give each a value for every sequence") from None
    elif isinstance(model_input, list) and model_input and isinstance(model_input[0], Mapping):
        model_input = pd.DataFrame(model_input)
    if not isinstance(model_input, pd.DataFrame):
        model_input = pd.DataFrame(np.asarray(model_input, dtype=object).ravel())
    # MLflow turns lists and arrays of strings into a table with the single column 0.
    column = 0 if list(model_input.columns) == [0] else SEQUENCE
    if column not in model_input.columns:
        shown = ", ".join(map(str, model_input.columns)) or "none"
        raise UserError(f"the table has no column 'sequence' (columns: {shown}); rename the one with the DNA")
    table = model_input[[column, *({ID} & set(model_input.columns))]].rename(columns={column: SEQUENCE})
    # ... and {"sequence": ["AC", "GT"]} into a single row of lists.
    if len(table) == 1 and isinstance(table[SEQUENCE].iloc[0], list | np.ndarray):
        table = table.explode(list(table.columns))
    table = table.reset_index(drop=True)
    if table[SEQUENCE].isna().any():
        row = int(table[SEQUENCE].isna().to_numpy().argmax()) + 1
        raise UserError(f"row {row}: the sequence is missing; fill it in or leave the row out")
    return table.assign(sequence=table[SEQUENCE].map(str))


mlflow.models.set_model(L2GPyfunc())
