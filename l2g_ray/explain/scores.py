"""Scores of sequences from a trained model, with log-odds that do not saturate where probabilities do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch.nn import functional

from l2g_ray.sequence import encode, reverse_complement
from l2g_ray.tasks.schema import Task

# Codes (batch, length) uint8 and lengths (batch,) to raw outputs (batch, n_outputs).
Model = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Scores:
    """`values` (n, k): probabilities, or a regression's values in the labels' units. `log_odds` (n, k): natural
    logarithm of p / (1 - p), of the same (strand-averaged) probabilities; None for regression. k as `score_names`."""

    values: np.ndarray
    log_odds: np.ndarray | None

    def take(self, rows: np.ndarray) -> Scores:
        """Some rows, by index (m,)."""
        return Scores(self.values[rows], None if self.log_odds is None else self.log_odds[rows])


def score_names(task: Task) -> tuple[str, ...]:
    """What is scored: every class or output; of a binary task the second class alone, the other is one minus it."""
    return task.labels[1:] if task.kind == "binary" else task.labels


def score_sequences(
    model: Model, task: Task, sequences: list[str], *, both_strands: bool, batch_size: int = 256
) -> Scores:
    """Score n clean sequences; `both_strands` means over the two strands: probabilities, or values.

    Equal sequences are computed once. Log-odds come from the outputs in double precision, so that the difference of
    two confident predictions is not lost.
    """
    distinct = list(dict.fromkeys(sequences))
    place = {sequence: i for i, sequence in enumerate(distinct)}
    parts = []
    with torch.inference_mode():
        for start in range(0, len(distinct), batch_size):
            codes, lengths = map(
                torch.from_numpy, encode(pa.array(distinct[start : start + batch_size], pa.large_string()))
            )
            strands = [model(codes, lengths)]
            if both_strands:
                strands.append(model(reverse_complement(codes, lengths), lengths))
            parts.append(_combine(task, torch.stack(strands).double()))
    values = np.concatenate([p.values for p in parts])
    odds = [p.log_odds for p in parts if p.log_odds is not None]
    return Scores(values, np.concatenate(odds) if odds else None).take(np.array([place[s] for s in sequences]))


def _combine(task: Task, outputs: torch.Tensor) -> Scores:
    """Raw outputs (strands, batch, n_outputs) to scores of the batch."""
    if task.kind == "regression":
        return Scores(outputs.mean(0).numpy(), None)
    if task.kind == "multilabel":
        yes, no = functional.logsigmoid(outputs), functional.logsigmoid(-outputs)
    else:
        yes = outputs.log_softmax(-1)
        others = [[j for j in range(outputs.shape[-1]) if j != i] for i in range(outputs.shape[-1])]
        no = torch.stack([yes[..., other].logsumexp(-1) for other in others], -1)
    n_strands = outputs.shape[0]
    # log of the mean probability over strands, and of its complement.
    log_yes, log_no = (x.logsumexp(0) - np.log(n_strands) for x in (yes, no))
    first = len(task.labels) - len(score_names(task))
    return Scores(log_yes.exp()[:, first:].numpy(), (log_yes - log_no)[:, first:].numpy())
