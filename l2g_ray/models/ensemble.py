"""Models made of models: the mean of one arm's fold models, and the weighted arms of a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from l2g_ray.models.baselines import Baseline
from l2g_ray.models.layers import Composed, Elementwise
from l2g_ray.sequence import reverse_complement


class Log(Elementwise):
    """Natural logarithm of a probability, of 1e-12 below that."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Element by element."""
        return x.clamp(min=1e-12).log()


class Logit(Elementwise):
    """Log-odds of a probability that is kept 1e-7 away from 0 and 1."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Element by element."""
        return torch.logit(x, eps=1e-7)


class AverageModel(Composed):
    """Mean probabilities (classification, multilabel) or mean values (regression) of its members.

    `kind` is the task's. What it returns are logits or values (batch, n_outputs), as any model does: the softmax or sigmoid
    of them is the mean probability.
    """

    def __init__(self, kind: str, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.kind = kind
        self.members = nn.ModuleList(members)
        # Modules, one for each use, so that an attribution can put its rule on each (`explain.rules`).
        forward, self.inverse = {
            "regression": (nn.Identity, nn.Identity()),
            "multilabel": (nn.Sigmoid, Logit()),
        }.get(kind, (lambda: nn.Softmax(-1), Log()))
        self.links = nn.ModuleList(forward() for _ in members)

    @property
    def in_channels(self) -> int:
        """Channels of the one-hot input, the same for all members."""
        return int(self.members[0].in_channels)  # type: ignore[arg-type]

    def forward(self, codes: torch.Tensor, lengths_bp: torch.Tensor) -> torch.Tensor:
        """Map codes (batch, length) uint8 and lengths (batch,) to outputs (batch, n_outputs)."""
        first = self.members[0]
        if isinstance(first, Baseline) and all(
            getattr(member, "config", None) == first.config for member in self.members
        ):
            counts = first.features.count(codes)  # once for all: it is most of their work
            return self._average([member(codes, lengths_bp, counts) for member in self.members])
        return self._average([member(codes, lengths_bp) for member in self.members])

    def forward_one_hot(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Map one-hot (batch, channels, length), mask (batch, 1, length) or None, to outputs (batch, n_outputs)."""
        return self._average([member.forward_one_hot(x, mask) for member in self.members])  # type: ignore[operator]

    def _average(self, outputs: list[torch.Tensor]) -> torch.Tensor:
        predictions = [link(one.float()) for link, one in zip(self.links, outputs, strict=True)]
        averaged: torch.Tensor = self.inverse(torch.stack(predictions).mean(0))
        return averaged


class MeanOutputs(Composed):
    """The mean of several models' own outputs, logits or values: what of an `AverageModel` contributions add up to.

    Where models are sure, the logit of their mean probability hangs on differences that float32 and the rescale rule do not resolve.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    @property
    def in_channels(self) -> int:
        """Channels of the one-hot input, the same for all members."""
        return int(self.members[0].in_channels)  # type: ignore[arg-type]

    def forward(self, codes: torch.Tensor, lengths_bp: torch.Tensor) -> torch.Tensor:
        """Map codes (batch, length) uint8 and lengths (batch,) to outputs (batch, n_outputs)."""
        return torch.stack([member(codes, lengths_bp).float() for member in self.members]).mean(0)

    def forward_one_hot(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Map one-hot (batch, channels, length), mask (batch, 1, length) or None, to outputs (batch, n_outputs)."""
        outputs = [member.forward_one_hot(x, mask).float() for member in self.members]  # type: ignore[operator]
        return torch.stack(outputs).mean(0)


# Probabilities are clipped to this from either end, so that a member that is sure and wrong has a limit.
LEAST_PROBABILITY = 1e-4


def to_predictions(kind: str, outputs: torch.Tensor) -> torch.Tensor:
    """Return probabilities (batch, n_outputs) for classification and multilabel tasks, the values themselves for
    regression.
    """
    if kind in ("binary", "multiclass"):
        return outputs.float().softmax(1)
    return outputs.float().sigmoid() if kind == "multilabel" else outputs.float()


def read_strands(
    model: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    codes: torch.Tensor,
    lengths_bp: torch.Tensor,
    both_strands: bool,
) -> list[torch.Tensor]:
    """Return what a model gives for codes (batch, length) and lengths (batch,): of the given strand, and of its
    reverse complement where `both_strands` says so.
    """
    strands = [codes, reverse_complement(codes, lengths_bp)] if both_strands else [codes]
    return [model(strand, lengths_bp) for strand in strands]


def predict_each(
    model: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    kind: str,
    codes: torch.Tensor,
    lengths_bp: torch.Tensor,
    both_strands: bool,
) -> torch.Tensor:
    """Return predictions (batch, 1 or 2, n_outputs) as of `to_predictions`: of the given strand and, where
    `both_strands` says so, their mean over both.
    """
    found = [to_predictions(kind, outputs) for outputs in read_strands(model, codes, lengths_bp, both_strands)]
    return torch.stack([found[0], torch.stack(found).mean(0)][: len(found)], 1)


def to_evidence(kind: str, predictions: torch.Tensor, offset: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return what an arm adds to the sum, (n, n_outputs), from its predictions of the same shape.

    Classification: log-probabilities, centred over the classes, so that an arm that cannot separate classes adds 0.
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
        """Return a JSON-ready mapping; `Combination(**values)` reads it back, lists being as good as tuples."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in self.__dict__.items()}

    def combine(self, predictions: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return logits or values (n, n_outputs), float64, from each arm's predictions (n, n_outputs)."""
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
        """Return the same arms, read on both strands or on the given one alone."""
        return Ensemble(self.combination, dict(self.arms.items()), both_strands).train(self.training)

    def forward(self, codes: torch.Tensor, lengths_bp: torch.Tensor) -> torch.Tensor:
        """Map codes (batch, length) uint8 and lengths (batch,) to logits or values (batch, n_outputs)."""
        predictions = {arm: self.predict_arm(arm, codes, lengths_bp) for arm in self.arms}
        return self.combination.combine(predictions).float().to(codes.device)

    def predict_arm(self, arm: str, codes: torch.Tensor, lengths_bp: torch.Tensor) -> torch.Tensor:
        """Return probabilities or values (batch, n_outputs) of one arm, over both strands where that is so."""
        return predict_each(self.arms[arm], self.combination.kind, codes, lengths_bp, self.both_strands)[:, -1]
