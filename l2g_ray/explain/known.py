"""Lists of motifs that are known for a task, and which of them a model has found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from l2g_ray.data.text import open_lines, readable
from l2g_ray.errors import UserError, nearest
from l2g_ray.explain.databases import Match
from l2g_ray.storage import Location


class KnownName(BaseModel):
    """A motif of a list: `names` are what databases call it, its own name by default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    motif: str
    found_by: str = ""
    names: tuple[str, ...] = ()

    def is_called(self, name: str) -> bool:
        """Whether a database's name is one of its own; dimers (`a::b`) by either part, without regard to case."""
        own = {text.lower() for text in self.names or (self.motif,)}
        return bool(own & {name.lower(), *name.lower().split("::")})


class KnownList(BaseModel):
    """Motifs that are known for one output of one task, and where that is said."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str = ""
    output: str = ""
    title: str
    source: str = ""
    motifs: tuple[KnownName, ...] = Field(min_length=1)


@dataclass(frozen=True)
class Comparison:
    """`both`, `only_known` and `only_found`: names of the list found, of the list not found, and of found motifs whose
    best match is none of the list's ('unnamed' where a motif has no match)."""

    title: str
    source: str
    both: list[str]
    only_known: list[str]
    only_found: list[str]


@cache
def shipped_lists() -> tuple[KnownList, ...]:
    """The lists of `known_motifs.yaml`."""
    text = (resources.files("l2g_ray.explain") / "known_motifs.yaml").read_text("utf-8")
    return tuple(KnownList.model_validate(entry) for entry in yaml.safe_load(text))


def find_list(task: str, output: str) -> KnownList | None:
    """The shipped list for an output of the task `bench/name`, if there is one."""
    return next((entry for entry in shipped_lists() if (entry.task, entry.output) == (task, output)), None)


def read_list(name: str) -> KnownList:
    """A list by file (YAML like an entry of `known_motifs.yaml`, or one name a line), or a shipped one by `task:output`.

    Raises UserError for a file that is neither, or an unknown name.
    """
    path = Path(name)
    if not path.is_file():
        shipped = {f"{entry.task}:{entry.output}": entry for entry in shipped_lists()}
        if name not in shipped:
            raise UserError(f"--known '{name}': no such file or shipped list; {nearest(name, shipped)}")
        return shipped[name]
    with readable(str(path)), open_lines(Location(str(path))) as found:
        lines = list(found)
    try:
        content: Any = yaml.safe_load("".join(lines))
        if isinstance(content, str):  # one name a line
            names = [line.strip() for line in lines]
            content = {"title": path.stem, "motifs": [{"motif": line} for line in names if line]}
        return KnownList.model_validate(content)
    except (yaml.YAMLError, ValidationError) as error:
        first = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        reason = " ".join(first.split())[:200]
        raise UserError(f"{path}: no list of motifs ({reason}); give one name a line") from None


def compare(known: KnownList, n_found: int, matches: Sequence[Match]) -> Comparison:
    """Found motifs 0 to n_found - 1, with their significant matches, best first, against a list.

    A motif of the list counts as found where any significant match has one of its names.
    """
    both = [name.motif for name in known.motifs if any(name.is_called(match.target.name) for match in matches)]
    others: list[str] = []
    for query in range(n_found):
        own = [match.target.name for match in matches if match.query == query]
        if not any(name.is_called(match) for name in known.motifs for match in own):
            others.append(own[0] if own else "unnamed")
    only_known = [name.motif for name in known.motifs if name.motif not in both]
    return Comparison(known.title, known.source, both, only_known, list(dict.fromkeys(others)))
