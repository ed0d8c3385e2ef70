"""Several arms as one predictor: weighted sums of their log-probabilities or values, each arm the mean of its fold models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from l2g_ray.sequence import reverse_complement

# Probabilities are clipped to this from either end, so that a member that is sure and wrong has a limit.
LEAST_PROBABILITY = 1e-4


def to_predictions(kind: str, outputs: torch.Tensor) -> torch.Tensor:
    """Probabilities (batch, n_outputs) for classification and multilabel tasks, the values themselves for regression."""
    if kind in ("binary", "multiclass"):
        return outputs.float().softmax(1)
    return outputs.float().sigmoid() if kind == "multilabel" else outputs.float()


def read_strands(
    model: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    codes: torch.Tensor,
    lengths_bp: torch.Tensor,
    both_strands: bool,
) -> list[torch.Tensor]:
    """What a model gives for codes (batch, length) and lengths (batch,): of the given strand, and of its reverse complement
    where `both_strands` says so."""
    strands = [codes, reverse_complement(codes, lengths_bp)] if both_strands else [codes]
    return [model(strand, lengths_bp) for strand in strands]


def predict_strands(
    model: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    kind: str,
    codes: torch.Tensor,
    lengths_bp: torch.Tensor,
    both_strands: bool,
) -> torch.Tensor:
    """Predictions (batch, n_outputs) as of `to_predictions`, their mean over both strands where `both_strands` says so."""
    found = [to_predictions(kind, outputs) for outputs in read_strands(model, codes, lengths_bp, both_strands)]
    return torch.stack(found).mean(0)


def to_evidence(kind: str, predictions: torch.Tensor, offset: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """What an arm adds to the sum, (n, n_outputs), from its predictions of the same shape.

    Classification: log-probabilities, centred over the classes, so that an arm that does not tell classes apart adds 0.
    Multilabel: log-odds. Regression: values in standard deviations (`scale`, (n_outputs,)) from the mean (`offset`).
    """
    if kind == "regression":
        return (predictions - offset) / scale
    clipped = predictions.clamp(LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
    if kind == "multilabel":
        return torch.logit(clipped)
    logs = clipped.log()
    return logs - logs.mean(1, keepdim=True)


@dataclass(frozen=True)
class Combination:
    """One weight an arm, and one bias an output: sum of weight x evidence + bias, in logits or standard deviations."""

    kind: str
    arms: tuple[str, ...]
    weights: tuple[float, ...]
    bias: tuple[float, ...]
    offset: tuple[float, ...]
    scale: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping; `Combination(**values)` reads it back, lists being as good as tuples."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in self.__dict__.items()}

    def combine(self, predictions: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Logits or values (n, n_outputs), float64, from each arm's predictions (n, n_outputs)."""
        offset, scale, bias = (torch.tensor(x, dtype=torch.float64) for x in (self.offset, self.scale, self.bias))
        total = bias.expand(len(predictions[self.arms[0]]), -1).clone()
        for arm, weight in zip(self.arms, self.weights, strict=True):
            total += weight * to_evidence(self.kind, predictions[arm].double().cpu(), offset, scale)
        return total * scale + offset if self.kind == "regression" else total


class Ensemble(nn.Module):
    """What a run predicts with: every arm of a `Combination`, each of them a model or the mean of its fold models.

    Its predictions are of both strands already where `both_strands` says so: weights are for each arm's mean over strands.
    """

    def __init__(self, combination: Combination, arms: Mapping[str, nn.Module], both_strands: bool) -> None:
        super().__init__()
        self.combination = combination
        self.both_strands = both_strands
        self.arms = nn.ModuleDict({name: arms[name] for name in combination.arms})

    def read(self, both_strands: bool) -> Ensemble:
        """The same arms, read on both strands or on the given one alone."""
        return Ensemble(self.combination, dict(self.arms.items()), both_strands).train(self.training)

    def forward(self, codes: torch.Tensor, lengths_bp: torch.Tensor) -> torch.Tensor:
        """Codes (batch, length) uint8 and lengths (batch,) to logits or values (batch, n_outputs)."""
        predictions = {arm: self.predict_arm(arm, codes, lengths_bp) for arm in self.arms}
        return self.combination.combine(predictions).float().to(codes.device)

    def predict_arm(self, arm: str, codes: torch.Tensor, lengths_bp: torch.Tensor) -> torch.Tensor:
        """Probabilities or values (batch, n_outputs) of one arm, over both strands where that is so."""
        return predict_strands(self.arms[arm], self.combination.kind, codes, lengths_bp, self.both_strands)
