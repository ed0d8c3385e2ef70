"""Scores of sequences from a trained model, with log-odds that do not saturate where probabilities do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch.nn import functional

from l2g_ray.models.ensemble import read_strands
from l2g_ray.sequence import encode
from l2g_ray.tasks.schema import Task

# Codes (batch, length) uint8 and lengths (batch,) to raw outputs (batch, n_outputs).
Model = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Scores:
    """`values` (n, n_outputs): probabilities, or a regression's values in the labels' units. `log_odds` (n, n_outputs):
    natural logarithm of p / (1 - p), of the same (strand-averaged) probabilities; None for regression."""

    values: np.ndarray
    log_odds: np.ndarray | None

    def take(self, rows: np.ndarray) -> Scores:
        """Return some rows, by index (m,)."""
        return Scores(self.values[rows], None if self.log_odds is None else self.log_odds[rows])


def scored_outputs(task: Task) -> list[int]:
    """Return the outputs worth a column: all; of a binary task the second class alone, the other is one minus it."""
    return [1] if task.kind == "binary" else list(range(task.n_outputs))


def score_sequences(
    model: Model, task: Task, sequences: list[str], *, both_strands: bool, batch_size: int = 256
) -> Scores:
    """Score n clean sequences; `both_strands` means over the two strands: probabilities, or values.

    Equal sequences are computed once.
    """
    distinct = list(dict.fromkeys(sequences))
    place = {sequence: i for i, sequence in enumerate(distinct)}
    parts = []
    for start in range(0, len(distinct), batch_size):
        codes, lengths = encode(pa.array(distinct[start : start + batch_size], pa.large_string()))
        parts.append(score_codes(model, task, torch.from_numpy(codes), torch.from_numpy(lengths), both_strands))
    values = np.concatenate([p.values for p in parts])
    odds = [p.log_odds for p in parts if p.log_odds is not None]
    return Scores(values, np.concatenate(odds) if odds else None).take(np.array([place[s] for s in sequences]))


def score_codes(model: Model, task: Task, codes: torch.Tensor, lengths_bp: torch.Tensor, both_strands: bool) -> Scores:
    """Score one batch of codes (batch, length) with lengths (batch,).

    Log-odds come from the outputs in double precision, so that the difference of two confident predictions is not lost.
    """
    with torch.inference_mode():
        outputs = torch.stack(read_strands(model, codes, lengths_bp, both_strands)).double()
    if task.kind == "regression":
        return Scores(outputs.mean(0).numpy(), None)
    if task.kind == "multilabel":
        yes, no = functional.logsigmoid(outputs), functional.logsigmoid(-outputs)
    else:
        yes = outputs.log_softmax(-1)
        others = [[j for j in range(outputs.shape[-1]) if j != i] for i in range(outputs.shape[-1])]
        no = torch.stack([yes[..., other].logsumexp(-1) for other in others], -1)
    # log of the mean probability over strands, and of its complement.
    log_yes, log_no = (x.logsumexp(0) - np.log(len(outputs)) for x in (yes, no))
    return Scores(log_yes.exp().numpy(), (log_yes - log_no).numpy())
