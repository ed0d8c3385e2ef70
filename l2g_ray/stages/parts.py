"""Batches in parts: seeds and counts of the workers, and batches halved where memory does not suffice."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import nn

from l2g_ray.data.batches import Batch, Part, count_labels
from l2g_ray.models.team import Team


def seed_epoch(seed: int, epoch: int, team: Team) -> None:
    """Seed all generators for an epoch: torch's by worker, so that dropout differs; the team's alike on all workers."""
    value = seed * 1_000_003 + epoch
    torch.manual_seed(value + 0x9E3779B9 * team.rank)
    if team.generator is not None:
        team.generator.manual_seed(value)


@contextlib.contextmanager
def same_draws(device: torch.device) -> Iterator[None]:
    """Restore the generators of the CPU and of `device` afterwards: what is drawn within is drawn again."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


def join_counts(group: list[Batch], team: Team) -> list[Batch]:
    """Return the batches of a step with the rows and labels of all workers in their `part`; one process needs none."""
    if team.size == 1:
        return group
    own = torch.tensor([[batch.n_own, count_labels(batch.labels[: batch.n_own])] for batch in group])
    rows, labels = team.gather_numbers(own).unbind(2)  # (size, batches) each
    return [
        replace(batch, part=Part(batch.n_own, tuple(rows[:, i].tolist()), int(labels[:, i].sum())))
        for i, batch in enumerate(group)
    ]


@contextlib.contextmanager
def kept_buffers(model: nn.Module) -> Iterator[None]:
    """Within, forward passes may change buffers (batch norm's running statistics); after it they are as before."""
    before = copy_buffers(model)
    try:
        yield
    finally:
        restore_buffers(model, before)


def copy_buffers(model: nn.Module) -> list[torch.Tensor]:
    """Return the buffers' values."""
    return [buffer.clone() for buffer in model.buffers()]


@torch.no_grad()
def restore_buffers(model: nn.Module, values: list[torch.Tensor]) -> None:
    """Set the buffers to what `copy_buffers` gave."""
    for buffer, value in zip(model.buffers(), values, strict=True):
        buffer.copy_(value)


def release_memory() -> None:
    """Give back what the GPU's allocator keeps; nothing on a CPU."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


Found = TypeVar("Found")


class RowsAtOnce:
    """At most `size` rows at once, half of them from then on after each `torch.OutOfMemoryError`.

    For computations whose rows do not depend on each other, so that the result does not depend on the size.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def attempt(self, compute: Callable[[int], Found], at_most: int) -> Found:
        """`compute(size)` for the largest size up to `at_most` that fits. Raises OutOfMemoryError where 1 does not."""
        while True:
            size = min(self.size, at_most)
            try:
                return compute(size)
            except torch.OutOfMemoryError:
                if size < 2:
                    raise
            # Here, not in the handler: the exception's traceback keeps tensors alive.
            self.size = size // 2
            release_memory()

    def map(self, compute: Callable[..., torch.Tensor], *rows: torch.Tensor) -> torch.Tensor:
        """`compute(*rows)` of tensors (n, ...), n at least 1, some rows at a time; results joined along the rows."""
        parts: list[torch.Tensor] = []
        left: Sequence[torch.Tensor] = rows
        while len(left[0]):
            some = left
            parts.append(self.attempt(lambda size: compute(*(x[:size] for x in some)), len(some[0])))  # noqa: B023
            left = [x[len(parts[-1]) :] for x in some]
        return torch.cat(parts)
