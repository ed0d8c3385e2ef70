"""What is read is never written over, whatever the spelling of its path."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from l2g_ray.errors import UserError
from l2g_ray.storage import Location, as_location


def refuse_overwrite(sources: Iterable[str | Path | Location | None], targets: Iterable[str | Path | Location]) -> None:
    """Check, before anything is written, that no target is something that is read, nor another target.

    Links, hard links and other spellings are seen through. A target that is a folder is replaced as a whole, so it may not
    hold a source; a source that is a folder may hold no target that exists. Sources that are None are passed over.

    Raises
    ------
    UserError : naming both paths.
    """
    read = [as_location(source) for source in sources if source is not None]
    written: list[Location] = []
    for target in map(as_location, targets):
        for source in read:
            if _is_same(source, target) or _holds(target, source) or (_exists(target) and _holds(source, target)):
                raise UserError(f"{target}: would overwrite {source}, which is read; choose another output")
        if any(_is_same(other, target) for other in written):
            raise UserError(f"{target}: is given as an output twice; choose different outputs")
        written.append(target)


def _is_same(one: Location, other: Location) -> bool:
    if one.is_remote or other.is_remote:
        return one.text.rstrip("/") == other.text.rstrip("/")
    if os.path.exists(one.local) and os.path.exists(other.local):
        return os.path.samefile(one.local, other.local)
    return os.path.realpath(one.local) == os.path.realpath(other.local)


def _holds(folder: Location, inner: Location) -> bool:
    if folder.is_remote or inner.is_remote:
        return inner.text.startswith(f"{folder.text.rstrip('/')}/")
    return Path(os.path.realpath(folder.local)) in Path(os.path.realpath(inner.local)).parents


def _exists(location: Location) -> bool:
    return location.is_remote or os.path.exists(location.local)
