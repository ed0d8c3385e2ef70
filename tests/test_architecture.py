"""The house: `docs/architecture.md` has the rooms and what each imports, and the code's own imports are compared with it."""

from __future__ import annotations

import ast
import functools
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE, PAGE = "l2g_ray", ROOT / "docs" / "architecture.md"
# Imported by any room, and importing none but each other.
EVERYWHERE = {"errors", "extras", "names", "atomic"}
MOST_LINES = 450


@functools.cache
def modules() -> dict[str, Path]:
    """Dotted name (without the package's) to file, of every module; a package's `__init__.py` bears the package's name."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, with the package's; inside functions too, but not for type checking alone."""
    tree = ast.parse(path.read_text())
    tree.body = [n for n in tree.body if not (isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner.removeprefix(f"{PACKAGE}.") in modules() else node.module


@functools.cache
def graph() -> dict[str, frozenset[str]]:
    """Which modules of the package each module imports, anywhere in its file."""
    return {
        name: frozenset(
            target.removeprefix(f"{PACKAGE}.")
            for target in imports(path)
            if target.startswith(f"{PACKAGE}.") and target.removeprefix(f"{PACKAGE}.") != name
        )
        for name, path in modules().items()
    }


def room(module: str) -> str:
    """The first part of a module's name: a package, or a module beside them."""
    return module.split(".")[0]


def rooms() -> dict[str, set[str]]:
    """What each room imports of the others, by the code."""
    found: dict[str, set[str]] = {}
    for name, targets in graph().items():
        if name:
            found.setdefault(room(name), set()).update(room(t) for t in targets)
    return {name: targets - {name, ""} for name, targets in found.items()}


def table() -> dict[str, set[str]]:
    """What each room may import, by the page."""
    rows = re.findall(r"^\| `(\w+)/?(?:\.py)?` \|[^|]*\| ([^|]*) \|$", PAGE.read_text(), re.M)
    return {name: set() if text.strip() == "nothing" else set(re.split(r",\s*", text.strip())) for name, text in rows}


def test_the_page_has_every_room_and_what_it_imports() -> None:
    by_code = {name: targets - EVERYWHERE for name, targets in rooms().items()}
    assert table() == by_code


def test_rooms_are_imported_one_way() -> None:
    order = list(graphlib.TopologicalSorter(rooms()).static_order())
    assert order.index("tasks") < order.index("stages") < order.index("orchestrate") < order.index("cli")


def test_no_modules_import_each_other() -> None:
    """Not inside functions either."""
    list(graphlib.TopologicalSorter(graph()).static_order())


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("ray", {"orchestrate", "monitor", "studies"}),
        ("mlflow", {"tracking", "server", "pyfunc"}),
        ("torch", {"models", "stages", "explain", "predict", "sequence", "data", "orchestrate", "studies"}),
        ("click", {"cli"}),
    ],
)
def test_a_library_is_imported_in_its_rooms_only(library: str, allowed: set[str]) -> None:
    users = {room(name) for name, path in modules().items() if library in {t.split(".")[0] for t in imports(path)}}
    assert users <= allowed


def test_only_evaluate_and_embed_open_the_test_split() -> None:
    callers = {name for name, path in modules().items() if re.search(r"\.open_test\(", path.read_text())}
    assert callers == {"stages.evaluate"}


def test_modules_can_be_read_at_once() -> None:
    long = {n: count for n, p in modules().items() if (count := len(p.read_text().splitlines())) > MOST_LINES}
    assert not long
