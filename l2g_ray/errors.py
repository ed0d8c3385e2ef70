"""The one exception that means "the user can mend this"."""

from __future__ import annotations

import difflib
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path


class UserError(Exception):
    """A mistake outside the program: the message says what was wrong, where, and what to do next.

    The command line prints the message without a traceback and exits with code 2.
    """


class ClusterLost(Exception):
    """The Ray cluster went away under a run. The command line prints the message and exits with code 1."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint naming the closest of `known`, or all of them when none is close."""
    options = sorted(known)
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{close[0]}'?"
    shown = ", ".join(options[:12]) + (", ..." if len(options) > 12 else "")
    return f"known: {shown}"


def how_to_install(extra: str) -> str:
    """The command that installs one of the package's extras for this Python; the package is on no index.

    From the checkout that the package was installed from, by its path; `.` where that is not known.
    """
    root = Path(__file__).resolve().parents[1]
    checkout = str(root) if (root / "pyproject.toml").is_file() else "."
    return shlex.join([sys.executable, "-m", "pip", "install", "-e", f"{checkout}[{extra}]"])
