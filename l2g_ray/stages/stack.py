"""How much each arm counts: a combination fitted to out-of-fold predictions, and what each arm adds to it.

Wolpert 1992 (stacking); Caruana et al. 2004 (greedy selection). One weight an arm, so that few rows suffice and a weight
can be read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from l2g_ray.models.ensemble import Combination, to_evidence, to_predictions
from l2g_ray.stages.optim import compute_task_loss

# Inverse strength of the ridge on the weights, against the sum of the rows' losses (scikit-learn's C).
RIDGE_C = 0.1
# Arms that count for less than this share of all weights, or against the others, are left out: a model less to keep and run.
LEAST_SHARE = 0.03
GREEDY_STEPS = 25

Predictions = Mapping[str, np.ndarray]


class Stacker:
    """Evidence (n, n_outputs) of every arm and labels, as tensors; fits combinations of some arms on some rows."""

    def __init__(
        self, kind: str, predictions: Predictions, labels: np.ndarray, offset: torch.Tensor, scale: torch.Tensor
    ) -> None:
        self.kind, self.arms = kind, tuple(predictions)
        self.offset, self.scale = offset.double(), scale.double()
        self.predictions = {arm: torch.from_numpy(np.asarray(p)).double() for arm, p in predictions.items()}
        evidence = [to_evidence(kind, p, self.offset, self.scale) for p in self.predictions.values()]
        self.evidence = torch.stack(evidence)  # (arms, n, n_outputs)
        self.labels = torch.from_numpy(np.asarray(labels))

    def _loss(self, outputs: torch.Tensor, rows: np.ndarray | slice) -> torch.Tensor:
        labels = self.labels[rows]
        if self.kind == "regression":
            labels = (labels.double() - self.offset) / self.scale
        return compute_task_loss(self.kind, outputs, labels)

    def _combination(self, arms: tuple[str, ...], weights: Any, bias: Any) -> Combination:
        plain = (tuple(float(x) for x in values) for values in (weights, bias, self.offset, self.scale))
        return Combination(self.kind, arms, *plain)

    def _select(self, arms: tuple[str, ...]) -> torch.Tensor:
        return self.evidence[[self.arms.index(arm) for arm in arms]]

    def fit_stack(self, arms: tuple[str, ...], rows: np.ndarray | slice = slice(None)) -> Combination:
        """Ridge regression of the labels on the evidence: logistic, or of least squares for a regression.

        The arm that counts least is left out, and the others are fitted again, until all count.
        """
        while True:
            combination = self._fit_ridge(arms, rows)
            weights = combination.weights
            if len(arms) == 1 or min(weights) >= LEAST_SHARE * sum(abs(weight) for weight in weights):
                return combination
            least = arms[int(np.argmin(weights))]
            arms = tuple(arm for arm in arms if arm != least)

    def _fit_ridge(self, arms: tuple[str, ...], rows: np.ndarray | slice) -> Combination:
        evidence = self._select(arms)[:, rows]
        labels = self.labels[rows]
        n_rows = int(torch.isfinite(labels).reshape(len(labels), -1).any(1).sum())
        weights = torch.zeros(len(arms), dtype=torch.float64, requires_grad=True)
        bias = torch.zeros(evidence.shape[2], dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [weights, bias], max_iter=200, tolerance_grad=1e-9, tolerance_change=1e-12, line_search_fn="strong_wolfe"
        )

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            outputs = torch.einsum("a,anc->nc", weights, evidence) + bias
            # The bias has a ridge too: with classes it is defined up to a constant only.
            loss = self._loss(outputs, rows) + (weights.square().sum() + bias.square().sum()) / (
                2 * RIDGE_C * max(1, n_rows)
            )
            loss.backward()
            return loss

        optimizer.step(closure)
        return self._combination(arms, weights.detach(), bias.detach())

    def fit_greedy(self, arms: tuple[str, ...], rows: np.ndarray | slice = slice(None)) -> Combination:
        """Add one arm after the other, with replacement, whichever lowers the loss of the mean most."""
        evidence = self._select(arms)[:, rows]
        counts, total = np.zeros(len(arms)), torch.zeros_like(evidence[0])
        best: tuple[float, np.ndarray] = (np.inf, counts)
        for step in range(1, GREEDY_STEPS + 1):
            losses = [float(self._loss((total + one) / step, rows)) for one in evidence]
            chosen = int(np.argmin(losses))
            counts[chosen] += 1
            total = total + evidence[chosen]
            if losses[chosen] < best[0]:
                best = losses[chosen], counts / step
        return self._combination(arms, best[1], torch.zeros(evidence.shape[2]))

    def fit_mean(self, arms: tuple[str, ...], rows: np.ndarray | slice = slice(None)) -> Combination:
        """All arms alike."""
        return self._combination(arms, np.full(len(arms), 1 / len(arms)), torch.zeros(self.evidence.shape[2]))

    def fit_best(self, arms: tuple[str, ...], rows: np.ndarray | slice = slice(None)) -> Combination:
        """The arm with the least loss, alone."""
        losses = [float(self._loss(one, rows)) for one in self._select(arms)[:, rows]]
        chosen = np.arange(len(arms)) == int(np.argmin(losses))
        return self._combination(arms, chosen.astype(float), torch.zeros(self.evidence.shape[2]))

    def fit(self, how: str, arms: tuple[str, ...] | None = None, rows: np.ndarray | slice = slice(None)) -> Combination:
        """A combination by its name in `ENSEMBLES`, of all arms unless some are named; those without weight are not in it."""
        found = ENSEMBLES[how](self, self.arms if arms is None else arms, rows)
        kept = [(arm, weight) for arm, weight in zip(found.arms, found.weights, strict=True) if weight]
        return replace(found, arms=tuple(arm for arm, _ in kept), weights=tuple(weight for _, weight in kept))

    def cross_fit(self, how: str, folds: np.ndarray, arms: tuple[str, ...] | None = None) -> np.ndarray:
        """Predictions (n, n_outputs) for every row by a combination that was fitted to the rows of the other folds."""
        outputs = torch.zeros_like(self.evidence[0])
        for fold in np.unique(folds):
            inside = folds == fold
            combination = self.fit(how, arms, ~inside)
            outputs[inside] = combination.combine({a: self.predictions[a][inside] for a in combination.arms})
        return to_predictions(self.kind, outputs).numpy()


ENSEMBLES: dict[str, Callable[[Stacker, tuple[str, ...], np.ndarray | slice], Combination]] = {
    "stack": Stacker.fit_stack,
    "greedy": Stacker.fit_greedy,
    "mean": Stacker.fit_mean,
    "best": Stacker.fit_best,
}
