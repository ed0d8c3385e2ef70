"""Batches in parts: random draws of a part that equal those of the whole, and batches halved where memory does not suffice."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from l2g_ray.data.batches import Batch, Part
from l2g_ray.models.layers import draw_kept, drop
from l2g_ray.models.team import Team


def seed_epoch(seed: int, epoch: int, team: Team) -> None:
    """Seed all generators for an epoch: the CPU's alike on all workers, a GPU's by worker."""
    value = seed * 1_000_003 + epoch
    torch.manual_seed(value)
    if team.rank and torch.cuda.is_available():
        torch.cuda.manual_seed(value + 0x9E3779B9 * team.rank)


@contextlib.contextmanager
def kept_buffers(model: nn.Module) -> Iterator[None]:
    """Within, forward passes may change buffers (batch norm's running statistics); after it they are as before."""
    before = copy_buffers(model)
    try:
        yield
    finally:
        restore_buffers(model, before)


def copy_buffers(model: nn.Module) -> list[torch.Tensor]:
    """The buffers' values."""
    return [buffer.clone() for buffer in model.buffers()]


@torch.no_grad()
def restore_buffers(model: nn.Module, values: list[torch.Tensor]) -> None:
    """Set the buffers to what `copy_buffers` gave."""
    for buffer, value in zip(model.buffers(), values, strict=True):
        buffer.copy_(value)


class Draws:
    """The random draws of one group of batches."""

    def __init__(self) -> None:
        self._start: torch.Tensor | None = None

    @contextlib.contextmanager
    def of(self, batch: Batch) -> Iterator[None]:
        """Around the forward pass of a batch, or of a part of one; micro-batches of one batch in their order."""
        part = batch.part
        if part is None or part.is_whole or batch.codes.device.type != "cpu":
            yield
            return
        if part.micro == 0:
            self._start = torch.get_rng_state()
        elif self._start is not None:
            torch.set_rng_state(self._start)
        with _RowDropout(part):
            yield


class _RowDropout(TorchFunctionMode):
    """Dropout, as such and inside of attention, as the rows of a part get it in their whole batch."""

    def __init__(self, part: Part) -> None:
        super().__init__()
        self._part = part

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Every call of torch passes here."""
        kwargs = kwargs or {}
        if func is functional.dropout:
            return self._drop(*args, **kwargs)
        if func is drop:
            return self._drop_fast(*args, **kwargs)
        if func is functional.scaled_dot_product_attention and kwargs.get("dropout_p") and not kwargs.get("is_causal"):
            return self._attend(*args, **kwargs)
        return func(*args, **kwargs)

    def _drop(self, input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
        if not training or p == 0:
            return input
        return input * self._own(input.new_empty(self._part.n_rows, *input.shape[1:]).bernoulli_(1 - p).div_(1 - p))

    def _drop_fast(self, x: torch.Tensor, p: float) -> torch.Tensor:
        if not 0 < round(p * 65536) < 65536:
            return self._drop(x, p)
        return x * self._own(draw_kept((self._part.n_rows, *x.shape[1:]), p, x.dtype))

    def _own(self, noise: torch.Tensor) -> torch.Tensor:
        # A part without rows has one that counts for nothing.
        return noise[:1] if self._part.is_empty else noise[self._part.start : self._part.stop]

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        """(batch, heads, N, D) each to (batch, heads, N, D), as torch computes it on a CPU where dropout is asked for."""
        logits = query @ key.transpose(-2, -1) * (scale or 1 / math.sqrt(query.shape[-1]))
        if attn_mask is not None:
            logits = logits.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else logits + attn_mask
        return self._drop(logits.softmax(-1), dropout_p) @ value


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
