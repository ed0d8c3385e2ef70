"""Simple models to beat: a constant, linear models on k-mers or one-hot, boosted trees on k-mers.

They are modules with the call of the other models, codes and lengths to logits or values, and are stored like them: as
tensors and JSON, nothing pickled. `stages.baseline` fits them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from l2g_ray.sequence import N_CODE, one_hot


@dataclass(frozen=True)
class BaselineConfig:
    """`form`: constant, linear or boosting. `features`: none, kmer (counts), tfidf (weighted, unit length) or one_hot.

    `length_bp` is the longest sequence; one-hot features have 4 of it, longer sequences are cut. `canonical`: a k-mer and
    its reverse complement are one feature.
    """

    form: str
    features: str
    n_outputs: int
    length_bp: int
    k: int = 6
    canonical: bool = False

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready mapping."""
        return asdict(self)


class Features(nn.Module):
    """Codes (batch, length) and lengths (batch,) to features (batch, n_features), float32."""

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__()
        self.config = config
        index = _canonical_index(config.k) if config.canonical else np.arange(4**config.k)
        self.n_features = {"none": 0, "one_hot": 4 * config.length_bp}.get(config.features, int(index.max()) + 1)
        if config.features in ("kmer", "tfidf"):
            self.register_buffer("index", torch.from_numpy(index), persistent=False)
        if config.features == "tfidf":
            self.register_buffer("idf", torch.ones(self.n_features))

    def forward(self, codes: torch.Tensor, lengths_bp: torch.Tensor) -> torch.Tensor:
        """See the class."""
        if self.config.features == "none":
            return torch.zeros(len(codes), 0, device=codes.device)
        if self.config.features == "one_hot":
            return self._one_hot(codes)
        counts = self.count(codes)
        if self.config.features == "kmer":
            return counts
        assert isinstance(self.idf, torch.Tensor)
        return nn.functional.normalize(counts * self.idf)

    def count(self, codes: torch.Tensor) -> torch.Tensor:
        """Counts (batch, n_features) of k-mers; one with an N is none, and padding is N."""
        k, (n_rows, length) = self.config.k, codes.shape
        counts = torch.zeros(n_rows, self.n_features + 1, device=codes.device)  # the last column takes what is none
        if length >= k:
            windows = codes.long().unfold(1, k, 1)
            number = (windows * 4 ** torch.arange(k - 1, -1, -1, device=codes.device)).sum(2)
            known = (windows < N_CODE).all(2)
            assert isinstance(self.index, torch.Tensor)
            column = torch.where(known, self.index[number.clamp(max=4**k - 1)], self.n_features)
            counts.scatter_add_(1, column, torch.ones_like(column, dtype=counts.dtype))
        return counts[:, :-1]

    def _one_hot(self, codes: torch.Tensor) -> torch.Tensor:
        wanted = self.config.length_bp
        codes = nn.functional.pad(codes[:, :wanted], (0, max(0, wanted - codes.shape[1])), value=N_CODE)
        return one_hot(codes, torch.ones_like(codes, dtype=torch.bool)).flatten(1)


def _canonical_index(k: int) -> np.ndarray:
    """(4^k,) column of each k-mer, where a k-mer and its reverse complement have one."""
    number = np.arange(4**k)
    reverse = np.zeros_like(number)
    rest = number.copy()
    for _ in range(k):
        # A C G T = 0..3 and the complement of c in this order is 3 - c.
        reverse = reverse * 4 + (3 - rest % 4)
        rest //= 4
    return np.unique(np.minimum(number, reverse), return_inverse=True)[1]


class Baseline(nn.Module):
    """Features, then a linear map or boosted trees, to logits (batch, n_outputs), or values for regression."""

    def __init__(self, config: BaselineConfig, booster_bytes: int = 0) -> None:
        super().__init__()
        self.config = config
        self.features = Features(config)
        if config.form == "boosting":
            self.register_buffer("boosters", torch.zeros(booster_bytes, dtype=torch.uint8))
            self._loaded: list[Any] | None = None
        else:
            self.register_buffer("weight", torch.zeros(config.n_outputs, self.features.n_features))
            self.register_buffer("bias", torch.zeros(config.n_outputs))

    def forward(self, codes: torch.Tensor, lengths_bp: torch.Tensor) -> torch.Tensor:
        """Codes (batch, length) uint8 and lengths (batch,) to outputs (batch, n_outputs)."""
        features = self.features(codes, lengths_bp)
        if self.config.form == "boosting":
            return self._boost(features).to(codes.device)
        assert isinstance(self.weight, torch.Tensor)
        assert isinstance(self.bias, torch.Tensor)
        return features @ self.weight.T + self.bias

    def set_boosters(self, texts: list[str]) -> None:
        """Keep LightGBM's own text form of the trees: one model for all classes, or one an output."""
        joined = "\0".join(texts).encode()
        self.boosters = torch.frombuffer(bytearray(joined), dtype=torch.uint8)
        self._loaded = None

    def _boost(self, features: torch.Tensor) -> torch.Tensor:
        import lightgbm

        if self._loaded is None:
            assert isinstance(self.boosters, torch.Tensor)
            texts = self.boosters.cpu().numpy().tobytes().decode().split("\0")
            self._loaded = [lightgbm.Booster(model_str=text) for text in texts]
        rows = features.cpu().numpy()
        raw = [np.asarray(booster.predict(rows, raw_score=True)).reshape(len(rows), -1) for booster in self._loaded]
        scores = np.concatenate(raw, 1)
        if scores.shape[1] == 1 and self.config.n_outputs == 2:  # LightGBM's binary: the log-odds of class 1
            scores = np.concatenate([np.zeros_like(scores), scores], 1)
        return torch.from_numpy(scores.astype(np.float32))
