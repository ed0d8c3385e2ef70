"""Processes that train one model together, each on its rows of every batch, so that the numbers are those of one process.

The convention everywhere: a worker's loss is its share of the whole batch's loss, so shares add up (they are not
averaged), and a gradient that crosses workers is the sum over all workers' shares. Only `torch.distributed` is used; who
starts the processes does not matter.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import distributed, nn

# Gradients travel in flat pieces of so many bytes, all under way at once.
BUCKET_BYTES = 25 * 2**20
Shared = TypeVar("Shared")


class _SumOverWorkers(torch.autograd.Function):
    """All-reduce whose gradient is the all-reduced gradient: y is the same on all workers, and all their losses use it."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        total = x.detach().clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total


@dataclass(frozen=True)
class Team:
    """This process's place among `size` workers. All methods but `is_first` must be called by all workers alike."""

    rank: int = 0
    size: int = 1

    @classmethod
    def joined(cls) -> Team:
        """The team of the process group that this process is in; alone where there is none."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        return cls(distributed.get_rank(), distributed.get_world_size())

    @property
    def is_first(self) -> bool:
        """Whether this worker writes the files of all."""
        return self.rank == 0

    @property
    def worker(self) -> tuple[int, int]:
        """(rank, size), as `data.batches` takes it."""
        return self.rank, self.size

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        """Sum of x over the workers, of the same shape on each; carries gradients."""
        return x if self.size == 1 else _SumOverWorkers.apply(x)  # type: ignore[no-untyped-call]

    def sum_number(self, value: float, device: str = "cpu") -> float:
        """Sum of a number over the workers, in float64."""
        if self.size == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64, device=device)
        distributed.all_reduce(total)
        return float(total)

    def stack(self, x: torch.Tensor) -> torch.Tensor:
        """x (...) of all workers as (size, ...), in the order of ranks; carries gradients."""
        if self.size == 1:
            return x[None]
        place = torch.zeros(self.size, dtype=x.dtype, device=x.device)
        place[self.rank] = 1
        return self.sum(place.view(-1, *[1] * x.ndim) * x[None])

    def gather_rows(self, x: torch.Tensor, start: int, n_rows: int) -> torch.Tensor:
        """The whole (n_rows, D) of which this worker has the rows x (n, D) from `start`; carries gradients."""
        if self.size == 1:
            return x
        before, after = x.new_zeros(start, *x.shape[1:]), x.new_zeros(n_rows - start - len(x), *x.shape[1:])
        return self.sum(torch.cat([before, x, after]))

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its sum over the workers; parameters without one are left alone."""
        if self.size == 1:
            return
        under_way = []
        for bucket in _buckets([p.grad for p in parameters if p.grad is not None]):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            under_way.append((bucket, flat, distributed.all_reduce(flat, async_op=True)))
        for bucket, flat, handle in under_way:
            assert handle is not None
            handle.wait()
            for gradient, piece in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(piece.view_as(gradient))

    def copy_from_first(self, model: nn.Module) -> None:
        """Give all workers the first one's parameters and buffers."""
        if self.size > 1:
            for tensor in model.state_dict().values():
                distributed.broadcast(tensor, 0)

    def share(self, value: Shared) -> Shared:
        """The first worker's value, on all workers."""
        if self.size == 1:
            return value
        box = [value if self.is_first else None]
        distributed.broadcast_object_list(box, 0)
        return box[0]  # type: ignore[return-value]

    def wait(self) -> None:
        """Until all workers are here."""
        if self.size > 1:
            distributed.barrier()


ALONE = Team()


def _buckets(tensors: list[torch.Tensor]) -> list[list[torch.Tensor]]:
    """The tensors in order, in lists of one type and of about `BUCKET_BYTES`."""
    buckets: list[list[torch.Tensor]] = []
    size = 0
    for tensor in tensors:
        n_bytes = tensor.numel() * tensor.element_size()
        if not buckets or size + n_bytes > BUCKET_BYTES or buckets[-1][0].dtype != tensor.dtype:
            buckets.append([])
            size = 0
        buckets[-1].append(tensor)
        size += n_bytes
    return buckets
