"""The one exception that means "the user can mend this"."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake outside the program: the message says what was wrong, where, and what to do next.

    The command line prints the message without a traceback and exits with code 2.
    """


class ClusterLost(Exception):
    """The Ray cluster went away under a run. The command line prints the message and exits with code 1."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint naming the closest of `known`, or all of them when none is close."""
    options = sorted(known)
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    if close:
        return f"did you mean '{close[0]}'?"
    shown = ", ".join(options[:12]) + (", ..." if len(options) > 12 else "")
    return f"known: {shown}"
