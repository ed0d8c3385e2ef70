"""What one row costs an embedder, or the small CNN: operations, weights, bytes that training keeps, by formulas.

The network of `models/embedder.py` and `models/backbones.py` is walked through layer by layer with shapes only. No torch:
a plan is to start at once. `tests/test_plan_counts.py` compares the counts with those of the real modules.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from pkgutil import resolve_name

from l2g_ray.config import BACKBONES, OneCycleSettings, Settings
from l2g_ray.counts import CNN_DENSE, CNN_LAYERS, CNN_MOST_PLACES, choose_cnn_schedule, use_rc
from l2g_ray.plan.costs import FLOAT_BYTES, Counted, Shape, Tally
from l2g_ray.plan.rows import Rows
from l2g_ray.tasks.schema import Task

UNET_LEVELS = 5
DEEPSEA_DROPOUT = (0.2, 0.2, 0.5)
MEAN_MAX_DROPOUT = 0.1


@dataclass(frozen=True)
class NetShape:
    """What decides the sizes of an embedder: see `models.embedder.EmbedderConfig`."""

    backbone: str
    architecture: tuple[tuple[int, int], ...]
    channels: tuple[int, ...]
    length_bp: int
    width: int
    max_tokens: int
    n_outputs: int
    in_channels: int = 4
    target_tokens: int = 32
    full_tokens: bool = False
    pool: int = 1
    causal: bool = False
    dropout: float = 0.0
    predictor_reads: str = "tokens"
    pooling: str = "mean"

    @property
    def costs(self) -> type[Costs]:
        """The backbone's layers."""
        return resolve_name(BACKBONES[self.backbone].costs)  # type: ignore[no-any-return]

    def out_length(self, length_bp: int) -> int:
        """Feature positions of a sequence."""
        return self.costs.out_length(self, length_bp)

    @property
    def out_channels(self) -> int:
        """Features a position."""
        return self.costs.out_channels(self)

    @property
    def stride(self) -> int:
        """Feature positions a token."""
        target = self.max_tokens if self.full_tokens else min(self.target_tokens, self.max_tokens)
        return math.ceil(self.out_length(self.length_bp) / target)

    def n_tokens(self, length_bp: int) -> int:
        """Tokens of a sequence."""
        return max(1, -(-self.out_length(length_bp) // self.stride))


@dataclass(frozen=True)
class Mixture:
    """The operations that the search mixes in each layer; `separable` makes square layers depthwise."""

    kernel_sizes: tuple[int, ...]
    dilations: tuple[int, ...]
    separable: bool

    @property
    def field(self) -> int:
        """Positions that the widest operation sees."""
        return max(self.dilations) * (max(self.kernel_sizes) - 1) + 1


@lru_cache(maxsize=512)
def count_net(
    net: NetShape, length_bp: int, *, mixture: Mixture | None = None, masked: bool = False, precision: str = "fp32"
) -> Counted:
    """Costs of an embedder with Predictor 1 for rows of `length_bp`; with `mixture`, of the supernet of the search."""
    return net.costs(net, mixture, masked, precision).count(length_bp)


def count_predictor(net: NetShape, precision: str = "fp32") -> Counted:
    """Costs of Predictor 1 for a row of `net.length_bp`."""
    tally = Tally(2 if precision == "bf16" else FLOAT_BYTES)
    tokens, features = (net.width, net.n_tokens(net.length_bp)), (net.out_channels, net.out_length(net.length_bp))
    _read(tally, net, Shape(*(tokens if net.predictor_reads == "tokens" else features)))
    return tally.counted()


def _read(tally: Tally, net: NetShape, x: Shape) -> None:
    """Add a `models.embedder.Predictor` that reads x."""
    pooled = Shape(x.channels, 1)
    if net.pooling == "mean_max":
        pooled = tally.drop(tally.reach_highest(x), MEAN_MAX_DROPOUT)
    if net.costs.hidden and net.predictor_reads == "backbone":
        pooled = tally.activate(tally.linear(pooled, net.costs.hidden))
    tally.linear(pooled, net.n_outputs)
    if net.pooling == "by_position":
        places = net.n_tokens(net.length_bp)
        known = min(places, x.length)
        tally.add_flops(2.0 * known * x.channels * net.n_outputs)
        tally.parameters += places * net.n_outputs * x.channels
        tally.save(Shape(x.channels, known))


class Costs(ABC):
    """An embedder with Predictor 1, layer by layer. A subclass has a backbone's layers; `hidden`: its `predictor_width`."""

    hidden: int | None = None

    def __init__(self, net: NetShape, mixture: Mixture | None, masked: bool, precision: str) -> None:
        self.net, self.mixture, self.masked = net, mixture, masked
        self.tally = Tally(2 if precision == "bf16" else FLOAT_BYTES)
        self.pairs = iter(net.architecture)

    @staticmethod
    def out_length(net: NetShape, length_bp: int) -> int:
        """Feature positions for a sequence of `length_bp`."""
        return length_bp

    @staticmethod
    def out_channels(net: NetShape) -> int:
        """Return features a position."""
        return net.channels[-1]

    @abstractmethod
    def add_layers(self, x: Shape) -> Shape:
        """Add the backbone's layers to `tally`, from one-hot to features."""

    def count(self, length_bp: int) -> Counted:
        """Costs for rows of `length_bp`."""
        net = self.net
        features = self.add_layers(Shape(net.in_channels, length_bp, is_input=True))
        reads_tokens = net.predictor_reads == "tokens"
        tokens = features
        if net.stride > 1 or features.channels != net.width:
            n = -(-features.length // net.stride)
            padded = Shape(features.channels, n * net.stride, features.is_input)
            tokens = self.tally.convolve(padded, net.width, net.stride, n, backward=reads_tokens)
        tokens = self.tally.normalise_rows(tokens)
        _read(self.tally, net, tokens if reads_tokens else features)
        return self.tally.counted()

    def unit(self, x: Shape, out: int, dropout: float = 0.0) -> Shape:
        """Convolution, dropout, norm, ReLU, mask."""
        y = self.tally.normalise(self.tally.drop(self.convolve(x, out), dropout), self.masked)
        y = self.tally.activate(y)
        return Shape(out, y.length) if self.masked else y

    def convolve(self, x: Shape, out: int) -> Shape:
        """Return a convolution with the next pair of the architecture, or with all that the search mixes."""
        kernel, dilation = next(self.pairs) if self.mixture is None else (1, 1)
        if self.mixture is not None:
            return self._mix(x, out, self.mixture)
        span = dilation * (kernel - 1)
        left = span if self.net.causal else (kernel // 2) * dilation
        padded = x if 2 * left == span else Shape(x.channels, x.length + span, x.is_input)
        return self.tally.convolve(padded, out, kernel, x.length)

    def _mix(self, x: Shape, out: int, mixture: Mixture) -> Shape:
        depthwise = mixture.separable and x.channels == out
        per_output = 1 if depthwise else x.channels
        k_max, n_dilations = max(mixture.kernel_sizes), len(mixture.dilations)
        one = n_dilations * k_max * out * per_output  # a kernel a dilation
        weights = one * len(mixture.kernel_sizes)
        tally = self.tally
        tally.fixed_flops += 3 * 2.0 * weights
        tally.parameters += weights + len(mixture.kernel_sizes) * n_dilations + out
        if depthwise and out > 1:
            size = x.length + mixture.field - 1
            each = 2.5 * size * math.log2(size)
            tally.forward += x.channels * each + out * each + 6.0 * x.channels * (size // 2 + 1)
            tally.train += 3 * (x.channels * each + out * each + 6.0 * x.channels * (size // 2 + 1))
            tally.fixed_flops += 3 * out * each + 2 * 2.0 * one * mixture.field
            # Complex spectra of the signal, the response, and what their product keeps of both.
            tally.saved += 2 * x.channels * (size // 2 + 1) * 2 * FLOAT_BYTES
            tally.fixed_bytes += 2 * out * (size // 2 + 1) * 2 * FLOAT_BYTES + one * FLOAT_BYTES
            return Shape(out, x.length)
        if tally.width == FLOAT_BYTES:  # else autocast's copies of them, below
            tally.fixed_bytes += one * FLOAT_BYTES
        for dilation in mixture.dilations:
            span = dilation * (k_max - 1)
            padded = Shape(x.channels, x.length + span, x.is_input) if self.net.causal else x
            tally.convolve(padded, out, k_max, x.length, own_weights=False)
        return Shape(out, x.length)


class ResNetCosts(Costs):
    """Of `models.backbones.ResNet`."""

    @staticmethod
    def out_length(net: NetShape, length_bp: int) -> int:
        """Feature positions, after both poolings."""
        return math.ceil(math.ceil(length_bp / net.pool) / net.pool)

    def add_layers(self, x: Shape) -> Shape:
        """Three blocks of three units and a shortcut."""
        for block, out in enumerate(self.net.channels):
            begun = x
            if x.channels != out:
                self.tally.normalise(self.tally.convolve(x, out, 1, x.length), self.masked)
            for _ in range(3):
                x = self.unit(x, out, self.net.dropout)
            x = Shape(out, begun.length)
            if block < 2 and self.net.pool > 1:
                x = self.tally.pool(x, self.net.pool, self.masked)
        return x


class UNetCosts(Costs):
    """Of `models.backbones.UNet`."""

    @staticmethod
    def out_channels(net: NetShape) -> int:
        """Return features a position: those of the first level."""
        return net.channels[0]

    def add_layers(self, x: Shape) -> Shape:
        """Five encoder and four decoder levels of two units."""
        channels, skips = self.net.channels, []
        for level in range(UNET_LEVELS):
            x = self.tally.pool(x, 2, self.masked) if level else x
            x = self.unit(self.unit(x, channels[level]), channels[level])
            skips.append(x)
        skips.pop()
        for out in (channels[3] // 2, channels[2] // 2, channels[1] // 2, channels[0]):
            skip = skips.pop()
            x = Shape(skip.channels + x.channels, skip.length)
            x = self.unit(self.unit(x, out), out)
        return x


class DeepSEACosts(Costs):
    """Of `models.backbones.DeepSEA`."""

    hidden = 925

    @staticmethod
    def out_length(net: NetShape, length_bp: int) -> int:
        """Feature positions, after both poolings by four."""
        return math.ceil(math.ceil(length_bp / 4) / 4)

    def add_layers(self, x: Shape) -> Shape:
        """Three convolutions, poolings between them."""
        for layer, out in enumerate(self.net.channels):
            x = self.tally.activate(self.convolve(x, out))
            x = Shape(out, x.length) if self.masked else x
            x = self.tally.pool(x, 4, self.masked) if layer < 2 else x
            x = self.tally.drop(x, DEEPSEA_DROPOUT[layer])
        return x


class OrcaCosts(Costs):
    """Of `models.backbones.Orca`."""

    @staticmethod
    def out_channels(net: NetShape) -> int:
        """Return features a position: those of the input."""
        return net.in_channels

    def add_layers(self, x: Shape) -> Shape:
        """None."""
        return x


def count_arm(settings: Settings, task: Task, rows: Rows, precision: str) -> tuple[OneCycleSettings, Counted]:
    """Return the schedule and the costs of the arm `cnn`."""
    by_position = not use_rc(settings, task)
    return choose_cnn_schedule(settings, by_position), count_cnn(
        rows.length_bp,
        rows.max_bp,
        task.n_outputs,
        by_position=by_position,
        masked=rows.is_padded,
        precision=precision,
    )


def count_cnn(
    length_bp: int, longest_bp: int, n_outputs: int, *, by_position: bool, masked: bool = False, precision: str = "fp32"
) -> Counted:
    """Costs of `models.baselines.SmallCNN` for rows of `length_bp`, built for sequences of up to `longest_bp`."""
    tally = Tally(2 if precision == "bf16" else FLOAT_BYTES)
    x, places = Shape(4, length_bp, is_input=True), longest_bp
    for filters, kernel, size in CNN_LAYERS[by_position]:
        x = tally.normalise(tally.convolve(x, filters, kernel, x.length), masked)
        x = tally.activate(x)
        x = Shape(filters, x.length) if masked else x
        places = math.ceil(places / size)
        x = tally.pool(x, size, masked) if size > 1 else x
    if not by_position:
        tally.linear(tally.drop(tally.reach_highest(x), 1.0), n_outputs)
        return tally.counted()
    size = math.ceil(places / CNN_MOST_PLACES)
    x = tally.pool(x, size, masked) if size > 1 else x
    flat = Shape(x.channels * math.ceil(places / size), 1)
    hidden = tally.linear(tally.drop(tally.normalise(flat, False), 1.0), CNN_DENSE)
    tally.linear(tally.drop(tally.activate(hidden), 1.0), n_outputs)
    return tally.counted()
