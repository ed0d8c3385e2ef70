"""Arrow strings to codes, beside a Python loop over characters and beside a bare numpy table look-up.

The bare look-up gets the bytes already joined and gives no rows: one numpy gather, no checks.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.measure import Options, interleave
from l2g_ray.sequence import CODE_TABLE, encode


def run(options: Options) -> list[dict[str, Any]]:
    """Return one row a length: million bases a second of each side, and the two ratios."""
    generator = np.random.default_rng(0)
    n_bases = 200_000 if options.quick else 20_000_000
    sets = {str(width): np.full(n_bases // width, width) for width in (70, 200, 1_000)}
    sets["100 to 800"] = generator.integers(100, 801, n_bases // 450)
    return [{"length bp": name} | _measure(lengths, generator, options.quick) for name, lengths in sets.items()]


def _measure(lengths: np.ndarray, generator: np.random.Generator, quick: bool) -> dict[str, Any]:
    flat = generator.choice(np.frombuffer(b"ACGT", np.uint8), int(lengths.sum()))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    joined = flat.tobytes().decode()
    texts = [joined[a:b] for a, b in pairwise(offsets.tolist())]
    column = pa.array(texts, pa.large_string())
    # The loop is slow: it gets a hundredth of the rows.
    few = texts[: max(1, len(texts) // 100)]
    seconds = interleave(
        {"encode": lambda: encode(column), "look-up": lambda: CODE_TABLE[flat], "loop": lambda: _loop(few)},
        rounds=3 if quick else 7,
    )
    bases = {"encode": len(flat), "look-up": len(flat), "loop": sum(map(len, few))}
    rate = {name: bases[name] / found["median_s"] / 1e6 for name, found in seconds.items()}
    return {
        "encode Mbp/s": rate["encode"],
        "numpy look-up Mbp/s": rate["look-up"],
        "Python loop Mbp/s": rate["loop"],
        "times the loop": rate["encode"] / rate["loop"],
        "look-up / encode": rate["look-up"] / rate["encode"],
    }


_CODES = {"A": 0, "C": 1, "G": 2, "T": 3}


def _loop(texts: list[str]) -> list[np.ndarray]:
    return [np.array([_CODES.get(letter, 4) for letter in text], np.uint8) for text in texts]
