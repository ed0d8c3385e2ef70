"""What a plan adds up: amounts of stages and tasks, costs of a model layer by layer, and the table of devices."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import lru_cache
from importlib import resources

import yaml

from l2g_ray.errors import UserError, nearest
from l2g_ray.plan.rows import Rows


@dataclass(frozen=True)
class Amount:
    """What a stage takes, over all its trials. `tokens` go through the language model, forward or forward and
    backward. `memory_bytes` is of one trial; `disk_bytes` stays, `scratch_bytes` is gone when the stage ends. `start_s` is
    what trials take to start and end: processes, imports, Tune, Train."""

    trials: int = 0
    epochs: float = 0.0
    steps: float = 0.0
    tokens: float = 0.0
    flops: float = 0.0
    memory_bytes: float = 0.0
    disk_bytes: float = 0.0
    scratch_bytes: float = 0.0
    start_s: float = 0.0


@dataclass(frozen=True)
class StagePlan:
    """One stage: what is expected, and what it can be at most."""

    stage: str
    expected: Amount
    most: Amount


@dataclass(frozen=True)
class TaskPlan:
    """One task. `prepared_bytes`: its shards. `output_bytes`: models and predictions in the run's folder and in MLflow."""

    task: str
    rows: Rows
    precision: str
    stages: tuple[StagePlan, ...]
    prepared_bytes: float
    output_bytes: float

    def total(self, which: str = "most") -> Amount:
        """Return sums over stages; memory and scratch are the largest of any stage."""
        return add_amounts(getattr(stage, which) for stage in self.stages)

    @property
    def disk_bytes(self) -> float:
        """All that the task needs on disk at the worst moment."""
        total = self.total()
        return self.prepared_bytes + self.output_bytes + total.disk_bytes + total.scratch_bytes


@dataclass(frozen=True)
class Found:
    """What a finished run has found: its backbone and architecture replace the candidates."""

    backbone: str
    architecture: tuple[tuple[int, int], ...]


def add_amounts(amounts: Iterable[Amount]) -> Amount:
    """Return sums; of memory and scratch the largest."""
    every = list(amounts)
    largest = {"memory_bytes", "scratch_bytes"}
    return Amount(
        **{
            f.name: (max if f.name in largest else sum)([getattr(a, f.name) for a in every] or [0])
            for f in fields(Amount)
        }
    )


@dataclass(frozen=True)
class Machine:
    """One device. `peak_flops`: precision ('fp32', 'bf16') to dense FLOP/s; `memory_bytes` is None for a CPU, whose
    memory is the machine's and not known here. `source` says where the numbers are from."""

    name: str
    peak_flops: dict[str, float]
    memory_bytes: int | None
    source: str

    @property
    def is_gpu(self) -> bool:
        """Whether it is a GPU; otherwise it is one core of a CPU."""
        return self.memory_bytes is not None

    def hours(self, flops: float, precision: str, utilisation: float) -> float:
        """Return the hours of this device for `flops` operations, at a share of its peak."""
        return flops / (self.peak_flops[precision] * utilisation) / 3600


@dataclass(frozen=True)
class Known:
    """What machines.yaml holds. `start_up`: seconds of a trial by how it is run; `language_models`: their configs."""

    utilisation: float
    context_bytes: int
    start_up: dict[str, float]
    machines: dict[str, Machine]
    language_models: dict[str, dict[str, float | str]]


@lru_cache(maxsize=1)
def read_known() -> Known:
    """Read machines.yaml."""
    raw = yaml.safe_load((resources.files("l2g_ray") / "plan" / "machines.yaml").read_text())
    machines = {
        name: Machine(name, {kind: float(one.pop(kind)) for kind in ("fp32", "bf16")}, **one)
        for name, one in raw.pop("machines").items()
    }
    return Known(machines=machines, **raw)


def find_machine(name: str) -> Machine:
    """Return a machine by its name, in any case. Raises UserError for an unknown one; the nearest is named."""
    known = read_known().machines
    found = next((key for key in known if key.lower() == name.strip().lower()), None)
    if found is None:
        lowered = {key.lower(): key for key in known}
        hint = nearest(name.lower(), lowered)
        for low, key in lowered.items():
            hint = hint.replace(f"'{low}'", f"'{key}'")
        raise UserError(f"machine '{name}': not in the table of machines; {hint}")
    return known[found]


FLOAT_BYTES = 4  # of a weight: they are float32, also under autocast
_INDEX_BYTES = 8


@dataclass(frozen=True)
class Counted:
    """Costs of a model.

    forward_flops, train_flops : a row forward, and forward + backward. saved_bytes : a row's tensors that the forward
    pass keeps for the backward one. fixed_flops, fixed_bytes : of a training batch whatever its rows (a mixed
    convolution aggregates its kernels once). parameters, trainable : numbers of weights.
    """

    forward_flops: float
    train_flops: float
    saved_bytes: float
    fixed_flops: float
    fixed_bytes: float
    parameters: int
    trainable: int

    def __add__(self, other: Counted) -> Counted:
        return Counted(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(Counted)})

    @property
    def model_bytes(self) -> int:
        """Size of the weights."""
        return self.parameters * FLOAT_BYTES

    def optimizer_bytes(self, optimizer: str, momentum: float = 0.0) -> int:
        """Size of the optimiser's states: two moments for Adam and AdamW, one for SGD with momentum, else none."""
        return self.trainable * FLOAT_BYTES * ((1 if momentum else 0) if optimizer == "sgd" else 2)

    def training_bytes(self, rows: float, optimizer: str, momentum: float = 0.0) -> int:
        """Peak memory of training on `rows` rows at once:

            weights + gradients + optimiser states + rows * saved_bytes + fixed_bytes

        Left out: passing temporaries of a single operation, the fragments of the allocator, and (on a GPU) the CUDA
        context, which `machines.yaml` has.
        """
        held = self.model_bytes + self.trainable * FLOAT_BYTES + self.optimizer_bytes(optimizer, momentum)
        return int(held + rows * self.saved_bytes + self.fixed_bytes)


@dataclass(eq=False)
class Shape:
    """A tensor of one row: channels x length. `is_input`: the sequence itself, into which no gradient flows back."""

    channels: int
    length: int
    is_input: bool = False


class Tally:
    """Adds up layers. A tensor that two layers keep for the backward pass is counted once; `width` bytes an element."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.forward = self.train = self.saved = self.fixed_flops = self.fixed_bytes = 0.0
        self.parameters = 0
        self._kept: set[int] = set()
        self._alive: list[Shape] = []  # so that ids are not used again

    def counted(self) -> Counted:
        """Return the sums; all weights train."""
        return Counted(
            self.forward,
            self.train,
            self.saved,
            self.fixed_flops,
            self.fixed_bytes,
            self.parameters,
            self.parameters,
        )

    def save(self, x: Shape, width: int | None = None) -> Shape:
        """Keep a tensor for the backward pass."""
        if id(x) not in self._kept:
            self._kept.add(id(x))
            self._alive.append(x)
            self.saved += x.channels * x.length * (width or self.width)
        return x

    def add_flops(self, flops: float, passes: int = 3) -> None:
        """Add a product: forward, and the gradients of its input and of its weights."""
        self.forward += flops
        self.train += passes * flops

    def convolve(
        self, x: Shape, out: int, kernel: int, length: int, *, own_weights: bool = True, backward: bool = True
    ) -> Shape:
        """Return a convolution with bias; the input is kept for the gradient of the weights. `own_weights` false:
        they are counted elsewhere. `backward` false: nothing flows back through it.
        """
        weights = out * x.channels * kernel
        self.add_flops(2.0 * weights * length, (2 if x.is_input else 3) if backward else 1)
        self.save(x)
        if own_weights:
            self.parameters += weights + out
        if self.width != FLOAT_BYTES:
            self.fixed_bytes += weights * self.width  # autocast's copy
        return Shape(out, length)

    def linear(self, x: Shape, out: int) -> Shape:
        """Return a linear map of a row."""
        return self.convolve(x, out, 1, x.length)

    def activate(self, x: Shape) -> Shape:
        """Return a ReLU keeps its result."""
        return self.save(Shape(x.channels, x.length))

    def drop(self, x: Shape, p: float) -> Shape:
        """Dropout keeps what it multiplies with."""
        if not p:
            return x
        self.save(Shape(x.channels, x.length))
        return Shape(x.channels, x.length)

    def normalise(self, x: Shape, masked: bool) -> Shape:
        """Return a batch norm; the one that leaves padding out keeps three tensors, in float32."""
        self.parameters += 2 * x.channels
        if masked:
            for _ in range(3):
                self.save(Shape(x.channels, x.length), FLOAT_BYTES)
            self.fixed_bytes += x.channels * FLOAT_BYTES
        else:
            self.save(x)
            self.fixed_bytes += 2 * x.channels * FLOAT_BYTES
        return Shape(x.channels, x.length)

    def normalise_rows(self, x: Shape) -> Shape:
        """Return a LayerNorm keeps its input, and mean and deviation of each position."""
        self.parameters += 2 * x.channels
        self.save(x)
        self.saved += 2 * x.length * FLOAT_BYTES
        return Shape(x.channels, x.length)

    def pool(self, x: Shape, size: int, masked: bool) -> Shape:
        """Max pooling keeps its input and the places of the largest."""
        self.save(Shape(x.channels, x.length) if masked else x)
        pooled = Shape(x.channels, -(-x.length // size))
        self.saved += pooled.channels * pooled.length * _INDEX_BYTES
        return Shape(pooled.channels, pooled.length) if masked else pooled

    def reach_highest(self, x: Shape) -> Shape:
        """Return mean and max of each channel: the max keeps its input and its result."""
        self.save(x)
        self.save(Shape(x.channels, 1))
        return Shape(2 * x.channels, 1)
