"""Found by Python at its start when this folder stands in PYTHONPATH: makes stages of a real run go wrong.

L2G_RAY_TEST_FAULTS holds a JSON list of {"stage", "kind": "raise" or "hang", "times", "marks"}: the first `times` calls
of the stage's function in any process go wrong. `marks` is a folder in which the calls are counted; without "times",
all calls for the first job that came go wrong.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

FAULTS = json.loads(os.environ.get("L2G_RAY_TEST_FAULTS", "[]"))
PATCHED = "l2g_ray.stages.registry"


def _claim(path: Path, text: str) -> bool:
    try:
        with path.open("x") as file:
            file.write(text)
    except FileExistsError:
        return path.read_text() == text
    return True


def _is_due(fault: dict[str, Any], work: Path) -> bool:
    marks = Path(fault["marks"])
    if "times" not in fault:
        return _claim(marks / fault["stage"], work.name)
    for number in range(fault["times"]):
        try:
            (marks / f"{fault['stage']}-{number}").open("x").close()
            return True
        except FileExistsError:
            continue
    return False


def _break(fault: dict[str, Any], function: Callable[..., Any]) -> Callable[..., Any]:
    def broken(context: Any, args: dict[str, Any]) -> Any:
        if not _is_due(fault, context.work):
            return function(context, args)
        if fault["kind"] == "raise":
            raise RuntimeError(fault.get("text", "planted fault").format(**os.environ))
        import ctypes

        ctypes.PyDLL(None).sleep(600)  # PyDLL keeps the interpreter locked: no thread of Python runs any more
        raise AssertionError("nobody ended this process")

    return broken


class _Breaker(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != PATCHED:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def execute_broken(module: Any) -> None:
            execute(module)
            load = module.Stage.load
            faults = {fault["stage"]: fault for fault in FAULTS}

            def load_broken(stage: Any) -> Callable[..., Any]:
                function = load(stage)
                return _break(faults[stage.name], function) if stage.name in faults else function

            module.Stage.load = load_broken

        spec.loader.exec_module = execute_broken  # type: ignore[method-assign]
        return spec


if FAULTS:
    sys.meta_path.insert(0, _Breaker())
