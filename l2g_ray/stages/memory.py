"""How many rows go through a model at once, where memory may not suffice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from l2g_ray.stages.parts import release_memory

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
