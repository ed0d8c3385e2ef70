"""Models of baselines and arms: linear maps and boosted trees on k-mer features, the small CNN, and DeepSTARR."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import nn

from l2g_ray.counts import CNN_DENSE, CNN_LAYERS, CNN_MOST_PLACES
from l2g_ray.models.backbones import ConvUnit
from l2g_ray.models.embedder import Predictor
from l2g_ray.models.kmers import GAPPED, POSITIONAL, SHORT, Pattern, Places, count_kmers
from l2g_ray.models.layers import Composed, Dropout, MaskedMax, MaskedMaxPool1d, masked_mean
from l2g_ray.sequence import N_CODE, encode_batch, one_hot

ANYWHERE_DROPOUT, DENSE_DROPOUT = 0.1, 0.4


@dataclass(frozen=True)
class SmallCNNConfig:
    """`by_position`: the read-out has weights for each place (of sequences up to `length_bp`), else it is their mean and max."""

    length_bp: int
    n_outputs: int
    by_position: bool

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return asdict(self)


class SmallCNN(Composed):
    """Three convolutions with batch norm and ReLU, then a read-out in the labels' own units. Padding changes nothing."""

    config_type = SmallCNNConfig

    def __init__(self, config: SmallCNNConfig) -> None:
        super().__init__()
        self.config = config
        layers = CNN_LAYERS[config.by_position]
        widths = [4, *(filters for filters, _, _ in layers)]
        self.units = nn.ModuleList(
            ConvUnit(before, filters, kernel, 1, 0.0, False)
            for before, (filters, kernel, _) in zip(widths, layers, strict=False)
        )
        self.pools = nn.ModuleList(MaskedMaxPool1d(size) for _, _, size in layers)
        if not config.by_position:
            self.highest, self.dropout = MaskedMax(), Dropout(ANYWHERE_DROPOUT)
            self.predictor = Predictor(2 * widths[-1], config.n_outputs)
            return
        places = config.length_bp
        for _, _, size in layers:
            places = math.ceil(places / size)
        # Longer sequences are pooled further before the dense layer.
        self.last_pool = MaskedMaxPool1d(math.ceil(places / CNN_MOST_PLACES))
        self.n_places = math.ceil(places / self.last_pool.size)
        flat = widths[-1] * self.n_places
        self.dense = nn.Sequential(
            nn.BatchNorm1d(flat), Dropout(DENSE_DROPOUT), nn.Linear(flat, CNN_DENSE), nn.ReLU(), Dropout(DENSE_DROPOUT)
        )
        self.predictor = Predictor(CNN_DENSE, config.n_outputs)

    @property
    def in_channels(self) -> int:
        """Channels of the one-hot input."""
        return 4

    def forward(self, codes: torch.Tensor, lengths_bp: torch.Tensor) -> torch.Tensor:
        """Map codes (batch, length) uint8 and lengths (batch,) to outputs (batch, n_outputs)."""
        return self.forward_one_hot(*encode_batch(codes, lengths_bp))

    def forward_one_hot(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Map one-hot (batch, 4, length), mask (batch, 1, length) or None, to outputs (batch, n_outputs)."""
        for unit, pool in zip(self.units, self.pools, strict=True):
            x, mask = pool(unit(x, mask), mask)
        if not self.config.by_position:
            return self.predictor(self.dropout(torch.cat([masked_mean(x, mask, 2), self.highest(x, mask)], 1)))
        x, _ = self.last_pool(x, mask)
        x = nn.functional.pad(x[..., : self.n_places], (0, max(0, self.n_places - x.shape[2])))
        return self.predictor(self.dense(x.flatten(1)))


# Filters and kernel sizes, each followed by batch norm, ReLU and pooling by two; then two dense layers.
CONVOLUTIONS = ((256, 7), (60, 3), (60, 5), (120, 3))
DENSE, DROPOUT = 256, 0.4


@dataclass(frozen=True)
class DeepSTARRConfig:
    """Sequences are padded, or cut at the right end, to `length_bp`."""

    length_bp: int
    n_outputs: int

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return asdict(self)


class DeepSTARR(nn.Module):
    """Four convolutions, two dense layers, one linear output, in the labels' own units."""

    config_type = DeepSTARRConfig

    def __init__(self, config: DeepSTARRConfig) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = []
        width, length = 4, config.length_bp
        for filters, kernel in CONVOLUTIONS:
            layers += [nn.Conv1d(width, filters, kernel, padding="same"), nn.BatchNorm1d(filters), nn.ReLU()]
            layers.append(nn.MaxPool1d(2, ceil_mode=True))
            width, length = filters, math.ceil(length / 2)
        layers.append(nn.Flatten())
        width *= length
        for _ in range(2):
            layers += [nn.Linear(width, DENSE), nn.BatchNorm1d(DENSE), nn.ReLU(), nn.Dropout(DROPOUT)]
            width = DENSE
        self.layers = nn.Sequential(*layers)
        self.predictor = Predictor(DENSE, config.n_outputs)

    def forward(self, codes: torch.Tensor, lengths_bp: torch.Tensor) -> torch.Tensor:
        """Map codes (batch, length) uint8 and lengths (batch,) to outputs (batch, n_outputs)."""
        wanted = self.config.length_bp
        codes = nn.functional.pad(codes[:, :wanted], (0, max(0, wanted - codes.shape[1])), value=N_CODE)
        return self.predictor(self.layers(one_hot(codes, torch.ones_like(codes, dtype=torch.bool))))


# Sequences longer than this, and tasks of more outputs, do without gapped words of more than `FEW_LETTERS` letters: the rows
# that fit into memory, or the weights of all outputs, would be too few or too many.
LONG_BP, MANY_OUTPUTS, FEW_LETTERS = 2000, 20, 6


@dataclass(frozen=True)
class BaselineConfig:
    """`form`: constant, linear or boosting. `features`: a name of `FEATURES`.

    `length_bp` is the longest sequence; one-hot and positional features end there, longer sequences are cut. `k`: the word
    length of kmer and tfidf. `canonical`: both strands are the same example.
    """

    form: str
    features: str
    n_outputs: int
    length_bp: int
    k: int = 6
    canonical: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return asdict(self)


@dataclass(frozen=True)
class Weighting:
    """How counts become features: TF-IDF, then unit length of each row, or of each pattern's part of it.

    `sublinear`: 1 + log(count) instead of the count. Words in fewer than `least_rows` training rows are left out (0: none is).
    """

    sublinear: bool
    least_rows: int


@dataclass(frozen=True)
class FeatureKind:
    """What is counted, as blocks of columns, and how it is weighted (None: raw)."""

    count: Callable[[BaselineConfig, np.ndarray], list[Any]]
    widths: Callable[[BaselineConfig], list[int]]
    weighting: Weighting | None = None


def find_patterns(config: BaselineConfig) -> tuple[Pattern, ...]:
    """Return the k-mer patterns of a config's features."""
    if config.features == "short":
        return SHORT
    if config.features == "gapped":
        small = config.length_bp > LONG_BP or config.n_outputs > MANY_OUTPUTS
        return tuple(p for p in GAPPED if len(p.offsets) <= FEW_LETTERS) if small else GAPPED
    return (Pattern(tuple(range(config.k))),)


def _count_words(config: BaselineConfig, codes: np.ndarray) -> list[Any]:
    return count_kmers(codes, find_patterns(config), config.canonical)


def _word_widths(config: BaselineConfig) -> list[int]:
    return [pattern.count_features(config.canonical) for pattern in find_patterns(config)]


def _find_places(config: BaselineConfig, codes: np.ndarray) -> list[Any]:
    return [Places(config.length_bp).find(codes[:, : config.length_bp])]


def _one_hot(config: BaselineConfig, codes: np.ndarray) -> list[Any]:
    wanted = config.length_bp
    padded = np.full((len(codes), wanted), N_CODE, np.uint8)
    padded[:, : codes.shape[1]] = codes[:, :wanted]
    letters = torch.from_numpy(padded)
    flat = one_hot(letters, torch.ones_like(letters, dtype=torch.bool)).flatten(1)
    return [scipy.sparse.csr_matrix(flat.numpy())]


FEATURES: dict[str, FeatureKind] = {
    "none": FeatureKind(lambda c, codes: [scipy.sparse.csr_matrix((len(codes), 0), dtype=np.float32)], lambda c: [0]),
    "one_hot": FeatureKind(_one_hot, lambda c: [4 * c.length_bp]),
    "kmer": FeatureKind(_count_words, _word_widths),
    "short": FeatureKind(_count_words, _word_widths),
    "tfidf": FeatureKind(_count_words, _word_widths, Weighting(sublinear=False, least_rows=0)),
    "gapped": FeatureKind(_count_words, _word_widths, Weighting(sublinear=True, least_rows=2)),
    "places": FeatureKind(
        _find_places, lambda c: [Places(c.length_bp).n_features], Weighting(sublinear=False, least_rows=2)
    ),
}


class Features(nn.Module):
    """Codes (batch, length) to a CSR matrix (batch, n_features) float32."""

    idf: torch.Tensor
    columns: torch.Tensor

    def __init__(self, config: BaselineConfig, n_columns: int | None = None) -> None:
        """`n_columns` says how many columns fitted features have kept, where they choose any."""
        super().__init__()
        self.config = config
        self.kind = FEATURES[config.features]
        self.widths = self.kind.widths(config)
        weighting = self.kind.weighting
        self.n_features = sum(self.widths)
        if weighting is not None and weighting.least_rows:
            self.n_features = self.n_features if n_columns is None else n_columns
            self.register_buffer("columns", torch.arange(self.n_features))
        if weighting is not None:
            self.register_buffer("idf", torch.ones(self.n_features))

    def count_entries(self) -> int:
        """Return an upper bound of the entries of one row of the longest sequences."""
        config = self.config
        if self.kind.count is _count_words:
            strands = 2 if config.canonical else 1
            return sum(min(w, strands * config.length_bp) for w in self.widths)
        return min(sum(self.widths), config.length_bp * sum(2 * reach + 1 for reach in POSITIONAL.values()))

    def count(self, codes: torch.Tensor) -> list[Any]:
        """Raw blocks of all columns: a CSR matrix (batch, width) for each of `widths`."""
        return self.kind.count(self.config, codes.cpu().numpy())

    def fit(self, blocks: list[Any]) -> None:
        """Choose columns and weights (smooth inverse document frequencies, as scikit-learn's) from training rows."""
        weighting = self.kind.weighting
        if weighting is None:
            return
        n_rows = blocks[0].shape[0]
        rows_with = np.concatenate([np.bincount(b.indices, minlength=b.shape[1]) for b in blocks])
        kept = np.flatnonzero(rows_with >= weighting.least_rows)
        self.idf = torch.from_numpy((np.log((1 + n_rows) / (1 + rows_with[kept])) + 1).astype(np.float32))
        if weighting.least_rows:
            self.columns = torch.from_numpy(kept)
        self.n_features = len(kept)

    def weigh(self, blocks: list[Any]) -> Any:
        """Return the features (n, n_features) of raw blocks, which are changed on the way."""
        weighting = self.kind.weighting
        if weighting is None:
            return scipy.sparse.hstack(blocks, format="csr", dtype=np.float32) if len(blocks) > 1 else blocks[0]
        idf, done, first, start = self.idf.cpu().numpy(), [], 0, 0
        kept = self.columns.cpu().numpy() if weighting.least_rows else None
        while blocks:  # one after the other, so that no more than one is there twice
            block = blocks.pop(0)
            width = block.shape[1]
            if kept is not None:
                stop = first + int(np.searchsorted(kept[first:], start + width))
                block = block[:, kept[first:stop] - start]
            else:
                stop = first + width
            if weighting.sublinear:
                block.data = 1 + np.log(block.data)
            block.data *= idf[first:stop][block.indices]
            lengths = np.sqrt(np.asarray(block.multiply(block).sum(1))).ravel() * math.sqrt(len(self.widths))
            block.data /= np.repeat(np.where(lengths > 0, lengths, 1), np.diff(block.indptr)).astype(np.float32)
            done.append(block)
            first, start = stop, start + width
        return scipy.sparse.hstack(done, format="csr", dtype=np.float32) if len(done) > 1 else done[0]

    def forward(self, codes: torch.Tensor, counts: list[Any] | None = None) -> Any:
        """See the class. `counts`: what `count` gives for these codes, where it is known; it is left as it is."""
        return self.weigh(self.count(codes) if counts is None else [block.copy() for block in counts])


class Baseline(nn.Module):
    """Features, then a linear map or boosted trees, to logits (batch, n_outputs), or values for regression."""

    weight: torch.Tensor
    bias: torch.Tensor
    boosters: torch.Tensor

    def __init__(self, config: BaselineConfig, booster_bytes: int = 0, n_columns: int | None = None) -> None:
        """Sizes that only a fit knows: bytes of the trees' text, columns that the features have kept."""
        super().__init__()
        self.config = config
        self.features = Features(config, n_columns)
        if config.form == "boosting":
            self.register_buffer("boosters", torch.zeros(booster_bytes, dtype=torch.uint8))
            self._loaded: list[Any] | None = None
        else:
            self.register_buffer("weight", torch.zeros(config.n_outputs, self.features.n_features))
            self.register_buffer("bias", torch.zeros(config.n_outputs))

    def forward(self, codes: torch.Tensor, lengths_bp: torch.Tensor, counts: list[Any] | None = None) -> torch.Tensor:
        """Map codes (batch, length) uint8 and lengths (batch,) to outputs (batch, n_outputs). `counts`: see
        `Features`.
        """
        features = self.features(codes, counts)
        if self.config.form == "boosting":
            return self._boost(features).to(codes.device)
        outputs = features @ self.weight.cpu().numpy().T
        return torch.from_numpy(np.asarray(outputs, np.float32)).to(codes.device) + self.bias

    def set_boosters(self, texts: list[str]) -> None:
        """Keep LightGBM's own text form of the trees: one model for all classes, or one an output."""
        joined = "\0".join(texts).encode()
        self.boosters = torch.frombuffer(bytearray(joined), dtype=torch.uint8)
        self._loaded = None

    def _boost(self, rows: Any) -> torch.Tensor:
        import lightgbm

        if self._loaded is None:
            texts = self.boosters.cpu().numpy().tobytes().decode().split("\0")
            self._loaded = [lightgbm.Booster(model_str=text) for text in texts]
        raw = [np.asarray(b.predict(rows, raw_score=True)).reshape(rows.shape[0], -1) for b in self._loaded]
        scores = np.concatenate(raw, 1)
        if scores.shape[1] == 1 and self.config.n_outputs == 2:  # LightGBM's binary: the log-odds of class 1
            scores = np.concatenate([np.zeros_like(scores), scores], 1)
        return torch.from_numpy(scores.astype(np.float32))
