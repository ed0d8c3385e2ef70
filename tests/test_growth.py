"""The slopes of `python -m benchmarks growth`, on laws that are known."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from benchmarks.__main__ import list_benchmarks
from benchmarks.growth import MIB, SECONDS, Measured, fit_growth, fit_line, plot
from benchmarks.growth_work import SERIES

SIZES = (100, 200, 400, 800, 1_600)


@pytest.mark.parametrize("power", [-0.5, 0.0, 1.0, 2.0])
def test_a_power_law_is_found(power: float) -> None:
    assert fit_line(SIZES, [3 * size**power for size in SIZES]) == pytest.approx((power, 3))
    growth = fit_growth({size: 3 * size**power for size in SIZES})
    assert growth is not None
    assert (growth.slope, growth.first, growth.fitted) == (pytest.approx(power, abs=1e-9), 100, "all 5")


def test_a_fixed_cost_is_left_to_the_small_sizes() -> None:
    growth = fit_growth({size: 500 + size**1.5 for size in (1, 10, 100, 1_000, 10_000)})
    assert growth is not None
    assert (growth.first, growth.fitted) == (100, "upper 3 of 5")
    assert growth.slope == pytest.approx(1.41, abs=0.01)
    even = fit_growth({1: 1.0, 2: 1.0, 4: 1.0, 8: 2.0})
    assert even is not None
    assert (even.slope, even.first, even.fitted) == (pytest.approx(1), 4, "upper 2 of 4")


def test_one_size_has_no_slope() -> None:
    assert fit_growth({100: 1.0}) is None


def test_growth_is_a_benchmark_and_its_work_is_not() -> None:
    assert "growth" in list_benchmarks()
    assert "growth_work" not in list_benchmarks()
    for series in SERIES.values():
        assert len(series.sizes) >= 4
        assert all(2 * one == other for one, other in zip(series.sizes, series.sizes[1:], strict=False))
        assert series.warm < series.sizes[0]


def test_the_figure_writes_each_slope_beside_its_line(tmp_path: Path) -> None:
    measured = []
    for i, (unit, power) in enumerate([(SECONDS, 1.0), (SECONDS, 1.5), (MIB, 2.0)]):
        values = {size: float(size) ** power for size in SIZES}
        measured.append(Measured(f"work {i}", "rows", unit, values, fit_growth(values)))
    plot([*measured, Measured("none", "slots", SECONDS, {1: 1.0, 2: 1.0}, None)], tmp_path / "growth")
    texts = {text.strip() for text in ElementTree.parse(tmp_path / "growth.svg").getroot().itertext()}
    assert {"1.00", "1.50", "2.00", "rows", "slots", "work 0", "work 1"} <= texts
    assert (tmp_path / "growth.png").stat().st_size > 10_000
