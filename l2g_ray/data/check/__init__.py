"""The data check: leakage beyond equal sequences, contradictions, balance, shifts and shortcuts."""

from l2g_ray.data.check.part import Part
from l2g_ray.data.check.similar import find_families
from l2g_ray.data.check.splits import check_splits

__all__ = ["Part", "check_splits", "find_families"]
