"""How many packages and megabytes the base and each extra take, by the files of an environment that has `.[all]`.

    python scripts/install_sizes.py                       # a row for the base, and what each extra adds: docs/install.md
    python scripts/install_sizes.py --resolved FILE.json  # what pip would install (`pip install --dry-run --report`)

Nothing is installed. PyTorch counts as it is in the environment: with CUDA, several gigabytes more.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# Extras of developers.
NOT_LISTED = ("docs", "dev")


def normalise(name: str) -> str:
    """Return a package's name as an index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def find_packages(requirements: Iterable[str], own: dict[str, list[str]]) -> set[str]:
    """All packages that `requirements` bring, their own requirements included; `own` are the extras of l2g-ray."""
    from packaging.requirements import Requirement

    found: set[str] = set()
    done: set[tuple[str, str]] = set()
    waiting = [(Requirement(one), "") for one in requirements]
    while waiting:
        requirement, of_extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": of_extra}):
            continue
        name = normalise(requirement.name)
        if name == "l2g-ray":
            waiting += [(Requirement(one), "") for extra in requirement.extras for one in own[extra]]
            continue
        found.add(name)
        for extra in ("", *requirement.extras):
            if (name, extra) not in done and is_installed(name):
                done.add((name, extra))
                waiting += [(Requirement(one), extra) for one in metadata.requires(name) or ()]
    return found


def is_installed(name: str) -> bool:
    """Whether this environment has a package."""
    try:
        return bool(metadata.distribution(name))
    except metadata.PackageNotFoundError:
        return False


def measure(name: str) -> int:
    """Bytes of a package's files; 0 for one that is not installed."""
    if not is_installed(name):
        return 0
    paths = [Path(str(file.locate())) for file in metadata.files(name) or ()]
    return sum(path.stat().st_size for path in paths if path.is_file())


def list_rows(project: dict[str, Any]) -> dict[str, set[str]]:
    """Packages of the base, and those that each extra adds to it. `project` is that table of pyproject.toml."""
    own = project["optional-dependencies"]
    base = find_packages(project["dependencies"], own)
    return {"base": base} | {extra: find_packages(own[extra], own) - base for extra in own if extra not in NOT_LISTED}


def list_unpinned(report: dict[str, Any], constraints: str) -> tuple[int, list[str]]:
    """How many packages pip's report has besides l2g-ray, and those that `constraints` does not pin, with their versions."""
    pinned = {normalise(line.partition("==")[0]) for line in constraints.splitlines() if "==" in line}
    chosen = {normalise(one["metadata"]["name"]): one["metadata"]["version"] for one in report["install"]}
    chosen.pop("l2g-ray", None)
    return len(chosen), [f"{name}=={version}" for name, version in sorted(chosen.items()) if name not in pinned]


def main(arguments: list[str] | None = None) -> None:
    """Print the table, or what pip would install."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolved", type=Path, metavar="FILE")
    parser.add_argument("--pyproject", type=Path, default=ROOT / "pyproject.toml", metavar="FILE")
    given = parser.parse_args(arguments)
    if given.resolved:
        constraints = (ROOT / "constraints.txt").read_text()
        count, unpinned = list_unpinned(json.loads(given.resolved.read_text()), constraints)
        python = ".".join(map(str, sys.version_info[:3]))
        print(f"Python {python}: {count} packages; not in constraints.txt: {', '.join(unpinned) or 'none'}")
        return
    rows = list_rows(tomllib.loads(given.pyproject.read_text())["project"])
    print("| install | packages | MB |\n|---|---:|---:|")
    for name, packages in rows.items():
        sign = "" if name == "base" else "+"
        print(f"| {name} | {sign}{len(packages)} | {sign}{sum(map(measure, packages)) / 1e6:,.0f} |")
    if missing := sorted({name for packages in rows.values() for name in packages if not is_installed(name)}):
        print(f"\nNot installed, and counted without size and requirements: {', '.join(missing)}")


if __name__ == "__main__":
    main()
