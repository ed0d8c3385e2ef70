"""One split, as the checks see it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from l2g_ray.data.facts import Facts


@dataclass(frozen=True)
class Part:
    """A split of n rows.

    facts : of its rows, in order.
    labels : (n,) integer codes for classification, else (n, C) floats with NaN for a missing value.
    sequences : each call gives the n clean (upper-case DNA) sequences from the beginning, in arrays of any size.
    """

    facts: Facts
    labels: np.ndarray
    sequences: Callable[[], Iterator[pa.Array | pa.ChunkedArray]]

    def __len__(self) -> int:
        return len(self.facts)
