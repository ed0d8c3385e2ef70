"""The tables of `l2g-ray plan`: what a run will take, and what one took. Plain numbers come in, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from l2g_ray.results.terminal import Column, Listing


def show_count(value: float) -> str:
    """1,234 below a million, then 1.2 M, G, T, P, E."""
    if value < 1e6:
        return f"{value:,.0f}"
    for factor, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    raise AssertionError


def show_bytes(value: float) -> str:
    """In decimal units, as vendors give them."""
    for factor, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.0f} B"


def show_hours(hours: float) -> str:
    """Hours in the unit that fits: s, min, h or d."""
    if hours >= 48:
        return f"{hours / 24:,.1f} d"
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{hours * 60:.1f} min" if hours * 60 >= 1 else f"{hours * 3600:.1f} s"


def show_seconds(value: float | None) -> str:
    """Seconds as `show_hours`; a dash for what was not written down."""
    return "–" if value is None else show_hours(value / 3600)


def render_plan(title: str, stages: Mapping[str, Mapping[str, Any]], total: Mapping[str, Any]) -> Listing:
    """Stage to {'expected', 'most': amounts, 'hours': (expected, most), 'fits': str}; `total` likewise, without 'fits'."""
    numbers = ("Trials", "Epochs", "Steps", "LM tokens", "FLOP", "Time", "at most", "Memory", "Disk", "Fits")
    listing = Listing([Column("Stage", words=True), *map(Column, numbers)], title=title, sections=[len(stages)])
    for name, stage in {**stages, "total": total}.items():
        expected, most = stage["expected"], stage["most"]
        listing.add(
            name,
            show_count(most["trials"]),
            _both(expected["epochs"], most["epochs"]),
            _both(expected["steps"], most["steps"]),
            show_count(expected["tokens"]),
            show_count(expected["flops"]),
            *(show_hours(hours) for hours in stage["hours"]),
            show_bytes(most["memory_bytes"]),
            show_bytes(most["disk_bytes"]),
            stage.get("fits", ""),
        )
    return listing


def render_spent(title: str, rows: Mapping[str, Mapping[str, Any]]) -> Listing:
    """Stage to 'spent' (trials, epochs, wall_s, cpu_s, gpu_s) and 'planned' (epochs, hours) or None."""
    numbers = ("Trials", "Epochs", "planned", "Wall", "CPU", "GPU", "planned", "took / planned")
    listing = Listing([Column("Stage", words=True), *map(Column, numbers)], title=title)
    for name, row in rows.items():
        spent, planned = row["spent"], row.get("planned")
        hours = None if planned is None else planned["hours"]
        device_s = spent["gpu_s"] or spent["cpu_s"]
        ratio = "" if not hours or device_s is None else f"{device_s / 3600 / hours:.2f}"
        listing.add(
            name,
            show_count(spent["trials"]),
            show_count(spent["epochs"]),
            "" if planned is None else show_count(planned["epochs"]),
            *(show_seconds(spent[column]) for column in ("wall_s", "cpu_s", "gpu_s")),
            "" if hours is None else show_hours(hours),
            ratio,
        )
    return listing


def _both(expected: float, most: float) -> str:
    return show_count(most) if round(expected) >= round(most) else f"{show_count(expected)} ≤ {show_count(most)}"
