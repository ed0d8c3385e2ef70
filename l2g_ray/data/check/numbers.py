"""Comparisons of two samples of numbers, and numbers as JSON takes them."""

from __future__ import annotations

from typing import Any

import numpy as np

# Kolmogorov-Smirnov statistics from here on are a finding, if chance makes one of a thousand as large at most.
LARGE_KS = 0.1
_ONE_IN_A_THOUSAND = 1.95


def round_off(value: float | None, digits: int = 4) -> float | None:
    """A plain float, or None for an undefined value, which JSON does not have."""
    return None if value is None or not np.isfinite(value) else round(float(value), digits)


def compare_values(one: np.ndarray, other: np.ndarray, large: float = LARGE_KS) -> dict[str, Any]:
    """Two samples (n,) and (m,), NaN left out.

    ks : the largest difference of the cumulative shares, 0 to 1.  effect : the difference of the means (other minus
    one) in pooled standard deviations.  large : the former is at or above a limit and beyond chance. None where a
    sample is empty or, for the effect, all values are equal.
    """
    one, other = (np.sort(values[~np.isnan(values)].astype(float)) for values in (one, other))
    if not len(one) or not len(other):
        return {"ks": None, "effect": None, "large": False}
    points = np.concatenate([one, other])
    shares = [np.searchsorted(values, points, side="right") / len(values) for values in (one, other)]
    ks = float(np.abs(shares[0] - shares[1]).max())
    chance = _ONE_IN_A_THOUSAND * np.sqrt(1 / len(one) + 1 / len(other))
    squares = ((one - one.mean()) ** 2).sum() + ((other - other.mean()) ** 2).sum()
    sd = np.sqrt(squares / max(len(points) - 2, 1))
    effect = (other.mean() - one.mean()) / sd if sd > 0 else None
    return {"ks": round_off(ks), "effect": round_off(effect), "large": bool(ks >= large and ks > chance)}
