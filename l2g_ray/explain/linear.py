"""Exact contributions of bases to the linear models of k-mers.

A linear model's output is its bias plus the sum of weight x value over the words that a sequence has. The values (inverse
document frequency, 1 + log of the count, unit length) are taken as they are in this sequence, each word's part is divided
equally among its occurrences, and each occurrence's among the bases that the word reads. So bias and contributions add up to the
output, up to rounding. What another base would contribute is not defined: it would change the values of all words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from l2g_ray.explain.attribution import Attributions
from l2g_ray.models.baselines import Baseline, find_patterns
from l2g_ray.models.ensemble import AverageModel
from l2g_ray.models.kmers import Places, Words, find_words
from l2g_ray.sequence import reverse_complement

METHOD = "exact-linear"
_FEATURES = ("kmer", "tfidf", "gapped", "places")
_ROWS_AT_ONCE = 64


def is_linear(model: nn.Module) -> bool:
    """Return whether a model is linear in k-mers, or the mean of several that read the same ones."""
    members = list(model.members) if isinstance(model, AverageModel) else [model]
    configs = {m.config for m in members if isinstance(m, Baseline) and m.config.form == "linear"}
    return all(isinstance(m, Baseline) for m in members) and len(configs) == 1 and configs.pop().features in _FEATURES


class LinearOutput:
    """A weighted sum (`weights`, (n_outputs,)) of a linear model's outputs: logits, or values of a regression.

    Of an average, the mean of its members' logits or values: for probabilities that is not the logit of their mean.
    """

    def __init__(self, model: nn.Module, weights: torch.Tensor) -> None:
        """`model` is one for which `is_linear` holds."""
        members: list[Baseline] = list(model.members) if isinstance(model, AverageModel) else [model]  # type: ignore
        self.features = [member.features for member in members]
        own = weights.double().cpu().numpy()
        self.slopes = [own @ member.weight.cpu().numpy().astype(float) for member in members]
        self.bias = float(np.mean([own @ member.bias.cpu().numpy().astype(float) for member in members]))

    def evaluate(self, codes: np.ndarray) -> np.ndarray:
        """Explained values (n,) of codes (n, length)."""
        parts = [
            np.mean([x @ slope for x, slope in zip(self._weigh(codes[rows]), self.slopes, strict=True)], 0)
            for rows in _iter_rows(len(codes))
        ]
        return self.bias + np.concatenate(parts) if parts else np.empty(0)

    def split(self, codes: np.ndarray) -> np.ndarray:
        """Contributions (n, length) of the bases of codes (n, length); with the bias they add up to the values."""
        contributions = np.zeros(codes.shape)
        for rows in _iter_rows(len(codes)):
            self._split(codes[rows], contributions[rows])
        return contributions / len(self.features)

    def _weigh(self, codes: np.ndarray) -> list[Any]:
        """Return each member's features, of words that are counted once."""
        blocks = self.features[0].count(torch.from_numpy(codes))
        return [features.weigh([block.copy() for block in blocks]) for features in self.features]

    def _split(self, codes: np.ndarray, contributions: np.ndarray) -> None:
        blocks = self._find_words(codes)
        for features, slope, x in zip(self.features, self.slopes, self._weigh(codes), strict=True):
            x.sort_indices()
            parts = x.data * slope[x.indices]
            owner = np.repeat(np.arange(len(codes)), np.diff(x.indptr))
            keys = owner * features.n_features + x.indices
            kept = np.full(sum(features.widths), -1)
            kept[features.columns.cpu().numpy() if hasattr(features, "columns") else slice(None)] = np.arange(
                len(slope)
            )
            first = 0
            for width, block in zip(features.widths, blocks, strict=True):
                found, counts = [], np.zeros(len(parts))
                for words in block:
                    columns = kept[first + words.columns]
                    held = words.known & (columns >= 0)
                    entries = np.searchsorted(keys, np.nonzero(held)[0] * features.n_features + columns[held])
                    counts += np.bincount(entries, minlength=len(parts))
                    found.append((held, entries, words.offsets))
                for held, entries, offsets in found:
                    shares = np.zeros(held.shape)
                    shares[held] = parts[entries] / (counts[entries] * len(offsets))
                    for offset in offsets:
                        contributions[:, offset : offset + held.shape[1]] += shares
                first += width

    def _find_words(self, codes: np.ndarray) -> list[list[Words]]:
        """Return the positions of the words of each block of features."""
        config = self.features[0].config
        if config.features == "places":
            return [Places(config.length_bp).find_words(codes[:, : config.length_bp])]
        return [find_words(codes, pattern, config.canonical) for pattern in find_patterns(config)]


def attribute_linear(
    explained: LinearOutput,
    codes: np.ndarray,
    lengths_bp: np.ndarray,
    *,
    rc_average: bool = False,
    output: str = "",
    progress: Callable[[int], None] = lambda done: None,
) -> Attributions:
    """Contributions of right-padded codes (n, length) with lengths (n,); the reference value of each is the bias.

    `rc_average`: to the mean of the outputs for both strands. `progress` receives the number of sequences done.
    """
    contributions = explained.split(codes)
    values = explained.evaluate(codes)
    if rc_average:
        lengths = torch.from_numpy(np.asarray(lengths_bp))
        turned = reverse_complement(torch.from_numpy(codes), lengths).numpy()
        places = np.maximum(np.asarray(lengths_bp)[:, None] - 1 - np.arange(codes.shape[1]), 0)
        others = np.take_along_axis(explained.split(turned), places, 1)
        contributions = (contributions + others) / 2
        values = (values + explained.evaluate(turned)) / 2
    progress(len(codes))
    one_hot = np.eye(5, 4)[codes]
    return Attributions(
        codes,
        np.asarray(lengths_bp),
        contributions[..., None] * one_hot,
        values,
        np.full(len(codes), explained.bias),
        METHOD,
        output,
        observed_only=True,
    )


def _iter_rows(n_rows: int) -> Iterator[slice]:
    for start in range(0, n_rows, _ROWS_AT_ONCE):
        yield slice(start, start + _ROWS_AT_ONCE)
