"""What benchmarks of whole runs make of their rows."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import model_size, tuning

TASK = "uci/splice_junction"


def row(method: str, scores: list[list[float]]) -> dict[str, Any]:
    return {"task": TASK, "seed": 0, "method": method, "scores": scores, "cpu_s": 1.0}


def test_the_share_of_a_search() -> None:
    random = row("random", [[0.5, 0.6], [0.7, 0.8], [0.75, 0.79]])
    assert tuning.find_share(random, random) == pytest.approx(4 / 6)
    assert tuning.find_share(row("asha", [[0.5], [0.7, 0.796]]), random) == pytest.approx(3 / 6)  # within half a point
    assert tuning.find_share(row("asha", [[0.5], [0.7, 0.79]]), random) is None
    table = {one["method"]: one for one in tuning.summarise([random, row("asha", [[0.5], [0.7, 0.79]])])}
    assert table["random"]["epochs"] == 6
    assert table["asha"]["best"] == 0.79
    assert table["asha"]["reach random's score"] == "0 of 1"


def test_the_front_of_sizes() -> None:
    sizes = {(8, 1): (0.90, 10.0), (16, 1): (0.92, 20.0), (8, 3): (0.89, 15.0), (16, 3): (0.92, 40.0)}
    rows = [
        {"task": TASK, "seed": 0, "tokens": tokens, "layers": layers, "score": score, "cpu_s": cpu_s}
        for (tokens, layers), (score, cpu_s) in sizes.items()
    ]
    front = {(one["tokens"], one["layers"]) for one in model_size.summarise(rows) if one["front"]}
    assert front == {(8, 1), (16, 1)}
