"""People's names of classes, outputs and sequences as names of files, folders, fields and metrics."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

FILE_CHARACTERS = "A-Za-z0-9._-"  # as inside of [] in a regular expression
MOST_CHARACTERS = 100
_HASH_CHARACTERS = 6


def clean(name: str, characters: str = FILE_CHARACTERS, otherwise: str = "unnamed") -> str:
    """Return a name of some characters only, each run of others being '_'; two names may become one. See
    `safe_names`.
    """
    return re.sub(f"[^{characters}]+", "_", name, flags=re.ASCII).lstrip("._-")[:MOST_CHARACTERS] or otherwise


def safe_names(names: Iterable[str], characters: str = FILE_CHARACTERS, otherwise: str = "unnamed") -> list[str]:
    """Return names for a set of things that belong together: of `characters` only, and all different.

    A name that is safe stays as it is. Of the others, one that would be another's name, in whatever case, gets a number.
    """
    names = list(names)
    kept = {name for name in names if _is_safe(name, characters, MOST_CHARACTERS)}
    taken = {name.casefold() for name in kept}
    found = []
    for name in names:
        if name in kept:
            kept.remove(name)
            found.append(name)
            continue
        base = candidate = clean(name, characters, otherwise)
        number = 1
        while candidate.casefold() in taken:
            number += 1
            candidate = f"{base}_{number}"
        taken.add(candidate.casefold())
        found.append(candidate)
    return found


def safe_name(
    name: str, characters: str = FILE_CHARACTERS, otherwise: str = "unnamed", most: int = MOST_CHARACTERS
) -> str:
    """Return a name for one thing whose neighbours are not known: itself where it is safe, else with a hash of the
    whole name.
    """
    if _is_safe(name, characters, most):
        return name
    mark = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:_HASH_CHARACTERS]
    return f"{clean(name, characters, otherwise)[: most - len(mark) - 1]}-{mark}"


def _is_safe(name: str, characters: str, most: int) -> bool:
    fits = re.fullmatch(f"[{characters}]+", name, flags=re.ASCII) is not None
    return fits and not name.startswith(".") and len(name) <= most
