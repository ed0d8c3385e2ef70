"""The MLflow model of a trained predictor, as "model from code": MLflow stores this file, not a pickle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.pyfunc import PythonModel

from l2g_ray.errors import UserError


class L2GPyfunc(PythonModel):
    """DNA sequences in, a table of predictions out, through `l2g_ray.predict`."""

    # The signature is explicit; without this MLflow (3.17) prints a wish for type hints at every loading.
    _skip_type_hint_validation = True

    # MLflow passes `context` by name, and would read a type hint of `model_input` as a schema.
    def load_context(self, context: Any) -> None:
        """Open the model folder that `Tracker.log_model` stored as the artifact `model`."""
        from l2g_ray.predict import load_predictor

        self._predictor = load_predictor(Path(context.artifacts["model"]))

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        """Predictions of n sequences.

        Parameters
        ----------
        model_input : a DataFrame with a column `sequence`, or a list, Series or array of n strings.

        Returns
        -------
        pandas.DataFrame of n rows, in the order of the input: `prediction` and `probability_<label>`, or one
        column an output.

        Raises
        ------
        UserError : a table without the column `sequence`.
        """
        return self._predictor.predict(read_sequences(model_input))


def read_sequences(model_input: Any) -> list[str]:
    """The sequences of whatever a caller of an MLflow model hands over. Raises UserError as `predict` does."""
    if isinstance(model_input, pd.DataFrame):
        # MLflow turns lists and arrays of strings into a table with the single column 0.
        column = 0 if list(model_input.columns) == [0] else "sequence"
        if column not in model_input.columns:
            shown = ", ".join(map(str, model_input.columns)) or "none"
            raise UserError(f"the table has no column 'sequence' (columns: {shown}); rename the one with the DNA")
        return [str(sequence) for sequence in model_input[column]]
    if isinstance(model_input, str):
        return [model_input]
    return [str(sequence) for sequence in np.asarray(model_input).ravel()]


mlflow.models.set_model(L2GPyfunc())
