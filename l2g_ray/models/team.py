"""Processes that train one model together by DistributedDataParallel. Only torch is used; who starts them does not matter.

The convention everywhere: the mean of the workers' losses is the loss of the whole batch, as DistributedDataParallel
averages gradients. A gradient that crosses workers is the sum over all workers' losses.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed, nn
from torch.distributed.nn import functional
from torch.nn.parallel import DistributedDataParallel

# Workers that wait for the first one may do so for long: it may wait for another suite that makes the same result. One
# that died is noticed at once, by its broken connection and by Ray.
COLLECTIVE_TIMEOUT = timedelta(hours=24)
# torch 2.13 renamed the option. Buffers are alike without it: batch norm takes its statistics over all workers.
_SYNC_BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(DistributedDataParallel.__init__).parameters
)
Shared = TypeVar("Shared")


@dataclass(frozen=True)
class Team:
    """This process's place among `size` workers. All methods must be called by all workers alike.

    Parameters
    ----------
    prepare : wraps a model for training, with the options of DistributedDataParallel.
    generator : seeded alike on all workers, for draws that belong to the whole batch; None: torch's global one.
    host : the process group for numbers and objects of the host; None: the default group.
    """

    rank: int = 0
    size: int = 1
    prepare: Callable[..., nn.Module] = DistributedDataParallel
    generator: torch.Generator | None = None
    host: Any = None

    @classmethod
    def joined(cls, prepare: Callable[..., nn.Module] = DistributedDataParallel) -> Team:
        """Return the team of the process group that this process is in; `ALONE` where there is none, or no other."""
        if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
            return ALONE
        # torch 2.13 deprecates these two in favour of a private module.
        warnings.filterwarnings("ignore", r"torch\.distributed\.nn\.functional\.all_", FutureWarning)
        # By NCCL, numbers of the host would wait for the GPU.
        host = None
        if distributed.get_backend() != "gloo":
            host = distributed.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT)
        return cls(distributed.get_rank(), distributed.get_world_size(), prepare, torch.Generator(), host)

    @property
    def is_first(self) -> bool:
        """Whether this worker writes the files of all."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model to train with: all workers get the first one's parameters, and its backward pass averages
        gradients. A model whose `leaves_unused` is true may leave parameters out of a step."""
        if self.size == 1:
            return model
        for module in model.modules():
            if hasattr(type(module), "team"):
                module.team = self  # type: ignore[assignment]
        unused = bool(getattr(model, "leaves_unused", False))
        # Without devices: inputs that belong on the host, such as lengths, stay there.
        return self.prepare(
            model, device_ids=None, output_device=None, find_unused_parameters=unused, **{_SYNC_BUFFERS: False}
        )

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """Sum of x over the workers, of the same shape on each; carries gradients."""
        return x if self.size == 1 else functional.all_reduce(x)

    def stack(self, x: torch.Tensor) -> torch.Tensor:
        """x (...) of all workers as (size, ...), in the order of ranks; carries gradients.

        By one all-reduce: the gradient of gloo's all-gather takes a collective a worker.
        """
        place = torch.zeros(self.size, dtype=x.dtype, device=x.device)
        place[self.rank] = 1
        return self.sum(place.view(-1, *[1] * x.ndim) * x[None])

    def gather_rows(self, x: torch.Tensor, by_worker: Sequence[int]) -> torch.Tensor:
        """Return rows (sum of `by_worker`, ...) of all workers, of which this one has x (by_worker[rank], ...);
        carries gradients.
        """
        if self.size == 1:
            return x
        padded = torch.cat([x, x.new_zeros(max(by_worker) - len(x), *x.shape[1:])])
        return torch.cat([rows[:n] for rows, n in zip(functional.all_gather(padded), by_worker, strict=True)])

    def gather_numbers(self, x: torch.Tensor) -> torch.Tensor:
        """x (...) on the CPU of all workers as (size, ...)."""
        found = [torch.empty_like(x) for _ in range(self.size)]
        distributed.all_gather(found, x, group=self.host)
        return torch.stack(found)

    def gather(self, value: Shared) -> list[Shared]:
        """Return the objects of all workers, in the order of ranks."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, value, group=self.host)
        return found

    def sum_number(self, value: float) -> float:
        """Sum of a number over the workers, in float64."""
        return value if self.size == 1 else float(self.gather_numbers(torch.tensor(value, dtype=torch.float64)).sum())

    def share(self, value: Shared) -> Shared:
        """Return the first worker's value, on all workers."""
        if self.size == 1:
            return value
        box = [value if self.is_first else None]
        distributed.broadcast_object_list(box, 0, group=self.host)
        return box[0]  # type: ignore[return-value]

    def wait(self) -> None:
        """Wait until all workers are here."""
        if self.size > 1:
            distributed.barrier(group=self.host)


ALONE = Team()
