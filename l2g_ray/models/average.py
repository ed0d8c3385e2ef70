"""Several models as one: the mean of their predictions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class AverageModel(nn.Module):
    """Mean probabilities (classification, multilabel) or mean values (regression) of its members.

    `kind` is the task's. What it returns are logits or values (batch, n_outputs), as any model does: the softmax or sigmoid
    of them is the mean probability.
    """

    def __init__(self, kind: str, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.kind = kind
        self.members = nn.ModuleList(members)

    def forward(self, codes: torch.Tensor, lengths_bp: torch.Tensor) -> torch.Tensor:
        """Codes (batch, length) uint8 and lengths (batch,) to outputs (batch, n_outputs)."""
        outputs = torch.stack([member(codes, lengths_bp).float() for member in self.members])
        if self.kind == "regression":
            return outputs.mean(0)
        if self.kind == "multilabel":
            return torch.logit(outputs.sigmoid().mean(0), eps=1e-7)
        return outputs.softmax(2).mean(0).clamp(min=1e-12).log()
