"""Several models as one: the mean of their predictions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from l2g_ray.models.baselines import Baseline


class Log(nn.Module):
    """Natural logarithm of a probability, of 1e-12 below that."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Element by element."""
        return x.clamp(min=1e-12).log()


class Logit(nn.Module):
    """Log-odds of a probability that is kept 1e-7 away from 0 and 1."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Element by element."""
        return torch.logit(x, eps=1e-7)


class AverageModel(nn.Module):
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
        """Codes (batch, length) uint8 and lengths (batch,) to outputs (batch, n_outputs)."""
        first = self.members[0]
        if isinstance(first, Baseline) and all(
            getattr(member, "config", None) == first.config for member in self.members
        ):
            counts = first.features.count(codes)  # once for all: it is most of their work
            return self._average([member(codes, lengths_bp, counts) for member in self.members])
        return self._average([member(codes, lengths_bp) for member in self.members])

    def forward_one_hot(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """One-hot (batch, channels, length), mask (batch, 1, length) or None, to outputs (batch, n_outputs)."""
        return self._average([member.forward_one_hot(x, mask) for member in self.members])  # type: ignore[operator]

    def _average(self, outputs: list[torch.Tensor]) -> torch.Tensor:
        predictions = [link(one.float()) for link, one in zip(self.links, outputs, strict=True)]
        averaged: torch.Tensor = self.inverse(torch.stack(predictions).mean(0))
        return averaged


class MeanOutputs(nn.Module):
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
        """Codes (batch, length) uint8 and lengths (batch,) to outputs (batch, n_outputs)."""
        return torch.stack([member(codes, lengths_bp).float() for member in self.members]).mean(0)

    def forward_one_hot(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """One-hot (batch, channels, length), mask (batch, 1, length) or None, to outputs (batch, n_outputs)."""
        outputs = [member.forward_one_hot(x, mask).float() for member in self.members]  # type: ignore[operator]
        return torch.stack(outputs).mean(0)
